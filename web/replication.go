package web

import (
	"context"
	"net/http"
	"time"

	"pontoon/fsm"
)

// ReplicationState is how far the copying of flows is.
type ReplicationState string

// The states of flow replication, in either direction.
const (
	ReplicationSnapshot  ReplicationState = "snapshot"  // everything that lives is being sent
	ReplicationStreaming ReplicationState = "streaming" // only changes are being sent
	ReplicationDown      ReplicationState = "down"      // not connected
)

// PeerReplication is the copying of flows between this node and one peer, in
// both directions. Counts run since the peer became known to this daemon.
type PeerReplication struct {
	Peer       fsm.NodeID       `json:"peer"`
	State      ReplicationState `json:"state" enum:"snapshot,streaming,down"`
	Since      time.Time        `json:"since,omitzero" doc:"Of the state."`
	Sent       uint64           `json:"sent" doc:"Records that the peer has written or may still write: what a broken stream took with it is in abandoned instead."`
	Acked      uint64           `json:"acked" doc:"Records the peer has written into its table."`
	Abandoned  uint64           `json:"abandoned" doc:"Records under way when a stream broke; the snapshot that follows makes up for them."`
	LagMS      float64          `json:"lag_ms" doc:"Age of the oldest record not yet acknowledged."`
	LagP50MS   float64          `json:"lag_p50_ms" doc:"Time to acknowledgement of half of the changes of the last minute."`
	LagP99MS   float64          `json:"lag_p99_ms" doc:"Of 99 in 100 of them."`
	LagRecords uint64           `json:"lag_records" doc:"Records not yet acknowledged."`
	Resyncs    uint64           `json:"resyncs" doc:"Times everything had to be sent again."`
	Dropped    uint64           `json:"dropped" doc:"Records dropped because the peer was too slow; a resync follows."`

	ResyncCauses map[string]uint64 `json:"resync_causes" doc:"Resyncs by cause: reconnect (the stream ended), overflow (the peer was too slow), overrun (records were lost between the kernel and this daemon)."`
	LastResync   *Resync           `json:"last_resync,omitempty"`
	Snapshot     SnapshotFigures   `json:"last_snapshot" doc:"The last that was complete."`
	Digest       DigestFigures     `json:"digest" doc:"What comparing with the peer has found."`

	Protocol      uint16 `json:"protocol" doc:"Version of the stream; 0 before the first."`
	RecordVersion uint16 `json:"record_version" doc:"Version of its records."`
	LastError     string `json:"last_error,omitempty"`

	Inbound InboundReplication `json:"inbound" doc:"The stream from the peer."`
}

// Resync is why and when a peer got everything again.
type Resync struct {
	Cause string    `json:"cause" enum:"reconnect,overflow,overrun"`
	Text  string    `json:"text,omitempty" doc:"The error behind the cause."`
	At    time.Time `json:"at"`
}

// SnapshotFigures describe one snapshot.
type SnapshotFigures struct {
	MS      float64 `json:"ms" doc:"From its first record to the acknowledgement of its end."`
	Records uint64  `json:"records"`
}

// DigestFigures count comparisons: sums over parts of the flow table that both
// nodes made, and what differed was sent anew. Of nodes that died the others
// compare what each of them holds, and complete each other.
type DigestFigures struct {
	Rounds          uint64 `json:"rounds"`
	BucketsRepaired uint64 `json:"buckets_repaired"`
	RecordsRepaired uint64 `json:"records_repaired"`
	OrphanRounds    uint64 `json:"orphan_rounds" doc:"Comparisons of what this node and the peer hold of nodes that died."`
	OrphansSent     uint64 `json:"orphans_sent" doc:"Records of nodes that died which the peer was sent because it held something else."`
}

// InboundReplication is the copying of a peer's flows to this node.
type InboundReplication struct {
	State            ReplicationState `json:"state" enum:"snapshot,streaming,down"`
	Since            time.Time        `json:"since,omitzero" doc:"Of the state."`
	Received         uint64           `json:"received" doc:"Records written here."`
	AppliedPerSecond float64          `json:"applied_per_second"`
	Snapshots        uint64           `json:"snapshots" doc:"Applied to their end."`
	Repairs          uint64           `json:"repairs" doc:"Applied to their end."`
	Orphans          uint64           `json:"orphans" doc:"Of those received, how many are of nodes that died and seemed to be missing here."`
	RecordVersion    uint16           `json:"record_version"`
	LastError        string           `json:"last_error,omitempty"`
}

// Takeover is what became of the connections when this node last became master.
type Takeover struct {
	Instance string     `json:"instance"`
	From     fsm.NodeID `json:"from" doc:"The master before; empty when there was none."`
	Epoch    uint64     `json:"epoch"`
	At       time.Time  `json:"at" doc:"When this node learned of it."`
	Adopted  uint64     `json:"adopted" doc:"Connections of other nodes that went on here since."`
}

// Replication is all there is to say of the copying of flows on one node.
type Replication struct {
	Self         fsm.NodeID        `json:"self"`
	Peers        []PeerReplication `json:"peers"`
	Orphans      uint64            `json:"orphans" doc:"Connections of nodes that died which this node learned of from the others, since its daemon was started."`
	Adopted      uint64            `json:"adopted" doc:"Connections of other nodes that went on here, since the data plane was set up."`
	LastTakeover *Takeover         `json:"last_takeover,omitempty" doc:"Absent while this node has not become master since its daemon was started."`
}

// FlowComparison is whether a peer holds this node's flows as they are. Flows of
// the last seconds and those that have ended are left out on both sides.
type FlowComparison struct {
	Peer    fsm.NodeID `json:"peer"`
	Equal   bool       `json:"equal"`
	Buckets int        `json:"buckets" doc:"Parts that were compared."`
	Differ  int        `json:"differ" doc:"Of those, how many differ. What changed between the two looks differs too: ask again."`
	Error   string     `json:"error,omitempty" doc:"Why it could not be compared."`
}

func (s *server) replicationRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/replication", id: "get-replication", tag: "flows",
		summary: "How the copying of flows to and from the other nodes stands",
	}, func(ctx context.Context, _ *struct{}) (*answer[Replication], error) {
		st, err := s.readStatus(ctx)
		if err != nil {
			return nil, err
		}
		return &answer[Replication]{Body: Replication{
			Self: st.Self, Peers: st.Replication, Adopted: st.Flows.Adopted, Orphans: st.Flows.Orphans, LastTakeover: st.LastTakeover,
		}}, nil
	})
	handle(s, op{
		method: http.MethodGet, path: "/v1/replication/digest", id: "compare-flows", tag: "flows",
		summary: "Do the other nodes hold this node's flows as they are?",
		text: "Sums up, here and on each peer, the flows that this node forwards, and compares. " +
			"A million flows take a second or two of one processor on each node.",
	}, func(ctx context.Context, _ *struct{}) (*answer[[]FlowComparison], error) {
		all, err := s.Backend.CompareFlows(ctx)
		if err != nil {
			return nil, err
		}
		return &answer[[]FlowComparison]{Body: notNil(all)}, nil
	})
}

// normaliseReplication makes the JSON form steady.
func normaliseReplication(peers []PeerReplication) []PeerReplication {
	for i := range peers {
		if peers[i].ResyncCauses == nil {
			peers[i].ResyncCauses = map[string]uint64{}
		}
		if peers[i].Inbound.State == "" {
			peers[i].Inbound.State = ReplicationDown
		}
	}
	return notNil(peers)
}
