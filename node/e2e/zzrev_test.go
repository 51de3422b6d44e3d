package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
)

func TestZZRev(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", false)
	clients := connect(t, l, 100)
	w := clients.Window()
	if err := w.Wait(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	victim := master(t, l, "")
	t.Log("power off at", time.Now().UTC().Format("15:04:05.000"))
	_ = victim.PowerOff(within(t, 10*time.Second))
	t.Log("power off done", time.Now().UTC().Format("15:04:05.000"))
	next := master(t, l, victim.Name())
	t.Log("new master seen", time.Now().UTC().Format("15:04:05.000"))
	w.Mark()
	_ = w.Wait(within(t, 20*time.Second))
	t.Logf("%+v", w.Result())
	for _, n := range l.Nodes() {
		b, _ := os.ReadFile(n.LogFile())
		lines := strings.Split(string(b), "\n")
		for _, li := range lines[max(0, len(lines)-40):] {
			t.Log(n.Name(), li)
		}
	}
	third := l.Nodes()[0]
	for _, n := range l.Nodes() {
		if n != victim && n != next {
			third = n
		}
	}
	_ = third.PowerOff(within(t, 10*time.Second))
	for range 1 {
		at := time.Now()
		err := next.Terminate(within(t, 20*time.Second))
		t.Log("terminated in", time.Since(at), err)
	}
}
