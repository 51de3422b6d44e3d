package lab

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestEachFormServesOnAnAddressOfItsOwn(t *testing.T) {
	seen := map[netip.AddrPort]bool{}
	for _, f := range []demoForm{formL2, formBackup, formECMP} {
		seen[f.target()] = true
		commands, words := f.setup([]netip.AddrPort{netip.MustParseAddrPort("10.2.0.21:8080")})
		last := commands[len(commands)-1]
		if last[0] != "service" || !slices.Contains(last, "10.2.0.21:8080") || !slices.Contains(last, f.target().Addr().String()) {
			t.Errorf("%s: the service is %v", f, last)
		}
		text := ""
		for _, c := range commands {
			text += strings.Join(c, " ") + "\n"
		}
		if !slices.Contains(last, "--probe") {
			t.Errorf("%s: nothing says how endpoints are probed: %v", f, last)
		}
		if strings.Contains(text, "--announce bgp") != (f != formL2) || strings.Contains(text, "--kind ecmp") != (f == formECMP) || !strings.Contains(words, "1 endpoints") {
			t.Errorf("%s: %s\n%s", f, words, text)
		}
	}
	if len(seen) != 3 {
		t.Errorf("addresses: %v", seen)
	}
}

func TestEveryFailureIsWantedInEveryForm(t *testing.T) {
	cfg := DemoConfig{BGP: true, Failures: []string{FailKill, FailLink}}.withDefaults()
	r := newReport(cfg)
	good := FailureReport{Form: formBackup, Kind: FailKill, Successor: "lb2", Connections: 1, Survived: 1, NewConnectionsOK: true, RouterMS: 163}
	alike := good
	alike.Form, alike.Successor = formECMP, ""
	r.Failures = []FailureReport{good, good, alike}
	if r.conclude(); r.OK {
		t.Error("three of four failures pass")
	}
	r.Failures = append(r.Failures, alike)
	if r.conclude(); r.OK {
		t.Error("no endpoint has died, and it passes")
	}
	for _, f := range []demoForm{formBackup, formECMP} {
		r.Endpoints = append(r.Endpoints, EndpointReport{Form: f, Kind: endpointDeath, Connections: 1, Own: 1, AfterMS: 1734}, EndpointReport{Form: f, Kind: endpointReturn})
	}
	if r.conclude(); !r.OK || !strings.Contains(r.Verdict, "a node failed 4 times") {
		t.Errorf("%v, %s", r.OK, r.Verdict)
	}
	var out bytes.Buffer
	if err := r.table(&out); err != nil || !strings.Contains(out.String(), "the others") || !strings.Contains(out.String(), "163 ms") || !strings.Contains(out.String(), "1734 ms") {
		t.Errorf("%v\n%s", err, out.String())
	}
	headless := good
	headless.Successor = ""
	if headless.ok() {
		t.Error("a form with a master passes without a successor")
	}
}

func TestRouterConfigSaysEverythingThatIsWrong(t *testing.T) {
	err := RouterConfig{Peers: []RouterPeer{{BFDInterval: 50}}}.Validate()
	for _, want := range []string{"no AS", "router id", "address and an AS", "BFD wants"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %q in: %v", want, err)
		}
	}
}
