package web

import (
	"fmt"
	"strings"

	"pontoon/fsm"
)

// FailoverStep is one step of a failover's timeline.
type FailoverStep struct {
	Name string
	MS   float64 // since the beginning
}

// FailoverSteps lists the steps that are known, in their order.
func FailoverSteps(p fsm.FailoverParts) []FailoverStep {
	all := []FailoverStep{
		{"detected", p.Detected},
		{"confirmed", p.Confirmed},
		{"elected", p.Elected},
		{"committed", p.Committed},
		{"announced", p.Announced},
		{"first packet", p.FirstPacket},
	}
	var known []FailoverStep
	for _, s := range all {
		if s.MS > 0 {
			known = append(known, s)
		}
	}
	return known
}

// FailoverText says a timeline in one sentence: "default moved from lb1 to lb2
// in 83 ms: detected 58, confirmed 63, committed 75, announced 79, first packet 83".
func FailoverText(f fsm.Failover) string {
	text := fmt.Sprintf("%s moved from %s to %s", f.Instance, f.From, f.To)
	if total := f.Parts.Total(); total > 0 {
		text += fmt.Sprintf(" in %s ms", milliseconds(total))
	}
	var words []string
	for _, s := range FailoverSteps(f.Parts) {
		words = append(words, s.Name+" "+milliseconds(s.MS))
	}
	if len(words) > 0 {
		text += ": " + strings.Join(words, ", ")
	}
	return text
}

// milliseconds leaves out digits nobody reads.
func milliseconds(ms float64) string {
	if ms < 10 {
		return fmt.Sprintf("%.1f", ms)
	}
	return fmt.Sprintf("%.0f", ms)
}
