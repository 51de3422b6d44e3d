package chaostest

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// History is what was seen of one run. All times count from its beginning. It is
// written to a file when a run fails, and can be read back and checked again.
type History struct {
	Seed   uint64
	Nodes  []string
	VIPs   map[string]string // address to instance
	Held   []string          // of these, those that are claimed also without a quorum
	Faults []FaultRecord
	Spans  []Span
	Claims []Claim
	Views  []View
	Writes []Write
	// Healed is when the last fault was undone, Converged when the cluster was
	// whole again (0: never, and Why says what was missing), Ended when the
	// observers stopped.
	Healed, Converged, Ended time.Duration
	Why                      string
	Final                    []Final
	Traffic                  []Traffic
	Logs                     []LogFinding
}

// FaultRecord is a fault as it happened.
type FaultRecord struct {
	Text     string
	From, To time.Duration
}

// Condition is what a node was unable to do during a Span.
type Condition string

// The conditions.
const (
	// Stopped: its daemon did not run, so nothing of it could hear the others.
	Stopped Condition = "stopped"
	// Unattended: its daemon did not run, and its kernel did.
	Unattended Condition = "unattended"
	// Bare: its programs were taken off its interfaces. Its daemon puts them back, some time in it.
	Bare Condition = "bare"
	// Alone: it could exchange nothing with a majority of the cluster, though
	// clients may still reach it.
	Alone Condition = "alone"
	// Forgot: its kernel has lost all flows; it has them again at the end.
	Forgot Condition = "forgot"
)

// Span is a time in which a node was in a condition.
type Span struct {
	Node     string
	What     Condition
	From, To time.Duration
}

// Claim is one word of a node that it has an address. Node is the hardware address
// when it is none of the cluster's.
type Claim struct {
	At      time.Duration
	Address string
	Node    string
	Asked   bool
}

// View is what a node said of the cluster when it changed its mind. A life is the
// time between two starts of its daemon.
type View struct {
	At        time.Duration
	Node      string
	Life      int
	Leader    string
	Quorum    bool
	Instances []InstanceView
	NotReady  []string // nodes that are not ready, as committed
}

// InstanceView is one instance in a View.
type InstanceView struct {
	Name, Master string
	Epoch        uint64
}

// Outcome is what the writer learned of a write.
type Outcome string

// The outcomes.
const (
	Acknowledged Outcome = "acknowledged"
	Refused      Outcome = "refused" // certainly not done
	Unknown      Outcome = "unknown" // may have been done, or be done yet
)

// Write is one change of the configuration: the key gets the value.
type Write struct {
	At, Done   time.Duration
	Via        string // the node it was given to
	Key, Value string
	Outcome    Outcome
	Error      string `json:",omitempty"`
}

// Final is what a node holds at the end.
type Final struct {
	Node   string
	Values map[string]string // what Writes wrote
	Flows  []Flow
}

// Flow is one tracked connection as a node shows it.
type Flow struct {
	Protocol string `json:"protocol"`
	Client   string `json:"client"`
	VIP      string `json:"vip"`
	SNAT     string `json:"snat"`
	Endpoint string `json:"endpoint"`
	State    string `json:"state"`
	Owner    bool   `json:"owner"`
}

// Traffic is what a set of long connections went through.
type Traffic struct {
	Name                                   string
	Connections, Reset, Stalled, Corrupted int
	Blackout                               time.Duration
	Errors                                 []string
}

// LogFinding is a line of a daemon's log that must not be there.
type LogFinding struct{ Node, Line string }

// Save writes the history to a file.
func (h *History) Save(path string) error {
	raw, err := json.MarshalIndent(h, "", " ")
	if err != nil {
		return fmt.Errorf("encode history: %w", err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return fmt.Errorf("save history: %w", err)
	}
	return nil
}

// Load reads what Save wrote.
func Load(path string) (*History, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load history: %w", err)
	}
	h := &History{}
	if err := json.Unmarshal(raw, h); err != nil {
		return nil, fmt.Errorf("load history %s: %w", path, err)
	}
	return h, nil
}
