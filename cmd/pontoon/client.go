package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

const (
	defaultSocket = "/run/pontoon/pontoon.sock"
	// callTimeout bounds one call of the API. A commit takes milliseconds; an
	// election while it waits, a second or two.
	callTimeout = 30 * time.Second
	// clusterTimeout bounds init, join and leave, which hand over, drain and
	// wait for other machines.
	clusterTimeout = 3 * time.Minute
	// maxAnswer bounds the answer we are ready to hold: the 100,000 flows one
	// answer may list are about 30 MB of JSON.
	maxAnswer = 256 << 20
)

// connFlags say which daemon to talk to.
type connFlags struct {
	socket string
	server string
	token  string
	ca     string
}

func (c *connFlags) addTo(fs *pflag.FlagSet, getenv func(string) string) {
	socket := defaultSocket
	if s := getenv("PONTOON_SOCKET"); s != "" {
		socket = s
	}
	fs.StringVar(&c.socket, "socket", socket, "`path` of the daemon's Unix socket (or PONTOON_SOCKET)")
	fs.StringVar(&c.server, "server", "", "`url` of a node's API to use instead of the socket, like https://192.168.80.11:7480")
	fs.StringVar(&c.token, "token", "", "API token for --server (better: PONTOON_API_TOKEN, which no process list shows)")
	fs.StringVar(&c.ca, "ca", "", "PEM `file` with the CA that signed the server's certificate (default: the system's CAs)")
}

// api is a client of one daemon. It is safe for concurrent use.
type api struct {
	http  *http.Client
	base  string // without a trailing slash
	token string
	where string // as errors name it: a path or a URL
	unix  bool
}

// api returns the client the connection flags ask for.
func (a *app) api() (*api, error) {
	if a.conn.server == "" {
		if a.conn.ca != "" {
			return nil, usagef("--ca is for --server: the Unix socket needs no certificate")
		}
		return unixAPI(a.conn.socket), nil
	}
	token := a.conn.token
	if token == "" {
		token = a.getenv("PONTOON_API_TOKEN")
	}
	return serverAPI(a.conn.server, token, a.conn.ca)
}

func unixAPI(socket string) *api {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
	}
	return &api{http: &http.Client{Transport: transport}, base: "http://localhost", where: socket, unix: true}
}

func serverAPI(server, token, caFile string) (*api, error) {
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, usagef("--server %q: want a URL like https://192.168.80.11:7480", server)
	}
	if u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return nil, usagef("--server %q: want https, for plain HTTP would show the token to the network", server)
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS13}
	if caFile != "" {
		pem, err := os.ReadFile(caFile) //nolint:gosec // the operator names the file
		if err != nil {
			return nil, fmt.Errorf("read --ca: %w", err)
		}
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read --ca %s: no PEM certificate in it", caFile)
		}
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     tlsConfig,
		TLSHandshakeTimeout: 10 * time.Second,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		ForceAttemptHTTP2:   true,
	}
	client := &http.Client{
		Transport: transport,
		// A redirect would carry the token to wherever it points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	base := strings.TrimRight(u.Scheme+"://"+u.Host+u.Path, "/")
	return &api{http: client, base: base, token: token, where: base}, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// get makes one call and returns the body of the answer.
func (c *api) get(ctx context.Context, path string) ([]byte, error) {
	return c.call(ctx, http.MethodGet, path, nil, callTimeout)
}

func (c *api) call(ctx context.Context, method, path string, body any, timeout time.Duration) ([]byte, error) {
	answer, _, err := c.exchange(ctx, method, path, body, timeout, nil)
	return answer, err
}

// exchange makes one call, with the headers given, and returns the body and the header of the answer.
func (c *api) exchange(ctx context.Context, method, path string, body any, timeout time.Duration, header http.Header) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout,
		fmt.Errorf("%s did not answer within %s", c.where, timeout))
	defer cancel()
	resp, err := c.send(ctx, method, path, body, "application/json", header)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read to its end, or given up
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, nil, c.explain(ctx, err)
	}
	return answer, resp.Header, nil
}

// send makes the call and returns the open answer; a status of 300 or more is
// an error already.
func (c *api) send(ctx context.Context, method, path string, body any, accept string, header http.Header) (*http.Response, error) {
	var payload io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		payload = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, payload)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	maps.Copy(req.Header, header)
	req.Header.Set("Accept", accept)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		defer func() { _ = resp.Body.Close() }()
		return nil, c.refusal(resp)
	}
	return resp, nil
}

// decode reads a JSON answer.
func decode(answer []byte, into any) error {
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("read the daemon's answer: %w (is it another version than this command?)", err)
	}
	return nil
}
