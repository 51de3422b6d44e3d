package node

import (
	"pontoon/node/detect"
	"pontoon/web"
)

// detectionMetrics tells of each way by which this node watches another. A way that is
// down has no round trip.
func detectionMetrics(ways []web.BFDSession, gauge metricFunc) {
	for _, w := range ways {
		if w.Kind == web.BFDNone {
			continue
		}
		of := []string{"peer", string(w.Peer), "kind", w.Kind, "address", w.Address, "interface", w.Interface}
		up := w.State == detect.Up.String()
		gauge("detection_path_up", "1 while the other node answers on this path: to echoes its data plane (kind echo), in a session its daemon (kind async).", truth(up), of...)
		if w.Kind == web.BFDEcho && up {
			gauge("detection_path_rtt_seconds", "Round trip of the last echo on this path.", w.RTTMS/1000, of...)
		}
	}
}
