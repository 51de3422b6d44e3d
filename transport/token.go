package transport

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"regexp"
	"strings"
)

// tokenVersion opens every token. Another format will have another version.
const tokenVersion = "pontoon1"

// ErrTokenFormat is wrapped by every error of ParseToken.
var ErrTokenFormat = errors.New("not a valid join token")

var (
	tokenIDPattern   = regexp.MustCompile(`^[a-z2-7]{13}$`)
	tokenRolePattern = regexp.MustCompile(`^[a-z]{1,16}$`)
)

// Token lets one new node join a cluster. It carries what the joiner needs to
// know the cluster (the hash of its CA) and what the cluster needs to know the
// joiner (the secret, of which the cluster stores only a hash).
type Token struct {
	ID     string   // 13 characters of base32, public: names the token in lists and logs
	Role   string   // what the joiner will be, in the caller's words ("lb", "witness")
	CAHash [32]byte // SHA-256 of the CA's certificate (DER)
	Secret [32]byte // random; who knows it may join
}

// NewToken makes a token with a fresh id and secret for the cluster whose CA
// certificate (DER) is given. The role is one word of lower-case letters.
func NewToken(role string, caDER []byte) (Token, error) {
	if !tokenRolePattern.MatchString(role) {
		return Token{}, fmt.Errorf("make token: role %q is not a lower-case word", role)
	}
	if _, err := parseCACertificate(caDER); err != nil {
		return Token{}, fmt.Errorf("make token: %w", err)
	}
	t := Token{Role: role, CAHash: sha256.Sum256(caDER)}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return Token{}, fmt.Errorf("make token id: %w", err)
	}
	if _, err := rand.Read(t.Secret[:]); err != nil {
		return Token{}, fmt.Errorf("make token secret: %w", err)
	}
	t.ID = strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(id[:]))
	return t, nil
}

// String returns the token as one URL-safe line:
//
//	pontoon1.ID.ROLE.BASE64URL(CA hash, secret).CHECKSUM
//
// The checksum (CRC-32 of all before it, in hexadecimal) finds typing errors
// before anything is sent. The line is a secret.
func (t Token) String() string {
	secret := base64.RawURLEncoding.EncodeToString(append(t.CAHash[:], t.Secret[:]...))
	body := strings.Join([]string{tokenVersion, t.ID, t.Role, secret}, ".")
	return body + "." + tokenChecksum(body)
}

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value {
	return slog.GroupValue(slog.String("id", t.ID), slog.String("role", t.Role))
}

// SecretHash returns SHA-256 of the secret: what the cluster stores and compares.
// A plain hash is enough, the secret being 256 random bits.
func (t Token) SecretHash() []byte {
	h := sha256.Sum256(t.Secret[:])
	return h[:]
}

// ParseToken reads a token as String writes it; blanks around it are ignored.
// Errors wrap ErrTokenFormat, say what is wrong and never repeat the secret.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	parts := strings.Split(s, ".")
	switch {
	case !strings.HasPrefix(s, "pontoon"):
		return Token{}, fmt.Errorf("%w: it does not begin with %q", ErrTokenFormat, tokenVersion+".")
	case parts[0] != tokenVersion:
		return Token{}, fmt.Errorf("%w: this version of Pontoon reads only tokens that begin with %q", ErrTokenFormat, tokenVersion+".")
	case len(parts) != 5:
		return Token{}, fmt.Errorf("%w: it has %d parts where 5 are needed; copy the whole line", ErrTokenFormat, len(parts))
	}
	if body := s[:strings.LastIndexByte(s, '.')]; tokenChecksum(body) != parts[4] {
		return Token{}, fmt.Errorf("%w: its checksum is wrong, so a character is missing or mistyped; copy the whole line", ErrTokenFormat)
	}
	t := Token{ID: parts[1], Role: parts[2]}
	if !tokenIDPattern.MatchString(t.ID) {
		return Token{}, fmt.Errorf("%w: its id is malformed", ErrTokenFormat)
	}
	if !tokenRolePattern.MatchString(t.Role) {
		return Token{}, fmt.Errorf("%w: its role is malformed", ErrTokenFormat)
	}
	// Strict: two spellings of one token would make a comparison of lines lie.
	raw, err := base64.RawURLEncoding.Strict().DecodeString(parts[3])
	if err != nil || len(raw) != len(t.CAHash)+len(t.Secret) || strings.ContainsAny(parts[3], "\r\n") {
		return Token{}, fmt.Errorf("%w: its secret part is malformed", ErrTokenFormat)
	}
	copy(t.CAHash[:], raw)
	copy(t.Secret[:], raw[len(t.CAHash):])
	return t, nil
}

func tokenChecksum(body string) string {
	return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(body)))
}
