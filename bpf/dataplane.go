package bpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
)

// Dataplane is the loaded data plane of this node. All methods may be called concurrently.
type Dataplane struct {
	log      *slog.Logger
	opts     Options
	maps     pontoonMaps
	byName   map[string]*ebpf.Map // the same ones
	programs programs
	spec     *ebpf.CollectionSpec // that they were loaded from
	clock    *clock
	doomer   *doomer
	finder   *finder
	hooks    *hooks
	adopted  bool
	resize   *resize  // of the flow table; nil: it keeps its size
	between  programs // that work while it is resized

	events chan []byte
	lost   chan struct{}

	tables  tables // guarded by syncMu
	choices choices
	leases  leaseBook
	syncMu  sync.Mutex
	flowMu  sync.Mutex // one writer of flow entries at a time: import, expiry, flush

	importer importer // guarded by flowMu
	entrant  *entrant // nil: not needed so far; so is this

	owners  owners
	half    halfTable
	snaps   snapshots
	epochs  epochs
	repairs repairs
	tombs   tombs // guarded by flowMu
	idle    idleTimes
	totals  totals

	accounts accounts
	endings  endings
	poker    poker
	traffic  trafficBook
	sweepNow chan struct{}

	sweepMu         sync.Mutex // one sweep at a time; guards what follows and accounts.off
	doomedBefore    int        // of the last sweep
	turns           turns
	affinitiesSwept time.Time
	guestsSeen      time.Time

	shares atomic.Bool // some service is shared

	linksChanged chan struct{}

	tracing  sync.Mutex // held by the one session of Trace, and by who replaces programs
	leftover bool       // arrays of earlier sets are pinned; guarded by tracing
	noXDP    bool       // the kernel refused the XDP programs; so is this

	closing chan struct{} // closed by Close: such a session ends
	closed  sync.Once
}

// Open loads the data plane: it reuses the maps that are pinned already, replaces the programs
// on interfaces that carry an earlier version of them in one step, attaches the others, detaches
// from those that are not named any more and pins everything. It mounts nothing: PinDir must lie on a BPF file system. An interface that cannot
// be attached to is reported by Interfaces and tried again by Run, not an error here, unless it is
// there and can never be (ErrNotEthernet).
//
// Open must be called on a thread in the network namespace of the interfaces.
func Open(opts Options) (*Dataplane, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("open data plane: %w", err)
	}
	opts = opts.withDefaults()
	d := &Dataplane{
		log: opts.Logger, opts: opts,
		events:  make(chan []byte, eventBatches),
		lost:    make(chan struct{}, 1),
		closing: make(chan struct{}),

		sweepNow:     make(chan struct{}, 1),
		linksChanged: make(chan struct{}, 1),
	}
	d.idle.init(opts.timeouts)
	if err := d.open(); err != nil {
		return nil, fmt.Errorf("open data plane in %s: %w", opts.PinDir, errors.Join(err, d.Close()))
	}
	return d, nil
}

func (d *Dataplane) open() error {
	if err := preparePinDir(d.opts.PinDir); err != nil {
		return err
	}
	objects := (*Dataplane).openObjects
	if d.opts.objects != nil {
		objects = d.opts.objects
	}
	if err := objects(d); err != nil {
		return err
	}
	d.tables.traffic = &d.traffic
	if err := d.tables.load(&d.maps); err != nil {
		return fmt.Errorf("read what is installed: %w", err)
	}
	if err := d.openLeases(); err != nil {
		return err
	}
	var err error
	if d.hooks, err = newHooks(d.opts, d.maps.Stations, filepath.Join(d.opts.PinDir, linkFolder)); err != nil {
		return err
	}
	if err := d.hooks.refuse(); err != nil {
		return err
	}
	if err := d.moveFlows(d.spec); err != nil {
		return err
	}
	if d.programs.entry == nil {
		if d.programs, err = d.loadSet(d.spec, d.byName); err != nil {
			return err
		}
	}
	if err := d.openAccounts(); err != nil {
		return err
	}
	if err := d.poker.open(); err != nil {
		d.log.Warn("idle sides of connections that are ended will not be told", "err", err)
	}
	settled := d.hooks.use(d.programs)
	if err := d.endResize(); err != nil {
		return err
	}
	if err := d.hooks.detachOthers(d.maps.Flows); err != nil {
		return fmt.Errorf("detach from interfaces that are not named any more: %w", err)
	}
	if !settled {
		d.leftover = true
		return nil
	}
	return d.programs.removeOthers(d.programDir())
}

