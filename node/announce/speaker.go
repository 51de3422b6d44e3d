package announce

import (
	"context"
	"net/netip"
)

// Advert is one address to announce on one link.
type Advert struct {
	Addr netip.Addr
	Link string // interface name
	// Epoch is the Raft index at which the mastership behind this advert was
	// decided. A new epoch is announced anew even if nothing else changed.
	Epoch uint64
}

// Speaker announces addresses in one way (ARP and NDP, BGP).
type Speaker interface {
	// Announce makes want the whole set of what is announced. When it returns,
	// what was new in want has been said at least once, except for what the error
	// names; the speaker goes on trying those. The same want again costs nothing.
	// It may be called from several goroutines; the last call counts.
	Announce(ctx context.Context, want []Advert) error
	// Close stops announcing and releases sockets. Announce then returns ErrClosed.
	Close() error
}
