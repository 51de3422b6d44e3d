package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// stateFile is the lab's own record in its directory, for [Clean].
const stateFile = "lab.json"

// record is the state file: everything outside the directory that a lab has
// made and that outlives a killed process.
type record struct {
	Prefix       string       `json:"prefix"`
	Owner        procRecord   `json:"owner"` // the process the lab lives in
	Detached     bool         `json:"detached"`
	BPFFS        string       `json:"bpffs"`
	MountedBPFFS bool         `json:"mounted_bpffs"`
	Processes    []procRecord `json:"processes"`
}

// procRecord names a process so that a reused id is not mistaken for it.
type procRecord struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

// alive says whether this very process exists.
func (p procRecord) alive() bool {
	start, err := startTime(p.PID)
	return err == nil && p.PID > 1 && start == p.Start
}

// validPrefix keeps Clean from being pointed at other people's things.
func validPrefix(prefix string) bool {
	ok, err := regexp.MatchString(`^pt[0-9a-f]{4}$`, prefix)
	return ok && err == nil
}

// save writes the record; l.mu is held.
func (l *Lab) save() error {
	raw, err := json.MarshalIndent(l.rec, "", "  ")
	if err != nil {
		return fmt.Errorf("encode lab state: %w", err)
	}
	path := filepath.Join(l.dir, stateFile)
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return fmt.Errorf("write lab state: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write lab state: %w", err)
	}
	return nil
}

// addProcess takes note of a started process.
func (l *Lab) addProcess(p *Process) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.procs = append(l.procs, p)
	kept := l.rec.Processes[:0]
	for _, r := range l.rec.Processes {
		if r.alive() {
			kept = append(kept, r)
		}
	}
	l.rec.Processes = append(kept, procRecord{PID: p.PID, Start: p.start})
	return l.save()
}

// loadRecord reads the state file of the lab in dir.
func loadRecord(dir string) (record, error) {
	var r record
	raw, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return r, fmt.Errorf("read lab state: %w", err)
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("read lab state in %s: %w", dir, err)
	}
	if r.Prefix != filepath.Base(dir) || !validPrefix(r.Prefix) {
		return r, fmt.Errorf("read lab state in %s: it names lab %q", dir, r.Prefix)
	}
	return r, nil
}

// Leftovers lists the prefixes of labs below dir (os.TempDir() when empty)
// whose owner has gone without cleaning up, or left them running on purpose.
func Leftovers(dir string) ([]string, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	paths, err := filepath.Glob(filepath.Join(dir, "pt????", stateFile))
	if err != nil {
		return nil, fmt.Errorf("look for labs in %s: %w", dir, err)
	}
	var found []string
	for _, p := range paths {
		r, err := loadRecord(filepath.Dir(p))
		if err == nil && !r.Owner.alive() {
			found = append(found, r.Prefix)
		}
	}
	return found, nil
}

// Clean removes what the lab with this prefix below dir (os.TempDir() when
// empty) has left behind: its processes, told apart from others by their
// start time, namespaces, pins and files. It refuses a lab whose owner still
// runs. Doing it twice is an error of the second time: there is no such lab.
func Clean(dir, prefix string) error {
	if !validPrefix(prefix) {
		return fmt.Errorf("clean lab %q: a prefix looks like pt1a2b", prefix)
	}
	if dir == "" {
		dir = os.TempDir()
	}
	dir = filepath.Join(dir, prefix)
	r, err := loadRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clean lab %s: no such lab: %s does not exist", prefix, filepath.Join(dir, stateFile))
	}
	if err != nil {
		return fmt.Errorf("clean lab %s: %w", prefix, err)
	}
	if r.Owner.alive() && r.Owner.PID != os.Getpid() {
		return fmt.Errorf("clean lab %s: process %d still uses it; end that one, it cleans up itself", prefix, r.Owner.PID)
	}
	var errs []error
	for _, p := range r.Processes {
		if !p.alive() {
			continue
		}
		if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill process %d: %w", p.PID, err))
		}
	}
	return errors.Join(append(errs, r.removeTraces(dir))...)
}

// removeTraces removes what is neither process nor thread: namespaces, pins,
// the mount, and at last, if all that went well, the directory.
func (r record) removeTraces(dir string) error {
	var errs []error
	names, err := namespacesOf(r.Prefix)
	errs = append(errs, err)
	for _, n := range names {
		errs = append(errs, deleteNS(n))
	}
	if r.BPFFS != "" {
		errs = append(errs, removePinsByPrefix(r.BPFFS, r.Prefix))
	}
	if r.MountedBPFFS {
		errs = append(errs, releaseBPFFS(r.BPFFS))
	}
	errs = append(errs, unmountDisks(dir))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove lab directory: %w", err)
	}
	return nil
}

// namespacesOf lists the named namespaces of one lab.
func namespacesOf(prefix string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix+"-") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// unmountDisks takes away the disks that nodes have of their own.
func unmountDisks(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*", "data"))
	if err != nil {
		return fmt.Errorf("look for disks in %s: %w", dir, err)
	}
	var errs []error
	for _, p := range paths {
		// EINVAL: no mount, the data directory is on the common disk.
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}
