package health

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// grpcStream is the only stream of a connection.
const grpcStream = 1

// maxMessage is how long an answer may be: a health answer has two bytes.
const maxMessage = 4 << 10

// servingWords are the states of grpc.health.v1.HealthCheckResponse that are not SERVING.
var servingWords = map[uint64]string{0: "says UNKNOWN", 2: "says NOT_SERVING", 3: "does not know the service"}

const serving = 1

// grpcKind asks grpc.health.v1.Health/Check, by a helper.
type grpcKind struct{}

func (grpcKind) begin(l *loop, o *op) (outcome, bool) {
	c := o.check
	var config *tls.Config
	if c.probe.TLS {
		config = c.tlsConfig("h2")
	}
	if c.prepared.request == nil {
		c.prepared.request = grpcRequest(c)
	}
	request, may := c.prepared.request, l.ports
	l.helpers.hand(job{op: o, do: func(ctx context.Context) outcome {
		conn, err := c.dialHelper(ctx, may)
		if err != nil {
			return c.judge(err)
		}
		defer conn.Close()
		if config == nil {
			return c.checkGRPC(conn, request)
		}
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return c.tlsWords(err)
		}
		if secured.ConnectionState().NegotiatedProtocol != "h2" {
			return failed("no HTTP/2 is spoken there")
		}
		return c.checkGRPC(secured, request)
	}})
	return outcome{}, false
}

func (grpcKind) ready(*loop, *op, uint32) (outcome, bool) { return outcome{}, false }
func (grpcKind) late(*loop, *op) (outcome, bool)          { return outcome{}, false }

// grpcRequest is all that is sent: the client's preface, its settings (RFC 9113, 3.4), the head and the
// message of the one request.
func grpcRequest(c *check) []byte {
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	scheme := "http"
	if c.probe.TLS {
		scheme = "https"
	}
	authority := c.addr.String()
	if c.probe.ServerName != "" {
		authority = c.probe.ServerName
	}
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: scheme},
		{Name: ":path", Value: "/grpc.health.v1.Health/Check"},
		{Name: ":authority", Value: authority},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
		{Name: "user-agent", Value: "pontoon-health"},
	} {
		_ = enc.WriteField(f) // into memory
	}
	var message []byte
	if name := c.probe.GRPCService; name != "" { // field 1, a string
		message = binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(name)))
		message = append(message, name...)
	}
	body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))) // not compressed
	body = append(body, message...)

	var b bytes.Buffer
	b.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&b, nil)
	_ = errors.Join( // into memory
		f.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}),
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: grpcStream, BlockFragment: head.Bytes(), EndHeaders: true}),
		f.WriteData(grpcStream, true, body))
	return b.Bytes()
}

// checkGRPC asks once and reads until it is answered.
func (c *check) checkGRPC(conn io.ReadWriter, request []byte) outcome {
	if _, err := conn.Write(request); err != nil {
		return c.tlsWords(err)
	}
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.MaxHeaderListSize = maxHead
	f.SetMaxReadFrameSize(1 << 14) // what we allow by saying nothing (RFC 9113, 6.5.2)
	var a grpcAnswer
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return c.frameError(err, a)
		}
		a.spoke = true
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				err = f.WritePing(true, frame.Data)
			}
		case *http2.GoAwayFrame:
			if frame.LastStreamID < grpcStream {
				return failed("the connection was refused: %v", frame.ErrCode)
			}
		case *http2.RSTStreamFrame:
			return failed("the request was refused: %v", frame.ErrCode)
		case *http2.MetaHeadersFrame:
			if out, over := a.head(frame.Fields, frame.StreamEnded()); over {
				return out
			}
		case *http2.DataFrame:
			if out, over := a.data(frame.Data(), frame.StreamEnded()); over {
				return out
			}
		}
		if err != nil {
			return c.tlsWords(err)
		}
	}
}

// frameError makes an outcome of what the framer says.
func (c *check) frameError(err error, a grpcAnswer) outcome {
	var conn http2.ConnectionError
	var stream http2.StreamError
	if errors.As(err, &conn) || errors.As(err, &stream) || errors.Is(err, http2.ErrFrameTooLarge) {
		return failed("no HTTP/2 is spoken there")
	}
	if errors.Is(err, io.EOF) && !a.spoke {
		return failed("connection closed before an answer: perhaps no HTTP/2 is spoken there")
	}
	return c.tlsWords(err)
}

// grpcAnswer gathers an answer.
type grpcAnswer struct {
	body    []byte
	headers bool // the head has come
	spoke   bool // any frame has
}

// head takes in the head of an answer, or its trailer.
func (a *grpcAnswer) head(fields []hpack.HeaderField, ended bool) (outcome, bool) {
	var status, code, message, kind string
	for _, f := range fields {
		switch f.Name {
		case ":status":
			status = f.Value
		case "grpc-status":
			code = f.Value
		case "grpc-message":
			message = f.Value
		case "content-type":
			kind = f.Value
		}
	}
	if !a.headers {
		a.headers = true
		if status != "200" {
			return failed("HTTP status %s, want 200", status), true
		}
		if !strings.HasPrefix(kind, "application/grpc") {
			return failed("the answer is not gRPC"), true
		}
	}
	if !ended {
		return outcome{}, false
	}
	switch code {
	case "0":
		return a.verdict(), true
	case "":
		return failed("the answer is not gRPC"), true
	case "5":
		return failed("%s", servingWords[3]), true
	case "12":
		return failed("the server does not answer health checks (gRPC status 12)"), true
	}
	if text, err := url.PathUnescape(message); err == nil {
		message = text
	}
	return failed("%s", strings.TrimRight("gRPC status "+code+": "+message, ": ")), true
}

// data takes in a part of the message.
func (a *grpcAnswer) data(b []byte, ended bool) (outcome, bool) {
	a.body = append(a.body, b...)
	if len(a.body) > maxMessage {
		return failed("the answer is longer than %d bytes", maxMessage), true
	}
	if ended { // the status is in a trailer
		return failed("the answer is not gRPC"), true
	}
	return outcome{}, false
}

// verdict reads the message: a byte that says that it is not compressed, its length, and the state as
// protobuf field 1.
func (a *grpcAnswer) verdict() outcome {
	state, err := servingState(a.body)
	switch {
	case err != nil:
		return failed("the answer is not a health answer: %v", err)
	case state == serving:
		return pass
	case servingWords[state] != "":
		return failed("%s", servingWords[state])
	}
	return failed("says state %d", state)
}

func servingState(b []byte) (state uint64, err error) {
	if len(b) < 5 || b[0] != 0 || uint64(binary.BigEndian.Uint32(b[1:])) != uint64(len(b)-5) {
		return 0, fmt.Errorf("%d bytes", len(b))
	}
	for b = b[5:]; len(b) > 0; {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, errors.New("broken field")
		}
		b = b[n:]
		value, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, errors.New("broken field")
		}
		b = b[n:]
		switch tag & 7 {
		case 0: // varint
			if tag>>3 == 1 {
				state = value
			}
		case 2: // bytes: value is how many
			if value > uint64(len(b)) {
				return 0, errors.New("broken field")
			}
			b = b[value:]
		default:
			return 0, fmt.Errorf("field of type %d", tag&7)
		}
	}
	return state, nil
}