// openObjects opens the maps and the programs that user space runs, and says how the others are to be loaded.
func (d *Dataplane) openObjects() error {
	raiseMemlock()
	spec, err := loadPontoon()
	if err != nil {
		return fmt.Errorf("read program object: %w", err)
	}
	if d.clock, err = newClock(spec); err != nil {
		return err
	}
	finding := finderSpec(spec)
	sizes(spec, d.opts)
	if err := d.checkPins(spec); err != nil {
		return err
	}
	if d.adopted, err = d.planResize(spec); err != nil {
		return err
	}
	if err := configure(spec, d.opts, d.clock.hz); err != nil {
		return err
	}
	if err := d.openMaps(spec); err != nil {
		return err
	}
	if err := d.openHalf(spec); err != nil {
		return err
	}
	if d.doomer, err = newDoomer(spec, d.byName); err != nil {
		return err
	}
	d.finder, err = newFinder(finding, d.maps.Flows)
	d.spec = spec
	return err
}

// checkPins refuses pinned maps that cannot be read, unless they are to be given up: then it
// takes everything of the earlier version away.
func (d *Dataplane) checkPins(spec *ebpf.CollectionSpec) error {
	err := checkLayout(spec, d.mapDir())
	if err == nil || !errors.Is(err, ErrLayout) || !d.opts.Discard {
		return err
	}
	d.log.Warn("the data plane of an earlier version is given up with its flows", "why", err)
	if err := Remove(d.opts.PinDir, d.opts.Interfaces); err != nil {
		return fmt.Errorf("give up earlier data plane: %w", err)
	}
	return preparePinDir(d.opts.PinDir)
}

// loadSet loads what the interfaces want. Without its XDP programs the data plane is slower,
// not worse: a kernel that refuses them gets the others.
func (d *Dataplane) loadSet(spec *ebpf.CollectionSpec, byName map[string]*ebpf.Map) (programs, error) {
	if d.hooks.wantXDP() {
		set, err := loadPrograms(spec.Copy(), byName, d.programDir(), pontoonProgPontoonIngress, true)
		if err == nil {
			return set, nil
		}
		d.noXDP = true
		d.log.Warn("XDP programs not loaded: TC does without", "err", err)
	}
	return loadPrograms(spec.Copy(), byName, d.programDir(), pontoonProgPontoonIngress, false)
}

// openMaps opens what is pinned and makes and pins what is not.
func (d *Dataplane) openMaps(spec *ebpf.CollectionSpec) error {
	only := &ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{}, Types: spec.Types, ByteOrder: spec.ByteOrder}
	for name, m := range spec.Maps {
		if m.Pinning == ebpf.PinByName {
			only.Maps[name] = m.Copy()
		}
	}
	if d.resize != nil && !d.resize.resumed {
		only.Maps[pontoonMapFlows].Pinning = ebpf.PinNone // the former one has its place
	}
	options := ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: d.mapDir()}}
	collection, err := ebpf.NewCollectionWithOptions(only, options)
	if err != nil {
		return fmt.Errorf("open maps: %w", err)
	}
	defer collection.Close()
	d.byName = map[string]*ebpf.Map{}
	for name := range only.Maps {
		d.byName[name] = collection.DetachMap(name)
	}
	d.maps.take(d.byName)
	return writeLayout(d.mapDir())
}

// openHalf opens the half-open table, and tells the programs of spec by which seed it is ordered.
func (d *Dataplane) openHalf(spec *ebpf.CollectionSpec) error {
	seed, err := halfSeed(d.maps.Control)
	if err != nil {
		return err
	}
	if err := spec.Variables[pontoonVarCfgHalfSeed].Set(seed); err != nil {
		return fmt.Errorf("set the seed of the half-open table: %w", err)
	}
	return d.half.open(d.maps.HalfOpen, seed)
}

