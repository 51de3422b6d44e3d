package web

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"pontoon/fsm"
)

// maxHealthNotes is of how many services the summary tells which endpoints are
// down: one cause often takes many with it.
const maxHealthNotes = 5

// endpointNotes tells of endpoints that are down and should not be, the services
// first that have none left.
func endpointNotes(services []ServiceStatus, note func(l Level, format string, args ...any)) {
	type trouble struct {
		level Level
		text  string
	}
	var all []trouble
	for _, svc := range services {
		if level, text := endpointNote(svc); text != "" {
			all = append(all, trouble{level, text})
		}
	}
	slices.SortStableFunc(all, func(a, b trouble) int {
		return cmp.Compare(b2i(a.level != LevelBad), b2i(b.level != LevelBad))
	})
	for i, t := range all {
		if i == maxHealthNotes {
			note(t.level, "%s more with endpoints that are down: see pontoon endpoint list.", count(len(all)-i, "service"))
			return
		}
		note(t.level, "%s", t.text)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// endpointNote tells of one service; "" when all of its endpoints that could take
// new flows may be up.
func endpointNote(svc ServiceStatus) (Level, string) {
	var dead []EndpointStatus
	could := 0
	for _, e := range svc.Endpoints {
		if !e.candidate() {
			continue
		}
		could++
		if e.Health == EndpointDown {
			dead = append(dead, e)
		}
	}
	switch {
	case len(dead) == 0:
		return LevelOK, ""
	case len(dead) < could:
		return LevelWarn, fmt.Sprintf("Service %s: %d of %s down: %s.", svc.Name, len(dead), count(could, "endpoint"), deadWords(dead))
	case svc.AllDown == fsm.AllDownClosed:
		return LevelBad, fmt.Sprintf("Service %s: all endpoints are down, and new flows are refused (all_down closed): %s.", svc.Name, deadWords(dead))
	}
	return LevelBad, fmt.Sprintf("Service %s: all endpoints are down, and new flows go to them all the same (all_down open): %s.", svc.Name, deadWords(dead))
}

// deadWords names a few endpoints with what is wrong with them.
func deadWords(dead []EndpointStatus) string {
	const most = 3
	var words []string
	for i, e := range dead {
		if i == most {
			words = append(words, fmt.Sprintf("and %d more", len(dead)-i))
			break
		}
		w := e.Address.String()
		if e.HealthError != "" {
			w += " (" + e.HealthError + ")"
		}
		words = append(words, w)
	}
	return strings.Join(words, ", ")
}
