package bpf

import "time"

// Where the two directions of a connection pass two nodes, each sees one side's end only. So what another node
// says of it is worth having also where its claim to own the connection is not.

const (
	flagRsts = uint8(pontoonFlowFlagFLOW_F_OWN_RST | pontoonFlowFlagFLOW_F_PEER_RST)

	// birthSlack is how far two nodes may be apart about when a connection was born: records travel, and
	// clocks drift by less than a thousandth.
	birthSlack = 2 * time.Second
)

// otherSide are closing flags as the other half has them.
func otherSide(flags uint8) uint8 { return flags&flagOwn<<1 | flags&flagPeer>>1 }

// closingState is the state that follows from closing flags, as in the programs.
func closingState(flags uint8) FlowState {
	switch {
	case flags&flagRsts != 0, flags&flagFins == flagFins:
		return StateClosed
	case flags&flagFins != 0:
		return StateFin
	}
	return StateEstablished
}

// bornApart is by how many units of created c is the younger of two connections of the same tuples, beyond what two
// nodes may be apart; 0: they may be the same.
func (in *importer) bornApart(c, l *connection) int32 {
	apart := int32(c.forward.Created - l.forward.Created)
	slack := int32(in.d.clock.units(birthSlack + in.now.age(l.forward.Created)/1000))
	switch {
	case apart > slack:
		return apart - slack
	case apart < -slack:
		return apart + slack
	}
	return 0
}

// speaksOf says whether a record tells of a packet of the connection l itself.
func (in *importer) speaksOf(it *importItem, l *connection) bool {
	switch it.reason {
	case reasonState, reasonAdopt, reasonClose:
		return it.op == opUpdate && in.bornApart(&it.c, l) == 0
	}
	return false
}

// keepFins keeps, in a connection that is written over l, which sides of l have closed: nobody takes a FIN back.
func (c *connection) keepFins(l *connection) {
	fins := l.forward.Flags & flagFins
	if fins&^c.forward.Flags == 0 {
		return
	}
	c.forward.Flags |= fins
	c.reply.Flags |= otherSide(fins)
	state := uint8(closingState(c.forward.Flags))
	c.forward.State, c.reply.State = state, state
}

// teach notes what the local connection l, which stays, is to learn from a record: which sides have closed, that
// one was reset, and that a reset was none after all.
func (in *importer) teach(it *importItem, l *connection) {
	if !in.speaksOf(it, l) || l.forward.doomed() {
		return
	}
	told := it.c.forward.Flags
	lesson := lesson{key: it.c.key, of: l.forward, set: told & (flagFins | flagRsts) &^ l.forward.Flags}
	if it.reason == reasonState && told&flagRsts == 0 {
		lesson.clear = l.forward.Flags & flagRsts
	}
	if lesson.set|lesson.clear != 0 {
		in.learned = append(in.learned, lesson)
	}
}

// learn has the connections of the window learn.
func (in *importer) learn() error {
	for i := range in.learned {
		if _, err := in.d.doomer.learn(&in.learned[i]); err != nil {
			return err
		}
	}
	return nil
}