// flowTables are the tables that hold halves of connections, established ones first.
func (d *Dataplane) flowTables() []flowTable { return []flowTable{d.flowTable(), &d.half} }

func (d *Dataplane) flowTable() flowTable { return hashTable{d.maps.Flows} }

// openAccounts takes stock of what was found in the maps.
func (d *Dataplane) openAccounts() error {
	if err := d.accounts.open(d.maps.Active, d.log); err != nil {
		return err
	}
	var flows census
	var err error
	if d.adopted {
		flows, err = d.accounts.recount(context.Background(), d.maps.Flows)
	}
	d.endings.found(d.tables.endpoints, flows)
	return err
}

func (d *Dataplane) programDir() string { return filepath.Join(d.opts.PinDir, programFolder) }

func (d *Dataplane) mapDir() string { return filepath.Join(d.opts.PinDir, mapFolder) }

// Adopted tells whether the maps were there before: flows of an earlier life are in them.
func (d *Dataplane) Adopted() bool { return d.adopted }

// Run reads the ring, takes out what is idle, and attaches again to interfaces that come back.
// It returns when ctx ends (nil) or when the ring cannot be read, and leaves all pinned.
// Only one Run at a time.
func (d *Dataplane) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.readEvents(ctx) })
	group.Go(func() error { return d.sweepLoop(ctx) })
	group.Go(func() error { return d.attachLoop(ctx) })
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("run data plane: %w", err)
	}
	return nil
}

// Interfaces tells of each interface how it is attached, and why so.
func (d *Dataplane) Interfaces() map[string]Attachment { return d.hooks.report() }

// FlushNextHops forgets the cached next hops: neighbours or routes have changed. The kernel is
// asked anew with the next packet.
func (d *Dataplane) FlushNextHops() {
	var block pontoonControlBlock
	d.syncMu.Lock()
	defer d.syncMu.Unlock()
	if err := d.maps.Control.Lookup(uint32(0), &block); err != nil {
		d.log.Warn("next hops not flushed", "err", err)
		return
	}
	block.Generation++
	if err := d.maps.Control.Put(uint32(0), block); err != nil {
		d.log.Warn("next hops not flushed", "err", err)
	}
}

// SetOwnersAlive says which nodes, by slot, are alive. A replica is not aged out while its owner
// is; when the owner dies its replicas start ageing from that moment. Until the first call every
// owner counts as alive. The result says whether an owner has died since the last call: it is time to
// compare orphans (OrphanDigest) with the other nodes.
func (d *Dataplane) SetOwnersAlive(alive map[uint8]bool) (died bool) {
	now, err := d.clock.now()
	if err != nil {
		d.log.Warn("clock not read", "err", err)
		return false
	}
	// Before their deaths are noted: who meets a replica from here on takes it over.
	if err := d.setLiving(alive); err != nil {
		d.log.Warn("data plane not told which nodes live", "err", err)
	}
	died = d.owners.set(alive, now)
	if died && d.shares.Load() {
		d.wakeSweep() // which takes over what was forwarded here beside them
	}
	return died
}

// Close lets go of the kernel objects and leaves all pinned: packets go on flowing.
// End Run before; a session of Trace ends by it. Closing again does nothing.
func (d *Dataplane) Close() error {
	var err error
	d.closed.Do(func() {
		close(d.closing)
		err = d.close()
	})
	return err
}

func (d *Dataplane) close() error {
	d.tracing.Lock()
	defer d.tracing.Unlock()
	var errs []error
	if d.hooks != nil {
		errs = append(errs, d.hooks.close())
	}
	if d.clock != nil {
		d.clock.close()
	}
	d.doomer.close()
	errs = append(errs, d.finder.close(), d.entrant.close(), d.accounts.close(), d.half.close(), d.poker.close(), d.programs.close(), d.endResize())
	for _, m := range d.byName {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// vipKey is the form in which a VIP stands in the maps.
func vipKey(a netip.Addr) pontoonAddr { return toAddr(a.Unmap()) }
