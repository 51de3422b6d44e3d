package fsm

import "fmt"

// draft is a state being changed by one log entry.
type draft struct {
	State
	base    *State // before the entry
	index   uint64 // of the entry
	elect   bool   // something an election depends on has changed
	inBatch bool
}

// Apply returns the state after the command at the given log index. It is pure
// and deterministic, and s itself does not change.
//
// If the command is refused, the returned state is s with only Index advanced,
// and the error says why; replicas that apply the same log refuse the same
// commands. An index that does not grow is refused with ErrInvalid and s is
// returned as it is.
func (s *State) Apply(index uint64, c Command) (*State, error) {
	if index <= s.index {
		return s, refuse(ErrInvalid, "index %d is not after %d, the last one applied", index, s.index)
	}
	d := &draft{State: *s, base: s, index: index}
	if err := d.run(c); err != nil {
		refused := *s
		refused.index = index
		return &refused, err
	}
	if d.elect {
		d.settle()
	}
	next := d.State
	next.index = index
	next.freeze()
	return &next, nil
}

// Check returns the error Apply would return for the command now, or nil. The
// answer may be another one by the time the command is in the log.
func (s *State) Check(c Command) error {
	_, err := s.Apply(s.index+1, c)
	return err
}

func (d *draft) run(c Command) error {
	if c == nil {
		return refuse(ErrInvalid, "there is no command")
	}
	if _, ok := c.(Batch); ok {
		return c.apply(d)
	}
	_, initialising := c.(InitCluster)
	if !initialising && d.cluster.ID == "" {
		return refuse(ErrNotInitialised, "this node is in no cluster: run \"pontoon init\" or \"pontoon join\" first")
	}
	return c.apply(d)
}

func (b Batch) apply(d *draft) error {
	if d.inBatch {
		return refuse(ErrInvalid, "a batch inside a batch: put its commands into the outer one")
	}
	d.inBatch = true
	var errs manyErrors
	for i, c := range b.Commands {
		if err := d.run(c); err != nil {
			errs = append(errs, fmt.Errorf("command %d (%s): %w", i+1, Kind(c), err))
		}
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

func (d *draft) putNode(n Node) {
	d.nodes.put(n.Name, n)
	d.elect = true
}

func (d *draft) putInstance(inst Instance) {
	d.instances.put(inst.Name, inst)
	d.elect = true
}

// putService keeps the index of frontends in step.
func (d *draft) putService(svc Service) {
	f, l := frontendOf(svc), listenerOf(svc)
	if old := d.services.get(svc.Name); old != nil && frontendOf(*old) != f {
		d.frontends.drop(frontendOf(*old))
	}
	d.services.put(svc.Name, svc)
	if there := d.frontends.get(f); there == nil || *there != l {
		d.frontends.put(f, l)
	}
}

func (d *draft) dropService(svc Service) {
	d.services.drop(svc.Name)
	d.frontends.drop(frontendOf(svc))
	d.serviceIDs.drop(svc.ID)
	for _, e := range svc.Endpoints {
		d.endpointIDs.drop(e.ID)
		d.health.drop(e.ID)
	}
	d.release(svc.VIP)
}
