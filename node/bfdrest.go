package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"pontoon/bpf"
	"pontoon/node/detect"
)

// A daemon that stops in order, to come back, leaves its BFD sessions with routers at
// rest for as long as its lease: the routers go on sending to a data plane that
// forwards. What it takes to go on with them stands in a file of the run directory.

// restFile is in the run directory, which does not outlive the machine's memory.
const restFile = "bfd.json"

// restAgree is how long routers have to agree.
const restAgree = 500 * time.Millisecond

// restingSessions is the file.
type restingSessions struct {
	Since    time.Duration    `json:"since"` // by bpf.Boottime
	Until    time.Duration    `json:"until"`
	Sessions []detect.Session `json:"sessions"`
}

// rest has the sessions with routers rest for span, and writes down how to go on. From
// then on none is begun: one with a router that waits would tell it that all is lost.
func (d *detector) rest(span time.Duration) error {
	d.setting.Lock()
	defer d.setting.Unlock()
	d.rested = true
	d.mu.Lock()
	routers := d.routers
	d.mu.Unlock()
	if len(routers) == 0 {
		return nil
	}
	now, err := bpf.Boottime()
	if err != nil {
		return err
	}
	keys := make([]detect.Key, len(routers))
	for i, s := range routers {
		keys[i] = s.Key
	}
	ctx, cancel := context.WithTimeout(context.Background(), restAgree)
	defer cancel()
	agreed, err := d.sessions.Rest(ctx, keys, span)
	left := restingSessions{Since: now, Until: now + span}
	for _, s := range routers {
		if r, ok := agreed[s.Key]; ok {
			s.Resume = r
			left.Sessions = append(left.Sessions, s)
		}
	}
	if len(left.Sessions) == 0 {
		return err
	}
	b, merr := json.Marshal(left)
	if merr != nil {
		return fmt.Errorf("encode resting BFD sessions: %w", merr)
	}
	if werr := renameio.WriteFile(filepath.Join(d.m.cfg.RunDir, restFile), b, 0o600, renameio.WithTempDir(d.m.cfg.RunDir)); werr != nil {
		return errors.Join(err, fmt.Errorf("save resting BFD sessions: %w", werr))
	}
	return err
}

// takeResting reads what an earlier process has left, once: nobody else may go on with it.
func takeResting(runDir string, now time.Duration) ([]detect.Session, error) {
	path := filepath.Join(runDir, restFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read resting BFD sessions: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return nil, fmt.Errorf("remove resting BFD sessions: %w", err)
	}
	var left restingSessions
	if err := json.Unmarshal(b, &left); err != nil {
		return nil, fmt.Errorf("read resting BFD sessions in %s: %w", path, err)
	}
	if now < left.Since || now > left.Until {
		return nil, nil
	}
	return left.Sessions, nil
}

// resumeSessions takes up the sessions with routers that rest, before anything is known of the cluster.
func (d *detector) resumeSessions() error {
	now, err := bpf.Boottime()
	if err != nil {
		return err
	}
	resting, err := takeResting(d.m.cfg.RunDir, now)
	if len(resting) == 0 {
		return err
	}
	d.mu.Lock()
	d.routers = resting
	d.mu.Unlock()
	return errors.Join(err, d.setSessions())
}

// resuming gives wanted sessions that are there already the way they were taken up, so
// that they stay what they are.
func resuming(want, have []detect.Session) []detect.Session {
	for i := range want {
		for _, h := range have {
			if h.Key == want[i].Key {
				want[i].Resume = h.Resume
			}
		}
	}
	return want
}
