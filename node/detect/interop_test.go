package detect

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pontoon/internal/roottest"
)

// router is somebody else's BFD at the second end of a cable.
type router interface {
	// up tells whether it calls its session with us up.
	up(t *testing.T) bool
	// pause is its BFD's process.
	signal(t *testing.T, s syscall.Signal)
}

// Neither in one direction nor in the other may a difference in reading the RFC show.
func TestOtherPeoplesBFDAgreesWithOurs(t *testing.T) {
	for name, begin := range map[string]func(*testing.T, *cable, bool, int) router{"frr": startFRR, "bird": startBIRD} {
		for _, ms := range []int{300, 100, 50} {
			for _, v6 := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%dx3/v6=%v", name, ms, v6), func(t *testing.T) {
					t.Parallel()
					agree(t, begin, ms, v6)
				})
			}
		}
	}
}

func agree(t *testing.T, begin func(*testing.T, *cable, bool, int) router, ms int, v6 bool) {
	c := newCable(t)
	peer := begin(t, c, v6, ms)
	interval := time.Duration(ms) * time.Millisecond
	began := time.Now()
	us := c.driver(0)
	us.want(c.session(0, v6, Config{DesiredMinTx: interval, RequiredMinRx: interval, DetectMult: 3}))
	us.changed(began, Up, DiagNone)
	eventually(t, "the peer calls the session up", func() bool { return peer.up(t) })
	us.status("the agreed timers", func(s Status) bool { return s.TxInterval == interval && s.DetectionTime == 3*interval })

	stopped := time.Now()
	peer.signal(t, syscall.SIGSTOP)
	down := us.changed(stopped, Down, DiagExpired)
	t.Logf("its silence was found after %v", down.At.Sub(stopped))
	woken := time.Now()
	peer.signal(t, syscall.SIGCONT)
	us.changed(woken, Up, DiagNone)
	eventually(t, "the peer calls the session up again", func() bool { return peer.up(t) })

	us.signal(syscall.SIGSTOP)
	eventually(t, "the peer finds our silence", func() bool { return !peer.up(t) })
	woken = us.signal(syscall.SIGCONT)
	us.changed(woken, Up, DiagNone)
	eventually(t, "the peer calls the session up a third time", func() bool { return peer.up(t) })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not within %v", what, patience)
}

// frr is FRRouting's bfdd. It serves the segment only with zebra beside it, and
// both give up their rights to a user of their own.
type frr struct {
	dir  string
	bfdd *exec.Cmd
}

func startFRR(t *testing.T, c *cable, v6 bool, ms int) router {
	t.Helper()
	roottest.NeedProgram(t, "/usr/lib/frr/bfdd")
	dir, err := os.MkdirTemp("/run", "ptfrr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	us := c.session(1, v6, Config{})
	conf := fmt.Sprintf("bfd\n peer %v local-address %v interface %s\n  detect-multiplier 3\n  receive-interval %d\n  transmit-interval %d\n  no shutdown\n exit\nexit\n",
		us.Remote, us.Local, us.Interface, ms, ms)
	write(t, filepath.Join(dir, "bfdd.conf"), conf)
	write(t, filepath.Join(dir, "zebra.conf"), "hostname peer\n")
	roottest.Own(t, dir, "frr")
	daemon := func(name string, more ...string) *exec.Cmd {
		args := append([]string{
			"-f", filepath.Join(dir, name+".conf"), "-i", filepath.Join(dir, name+".pid"), "-z", filepath.Join(dir, "zserv.api"),
			"--vty_socket", dir, "-A", "127.0.0.1", "-P", "0", "-u", "frr", "-g", "frr",
		}, more...)
		cmd := c.in(1, "/usr/lib/frr/"+name, args...)
		c.start(cmd)
		return cmd
	}
	daemon("zebra")
	eventually(t, "zebra listens", func() bool { return exists(filepath.Join(dir, "zserv.api")) })
	f := &frr{dir: dir, bfdd: daemon("bfdd", "--bfdctl", filepath.Join(dir, "bfdd.sock"))}
	eventually(t, "bfdd listens", func() bool { return exists(filepath.Join(dir, "bfdd.vty")) })
	return f
}

func (f *frr) signal(t *testing.T, s syscall.Signal) { send(t, f.bfdd, s) }

func (f *frr) up(t *testing.T) bool {
	t.Helper()
	out, err := exec.Command("vtysh", "--vty_socket", f.dir, "-d", "bfdd", "-c", "show bfd peers json").Output()
	if err != nil {
		return false
	}
	var peers []struct{ Status string }
	return json.Unmarshal(out, &peers) == nil && len(peers) == 1 && peers[0].Status == "up"
}

// bird is BIRD's bfd protocol.
type bird struct {
	socket string
	cmd    *exec.Cmd
}

func startBIRD(t *testing.T, c *cable, v6 bool, ms int) router {
	t.Helper()
	roottest.NeedProgram(t, "/usr/sbin/bird")
	dir := t.TempDir()
	us := c.session(1, v6, Config{})
	conf := fmt.Sprintf("router id 10.99.0.2;\nprotocol device {}\nprotocol bfd {\n interface \"%s\" { interval %d ms; idle tx interval 1 s; multiplier 3; };\n neighbor %v dev \"%s\" local %v;\n}\n",
		us.Interface, ms, us.Remote, us.Interface, us.Local)
	write(t, filepath.Join(dir, "bird.conf"), conf)
	b := &bird{socket: filepath.Join(dir, "bird.ctl")}
	b.cmd = c.in(1, "/usr/sbin/bird", "-f", "-c", filepath.Join(dir, "bird.conf"), "-s", b.socket, "-P", filepath.Join(dir, "bird.pid"))
	c.start(b.cmd)
	eventually(t, "bird listens", func() bool { return exists(b.socket) })
	return b
}

func (b *bird) signal(t *testing.T, s syscall.Signal) { send(t, b.cmd, s) }

func (b *bird) up(t *testing.T) bool {
	t.Helper()
	out, err := exec.Command("/usr/sbin/birdc", "-s", b.socket, "show", "bfd", "sessions").Output()
	return err == nil && strings.Contains(string(out), " Up ")
}

func send(t *testing.T, cmd *exec.Cmd, s syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
