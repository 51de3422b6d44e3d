package bpf

import (
	"fmt"
	"net"
	"time"
)

// Predecessor is the node that was master of something before this one, and lives.
type Predecessor struct {
	MAC   net.HardwareAddr // where it is on the interface
	Own   net.HardwareAddr // this node's on it
	Until time.Duration    // by Boottime, how long it is asked
}

// SetPredecessor has TCP packets that come in on an interface, and belong to a
// connection that is not known here, brought to the predecessor until its time is
// over: after a planned move that is where connections are still being opened. Its
// zero value takes it back. Packets go on one hop older, and come back from nowhere
// else than the connection's other end.
func (d *Dataplane) SetPredecessor(ifindex int, p Predecessor) error {
	v := pontoonPredecessor{Ifindex: uint32(ifindex)}
	if p.Until > 0 {
		if len(p.MAC) != 6 || len(p.Own) != 6 {
			return fmt.Errorf("set the predecessor on interface %d: want addresses of Ethernet", ifindex)
		}
		v.Until = uint64(p.Until)
		copy(v.Dmac[:], p.MAC)
		copy(v.Smac[:], p.Own)
	}
	err := putOnLink(d.maps.Predecessors, v, func(v pontoonPredecessor) (uint32, bool) { return v.Ifindex, v.Until != 0 })
	if err != nil {
		return fmt.Errorf("set the predecessor on interface %d: %w", ifindex, err)
	}
	return nil
}
