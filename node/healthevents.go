package node

import (
	"fmt"
	"strings"

	"pontoon/fsm"
	"pontoon/web"
)

// mostHealthEvents is how many endpoints of one service are told of one by one when they change
// together; a rack that fails must not push everything else out of the log.
const mostHealthEvents = 10

// healthEvents tells what the verdicts on endpoints say now. Of those that were found up for the
// first time it is enough to know how many.
func healthEvents(prev, next *fsm.State, add func(Event)) {
	var rest healthRest
	for _, c := range fsm.HealthChanges(prev, next) {
		if c.Service != rest.service {
			rest.tell(add)
			rest = healthRest{service: c.Service}
		}
		text := healthWords(c)
		switch {
		case text == "":
		case c.Was.Health == fsm.HealthUnknown && c.Is.Health == fsm.HealthUp:
			rest.first++
		case rest.told == mostHealthEvents && c.Is.Health == fsm.HealthDown:
			rest.down++
		case rest.told == mostHealthEvents:
			rest.other++
		default:
			rest.told++
			add(healthEvent(c, text))
		}
	}
	rest.tell(add)
}

// healthRest is what is not told endpoint by endpoint of one service.
type healthRest struct {
	service            string
	told               int
	first, down, other int
}

func (r healthRest) tell(add func(Event)) {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{r.first, "up, as the first probes found"}, {r.down, "down as well"}, {r.other, "up, or otherwise changed, as well"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", counted(p.n, "endpoint"), p.what))
		}
	}
	if len(parts) > 0 {
		add(Event{Kind: web.EventHealth, Text: fmt.Sprintf("service %s: %s", r.service, strings.Join(parts, ", ")), Fields: map[string]string{"service": r.service}})
	}
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func healthEvent(c fsm.HealthChange, text string) Event {
	fields := map[string]string{
		"service": c.Service, "endpoint": c.Endpoint.Address.String(), "from": string(c.Was.Health), "to": string(c.Is.Health),
	}
	if c.Is.Why != "" {
		fields["why"] = c.Is.Why
	}
	if c.Is.Flapping {
		fields["flapping"] = "true"
	}
	return Event{Kind: web.EventHealth, Text: text, Fields: fields}
}

// healthWords says what became of an endpoint; "" when that is no news: a step of its slow start, or that
// it is not probed any more.
func healthWords(c fsm.HealthChange) string {
	name := fmt.Sprintf("endpoint %s of service %s", c.Endpoint.Address, c.Service)
	switch {
	case c.Is.Health == fsm.HealthUnknown:
		return ""
	case c.Was.Health != c.Is.Health:
		text := name + " is " + string(c.Is.Health)
		if c.Is.Why != "" {
			text += ": " + c.Is.Why
		}
		if c.Is.Flapping && !c.Was.Flapping {
			text += "; it changes too often, and has to work for longer to count as up"
		}
		return text
	case c.Is.Flapping && !c.Was.Flapping:
		return name + " changes too often: it has to work for longer to count as up"
	case c.Was.Flapping && !c.Is.Flapping:
		return name + " has calmed down"
	}
	return ""
}
