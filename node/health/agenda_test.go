package health

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whatever is added, moved and taken out: the first is the one that is due first, and each knows its place.
func TestAgendaKeepsWhatIsDueFirstAtTheFront(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a agenda[*op]
		var in, out []*op
		for range 20 {
			out = append(out, &op{})
		}
		due := func() time.Duration { return time.Duration(rapid.IntRange(0, 30).Draw(t, "due")) }
		pick := func(from []*op) int { return rapid.IntRange(0, len(from)-1).Draw(t, "which") }
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch what := rapid.IntRange(0, 3).Draw(t, "what"); {
			case what == 0 && len(in) > 0:
				i := pick(in)
				a.remove(in[i])
				a.remove(in[i]) // it is out, and once more does nothing
				out, in = append(out, in[i]), slices.Delete(in, i, i+1)
			case what == 1 && len(in) > 0:
				a.move(in[pick(in)], due())
			case len(out) > 0:
				i := pick(out)
				a.move(out[i], due()) // who is out only remembers it
				a.add(out[i])
				in, out = append(in, out[i]), slices.Delete(out, i, i+1)
			}
			if len(a) != len(in) {
				t.Fatalf("%d are in, want %d", len(a), len(in))
			}
			for _, o := range in {
				if w := a[o.place-1]; w.who != o || w.due != o.due || o.due < a.first().due {
					t.Fatalf("due %d at place %d, where %+v is; the first is due %d", o.due, o.place, w, a.first().due)
				}
			}
			for _, o := range out {
				if o.place != 0 {
					t.Fatalf("it is out and believes itself at %d", o.place)
				}
			}
		}
	})
}
