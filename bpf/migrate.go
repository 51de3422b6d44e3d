package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// formerPin is where the flow table is pinned that flows takes the place of, as long as entries are
// in it.
const formerPin = "flows_former"

// resize is the replacement of the flow table by one of another size, while packets flow.
//
// The programs that do it know of both tables: an entry that a packet needs and that is only in the
// former one is copied by the program itself (c/former.h), so a packet always finds its connection.
// New connections are written into both, since on an interface that has not changed over yet the
// earlier programs look into the former table. The rest is copied from here. Then programs are put
// in place that know of one table only.
//
// Both tables are pinned until all is copied. Whoever is killed in between leaves a state that the
// next Open continues from.
type resize struct {
	former  *ebpf.Map
	resumed bool // an earlier process began it
}

// planResize looks whether the pinned flow table has to be replaced, which it says in d.resize, and
// writes into spec the sizes that the maps will have. Other maps keep the size they have: they hold
// nothing that a size is worth replacing them for. The result says whether a flow table was there.
func (d *Dataplane) planResize(spec *ebpf.CollectionSpec) (found bool, err error) {
	if err := d.dropHalfOpen(spec); err != nil {
		return false, err
	}
	for name, m := range spec.Maps {
		if m.Pinning != ebpf.PinByName || name == pontoonMapFlows {
			continue
		}
		if err := d.keepSize(m, name); err != nil {
			return false, err
		}
	}
	former, err := openPinned(d.mapDir(), formerPin)
	if err != nil {
		return false, err
	}
	if former != nil {
		d.log.Info("the change of the flow table's size goes on that was interrupted")
		d.resize = &resize{former: former, resumed: true}
		return true, d.keepSize(spec.Maps[pontoonMapFlows], pontoonMapFlows)
	}
	pinned, err := openPinned(d.mapDir(), pontoonMapFlows)
	if err != nil || pinned == nil {
		return false, err
	}
	want := spec.Maps[pontoonMapFlows].MaxEntries
	fits, err := d.fits(pinned, want)
	if err != nil || pinned.MaxEntries() == want || !fits {
		spec.Maps[pontoonMapFlows].MaxEntries = pinned.MaxEntries()
		return true, errors.Join(err, pinned.Close())
	}
	d.log.Info("the flow table gets another size", "from", pinned.MaxEntries()/2, "to", want/2)
	d.resize = &resize{former: pinned}
	return true, nil
}

// keepSize writes into m the size of the pinned map of that name, if there is one.
func (d *Dataplane) keepSize(m *ebpf.MapSpec, name string) error {
	pinned, err := openPinned(d.mapDir(), name)
	if err != nil || pinned == nil {
		return err
	}
	if m.MaxEntries != pinned.MaxEntries() {
		d.log.Warn("pinned map keeps its size", "map", name, "entries", pinned.MaxEntries(), "wanted", m.MaxEntries)
		m.MaxEntries = pinned.MaxEntries()
	}
	return pinned.Close()
}

// fits tells whether the entries of m leave a tenth of a table of the given size free.
func (d *Dataplane) fits(m *ebpf.Map, size uint32) (bool, error) {
	if size >= m.MaxEntries() {
		return true, nil
	}
	entries := 0
	for part, err := range dump(context.Background(), m) {
		if err != nil {
			return false, err
		}
		entries += len(part.keys)
	}
	if uint64(entries) <= uint64(size)/10*9 {
		return true, nil
	}
	d.log.Warn("the flow table keeps its size: its connections would not fit into the one that is wanted",
		"connections", entries/2, "wanted", size/2, "size", m.MaxEntries()/2)
	return false, nil
}

// moveFlows carries d.resize out. When it returns, the interfaces carry programs that still know of
// both tables.
func (d *Dataplane) moveFlows(spec *ebpf.CollectionSpec) error {
	if d.resize == nil {
		return nil
	}
	if err := d.loadBetween(spec); err != nil {
		if d.resize.resumed {
			return err
		}
		d.log.Warn("the flow table keeps its size: programs for the change were not loaded", "err", err)
		return d.keepFormer(spec)
	}
	if err := d.pinBoth(); err != nil {
		return err
	}
	if !d.hooks.use(d.between) && !d.hooks.ensure() {
		return d.goBack(spec)
	}
	if err := d.hooks.detachOthers(d.resize.former); err != nil {
		return fmt.Errorf("detach from interfaces that are not named any more: %w", err)
	}
	if f := d.opts.betweenTables; f != nil {
		if err := f(d); err != nil {
			return err
		}
	}
	copied, err := copyMissing(d.resize.former, d.maps.Flows)
	if err != nil {
		return err
	}
	d.log.Info("flow table replaced", "connections", copied/2)
	if err := os.Remove(filepath.Join(d.mapDir(), formerPin)); err != nil {
		return fmt.Errorf("unpin former flow table: %w", err)
	}
	return nil
}

