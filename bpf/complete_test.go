package bpf

import (
	"bytes"
	"strings"
	"testing"
)

// completeRows is the name of the test whose parts are packet tests once more, as from a device that
// has summed up the whole packet (CHECKSUM_COMPLETE): the kernel verifies the sum behind the program.
const completeRows = "TestSumOverTheWholePacketStaysRight"

func summed(tb testing.TB) bool { return strings.HasPrefix(tb.Name(), completeRows+"/") }

// Answers are not among the rows: cutting a packet off ends its sum, in the kernel (CHECKSUM_NONE).
func TestSumOverTheWholePacketStaysRight(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"rewriting":                TestRewritesBothDirectionsInEveryMode,
		"fragments":                TestFragmentsFollowTheirFirst,
		"options":                  TestOptionsAndExtensionHeadersAreCarriedThrough,
		"tag":                      TestTagInTheFrameIsCarriedThrough,
		"sctp":                     TestSCTPIsRewrittenBothWaysInEveryMode,
		"direct return":            TestDirectReturnByMACChangesNothingElse,
		"tunnel":                   TestTunnelCarriesThePacketWhole,
		"errors":                   TestErrorsAreTranslatedInsideAndOut,
		"families":                 TestTranslatesBetweenFamilies,
		"one family's own":         TestTranslatesWhatOnlyOneFamilyHas,
		"segment size":             TestSegmentSizeIsClampedToWhatTheOtherFamilyCarries,
		"datagram becomes summed":  TestDatagramWithoutChecksumGetsOne,
		"errors between families":  TestErrorsAreTranslatedBetweenFamilies,
		"datagram without a check": testDatagramsWithoutChecksum,
		"probes":                   TestProbesOfNeighboursGoBackAsTheyCame,
		"peers":                    TestPacketsOfConnectionsElsewhereAreBroughtThere,
		"datagrams of endpoints":   TestDatagramsOfEndpointsGoTheirWayToo,
	} {
		if testing.Short() && name != "rewriting" && name != "families" && name != "datagram without a check" {
			continue
		}
		t.Run(name, test)
	}
}

// testDatagramsWithoutChecksum: nothing in them makes up for new ports.
func testDatagramsWithoutChecksum(t *testing.T) {
	for _, f := range families {
		d := newDuo(t, f, nil)
		d.serve(ModeFullNAT, protoUDP)
		seen := d.open(protoUDP, d.clientPort())
		asked := ports{d.clientPort(), d.vipPort()}
		for fromClient, pair := range map[bool][2]ports{true: {asked, seen}, false: {seen.turned(), asked.turned()}} {
			in, want := pair[0].frame(protoUDP, 0, []byte("unsummed")), pair[1].frame(protoUDP, 0, []byte("unsummed"))
			in.L4[6], in.L4[7], want.L4[6], want.L4[7] = 0, 0, 0, 0
			want.TTL = 63
			for i := range 3 { // past the learning of the next hop
				action, out := d.send(fromClient, in)
				if action != actRedirect || !bytes.Equal(out[14:], want.IP()) {
					t.Errorf("%s from client's side %t, %d: action %d\n%x, want\n%x", f.name, fromClient, i, action, out[14:], want.IP())
				}
			}
		}
	}
}
