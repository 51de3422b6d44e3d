package detect

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestAPacketCameWhenTheKernelGotIt(t *testing.T) {
	day, now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), time.Now()
	for _, tc := range []struct {
		name    string
		arrived time.Time
		want    time.Duration // before now
	}{
		{"read at once", day, 0},
		{"read late", day.Add(-80 * time.Millisecond), 80 * time.Millisecond},
		{"the kernel does not say", time.Time{}, 0},
		{"the clock was set back meanwhile", day.Add(time.Hour), 0},
		{"the clock was set forward meanwhile", day.Add(-time.Hour), 0},
	} {
		if got := now.Sub(heardAt(tc.arrived, day, now)); got != tc.want {
			t.Errorf("%s: %s before now, want %s", tc.name, got, tc.want)
		}
	}
}

// A packet that waits to be read keeps the time at which it came.
func TestTheKernelSaysWhenAPacketCame(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		sock, err := listen(0, v6)
		if errors.Is(err, errNoFamily) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sock.close() })
		to := netip.AddrPortFrom(netip.MustParseAddr(map[bool]string{false: "127.0.0.1", true: "::1"}[v6]), sock.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		c, err := net.Dial("udp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		// The kernel begins to note times a moment after the first socket asked for it.
		for try := 0; ; try++ {
			before := time.Now()
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			after := time.Now()
			wait := time.NewTimer(50 * time.Millisecond)
			<-wait.C
			in, err := sock.read(make([]byte, 16), time.Now().Add(time.Second))
			if err == nil && !in.at.Before(before.Add(-time.Millisecond)) && !in.at.After(after.Add(20*time.Millisecond)) {
				break
			}
			if err != nil || try == 10 {
				t.Errorf("%s: came at %s, was sent from %s to %s: %v", to, in.at, before, after, err)
				break
			}
		}
	}
}
