package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
)

// dumpLines is how much of each log Dump shows.
const dumpLines = 60

// Dump writes what an engineer wants to see after a failed test: of each host
// its links, addresses, routes and neighbours, of each node also its status
// and the end of its log. It goes on past what cannot be had, and says so.
func (l *Lab) Dump(w io.Writer) {
	fmt.Fprintf(w, "=== lab %s (%s, %s)\n", l.prefix, l.cfg.Topology, l.dir)
	for _, n := range l.nodes {
		fmt.Fprintf(w, "--- %s: %s\n", n.Name(), n.condition())
		if n.Powered() {
			dumpNetwork(w, n.ns)
		}
		// All of it, not only the part the lab understands.
		var status json.RawMessage
		ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
		err := n.Get(ctx, "/v1/status", &status)
		cancel()
		if err != nil {
			fmt.Fprintf(w, "status: %v\n", err)
		} else {
			fmt.Fprintf(w, "status: %s\n", status)
		}
		fmt.Fprintf(w, "log:\n%s\n", tail(n.LogFile(), dumpLines))
	}
	for _, r := range l.routers {
		fmt.Fprintf(w, "--- %s\n", r.Name())
		dumpNetwork(w, r.ns)
		fmt.Fprintf(w, "log:\n%s\n", tail(r.LogFile(), dumpLines))
	}
	for _, h := range append(append([]*Host{}, l.clients...), l.eps...) {
		fmt.Fprintf(w, "--- %s\n", h.Name())
		dumpNetwork(w, h.ns)
	}
}

// condition says in a few words how the daemon is.
func (n *Node) condition() string {
	switch p := n.Process(); {
	case !n.Powered():
		return "no power"
	case p == nil:
		return "never started"
	case !p.Running():
		return fmt.Sprintf("process %d ended: %v", p.PID, p.err)
	default:
		return fmt.Sprintf("process %d runs", p.PID)
	}
}

func dumpNetwork(w io.Writer, ns string) {
	nl, err := nlHandle(ns)
	if err != nil {
		fmt.Fprintf(w, "%v\n", err)
		return
	}
	defer nl.Close()
	links, err := nl.LinkList()
	if err != nil {
		fmt.Fprintf(w, "links: %v\n", err)
	}
	for _, link := range links {
		a := link.Attrs()
		fmt.Fprintf(w, "link %s %s %s:", a.Name, a.HardwareAddr, a.OperState)
		addrs, err := nl.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			fmt.Fprintf(w, " %v", err)
		}
		for _, addr := range addrs {
			fmt.Fprintf(w, " %s", addr.IPNet)
		}
		fmt.Fprintln(w)
		neighs, err := nl.NeighList(a.Index, netlink.FAMILY_ALL)
		if err != nil {
			fmt.Fprintf(w, "neighbours: %v\n", err)
		}
		for _, ne := range neighs {
			fmt.Fprintf(w, "  neighbour %s %s state %#x\n", ne.IP, ne.HardwareAddr, ne.State)
		}
	}
	routes, err := nl.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		fmt.Fprintf(w, "routes: %v\n", err)
	}
	for _, r := range routes {
		fmt.Fprintf(w, "route %s\n", r)
	}
}

// tail is the last n lines of a file, or why there are none.
func tail(path string, n int) string {
	const most = 64 << 10
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "(no log)"
	}
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	raw, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
