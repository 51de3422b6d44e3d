package chaostest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// configurationKept: what was acknowledged is there at the end, on every node. A
// write whose outcome nobody knows may have been done at any later time, so its
// value is as good as the last acknowledged one; a refused one is not.
func configurationKept(h *History, _ Limits) (out []Violation) {
	const name = "configuration kept"
	may := map[string][]string{}
	last := map[string]Write{}
	for _, w := range h.Writes {
		switch w.Outcome {
		case Acknowledged:
			last[w.Key] = w
		case Unknown:
			may[w.Key] = append(may[w.Key], w.Value)
		}
	}
	keys := map[string]bool{}
	for k := range last {
		keys[k] = true
	}
	for k := range may {
		keys[k] = true
	}
	for _, f := range h.Final {
		for _, k := range sortedKeys(keys) {
			acked, must := last[k]
			got, there := f.Values[k]
			switch {
			case there && (got == acked.Value || slices.Contains(may[k], got)):
			case !there && !must:
			default:
				out = append(out, Violation{name, h.Ended, fmt.Sprintf(
					"%s holds %q for %s; acknowledged at %s by %s was %q, and in doubt are %q", f.Node, got, k, acked.Done, acked.Via, acked.Value, may[k])})
			}
		}
	}
	for i := 1; i < len(h.Final); i++ {
		if a, b := h.Final[0], h.Final[i]; !maps.Equal(a.Values, b.Values) {
			out = append(out, Violation{name, h.Ended, fmt.Sprintf("%s and %s differ: %v and %v", a.Node, b.Node, a.Values, b.Values)})
		}
	}
	return out
}

// connectionsKept: every connection goes on with its bytes. Only where at one time
// no node's kernel knew the flows may they be gone; and a kernel in front of which no program
// stands resets the connections to an address that it has.
func connectionsKept(h *History, _ Limits) (out []Violation) {
	for _, t := range h.Traffic {
		lost := t.Reset + t.Stalled
		if h.bareAnswered() {
			lost = t.Stalled
		}
		if t.Corrupted > 0 {
			out = append(out, Violation{"connections keep their bytes", h.Ended, fmt.Sprintf("%d of %d of %s were corrupted: %v", t.Corrupted, t.Connections, t.Name, t.Errors)})
		}
		if lost > 0 && !h.allForgot() {
			out = append(out, Violation{"connections live on", h.Ended, fmt.Sprintf(
				"of %d of %s %d were reset and %d stand still: %v", t.Connections, t.Name, t.Reset, t.Stalled, t.Errors)})
		}
	}
	return out
}

// bareAnswered says whether a node had the addresses while its programs were off its interfaces.
func (h *History) bareAnswered() bool {
	const around = 200 * time.Millisecond
	for _, s := range h.Spans {
		if s.What == Bare && slices.ContainsFunc(h.Claims, func(c Claim) bool {
			return c.Node == s.Node && c.Asked && c.At > s.From-around && c.At < s.To
		}) {
			return true
		}
	}
	return false
}

// allForgot says whether there was a moment at which no node knew the flows.
func (h *History) allForgot() bool {
	for _, s := range h.Spans {
		if s.What != Forgot {
			continue
		}
		without := map[string]bool{}
		for _, o := range h.Spans {
			if o.What == Forgot && o.From <= s.From && o.To > s.From {
				without[o.Node] = true
			}
		}
		if len(without) == len(h.Nodes) {
			return true
		}
	}
	return false
}

// flowsAgree: no translated address is given to two connections anywhere in the
// cluster, and all nodes lead a connection to the same endpoint.
func flowsAgree(h *History, _ Limits) (out []Violation) {
	type holder struct{ flow, node string }
	tuples, ways := map[string]holder{}, map[string]holder{}
	for _, f := range h.Final {
		for _, fl := range f.Flows {
			if fl.State == "ended" {
				continue
			}
			id := fl.Protocol + " " + fl.Client + " to " + fl.VIP
			if fl.SNAT != "" {
				tuple := fl.Protocol + " " + fl.SNAT + " to " + fl.Endpoint
				if had, ok := tuples[tuple]; ok && had.flow != id {
					out = append(out, Violation{"translated addresses unique", h.Ended, fmt.Sprintf(
						"%s is of %s on %s and of %s on %s", tuple, had.flow, had.node, id, f.Node)})
				}
				tuples[tuple] = holder{id, f.Node}
			}
			if had, ok := ways[id]; ok && had.flow != fl.Endpoint {
				out = append(out, Violation{"one endpoint per connection", h.Ended, fmt.Sprintf(
					"%s goes to %s on %s and to %s on %s", id, had.flow, had.node, fl.Endpoint, f.Node)})
			}
			ways[id] = holder{fl.Endpoint, f.Node}
		}
	}
	return out
}

// cleanLogs: no daemon fell over.
func cleanLogs(h *History, _ Limits) (out []Violation) {
	for _, l := range h.Logs {
		out = append(out, Violation{"no daemon falls over", h.Ended, l.Node + ": " + l.Line})
	}
	return out
}
