package web

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"
)

// AccessLevel says over what a handler is served, and so whom it may believe.
type AccessLevel int

// The levels of access. The zero value is none of them.
const (
	// AccessFull is for callers the socket has already let in: the Unix socket
	// (file permissions) and the mutual TLS port between nodes. No token.
	AccessFull AccessLevel = iota + 1

	// AccessLocal is for plain HTTP on loopback: anyone on the machine may
	// look, a write needs the token. The Host header must name loopback, so
	// that a page from elsewhere cannot reach it by rebinding its name (DNS
	// rebinding).
	AccessLocal

	// AccessRemote is for HTTPS on any address: everything but /healthz and
	// /readyz needs the token.
	AccessRemote
)

// Access is what a handler asks of its callers.
type Access struct {
	Level AccessLevel

	// Token is the API token. AccessRemote needs one; with AccessLocal and no
	// token nothing can be written; AccessFull ignores it.
	Token string
}

// Validate tells what is wrong with a.
func (a Access) Validate() error {
	switch a.Level {
	case AccessFull, AccessLocal:
		return nil
	case AccessRemote:
		if a.Token == "" {
			return errors.New("access: remote access needs a token")
		}
		return nil
	default:
		return fmt.Errorf("access: unknown level %d", a.Level)
	}
}

// The limits on one request. See the package documentation.
const (
	maxBody      = 1 << 20
	bodyTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	opsTimeout   = 5 * time.Minute
)

// opsPrefix is where this node's own membership is changed; never from afar.
const opsPrefix = "/v1/cluster/"

// contentPolicy lets the page load nothing but its own files.
const contentPolicy = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"

// guard lets through what a's level allows, with a body read and bounded and
// the security headers set.
func guard(a Access, next http.Handler) http.Handler {
	cross := http.NewCrossOriginProtection()
	token := sha256.Sum256([]byte(a.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secure(w.Header())
		if p := refuse(a, token, cross, r); p != nil {
			if p.Status == http.StatusUnauthorized {
				w.Header().Add("WWW-Authenticate", `Basic realm="Pontoon, the password is the API token", charset="UTF-8"`)
				w.Header().Add("WWW-Authenticate", "Bearer")
			}
			p.write(w)
			return
		}
		rc := http.NewResponseController(w)
		if p := readBody(rc, r); p != nil {
			p.write(w)
			return
		}
		limit := writeTimeout
		if strings.HasPrefix(r.URL.Path, opsPrefix) {
			limit = opsTimeout
		}
		_ = rc.SetWriteDeadline(time.Now().Add(limit)) // not every ResponseWriter has one
		next.ServeHTTP(w, r)
	})
}

// refuse decides about a request by its head alone.
func refuse(a Access, token [sha256.Size]byte, cross *http.CrossOriginProtection, r *http.Request) *Problem {
	if a.Level == AccessLocal && !loopbackHost(r.Host) {
		return statusProblem(http.StatusMisdirectedRequest,
			fmt.Sprintf("host %q is not this machine's loopback: use localhost or 127.0.0.1", r.Host))
	}
	if err := cross.Check(r); err != nil {
		return statusProblem(http.StatusForbidden, "a page from elsewhere may not change anything here")
	}
	if a.Level != AccessFull && strings.HasPrefix(r.URL.Path, opsPrefix) {
		return statusProblem(http.StatusForbidden,
			"a node is made, joined and left on the node itself: use the `pontoon` command there, or its socket")
	}
	if !needsToken(a.Level, r) || tokenMatches(a, token, r) {
		return nil
	}
	if a.Token == "" {
		return statusProblem(http.StatusForbidden, "read-only: this address has no API token; use the `pontoon` command or its socket")
	}
	return statusProblem(http.StatusUnauthorized,
		"an API token is needed: send it as `Authorization: Bearer TOKEN`, or as the password of HTTP Basic")
}

// needsToken tells whether the level asks for a token here.
func needsToken(level AccessLevel, r *http.Request) bool {
	reading := (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.URL.Path != tracePath
	switch level {
	case AccessFull:
		return false
	case AccessLocal:
		return !reading
	default:
		return !reading || (r.URL.Path != "/healthz" && r.URL.Path != "/readyz")
	}
}

// tokenMatches compares hashes, so that time tells neither content nor length.
func tokenMatches(a Access, want [sha256.Size]byte, r *http.Request) bool {
	if a.Token == "" {
		return false
	}
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		if _, given, ok = r.BasicAuth(); !ok {
			return false
		}
	}
	have := sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(have[:], want[:]) == 1
}

// loopbackHost tells whether a Host header names this machine to itself.
func loopbackHost(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if addr, err := netip.ParseAddr(name); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return strings.EqualFold(strings.TrimSuffix(name, "."), "localhost")
}

// readBody takes the whole body in, bounded in size and time. It is done here
// and not in the API framework, whose read deadline would outlast the body and
// cut off a slow answer's request.
func readBody(rc *http.ResponseController, r *http.Request) *Problem {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // not every ResponseWriter has one
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	_ = rc.SetReadDeadline(time.Time{})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return statusProblem(http.StatusRequestTimeout, fmt.Sprintf("the request's body did not arrive within %s", bodyTimeout))
	case err != nil:
		return statusProblem(http.StatusBadRequest, "the request's body could not be read: "+oneLine(err.Error()))
	case len(body) > maxBody:
		return statusProblem(http.StatusRequestEntityTooLarge, fmt.Sprintf("the request's body is larger than %d bytes", maxBody))
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	return nil
}

// secure sets what every answer carries.
func secure(h http.Header) {
	h.Set("Content-Security-Policy", contentPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}
