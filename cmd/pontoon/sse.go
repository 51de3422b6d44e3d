package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strings"
)

// maxEvent bounds one server-sent event.
const maxEvent = 16 << 20

// errStreamEnded says that the daemon closed a stream, as it does when it stops.
var errStreamEnded = errors.New("the daemon ended the stream")

// stream makes a call that is answered with server-sent events and hands each
// one's name and data to handle, until handle fails, ctx ends or the daemon
// ends the stream (errStreamEnded).
func (c *api) stream(ctx context.Context, method, path string, body any, handle func(event string, data []byte) error) error {
	resp, err := c.send(ctx, method, path, body, "text/event-stream", nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	err = readEvents(resp.Body, handle)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		return errStreamEnded
	}
	return err
}

// readEvents parses the stream format of the HTML standard, section 9.2.6, as
// far as servers use it: event and data fields, comments, blank lines.
func readEvents(r io.Reader, handle func(event string, data []byte) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxEvent)
	var event string
	var data []byte
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			if data != nil {
				if err := handle(event, data); err != nil {
					return err
				}
			}
			event, data = "", nil
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			event = value
		case "data":
			if data != nil {
				data = append(data, '\n')
			}
			data = append(data, value...)
		}
	}
	return lines.Err()
}
