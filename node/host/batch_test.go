package host

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

// More than fit one batch, with refusals in the middle of each: the others are set, and every refusal is
// told to the one it is about.
func TestRefusalsInABatchConcernNobodyElse(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	h := newHost(t)
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/ptv0/disable_ipv6", []byte("1"), 0))
	var want []Address
	refused := 0
	four, six := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")
	for i := range 2*batchSize + 10 {
		four = four.Next()
		a := Address{Addr: four, Link: "ptv0"}
		if i%40 == 7 {
			six, refused = six.Next(), refused+1
			a.Addr = six
		}
		want = append(want, a)
	}
	added, _, err := h.SyncAddresses(want, nil)
	if len(added) != len(want)-refused {
		t.Errorf("%d added, want %d", len(added), len(want)-refused)
	}
	for _, a := range added {
		if a.Addr.Is6() {
			t.Errorf("%s is added", a.Addr)
		}
	}
	if err == nil || strings.Count(err.Error(), "IPv6 is off") != refused {
		t.Errorf("error %v, want %d refusals", err, refused)
	}
	if got := len(held(t, h)); got != len(added) {
		t.Errorf("%d are there", got)
	}
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/ptv0/disable_ipv6", []byte("0"), 0))
	syncTo(t, h, want, nil, refused, 0)
	syncTo(t, h, nil, nil, 0, len(want))
	if left := held(t, h); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
}

func TestAnswersToABatchAreToldApart(t *testing.T) {
	answer := func(seq uint32, kind uint16, code int32) syscall.NetlinkMessage {
		m := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind, Seq: seq}, Data: make([]byte, 20)}
		binary.NativeEndian.PutUint32(m.Data, uint32(code))
		return m
	}
	first := ^uint32(0) - 1 // the numbers go round
	errs := make([]error, 4)
	for _, r := range []struct {
		m    syscall.NetlinkMessage
		last bool
	}{
		{answer(first-1, unix.NLMSG_ERROR, -int32(unix.EPERM)), false}, // of an earlier batch
		{answer(first+1, unix.NLMSG_ERROR, -int32(unix.EEXIST)), false},
		{answer(first, unix.RTM_NEWADDR, 0), false},
		{answer(first+3, unix.NLMSG_ERROR, 0), true},
	} {
		if last, err := acknowledged(r.m, first, errs); last != r.last || err != nil {
			t.Errorf("%+v: last %t, %v", r.m.Header, last, err)
		}
	}
	if errs[0] != nil || !errors.Is(errs[1], unix.EEXIST) || errs[2] != nil || errs[3] != nil {
		t.Errorf("errors are %v", errs)
	}
	if last, _ := acknowledged(answer(first+3, unix.NLMSG_ERROR, -int32(unix.EACCES)), first, errs); !last || !errors.Is(errs[3], unix.EACCES) {
		t.Errorf("the last one's refusal ends the batch, too: %v", errs)
	}
	if _, err := acknowledged(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.NLMSG_ERROR, Seq: first}}, first, errs); err == nil {
		t.Error("an answer without a code")
	}
}
