package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// batchSize is how many changes go to the kernel by one system call. An answer that
// says why one was refused takes about 1 kB of the socket's buffer, of which a
// usual one has 200.
const batchSize = 64

// execute sends the requests, a whole batch by one system call, and returns what the
// kernel says to each: nil, or why not. The kernel takes them one by one, in order,
// whatever becomes of those before.
//
// Only the last one of a batch asks to be acknowledged. Refusals are told in any
// case, and before that.
func (h *Host) execute(reqs []*nl.NetlinkRequest) []error {
	errs := make([]error, len(reqs))
	h.route.Socket.Lock()
	defer h.route.Socket.Unlock()
	for at := 0; at < len(reqs); at += batchSize {
		end := min(at+batchSize, len(reqs))
		if err := h.executeBatch(reqs[at:end], errs[at:end]); err != nil {
			for i := at; i < end; i++ { // of those not refused nobody knows
				if errs[i] == nil {
					errs[i] = err
				}
			}
		}
	}
	return errs
}

// executeBatch fills errs. Its own error says that the end of the batch is not known.
func (h *Host) executeBatch(reqs []*nl.NetlinkRequest, errs []error) error {
	var b []byte
	first := uint32(0)
	for i, r := range reqs {
		r.Seq = atomic.AddUint32(&h.route.Seq, 1)
		if i == 0 {
			first = r.Seq
		}
		r.Flags &^= unix.NLM_F_ACK
		if i == len(reqs)-1 {
			r.Flags |= unix.NLM_F_ACK
		}
		b = append(b, r.Serialize()...)
		for len(b)%unix.NLMSG_ALIGNTO != 0 {
			b = append(b, 0)
		}
	}
	if err := unix.Sendto(h.route.Socket.GetFd(), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink requests: %w", err)
	}
	for {
		msgs, from, err := h.route.Socket.Receive()
		if err != nil {
			return fmt.Errorf("receive netlink answers: %w", err)
		}
		if from.Pid != nl.PidKernel {
			continue // any process may send to us
		}
		for _, m := range msgs {
			if done, err := acknowledged(m, first, errs); done || err != nil {
				return err
			}
		}
	}
}

// acknowledged reads one answer to the requests numbered from first on, and says
// whether it is that to the last.
func acknowledged(m syscall.NetlinkMessage, first uint32, errs []error) (last bool, err error) {
	at := int64(m.Header.Seq - first)
	if m.Header.Type != unix.NLMSG_ERROR || at >= int64(len(errs)) {
		return false, nil // the late answer to a request that was given up
	}
	if len(m.Data) < 4 {
		return false, errors.New("netlink answer is cut short")
	}
	if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
		errs[at] = syscall.Errno(-code)
	}
	return at == int64(len(errs))-1, nil
}
