package transport

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
)

func newTestToken(t testing.TB, role string) Token {
	t.Helper()
	ca, err := NewCA("test-cluster")
	if err != nil {
		t.Fatal(err)
	}
	tok, err := NewToken(role, ca.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestTokenSurvivesTheCommandLine(t *testing.T) {
	tok := newTestToken(t, "witness")
	s := tok.String()
	if url.QueryEscape(s) != s || strings.ContainsAny(s, " \n'\"$") {
		t.Errorf("token %q is not URL-safe", s)
	}
	got, err := ParseToken(" " + s + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if got != tok {
		t.Errorf("got %+v, want %+v", got, tok)
	}
	want := sha256.Sum256(tok.Secret[:])
	if !bytes.Equal(got.SecretHash(), want[:]) {
		t.Error("the secret's hash is not SHA-256 of the secret")
	}
}

func TestTokensAreDistinct(t *testing.T) {
	a, b := newTestToken(t, "lb"), newTestToken(t, "lb")
	if a.ID == b.ID || a.Secret == b.Secret {
		t.Error("two tokens share id or secret")
	}
}

func TestTokenWithAnyTypingErrorIsRefused(t *testing.T) {
	s := newTestToken(t, "lb").String()
	for i := range s {
		swapped := byte('x')
		if s[i] == 'x' {
			swapped = 'y'
		}
		for what, typo := range map[string]string{
			"changed": s[:i] + string(swapped) + s[i+1:],
			"missing": s[:i] + s[i+1:],
			"doubled": s[:i+1] + s[i:],
		} {
			if typo == s {
				continue
			}
			tok, err := ParseToken(typo)
			if !errors.Is(err, ErrTokenFormat) {
				t.Fatalf("with character %d %s the token reads as %+v, error %v", i, what, tok, err)
			}
		}
	}
}

func TestTokenErrorsSayWhatIsWrong(t *testing.T) {
	s := newTestToken(t, "lb").String()
	parts := strings.Split(s, ".")
	resum := func(p ...string) string {
		body := strings.Join(p, ".")
		return body + "." + tokenChecksum(body)
	}
	tests := []struct{ in, want string }{
		{"", "does not begin"},
		{"hello", "does not begin"},
		{strings.Replace(s, "pontoon1", "pontoon2", 1), "this version of Pontoon"},
		{s[:len(s)-12], "5 are needed"},
		{s[:len(s)-3], "checksum"},
		{resum(parts[0], "UPPER", parts[2], parts[3]), "id"},
		{resum(parts[0], parts[1], "LB", parts[3]), "role"},
		{resum(parts[0], parts[1], parts[2], parts[3][:20]), "secret part"},
		{resum(parts[0], parts[1], parts[2], parts[3]+"\n"), "secret part"},
	}
	for _, tt := range tests {
		_, err := ParseToken(tt.in)
		if !errors.Is(err, ErrTokenFormat) {
			t.Errorf("error of %q is %v", tt.in, err)
		}
		wantError(t, err, tt.want)
		if strings.Contains(err.Error(), parts[3][:20]) {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
}

func TestTokenSecretStaysOutOfLogs(t *testing.T) {
	tok := newTestToken(t, "lb")
	var buf bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&buf, nil), slog.NewJSONHandler(&buf, nil)} {
		slog.New(h).Info("made", "token", tok)
	}
	if secret := strings.Split(tok.String(), ".")[3]; strings.Contains(buf.String(), secret) || !strings.Contains(buf.String(), tok.ID) {
		t.Errorf("log line is %s", buf.String())
	}
	if strings.Contains(buf.String(), fmt.Sprint(tok.Secret[:4])[1:8]) {
		t.Errorf("log line holds the secret's bytes: %s", buf.String())
	}
}

func TestNewTokenRefusesBadInput(t *testing.T) {
	ca := newTestCA(t)
	_, err := NewToken("L B", ca.Certificate())
	wantError(t, err, "role")
	_, err = NewToken("lb", []byte("x"))
	wantError(t, err, "CA certificate")
}

func FuzzParseToken(f *testing.F) {
	f.Add(newTestToken(f, "lb").String())
	f.Add("pontoon1.aaaaaaaaaaaaa.lb..00000000")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrTokenFormat) {
				t.Fatalf("error %v is not ErrTokenFormat", err)
			}
			return
		}
		if tok.String() != strings.TrimSpace(s) {
			t.Fatalf("%q reads as a token that prints %q", s, tok)
		}
	})
}
