package sdnotify

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func listen(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatalf("listen on %q: %v", name, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func receive(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatalf("read notification: %v", err)
	}
	return string(buf[:n])
}

func TestMessagesArriveOnPathAndAbstractSockets(t *testing.T) {
	for name, socket := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "n.sock"),
		"abstract": fmt.Sprintf("@pt-sdnotify-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			conn := listen(t, socket)
			n := New(socket)
			for _, step := range []struct {
				send func() error
				want string
			}{
				{n.Ready, "READY=1"},
				{func() error { return n.Status("leads, 3 of 3 nodes") }, "STATUS=leads, 3 of 3 nodes"},
				{n.Stopping, "STOPPING=1"},
			} {
				if err := step.send(); err != nil {
					t.Fatalf("send %s: %v", step.want, err)
				}
				if got := receive(t, conn); got != step.want {
					t.Errorf("got %q, want %q", got, step.want)
				}
			}
		})
	}
}

func TestStatusCannotSmuggleAnAssignment(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "n.sock")
	conn := listen(t, socket)
	if err := New(socket).Status("a\nREADY=1\r\nb"); err != nil {
		t.Fatal(err)
	}
	if got, want := receive(t, conn), "STATUS=a READY=1  b"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNoSocketIsNoError(t *testing.T) {
	for _, socket := range []string{"", "vsock:2:1", "relative"} {
		if err := New(socket).Ready(); err != nil {
			t.Errorf("socket %q: %v", socket, err)
		}
	}
}

func TestMissingSocketIsAnError(t *testing.T) {
	if err := New(filepath.Join(t.TempDir(), "gone")).Ready(); err == nil {
		t.Error("no error for a socket nobody listens on")
	}
}
