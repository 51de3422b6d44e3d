package bpf

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
)

// xdpRows is the name of the test whose parts are the packet tests of the TC path; there every
// bench has XDP attached, too.
const xdpRows = "TestXDPPassesThePacketTestsOfTC"

func viaXDP(tb testing.TB) bool {
	return strings.HasPrefix(tb.Name(), xdpRows+"/") || strings.HasPrefix(tb.Name(), xdpBench+"/")
}

// xdpMD is struct xdp_md, the context of a test run.
type xdpMD struct {
	Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpTX       = 3
	xdpRedirect = 4
)

// runXDP sends one frame through the XDP program and says what it does in the terms of TC. A
// frame that is passed on must be as it was.
func (b *bench) runXDP(from bpftest.Iface, frame []byte) (uint32, []byte) {
	b.tb.Helper()
	options := &ebpf.RunOptions{
		Data: frame, DataOut: make([]byte, len(frame)+256),
		Context: xdpMD{DataEnd: uint32(len(frame)), IngressIfindex: uint32(from.Index)},
	}
	var action uint32
	var err error
	b.ns.Do(func() { action, err = b.programs.xdp.Run(options) })
	if err != nil {
		b.tb.Fatalf("run XDP program: %v", err)
	}
	switch action {
	case xdpTX, xdpRedirect:
		return actRedirect, options.DataOut
	case xdpDrop:
		return actDrop, options.DataOut
	case xdpPass:
		if !bytes.Equal(frame, options.DataOut) {
			b.tb.Errorf("XDP passed a packet on and changed it\nfrom %x\nto   %x", frame, options.DataOut)
		}
		return actPass, options.DataOut
	}
	b.tb.Fatalf("XDP action %d", action)
	return 0, nil
}

// Every packet test of the TC path once more, with XDP before it.
func TestXDPPassesThePacketTestsOfTC(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"rewriting":               TestRewritesBothDirectionsInEveryMode,
		"handshake":               TestHandshakeToClose,
		"handshake of another":    TestHandshakeBegunElsewhereIsFinishedHere,
		"late SYN":                TestSynOnEstablishedFlowPassesThrough,
		"revival":                 TestResetClosesAndTrafficOfItsSenderRevives,
		"refusal":                 TestRefusedConnectionIsToldToTheClient,
		"udp":                     TestUDPReplyPromotes,
		"reset":                   TestSynToUnknownPortIsAnsweredWithReset,
		"verdicts":                TestVerdicts,
		"not ours":                TestFramesThatAreNotOursAreLeftAlone,
		"round robin":             TestRoundRobinHonoursWeightsExactly,
		"maglev":                  TestMaglevNamesTheSameEndpointOnEveryNode,
		"VLAN":                    TestTagInTheFrameIsCarriedThrough,
		"leases":                  TestHostAnswersForAVIPOnlyByItsLease,
		"predecessors":            TestPacketsOfUnknownConnectionsAreBroughtToThePredecessor,
		"peers":                   TestPacketsOfConnectionsElsewhereAreBroughtThere,
		"options":                 TestOptionsAndExtensionHeadersAreCarriedThrough,
		"malformed":               TestMalformedPacketsAreDroppedWhenForAVIP,
		"header checksum":         TestWrongHeaderChecksumIsMalformed,
		"martians":                TestSourcesThatNoHostHasAreRefused,
		"fragments":               TestFragmentsFollowTheirFirst,
		"odd fragments":           TestFragmentsOutOfTheOrdinary,
		"errors":                  TestErrorsAreTranslatedInsideAndOut,
		"error to the first":      TestErrorAboutTheFirstPacketReachesTheClient,
		"errors about nothing":    TestErrorsAboutNothingOfOurs,
		"errors of a tunnel":      TestErrorAboutATunnelBecomesOneAboutThePacketInIt,
		"sctp":                    TestSCTPIsRewrittenBothWaysInEveryMode,
		"sctp states":             TestSCTPStates,
		"direct return":           TestDirectReturnByMACChangesNothingElse,
		"tunnel":                  TestTunnelCarriesThePacketWhole,
		"one side only":           TestDirectReturnFollowsOneSideOfAConnection,
		"second datagram":         TestDirectReturnPromotesSecondDatagram,
		"families":                TestTranslatesBetweenFamilies,
		"one family's own":        TestTranslatesWhatOnlyOneFamilyHas,
		"errors between families": TestErrorsAreTranslatedBetweenFamilies,
		"doomed":                  TestPacketsOfADoomedFlowAreAnsweredOnBothSides,
		"last hop":                TestLastHopIsToldToTheSender,
		"too big":                 TestPacketLargerThanTheWayIsTold,
		"full table":              TestFullFlowTableRefusesAndCounts,
		"closed tuple":            TestClosedTupleIsTakenOver,
		"affinity":                TestClientStaysWithItsEndpoint,
		"port range":              TestPortRangeLeadsToTheSamePortsOfTheEndpoint,
		"sources":                 TestSourcesAreSpreadAndTuplesUnique,
		"adoption":                TestReplicaIsAdoptedByItsFirstPacketInEitherDirection,
		"counts":                  TestCountsFollowAConnectionThroughItsLife,
		"sums":                    TestStatsAddUp,
	} {
		if testing.Short() && name != "rewriting" && name != "handshake" && name != "udp" {
			continue
		}
		t.Run(name, test)
	}
}

func TestXDPForwardsByItselfOnceTheNextHopIsKnown(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Hook = HookXDP })
	for name, a := range b.Interfaces() {
		if a.Hook != usedXDP+usedTCX && a.Hook != usedXDP+usedClsact || a.Reason != "asked for" {
			t.Errorf("%s: %+v", name, a)
		}
	}
	b.sync(service(ModeFullNAT, endpoint1))
	snat, _ := b.talk(clientPort, vipPort)
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK})
	before := b.Stats().Counters["xdp_forward"]
	for range 10 {
		b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("there")})
		b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK, Payload: []byte("and back")})
	}
	if n := b.Stats().Counters["xdp_forward"] - before; n != 20 {
		t.Errorf("XDP forwarded %d of 20 packets; counters %v", n, b.Stats().Counters)
	}
}

// wantXDP says what is wrong with an interface that ought to have XDP.
func wantXDP(a Attachment) error {
	if !strings.HasPrefix(a.Hook, usedXDP) {
		return fmt.Errorf("%+v", a)
	}
	return nil
}
