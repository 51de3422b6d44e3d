package benchtest

import (
	"fmt"

	"pontoon/internal/ethtooltest"
)

// setOffloads prepares an interface of the thread's namespace. GRO is on
// everywhere: on a veth it means that frames are taken in by NAPI, as a
// network card does it, and without it frames that a program redirects onto
// the cable are lost. For XDP contenders the sums of sent packets are computed
// by the sender: a native program sees no partial checksums on a network card
// and cannot tell them on a veth.
func setOffloads(iface string, xdp bool) error {
	if err := ethtooltest.Set(iface, ethtooltest.GRO, 1); err != nil {
		return fmt.Errorf("switch receive offload of %s on: %w", iface, err)
	}
	if !xdp {
		return nil
	}
	if err := ethtooltest.Set(iface, ethtooltest.TxChecksum, 0); err != nil {
		return fmt.Errorf("switch checksum offload of %s off: %w", iface, err)
	}
	return nil
}
