package priority

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

// threads is a process of a number of threads with their nice values, of which some are made while they are listed.
type threads struct {
	nice  map[int]int
	born  []func() // one after each listing
	wants int
}

func (p *threads) list() ([]int, error) {
	var out []int
	for tid := range p.nice {
		out = append(out, tid)
	}
	if len(p.born) > 0 {
		p.born[0]()
		p.born = p.born[1:]
	}
	return out, nil
}

func (p *threads) set(tid int) (bool, error) {
	changed := p.nice[tid] != p.wants
	p.nice[tid] = p.wants
	return changed, nil
}

func TestThreadsThatAreMadeMeanwhileAreFoundToo(t *testing.T) {
	p := &threads{nice: map[int]int{1: 0, 2: 0}, wants: -10}
	inherit := func(from, tid int) func() { return func() { p.nice[tid] = p.nice[from] } }
	p.born = []func(){inherit(2, 3), inherit(3, 4), inherit(4, 5)}
	if err := settle(p.list, p.set); err != nil {
		t.Fatal(err)
	}
	for tid, nice := range p.nice {
		if nice != -10 {
			t.Errorf("thread %d has %d", tid, nice)
		}
	}
	if len(p.nice) != 5 {
		t.Errorf("%d threads: want 5", len(p.nice))
	}
}

func TestThreadsWithoutEndAreGivenUp(t *testing.T) {
	p := &threads{nice: map[int]int{1: 0}, wants: -10}
	for i := range 2 * maxPasses {
		p.born = append(p.born, func() { p.nice[10+i] = 0 })
	}
	if err := settle(p.list, p.set); err == nil {
		t.Error("no error")
	}
}

func TestBoundsAreChecked(t *testing.T) {
	for _, nice := range []int{-21, 20} {
		if err := Set(nice); err == nil {
			t.Errorf("%d was taken", nice)
		}
	}
}

// childVariable has the tests' binary, started again, be the process whose threads are looked at.
const childVariable = "PONTOON_TEST_PRIORITY"

// TestMain is that process when asked to: it sets its own value between the making of threads and tells what each has.
func TestMain(m *testing.M) {
	wanted, err := strconv.Atoi(os.Getenv(childVariable))
	if err != nil {
		os.Exit(m.Run())
	}
	var held sync.WaitGroup
	hold := make(chan struct{})
	occupy := func() { // a thread each
		for range 8 {
			held.Add(1)
			go func() {
				runtime.LockOSThread()
				held.Done()
				<-hold
			}()
		}
	}
	occupy()
	err = Set(wanted)
	occupy()
	held.Wait()
	tids, listErr := listThreads()
	var out []string
	for _, tid := range tids {
		nice, priorityErr := unix.Getpriority(unix.PRIO_PROCESS, tid)
		listErr = errors.Join(listErr, priorityErr)
		out = append(out, strconv.Itoa(20-nice))
	}
	group, _ := os.ReadFile(autogroupFile)
	if _, text, found := strings.Cut(string(group), " nice "); found {
		out = append(out, "group:"+strings.TrimSpace(text))
	}
	if errors.Is(err, os.ErrPermission) {
		out = append(out, "refused")
		err = nil
	}
	if err = errors.Join(err, listErr); err != nil {
		out = append(out, err.Error())
	}
	_, _ = os.Stdout.WriteString(strings.Join(out, " "))
	os.Exit(0)
}

func child(t *testing.T, nice int, attr *syscall.SysProcAttr) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"="+strconv.Itoa(nice))
	cmd.SysProcAttr = attr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

func TestEveryThreadGetsTheValue(t *testing.T) {
	roottest.Need(t)
	said := child(t, -7, &syscall.SysProcAttr{Setsid: true})
	if len(said) < 16 {
		t.Fatalf("said %q", said)
	}
	_, err := os.Stat(autogroupFile)
	for _, s := range said {
		if s != "-7" && (s != "group:-7" || err != nil) {
			t.Errorf("said %q", said)
			break
		}
	}
}

// What a terminal's other processes have in common with this one is not its business.
func TestASharedSessionIsLeftAlone(t *testing.T) {
	roottest.Need(t)
	said := child(t, -7, nil)
	if slices.Contains(said, "group:-7") || !slices.Contains(said, "-7") {
		t.Errorf("said %q", said)
	}
}

func TestWithoutTheRightItSaysSo(t *testing.T) {
	roottest.Need(t)
	dir := t.TempDir()
	raw, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(dir+"/child", raw, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	roottest.Own(t, dir, "nobody")
	_ = os.Chmod(dir+"/..", 0o755)
	cmd := exec.CommandContext(t.Context(), dir+"/child")
	cmd.Env = append(os.Environ(), childVariable+"=-7")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if said := strings.Fields(string(out)); !slices.Contains(said, "refused") || slices.Contains(said, "-7") {
		t.Errorf("said %q", said)
	}
}
