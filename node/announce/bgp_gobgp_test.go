package announce

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"pontoon/internal/roottest"
)

// puppet is a neighbour that says what the test has it say.
type puppet struct {
	t    *testing.T
	conn net.Conn
}

// newPuppet opens a session with a router of pair, with graceful restart.
func newPuppet(t *testing.T, router BGPConfig) *puppet {
	t.Helper()
	me := router.Peers[0]
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(me.Address, 0))}
	conn, err := d.DialContext(t.Context(), "tcp", netip.AddrPortFrom(me.Source, router.Port).String())
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	p := &puppet{t: t, conn: conn}
	caps := []bgp.ParameterCapabilityInterface{
		bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC), bgp.NewCapFourOctetASNumber(me.AS),
		bgp.NewCapGracefulRestart(false, false, 120, []*bgp.CapGracefulRestartTuple{bgp.NewCapGracefulRestartTuple(bgp.RF_IPv4_UC, true)}),
	}
	open, err := bgp.NewBGPOpenMessage(uint16(me.AS), 3, netip.MustParseAddr("10.0.0.1"), []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability(caps)})
	must(t, err)
	p.say(open)
	p.say(bgp.NewBGPKeepAliveMessage())
	go func() { _, _ = io.Copy(io.Discard, conn) }() // ends with the connection
	return p
}

func (p *puppet) say(m *bgp.BGPMessage) {
	p.t.Helper()
	b, err := m.Serialize()
	must(p.t, err)
	_, err = p.conn.Write(b)
	must(p.t, err)
}

// announce says that prefixes lead here.
func (p *puppet) announce(prefixes ...string) {
	p.t.Helper()
	hop, err := bgp.NewPathAttributeNextHop(netip.MustParseAddr("127.1.0.1"))
	must(p.t, err)
	var nlri []bgp.PathNLRI
	for _, s := range prefixes {
		n, err := bgp.NewIPAddrPrefix(netip.MustParsePrefix(s))
		must(p.t, err)
		nlri = append(nlri, bgp.PathNLRI{NLRI: n})
	}
	p.say(bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(0), hop,
		bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{65001})}),
	}, nlri))
}

// A node that lost its power says nothing, and that must not pass for a restart.
func TestASilentPeerIsNoRestartingOne(t *testing.T) {
	_, routerCfg := pair(t, func(_, b *BGPPeer) { b.Passive, b.Hold = true, 3*time.Second })
	router := newBGPSpeaker(t, routerCfg)
	roottest.Eventually(t, "the router waits", func() bool { return router.peer(0).State == StateActive })
	p := newPuppet(t, routerCfg)
	router.waitUp(0)
	p.announce("192.0.2.1/32")
	router.waitRoutes("192.0.2.1/32")
	router.waitRoutes()
	if s := router.peer(0); s.Error != "nothing was heard from it for the hold time" && s.Error != "it has not connected" {
		t.Errorf("status %+v", s)
	}
}

// What cannot be read costs the session at most.
func TestMalformedUpdatesDoNoHarm(t *testing.T) {
	_, routerCfg := pair(t, func(_, b *BGPPeer) { b.Passive = true })
	router := newBGPSpeaker(t, routerCfg)
	for name, body := range map[string][]byte{
		"lengths beyond the end": {0xff, 0xff, 0xff, 0xff},
		"attribute cut off":      {0, 0, 0, 4, 0x40, 1, 9, 0},
		"prefix too long":        {0, 0, 0, 0, 200, 1, 2, 3},
		"empty MP_REACH":         {0, 0, 0, 3, 0x80, 14, 0},
		"short MP_UNREACH":       {0, 0, 0, 4, 0x80, 15, 1, 0},
		"odd AS path":            {0, 0, 0, 6, 0x40, 2, 3, 2, 200, 1},
		"unknown family":         append([]byte{0, 0, 0, 10, 0x80, 14, 7, 0x7f, 0xff, 9, 4, 1, 2}, 3),
	} {
		roottest.Eventually(t, "the router waits", func() bool { return router.peer(0).State == StateActive })
		p := newPuppet(t, routerCfg)
		router.waitUp(0)
		head := make([]byte, headerLen)
		for i := range 16 {
			head[i] = 0xff
		}
		binary.BigEndian.PutUint16(head[16:], uint16(headerLen+len(body)))
		head[18] = 2
		_, err := p.conn.Write(append(head, body...))
		must(t, err)
		p.announce("192.0.2.1/32")
		ended := false
		roottest.Eventually(t, name+": an end, or the next route", func() bool {
			s := router.peer(0)
			ended = s.State != StateEstablished
			return ended || len(router.Learned()) == 1
		})
		_ = p.conn.Close()
		if s := router.peer(0); ended && !strings.Contains(s.Error, "it sent what cannot be read") && s.State == StateIdle {
			t.Errorf("%s: %q", name, s.Error)
		}
		router.Reset(routerCfg.Peers[0].Address, "the next case")
		router.waitRoutes()
	}
}
