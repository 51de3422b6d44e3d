package e2e

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
)

// askEvery is the pace at which an inquirer asks for each address.
const askEvery = 10 * time.Millisecond

// inquirer asks a segment again and again who has some addresses, as a client does
// that has never heard of them, and notes who answers when. It speaks ARP and
// neighbour discovery by itself, so nothing is ever taken from a cache.
type inquirer struct {
	fd      int
	mac     net.HardwareAddr
	own     map[bool]netip.Addr // whether it is IPv6: where it asks from
	targets []netip.Addr

	mu      sync.Mutex
	answers []answer
}

// answer says that the machine with the hardware address has the VIP.
type answer struct {
	at  time.Time
	vip netip.Addr
	mac string
}

// ask starts an inquirer on a host.
func ask(t testing.TB, h *lab.Host, targets ...netip.Addr) *inquirer {
	t.Helper()
	a := &inquirer{mac: h.MACs()[0], own: map[bool]netip.Addr{false: h.Addr(), true: h.Addr6()}, targets: targets}
	err := h.Do(func() (err error) {
		dev, err := net.InterfaceByName(h.Interfaces()[0])
		if err != nil {
			return err
		}
		if a.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(networkOrder(unix.ETH_P_ALL))); err != nil {
			return err
		}
		return unix.Bind(a.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: dev.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(a.fd) })
	if err := unix.SetsockoptTimeval(a.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	background(t, "inquirer", a.askOn)
	background(t, "inquirer's ear", a.listen)
	return a
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

func (a *inquirer) askOn(ctx context.Context) error {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		for _, vip := range a.targets {
			frame := a.solicitation(vip)
			if vip.Is4() {
				frame = a.request(vip)
			}
			if _, err := unix.Write(a.fd, frame); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (a *inquirer) request(vip netip.Addr) []byte {
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, a.mac...)
	f = append(append(f, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1), a.mac...)
	f = append(append(f, a.own[false].AsSlice()...), make([]byte, 6)...)
	return append(f, vip.AsSlice()...)
}

// solicitation is RFC 4861, 4.3, to the group of the address.
func (a *inquirer) solicitation(vip netip.Addr) []byte {
	last := vip.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], last[13:])
	message := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, last[:]...)
	message = append(append(message, 1, 1), a.mac...)
	pseudo := slices.Concat(a.own[true].AsSlice(), group[:], []byte{0, 0, 0, byte(len(message)), 0, 0, 0, 58}, message)
	sum := uint32(0)
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(pseudo[i])<<8 | uint32(pseudo[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	message[2], message[3] = ^byte(sum>>8), ^byte(sum)
	f := append([]byte{0x33, 0x33, 0xff, last[13], last[14], last[15]}, a.mac...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(message)), 58, 255)
	f = append(append(f, a.own[true].AsSlice()...), group[:]...)
	return append(f, message...)
}

func (a *inquirer) listen(ctx context.Context) error {
	buf := make([]byte, 2048)
	for ctx.Err() == nil {
		n, _, err := unix.Recvfrom(a.fd, buf, 0)
		if err != nil {
			continue // nothing for a while, or a signal
		}
		if got, ok := a.parse(buf[:n]); ok {
			a.mu.Lock()
			a.answers = append(a.answers, got)
			a.mu.Unlock()
		}
	}
	return nil
}

// parse reads an answer to this host: what is said to all is an announcement.
func (a *inquirer) parse(f []byte) (answer, bool) {
	if len(f) < 42 || !slices.Equal(f[:6], a.mac) {
		return answer{}, false
	}
	got := answer{at: time.Now(), mac: net.HardwareAddr(f[6:12]).String()}
	switch {
	case f[12] == 0x08 && f[13] == 0x06 && f[21] == 2:
		got.vip, _ = netip.AddrFromSlice(f[28:32])
	case f[12] == 0x86 && f[13] == 0xdd && len(f) >= 78 && f[20] == 58 && f[54] == 136:
		got.vip, _ = netip.AddrFromSlice(f[62:78])
	}
	return got, slices.Contains(a.targets, got.vip)
}

// since returns the answers for vip by a node from a moment on.
func (a *inquirer) since(from time.Time, vip netip.Addr, by *lab.Node) []answer {
	macs := map[string]bool{}
	for _, m := range by.MACs() {
		macs[m.String()] = true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []answer
	for _, got := range a.answers {
		if got.vip == vip && macs[got.mac] && !got.at.Before(from) {
			out = append(out, got)
		}
	}
	return out
}

// waitAnswer waits until a node answers for vip.
func (a *inquirer) waitAnswer(t testing.TB, d time.Duration, vip netip.Addr, by *lab.Node) {
	t.Helper()
	from := time.Now()
	eventually(t, d, by.Name()+" to answer for "+vip.String(), func(context.Context) error {
		if len(a.since(from, vip, by)) == 0 {
			return errSilent
		}
		return nil
	})
}

// silentAfter says how long after from a node answered for vip last. It waits until nothing has come for
// as long as the quiet.
func (a *inquirer) silentAfter(t testing.TB, from time.Time, quiet time.Duration, vip netip.Addr, by *lab.Node) time.Duration {
	t.Helper()
	last := time.Duration(0)
	eventually(t, 20*time.Second, by.Name()+" to fall silent about "+vip.String(), func(context.Context) error {
		if all := a.since(from, vip, by); len(all) > 0 {
			last = all[len(all)-1].at.Sub(from)
		}
		if time.Since(from)-last < quiet {
			return errTalking
		}
		return nil
	})
	return last
}

// longest is the longest time between two answers for vip from a moment until now, whoever gives them.
func (a *inquirer) longest(from time.Time, vip netip.Addr) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	last, most := from, time.Duration(0)
	for _, got := range a.answers {
		if got.vip == vip && got.at.After(last) {
			most, last = max(most, got.at.Sub(last)), got.at
		}
	}
	return max(most, time.Since(last))
}
