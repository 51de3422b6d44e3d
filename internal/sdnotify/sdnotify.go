// Package sdnotify tells the service manager how the daemon is doing, by the
// datagram protocol of sd_notify(3): one message of KEY=VALUE lines to the
// socket named by NOTIFY_SOCKET. Without that variable everything here is a
// silent success, so that callers need not know who started them.
package sdnotify

import (
	"fmt"
	"net"
	"strings"
)

// EnvVar is the variable in which the service manager names its socket.
const EnvVar = "NOTIFY_SOCKET"

// Notifier sends state to one notification socket. The zero value sends
// nothing. It holds no connection and is safe for concurrent use.
type Notifier struct {
	socket string
}

// New returns a Notifier for the socket named as in NOTIFY_SOCKET: an absolute
// path, or "@name" for a socket in the abstract name space. Anything else,
// "" above all, gives a Notifier that sends nothing (sd_notify(3) knows vsock
// names too; Pontoon does not run where they are used).
func New(socket string) Notifier {
	if !strings.HasPrefix(socket, "/") && !strings.HasPrefix(socket, "@") {
		return Notifier{}
	}
	return Notifier{socket: socket}
}

// Ready says that start-up is complete.
func (n Notifier) Ready() error { return n.send("READY=1") }

// Stopping says that shutdown has begun.
func (n Notifier) Stopping() error { return n.send("STOPPING=1") }

// Status gives one line for `systemctl status`.
func (n Notifier) Status(line string) error {
	// A line break would begin another assignment, perhaps READY=1.
	return n.send("STATUS=" + strings.NewReplacer("\n", " ", "\r", " ").Replace(line))
}

func (n Notifier) send(message string) error {
	if n.socket == "" {
		return nil
	}
	// net takes a leading "@" as the NUL of the abstract name space.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	defer func() { _ = conn.Close() }() // nothing is buffered in a datagram socket
	if _, err := conn.Write([]byte(message)); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}
