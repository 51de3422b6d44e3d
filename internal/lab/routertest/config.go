package routertest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"pontoon/internal/lab"
)

// Form is how the VIPs come to the router.
type Form string

// The forms; each has a configuration of its own for each kind of router.
const (
	Backup   Form = "l3-backup"
	ECMP     Form = "ecmp"
	Floating Form = "floating"
)

// Forms are all of them.
func Forms() []Form { return []Form{Backup, ECMP, Floating} }

// Options says how a router is set up.
type Options struct {
	Form Form
	// BFD is the time between two BFD packets, of which three may be missed; 0 for no BFD.
	BFD time.Duration
	// Password is for TCP MD5 with every node; "" for none.
	Password string
	// IBGP gives the router the nodes' AS.
	IBGP bool
	// NoGracefulRestart makes the router forget routes when their session ends.
	NoGracefulRestart bool
	// Edit changes the finished text, for what only one test needs.
	Edit func(config string) string
}

// Documented is the file of docs/operations/routers for a router and a form.
func Documented(kind Kind, form Form) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	raw, err := os.ReadFile(filepath.Join(root, "docs/operations/routers", string(kind)+"-"+string(form)+".conf"))
	if err != nil {
		return "", fmt.Errorf("documented configuration: %w", err)
	}
	return string(raw), nil
}

// moduleRoot looks for go.mod upwards: tests run in their package's directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find module: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("find module: no go.mod above the working directory")
		}
	}
}

// render fits the documented configuration to a router of the lab and to the options. With
// the options of the documentation, on r1 of a lab of three nodes, it changes nothing.
func render(kind Kind, r *lab.Router, nodes int, o Options) (string, error) {
	return renderFor(kind, r.CoreAddr(lab.IPv4), nodes, o)
}

func renderFor(kind Kind, router netip.Addr, nodes int, o Options) (string, error) {
	text, err := Documented(kind, o.Form)
	if err != nil {
		return "", err
	}
	text = peers(text, nodes)
	addr := router.String()
	text = strings.ReplaceAll(text, "router id 192.168.90.1;", "router id "+addr+";")
	text = strings.ReplaceAll(text, "router-id 192.168.90.1\n", "router-id "+addr+"\n")
	if o.IBGP {
		text = strings.ReplaceAll(text, fmt.Sprint(lab.RouterAS), fmt.Sprint(lab.NodeAS))
	}
	for _, e := range edits(kind, o) {
		changed := regexp.MustCompile(e.pattern).ReplaceAllString(text, e.by)
		if changed == text && !e.same {
			return "", fmt.Errorf("%s has no line that matches %s any more", kind, e.pattern)
		}
		text = changed
	}
	if o.Edit != nil {
		text = o.Edit(text)
	}
	return text, nil
}

// peers repeats the lines of the third node for further ones, and takes away what is too much.
func peers(text string, nodes int) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		third := strings.Contains(line, "192.168.90.13")
		second := strings.Contains(line, "192.168.90.12")
		if second && nodes < 2 || third && nodes < 3 {
			continue
		}
		out.WriteString(line)
		for n := 4; third && n <= nodes; n++ {
			more := strings.ReplaceAll(line, "192.168.90.13", fmt.Sprintf("192.168.90.%d", 10+n))
			out.WriteString(strings.ReplaceAll(more, "lb3", fmt.Sprintf("lb%d", n)))
		}
	}
	return out.String()
}

// edit is one change of the text.
type edit struct {
	pattern, by string
	same        bool // it may change nothing
}

func edits(kind Kind, o Options) []edit {
	var out []edit
	ms := fmt.Sprint(o.BFD.Milliseconds())
	switch {
	case kind == BIRD && o.BFD == 0:
		out = append(out, edit{pattern: `(?m)^\tbfd on;\n`})
	case kind == BIRD:
		out = append(out, edit{pattern: `interval \d+ ms`, by: "interval " + ms + " ms", same: true})
	case o.BFD == 0:
		out = append(out, edit{pattern: `(?m)^ neighbor pontoon bfd profile pontoon\n`})
	default:
		out = append(out, edit{pattern: `(receive|transmit)-interval \d+`, by: "${1}-interval " + ms, same: true})
	}
	if o.Password != "" {
		if kind == BIRD {
			out = append(out, edit{pattern: `(?m)^(\tlocal as \d+;)$`, by: "$1\n\tpassword \"" + o.Password + "\";"})
		} else {
			out = append(out, edit{pattern: `(?m)^( neighbor pontoon remote-as \d+)$`, by: "$1\n neighbor pontoon password " + o.Password})
		}
	}
	if o.NoGracefulRestart {
		if kind == BIRD {
			out = append(out, edit{pattern: `graceful restart on;`, by: "graceful restart off;"})
		} else {
			out = append(out, edit{pattern: ` bgp graceful-restart\n`, by: " bgp graceful-restart-disable\n"})
		}
	}
	return out
}
