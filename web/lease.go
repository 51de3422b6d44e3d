package web

// LeaseStatus is for how long the node that was asked may claim VIPs without hearing from a quorum anew.
type LeaseStatus struct {
	LengthMS float64 `json:"length_ms"` // the setting
	LeftMS   float64 `json:"left_ms"`   // 0: it has run out
	Bound    int     `json:"bound"`     // VIPs of this node that it claims only while the lease is valid
	Free     int     `json:"free"`      // VIPs of this node with on_quorum_loss hold
}
