package web

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"pontoon/fsm"
)

type putPoolInput struct {
	Precondition
	Name string `path:"name" doc:"Name of the pool."`
	Body json.RawMessage
}

func (s *server) putPool(ctx context.Context, in *putPoolInput) (*answer[PoolWritten], error) {
	cmd, err := readPool(in.Name, in.Body)
	if err != nil {
		return nil, err
	}
	if err := s.inCluster(); err != nil {
		return nil, err
	}
	var notes []string
	old, _ := s.Backend.State().Pool(in.Name)
	grows := cmd.Pool.Grows(old)
	if grows {
		if notes, err = s.checkUses(ctx, cmd.Pool, old); err != nil {
			return nil, err
		}
	}
	w, err := s.proposeIf(ctx, cmd, in.Precondition)
	if err != nil {
		return nil, err
	}
	if grows {
		notes = append(notes, besideNotes(s.Backend.State().PoolUse(in.Name))...)
	}
	return &answer[PoolWritten]{Body: PoolWritten{w.Body, notes}}, nil
}

// checkUses refuses addresses that are new to a pool and that a node has on a link, or
// reaches over a router. What contains the pool is no matter: a pool is often cut
// out of a network that is routed as a whole. The notes name the nodes that could not
// be asked.
func (s *server) checkUses(ctx context.Context, p, old fsm.Pool) ([]string, error) {
	all, err := s.Backend.Uses(ctx)
	if err != nil {
		return nil, err
	}
	var notes []string
	var clashes []string        // in the order of their finding
	on := map[string][]string{} // the nodes of each
	for _, n := range all {
		if n.Error != "" {
			notes = append(notes, fmt.Sprintf("%s could not be asked for its addresses and routes (%s): see to it that the pool has none of them", n.Node, n.Error))
			continue
		}
		for _, u := range n.Uses {
			if !p.Covers(u.Prefix) || old.Covers(u.Prefix) {
				continue
			}
			what := u.Prefix.String()
			if u.Prefix.IsSingleIP() {
				what = u.Prefix.Addr().String()
			}
			what += " is " + u.What
			if !slices.Contains(clashes, what) {
				clashes = append(clashes, what)
			}
			on[what] = append(on[what], string(n.Node))
		}
	}
	if len(clashes) == 0 {
		return notes, nil
	}
	const most = 8 // said of each, the rest is counted
	words := make([]string, 0, most)
	for _, c := range clashes[:min(most, len(clashes))] {
		words = append(words, c+" on "+strings.Join(on[c], ", "))
	}
	if n := len(clashes) - most; n > 0 {
		words = append(words, fmt.Sprintf("and %d more", n))
	}
	return nil, refusef(fsm.ErrInUse, "pool %s: %s: leave it out, with ranges around it", p.Name, strings.Join(words, "; "))
}

// besideNotes says that addresses of a pool are in use that it has not handed out.
func besideNotes(use fsm.PoolUse) []string {
	if len(use.Others) == 0 {
		return nil
	}
	first := use.Others[0]
	text := fmt.Sprintf("%s is %s", first.Address, first.What)
	if len(first.Services) > 0 {
		text += " (" + strings.Join(first.Services, ", ") + ")"
	}
	if n := len(use.Others) - 1; n > 0 {
		text += fmt.Sprintf(", and %d more are in use", n)
	}
	return []string{text + ": nobody else is given it; see `pontoon pool show`"}
}
