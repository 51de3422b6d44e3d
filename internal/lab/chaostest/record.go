package chaostest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/arping"
)

// viewEvery is the pace at which each node is asked for its view.
const viewEvery = 50 * time.Millisecond

// watch records what a node says of the cluster whenever that changes.
func (r *run) watch(ctx context.Context, n *lab.Node) error {
	tick := time.NewTicker(viewEvery)
	defer tick.Stop()
	var last View
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		p := n.Process()
		if p == nil || !n.Powered() {
			continue
		}
		life, before := r.life(n, p), r.now()
		s, err := n.Status(ctx)
		if err != nil || r.life(n, n.Process()) != life {
			continue
		}
		r.sawReady(ctx, n, before)
		v := viewOf(s, n.Name(), life, r.now())
		if !sameView(v, last) {
			last = v
			r.saw(v, s)
		}
	}
}

func viewOf(s lab.Status, node string, life int, at time.Duration) View {
	v := View{At: at, Node: node, Life: life, Leader: s.Cluster.Leader, Quorum: s.Cluster.Quorum}
	for _, i := range s.Instances {
		v.Instances = append(v.Instances, InstanceView{i.Name, i.Master, i.Epoch})
	}
	for _, m := range s.Nodes {
		if !m.Ready {
			v.NotReady = append(v.NotReady, m.Name)
		}
	}
	return v
}

func sameView(a, b View) bool {
	return a.Life == b.Life && a.Leader == b.Leader && a.Quorum == b.Quorum &&
		slices.Equal(a.Instances, b.Instances) && slices.Equal(a.NotReady, b.NotReady)
}

// sawReady ends the time in which a node's kernel did not know the flows: it says
// itself that it is in sync again, among the other things that make it ready.
func (r *run) sawReady(ctx context.Context, n *lab.Node, asked time.Duration) {
	r.mu.Lock()
	since, forgot := r.forgot[n.Name()]
	forgot = forgot && !r.away[n.Name()]
	r.mu.Unlock()
	if !forgot || asked < since {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if n.Call(ctx, http.MethodGet, "/readyz", nil, nil) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.forgot[n.Name()] == since {
		delete(r.forgot, n.Name())
		r.h.Spans = append(r.h.Spans, Span{n.Name(), Forgot, since, r.now()})
	}
}

// claimsOf translates what a prober heard.
func (r *run) claimsOf(p *arping.Prober, all []arping.Claim) (out []Claim) {
	for _, c := range all {
		node := c.MAC
		if name, ok := r.macs[c.MAC]; ok {
			node = name
		}
		out = append(out, Claim{c.At.Sub(r.began), c.Address.String(), node, c.Asked})
	}
	return out
}

// writeEvery is the pace of the writer.
const (
	writeEvery = 150 * time.Millisecond
	writeTime  = 2 * time.Second
	writeKeys  = 6
)

// write changes the configuration all the time, by whichever node.
func (r *run) write(ctx context.Context) error {
	rnd := rand.New(rand.NewPCG(r.cfg.Plan.Seed, 1))
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for value := 1; ; value++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n := r.lab.Nodes()[rnd.IntN(len(r.lab.Nodes()))]
		key := rnd.IntN(writeKeys)
		w := Write{At: r.now(), Via: n.Name(), Key: fmt.Sprintf("chaos%d", key), Value: fmt.Sprintf("%ds", 100+value)}
		wctx, cancel := context.WithTimeout(ctx, writeTime)
		err := n.Call(wctx, http.MethodPut, "/v1/services/"+w.Key, r.service(key, w), nil)
		cancel()
		w.Done, w.Outcome = r.now(), outcome(err)
		if err != nil {
			w.Error = err.Error()
		}
		r.mu.Lock()
		r.h.Writes = append(r.h.Writes, w)
		r.mu.Unlock()
	}
}

// service is what a write puts: the value is a setting that changes no traffic.
func (r *run) service(key int, w Write) map[string]any {
	return map[string]any{
		"name": w.Key, "vip": lab.ServiceVIP().String(), "port": 2000 + key, "idle_timeout": w.Value,
		"endpoints": []map[string]any{{"address": endpoint(r.lab.Endpoints()[0]).String()}},
	}
}

// outcome reads an error of a write. Only what never reached a daemon, or was
// declined for what it says, is certainly not done.
func outcome(err error) Outcome {
	var api *lab.APIError
	switch {
	case err == nil:
		return Acknowledged
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return Refused
	case errors.As(err, &api) && api.Status < http.StatusInternalServerError:
		return Refused
	}
	return Unknown
}

// finals reads from every node what it holds.
func (r *run) finals(ctx context.Context) error {
	for _, n := range r.lab.Nodes() {
		f := Final{Node: n.Name(), Values: map[string]string{}}
		var services []struct {
			Name string `json:"name"`
			Idle string `json:"idle_timeout"`
		}
		if err := n.Get(ctx, "/v1/services", &services); err != nil {
			return fmt.Errorf("read the services of %s: %w", n.Name(), err)
		}
		for _, s := range services {
			if strings.HasPrefix(s.Name, "chaos") {
				d, err := time.ParseDuration(s.Idle)
				if err != nil {
					return fmt.Errorf("read service %s of %s: %w", s.Name, n.Name(), err)
				}
				f.Values[s.Name] = fmt.Sprintf("%.0fs", d.Seconds())
			}
		}
		if err := n.Get(ctx, "/v1/flows", &f.Flows); err != nil {
			return fmt.Errorf("read the flows of %s: %w", n.Name(), err)
		}
		r.h.Final = append(r.h.Final, f)
	}
	return nil
}

// logMarks are what a daemon's log says when it fell over.
var logMarks = []string{"panic:", "fatal error:", "unexpected fault address", "DATA RACE"}

// readLogs looks for them.
func (r *run) readLogs() {
	for _, n := range r.lab.Nodes() {
		f, err := os.Open(n.LogFile())
		if err != nil {
			continue // never started
		}
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if slices.ContainsFunc(logMarks, func(m string) bool { return strings.Contains(lines.Text(), m) }) {
				r.found(n, lines.Text())
			}
		}
		f.Close()
	}
}

// lastLine is the end of a log.
func lastLine(path string) string {
	raw, _ := os.ReadFile(path) // what cannot be read is shown as nothing
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return lines[len(lines)-1]
}
