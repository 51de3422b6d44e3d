package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"pontoon/web"
)

// apiTokenFile holds what a client of api.listen must show: on loopback for
// writes, elsewhere for everything. It is made at the first start.
const apiTokenFile = "api.token"

// server is one listener of the HTTP API.
type server struct {
	l      net.Listener
	h      http.Handler
	logger *slog.Logger
}

// openServers opens the control socket and api.listen; nothing stays open on an error.
func (d *daemon) openServers() ([]server, error) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &metrics{d})
	handler := func(a web.Access) (http.Handler, error) {
		return web.NewHandler(web.Config{Backend: d, Ops: d, Access: a, Version: d.opts.Version, Registry: reg, Logger: d.logger})
	}
	full, err := handler(web.Access{Level: web.AccessFull})
	if err != nil {
		return nil, err
	}
	sock, err := listenUnix(d.cfg.SocketPath())
	if err != nil {
		return nil, err
	}
	out := []server{{sock, full, d.logger}}
	if d.cfg.API.Listen == "none" {
		return out, nil
	}
	l, access, err := d.listenAPI()
	if err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	h, err := handler(access)
	if err != nil {
		return nil, errors.Join(err, sock.Close(), l.Close())
	}
	return append(out, server{l, h, d.logger}), nil
}

// listenUnix opens the control socket, 0660 and root's. The data directory's
// lock says that no other daemon of this configuration runs, so a socket that
// is there and silent is left over.
func listenUnix(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("another daemon answers on %s: stop it, or name another --run-dir", path), c.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of control socket: %w", err), l.Close())
	}
	return l, nil
}

// listenAPI opens api.listen: plain on loopback, TLS with the node's own
// certificate elsewhere.
func (d *daemon) listenAPI() (net.Listener, web.Access, error) {
	token, err := apiToken(d.cfg.DataDir)
	if err != nil {
		return nil, web.Access{}, err
	}
	l, err := net.Listen("tcp", d.cfg.API.Listen)
	if err != nil {
		return nil, web.Access{}, fmt.Errorf("open api.listen %s: %w", d.cfg.API.Listen, err)
	}
	ap, err := netip.ParseAddrPort(d.cfg.API.Listen)
	if err == nil && ap.Addr().IsLoopback() {
		return l, web.Access{Level: web.AccessLocal, Token: token}, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		m, err := d.current()
		if err != nil {
			return nil, err
		}
		c := m.id.TLSCertificate()
		return &c, nil
	}}
	return tls.NewListener(l, conf), web.Access{Level: web.AccessRemote, Token: token}, nil
}

// apiToken reads the token of the HTTP API, or makes it.
func apiToken(dataDir string) (string, error) {
	path := filepath.Join(dataDir, apiTokenFile)
	b, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(b))) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read api token: %w", err)
	}
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("draw api token: %w", err)
	}
	token := base64.RawURLEncoding.EncodeToString(raw)
	if err := renameio.WriteFile(path, []byte(token+"\n"), 0o600, renameio.WithTempDir(filepath.Dir(path))); err != nil {
		return "", fmt.Errorf("save api token: %w", err)
	}
	return token, nil
}

// run serves until ctx ends, then lets running requests finish for a moment.
func (s server) run(ctx context.Context) error {
	srv := &http.Server{
		Handler:           s.h,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(s.l)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", s.l.Addr(), err)
}
