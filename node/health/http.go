package health

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxHead is how many bytes the head of an answer may have.
const maxHead = 16 << 10

// maxAnswer is how much of an answer is read: head, body, and what chunks of a body may cost.
const maxAnswer = maxHead + 2*maxBody

// httpRequest is the whole request of an HTTP/1.1 probe (RFC 9112).
func httpRequest(p Probe, addr netip.AddrPort) []byte {
	host := cmp.Or(p.Host, hostOf(p, addr))
	var b strings.Builder
	b.WriteString(p.Method + " " + p.Path + " HTTP/1.1\r\nHost: " + host + "\r\n" +
		"User-Agent: pontoon-health\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n")
	if p.Method == http.MethodPost || p.Method == http.MethodPut || p.Method == http.MethodPatch {
		b.WriteString("Content-Length: 0\r\n")
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

// hostOf is the address as it stands in a URL.
func hostOf(p Probe, addr netip.AddrPort) string {
	usual := uint16(80)
	if p.Type == TypeHTTPS {
		usual = 443
	}
	if addr.Port() != usual {
		return netip.AddrPortFrom(addr.Addr().WithZone(""), addr.Port()).String()
	}
	if addr.Addr().Is6() {
		return "[" + addr.Addr().WithZone("").String() + "]"
	}
	return addr.Addr().String()
}

// wanted is what an answer must be like.
type wanted struct {
	method string
	expect *statuses
	body   string
}

func (c *check) wanted() wanted {
	if c.prepared.request == nil {
		c.prepared.request = httpRequest(c.probe, c.addr)
		c.prepared.expect, _ = parseStatuses(c.probe.Expect) // Validate has read it
	}
	return wanted{method: c.probe.Method, expect: &c.prepared.expect, body: c.probe.Body}
}

// judge looks at what has come of an answer so far; ended: no more will. Not over: more is needed.
func (w wanted) judge(b []byte, ended bool) (out outcome, over bool) {
	incomplete := func() (outcome, bool) {
		switch {
		case ended && len(b) == 0:
			return failed("connection closed before an answer"), true
		case ended:
			return failed("connection closed within the answer"), true
		}
		return outcome{}, false
	}
	for {
		end := bytes.IndexByte(b, '\n')
		if end < 0 && len(b) > maxHead {
			return failed("the answer is not HTTP"), true
		}
		if !looksLikeHTTP(b) {
			return failed("the answer is not HTTP"), true
		}
		if end < 0 {
			return incomplete()
		}
		status, ok := statusOf(b[:end])
		if !ok {
			return failed("the answer is not HTTP"), true
		}
		if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
			next := headEnd(b) // an interim answer: the real one follows
			if next < 0 && len(b) > maxHead {
				return failed("the head of the answer is longer than %d bytes", maxHead), true
			}
			if next < 0 {
				return incomplete()
			}
			b = b[next:]
			continue
		}
		if !w.expect.has(status) {
			return failed("status %d, want %s", status, w.expect.text), true
		}
		if w.body == "" {
			return pass, true
		}
		return w.judgeBody(b, ended)
	}
}

// looksLikeHTTP tells whether b may become the beginning of an answer.
func looksLikeHTTP(b []byte) bool {
	const begin = "HTTP/1."
	n := min(len(b), len(begin))
	return string(b[:n]) == begin[:n]
}

// statusOf reads a status line.
func statusOf(line []byte) (int, bool) {
	const at = len("HTTP/1.1 ")
	if len(line) < at+3 || line[at-1] != ' ' {
		return 0, false
	}
	status, err := strconv.Atoi(string(line[at : at+3]))
	return status, err == nil && status >= 100
}

// headEnd is where a head is over; -1: not yet.
func headEnd(b []byte) int {
	if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
		return i + 4
	}
	return -1
}

