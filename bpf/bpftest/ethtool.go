package bpftest

import "pontoon/internal/ethtooltest"

// ForXDP prepares an end of a veth pair for XDP on either end: it sends whole checksums, and it
// takes frames in by NAPI, without which frames that XDP redirects to it are lost.
func (i Iface) ForXDP() {
	i.NS.tb.Helper()
	i.NS.Do(func() {
		i.NS.must("switch checksum offload off", ethtooltest.Set(i.Name, ethtooltest.TxChecksum, 0))
		i.NS.must("switch receive offload on", ethtooltest.Set(i.Name, ethtooltest.GRO, 1))
	})
}
