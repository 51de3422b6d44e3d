package bpf

import (
	"context"
	"time"
)

// LinksChanged says that interfaces have come, gone or changed: Run looks after them at once rather
// than within a second.
func (d *Dataplane) LinksChanged() {
	select {
	case d.linksChanged <- struct{}{}:
	default:
	}
}

// Reattach puts the programs back on interfaces that somebody took them off, or are new, before it returns;
// Interfaces says how that ended. It is for the moment before this machine takes addresses up: without a program in
// front, the kernel resets the connections to an address that it has. It costs some system calls for each
// interface, and is safe for concurrent use.
func (d *Dataplane) Reattach() { d.hooks.ensure() }

// attachLoop looks after the interfaces once a second, and when it is told that they have changed.
func (d *Dataplane) attachLoop(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-d.linksChanged:
		}
		d.lookAfter()
	}
}

// lookAfter attaches to what is not attached, loads the XDP programs when the first interface has
// come that wants them, and unpins earlier sets of programs once nothing uses them.
func (d *Dataplane) lookAfter() {
	d.hooks.ensure()
	if !d.tracing.TryLock() {
		return // a session puts the usual programs back; after it there is time enough
	}
	defer d.tracing.Unlock()
	if d.leftover && d.hooks.ensure() {
		if err := d.programs.removeOthers(d.programDir()); err != nil {
			d.log.Warn("earlier programs not let go", "err", err)
		} else {
			d.leftover = false
		}
	}
	if !d.noXDP && d.hooks.lacksXDP() {
		d.addXDP()
	}
}

// addXDP replaces the programs by a set that has those of the XDP hook. The old set is unpinned by
// a later look: packets may be on their way through it.
func (d *Dataplane) addXDP() {
	set, err := loadPrograms(d.spec.Copy(), d.byName, d.programDir(), pontoonProgPontoonIngress, true)
	if err != nil {
		d.noXDP = true
		d.log.Warn("XDP programs not loaded: TC does without", "err", err)
		return
	}
	old := d.programs
	d.programs = set
	d.hooks.use(set)
	d.leftover = true
	if err := old.close(); err != nil {
		d.log.Warn("earlier programs not closed", "err", err)
	}
}