// judgeBody looks for the wanted text.
func (w wanted) judgeBody(b []byte, ended bool) (outcome, bool) {
	missing := failed("the answer does not contain %q", w.body)
	if headEnd(b) < 0 && !ended {
		if len(b) > maxHead {
			return failed("the head of the answer is longer than %d bytes", maxHead), true
		}
		return outcome{}, false
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), &http.Request{Method: w.method})
	if err != nil {
		return failed("the answer is not HTTP: %v", err), true
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	_ = resp.Body.Close() // reads from memory
	switch {
	case bytes.Contains(body, []byte(w.body)):
		return pass, true
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return failed("the answer is not HTTP: %v", err), true
	case len(body) >= maxBody || ended:
		return missing, true
	}
	untilClose := resp.ContentLength < 0 && len(resp.TransferEncoding) == 0
	if err == nil && !untilClose {
		return missing, true
	}
	return outcome{}, false
}

// httpKind sends a request without TLS.
type httpKind struct{}

func (httpKind) begin(l *loop, o *op) (outcome, bool) {
	o.check.wanted()
	o.rest = o.check.prepared.request
	if err := l.dial(o, unix.SOCK_STREAM, unix.EPOLLOUT|unix.EPOLLIN|unix.EPOLLRDHUP); err != nil {
		return o.judge(err), true
	}
	return outcome{}, false
}

func (httpKind) ready(l *loop, o *op, events uint32) (outcome, bool) {
	if o.stage == stageBegun {
		if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
			return outcome{}, false
		}
		if err := o.connected(events); err != nil {
			return o.judge(err), true
		}
		o.stage = stageConnected
	}
	for len(o.rest) > 0 {
		n, err := unix.Write(o.fd, o.rest)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			return o.judge(err), true
		}
		o.rest = o.rest[n:]
	}
	return o.readHTTP(l)
}

// readHTTP takes in what has come. What decides the probe at once is not even kept.
func (o *op) readHTTP(l *loop) (outcome, bool) {
	ended := false
	for !ended && len(o.read) < maxAnswer {
		n, err := unix.Read(o.fd, l.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return o.judge(err), true
		}
		ended = n == 0
		if len(o.read) == 0 {
			if out, over := o.check.wanted().judge(l.buf[:n], ended); over {
				return out, true
			}
		}
		o.read = append(o.read, l.buf[:n]...)
	}
	if len(o.read) == 0 {
		return outcome{}, false
	}
	return o.check.wanted().judge(o.read, ended || len(o.read) >= maxAnswer)
}

func (httpKind) late(_ *loop, o *op) (outcome, bool) { return o.noAnswer(), true }

// httpsKind sends a request through TLS, by a helper.
type httpsKind struct{}

func (httpsKind) begin(l *loop, o *op) (outcome, bool) {
	c, w := o.check, o.check.wanted()
	config := c.tlsConfig("http/1.1")
	request, may := c.prepared.request, l.ports
	l.helpers.hand(job{op: o, do: func(ctx context.Context) outcome {
		conn, err := c.dialHelper(ctx, may)
		if err != nil {
			return c.judge(err)
		}
		defer conn.Close()
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return c.tlsWords(err)
		}
		if _, err := secured.Write(request); err != nil {
			return c.tlsWords(err)
		}
		return c.readAnswer(secured, w)
	}})
	return outcome{}, false
}

func (httpsKind) ready(*loop, *op, uint32) (outcome, bool) { return outcome{}, false }
func (httpsKind) late(*loop, *op) (outcome, bool)          { return outcome{}, false }

// readAnswer reads until the answer is judged.
func (c *check) readAnswer(r io.Reader, w wanted) outcome {
	var read []byte
	part := make([]byte, 4<<10)
	for {
		n, err := r.Read(part)
		read = append(read, part[:n]...)
		ended := errors.Is(err, io.EOF) || len(read) >= maxAnswer
		if n > 0 || ended {
			if out, over := w.judge(read, ended); over {
				return out
			}
		}
		if err != nil {
			return c.tlsWords(err)
		}
	}
}