// loadBetween loads the programs that look into both tables.
func (d *Dataplane) loadBetween(spec *ebpf.CollectionSpec) error {
	both := spec.Copy()
	both.Maps[pontoonMapFormer].MaxEntries = d.resize.former.MaxEntries()
	if err := both.Variables[pontoonVarCfgFormer].Set(uint8(1)); err != nil {
		return fmt.Errorf("set %s: %w", pontoonVarCfgFormer, err)
	}
	byName := map[string]*ebpf.Map{pontoonMapFormer: d.resize.former}
	for name, m := range d.byName {
		byName[name] = m
	}
	var err error
	d.between, err = d.loadSet(both, byName)
	return err
}

// errUnsettled says that packets still pass programs that know of the former flow table alone.
var errUnsettled = errors.New("not every interface took the programs that know of both flow tables")

// goBack gives the change up when an interface goes on with programs that know of the former table
// alone: what they open would be missing in the other. Everything is in the former table, too, since
// nobody has written into the new one only, but for what packets have done to some connections in the
// moment between: those may idle out later than they should. If an earlier process began the change
// that may have been a long moment, so then it is not given up but tried again by the next Open.
func (d *Dataplane) goBack(spec *ebpf.CollectionSpec) error {
	if d.resize.resumed {
		return fmt.Errorf("change the flow table's size: %w", errUnsettled)
	}
	d.log.Warn("the flow table keeps its size", "err", errUnsettled)
	if err := os.Rename(filepath.Join(d.mapDir(), formerPin), filepath.Join(d.mapDir(), pontoonMapFlows)); err != nil {
		return fmt.Errorf("pin former flow table in its old place: %w", err)
	}
	return d.keepFormer(spec)
}

// keepFormer goes back to the table that was there.
func (d *Dataplane) keepFormer(spec *ebpf.CollectionSpec) error {
	err := d.byName[pontoonMapFlows].Close()
	former := d.resize.former
	d.byName[pontoonMapFlows], d.maps.Flows, d.resize = former, former, nil
	spec.Maps[pontoonMapFlows].MaxEntries = former.MaxEntries()
	if err := errors.Join(err, configure(spec, d.opts, d.clock.hz)); err != nil {
		return err
	}
	whole, err := loadPontoon()
	if err != nil {
		return fmt.Errorf("read program object: %w", err)
	}
	finding := finderSpec(whole)
	whole.Maps = spec.Copy().Maps
	d.doomer.close()
	if err := d.finder.close(); err != nil {
		return err
	}
	if d.doomer, err = newDoomer(whole, d.byName); err != nil {
		return err
	}
	d.finder, err = newFinder(finding, former)
	return err
}

// pinBoth pins the former table under its other name, and the new one in its place.
func (d *Dataplane) pinBoth() error {
	if d.resize.resumed {
		return nil
	}
	at := filepath.Join(d.mapDir(), pontoonMapFlows)
	if err := os.Rename(at, filepath.Join(d.mapDir(), formerPin)); err != nil {
		return fmt.Errorf("pin former flow table: %w", err)
	}
	if err := d.maps.Flows.Pin(at); err != nil {
		return fmt.Errorf("pin flow table: %w", err)
	}
	return nil
}

// endResize lets go of the former table and of the programs that know of it.
func (d *Dataplane) endResize() error {
	err := d.between.close()
	if d.resize != nil {
		err = errors.Join(err, d.resize.former.Close())
	}
	d.between, d.resize = programs{}, nil
	return err
}

// copyMissing copies the entries of from that are not in to. What is there is newer.
func copyMissing(from, to *ebpf.Map) (seen int, err error) {
	for part, err := range dump(context.Background(), from) {
		if err != nil {
			return seen, err
		}
		if err := insertMissing(to, part.keys, part.values); err != nil {
			return seen, fmt.Errorf("copy flows: %w", err)
		}
		seen += len(part.keys)
	}
	return seen, nil
}

// insertMissing writes the entries whose keys are not there: one by one, because the kernel takes no
// such condition for a batch.
func insertMissing(m *ebpf.Map, keys []pontoonFlowKey, values []pontoonFlow) error {
	for i := range keys {
		if err := m.Update(&keys[i], &values[i], ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return err
		}
	}
	return nil
}
