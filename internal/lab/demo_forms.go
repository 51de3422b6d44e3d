package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// demoForm is how the service's address reaches the clients, and who forwards.
type demoForm string

// The forms.
const (
	formL2     demoForm = "l2"         // a master, by ARP
	formBackup demoForm = "bgp-backup" // a master, by BGP: all nodes announce, ranked
	formECMP   demoForm = "bgp-ecmp"   // no master, by BGP: all nodes announce alike
)

// formsOf are the forms a demo shows, in their order.
func formsOf(cfg DemoConfig) []demoForm {
	if cfg.BGP {
		return []demoForm{formBackup, formECMP}
	}
	return []demoForm{formL2}
}

// demoBFD is the time between two BFD packets of nodes and router, of which three may be missed.
const demoBFD = 50 * time.Millisecond

// ecmpInstance is the one without a master.
const ecmpInstance = "active"

func (f demoForm) hasMaster() bool { return f != formECMP }

// target is where the clients of this form go.
func (f demoForm) target() netip.AddrPort {
	vip := ServiceVIP()
	switch f {
	case formBackup:
		vip = RoutedVIP(0)
	case formECMP:
		vip = RoutedVIP(1)
	}
	return netip.AddrPortFrom(vip, demoPort)
}

// title heads a failure's chapter.
func (f demoForm) title(kind string) string {
	switch f {
	case formBackup:
		return kind + " (BGP, one master)"
	case formECMP:
		return kind + " (BGP, all active)"
	}
	return kind
}

// setup are the commands that make the VIPs, the service between them, and what is said of it.
func (f demoForm) setup(endpoints []netip.AddrPort) (commands [][]string, words string) {
	vip, algorithm, name := f.target().Addr().String(), "rr", "web"
	gateway := []string{"vip", "create", GatewayVIP().String(), "--kind", "gateway"}
	switch f {
	case formBackup:
		commands = [][]string{{"vip", "create", vip, "--announce", "bgp"}, gateway}
		words = "announced by all nodes with BGP, the master's route best"
	case formECMP:
		algorithm, name = "maglev", "web-active"
		commands = [][]string{
			{"instance", "create", ecmpInstance, "--kind", "ecmp"},
			{"vip", "create", vip, "--instance", ecmpInstance, "--announce", "bgp"},
		}
		words = "announced by all nodes with BGP, all routes as good"
	default:
		commands = [][]string{{"vip", "create", vip}, gateway}
		words = "announced by the master with ARP"
	}
	service := []string{
		"service", "create", name, "--vip", vip, "--port", fmt.Sprint(demoPort),
		"--protocol", "tcp", "--mode", "fullnat", "--algorithm", algorithm,
	}
	for _, ep := range endpoints {
		service = append(service, "--endpoint", ep.String())
	}
	service = append(service, probeFlags()...)
	return append(commands, service), fmt.Sprintf("service %s: %s to %d endpoints, fullnat, %s; %s",
		name, f.target(), len(endpoints), algorithm, words)
}

// createService makes what the form needs, and waits until the router knows the way.
func (d *demo) createService(ctx context.Context, n *Node) error {
	var endpoints []netip.AddrPort
	for _, ep := range d.lab.Endpoints() {
		endpoints = append(endpoints, endpointAddr(ep))
	}
	commands, words := d.form.setup(endpoints)
	for _, args := range commands {
		if _, err := n.CLI(ctx, args...); err != nil {
			return err
		}
	}
	d.tell.detail("%s", words)
	if d.routes == nil {
		return nil
	}
	want := 1
	if !d.form.hasMaster() {
		want = len(d.lab.Nodes())
	}
	return within(ctx, serveTimeout, func(ctx context.Context) error {
		return WaitFor(ctx, "the router's route", func(context.Context) error {
			hops, err := d.routes.To(d.form.target().Addr())
			if err == nil && len(hops) < want {
				err = fmt.Errorf("its next hops are %s, want %d", hops, want)
			}
			return err
		})
	})
}

// startRouter starts the product's own router, if the demo has one, and makes it known to the cluster.
func (d *demo) startRouter(ctx context.Context) error {
	if len(d.lab.Routers()) == 0 {
		return nil
	}
	r := d.lab.Routers()[0]
	if _, err := r.StartOwn(demoBFD); err != nil {
		return err
	}
	var err error
	if d.routes, err = r.RouteTable(); err != nil {
		return err
	}
	_, err = d.lab.Nodes()[0].CLI(ctx, "bgp", "peer", "add", r.CoreAddr(IPv4).String(), "--as", fmt.Sprint(RouterAS),
		"--bfd", "--bfd-interval", demoBFD.String())
	if err != nil {
		return err
	}
	d.peers = 1
	if err := d.awaitWhole(ctx); err != nil {
		return err
	}
	d.tell.detail("all nodes have BGP and BFD sessions with the router")
	return nil
}

// pickVictim is who is hurt: the master, and where there is none a node that is not the
// endpoints' gateway either, so that what is seen is about the routes.
func (d *demo) pickVictim(ctx context.Context) (*Node, error) {
	master, _, err := d.awaitMasterWithin(ctx, "", d.lab.Nodes())
	if err != nil {
		return nil, err
	}
	for _, n := range d.lab.Nodes() {
		if (n.Name() == master) == d.form.hasMaster() {
			return n, nil
		}
	}
	return nil, fmt.Errorf("the cluster names %q as its master, and there is no such node", master)
}

func (d *demo) victimWords(n *Node) string {
	if d.form.hasMaster() {
		return n.Name() + ", the master,"
	}
	return n.Name() + ", one of the active nodes,"
}

// awaitRouter waits until no packet of a client is sent to the victim any more.
func (d *demo) awaitRouter(ctx context.Context, fr *FailureReport, victim *Node, began time.Time) error {
	if d.routes == nil {
		return nil
	}
	var hops []netip.Addr
	err := within(ctx, successorTimeout, func(ctx context.Context) error {
		return WaitFor(ctx, "the router to leave "+victim.Name(), func(context.Context) (err error) {
			hops, err = d.routes.To(d.form.target().Addr())
			switch {
			case err != nil:
				return err
			case len(hops) == 0:
				return errors.New("it has no route")
			case slices.Contains(hops, victim.Addr()):
				return fmt.Errorf("its next hops are %s", hops)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	fr.RouterMS = ms(time.Since(began))
	d.tell.step("the router has left %s for %s, %s after the failure", victim.Name(), d.namesOf(hops), short(time.Since(began)))
	return nil
}

// namesOf are the nodes with these addresses.
func (d *demo) namesOf(hops []netip.Addr) string {
	var names []string
	for _, n := range d.lab.Nodes() {
		if slices.Contains(hops, n.Addr()) {
			names = append(names, n.Name())
		}
	}
	return strings.Join(names, " and ")
}
