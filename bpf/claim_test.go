package bpf

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestClaimsAreRankedByEpochThenPacketThenSlot(t *testing.T) {
	ms := time.Millisecond
	for _, row := range []struct {
		name string
		a, b claim
		want bool
	}{
		{"the later mastership, though its last packet is older", claim{5, 11, time.Hour}, claim{3, 10, 0}, true},
		{"a mastership before none", claim{5, 1, time.Hour}, claim{3, 0, 0}, true},
		{"the younger packet", claim{5, 10, 0}, claim{3, 10, 101 * ms}, true},
		{"packets too near to tell: the lower slot", claim{5, 10, 0}, claim{3, 10, 100 * ms}, false},
		{"packets too near to tell: the lower slot", claim{3, 10, 100 * ms}, claim{5, 10, 0}, true},
	} {
		if got := row.a.outranks(row.b); got != row.want {
			t.Errorf("%s: %+v over %+v is %v", row.name, row.a, row.b, got)
		}
	}
}

// Of two nodes one gives a connection up, never both and never none, whatever they claim.
func TestOfTwoClaimsExactlyOneStands(t *testing.T) {
	draw := rapid.Custom(func(t *rapid.T) claim {
		return claim{
			owner: rapid.Uint8Range(0, Slots-1).Draw(t, "slot"), epoch: rapid.Uint32Range(0, 3).Draw(t, "epoch"),
			idle: time.Duration(rapid.IntRange(0, 400).Draw(t, "idle")) * time.Millisecond,
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw.Draw(t, "a"), draw.Draw(t, "b")
		if a.owner != b.owner && a.outranks(b) == b.outranks(a) {
			t.Fatalf("%+v and %+v", a, b)
		}
	})
}

// Nodes that hear each other's claims, in any order and as often as it takes, agree on one owner as
// soon as their last packets are far enough apart to tell, or their epochs are.
func TestNodesConvergeToOneOwner(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 3).Draw(t, "nodes")
		claims := make([]claim, n)
		for i := range claims {
			// 150 ms apart or the same: what lies between is as good as a draw between three.
			claims[i] = claim{
				owner: uint8(i), epoch: rapid.Uint32Range(0, 2).Draw(t, "epoch"),
				idle: time.Duration(rapid.IntRange(0, 3).Draw(t, "idle")) * 150 * time.Millisecond,
			}
		}
		held := append([]claim(nil), claims...) // whom each takes for the owner
		for range 2 * n * n {
			from, to := rapid.IntRange(0, n-1).Draw(t, "from"), rapid.IntRange(0, n-1).Draw(t, "to")
			tell(held, from, to)
		}
		for range n { // at last all have heard all
			for from := range n {
				for to := range n {
					tell(held, from, to)
				}
			}
		}
		for _, h := range held {
			if h != held[0] {
				t.Fatalf("claims %+v end as %+v", claims, held)
			}
		}
		if held[held[0].owner].owner != held[0].owner {
			t.Fatalf("%d is called the owner and does not know: %+v", held[0].owner, held)
		}
	})
}

// tell is one owner's own word to another node.
func tell(held []claim, from, to int) {
	if held[from].owner == uint8(from) && held[to].owner != uint8(from) && !held[to].outranks(held[from]) {
		held[to] = held[from]
	}
}
