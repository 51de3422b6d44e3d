package fsm

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Community is a label a route carries: "65000:100" (RFC 1997), two numbers of 16
// bits, or "65000:1:2" (large, RFC 8092), three of 32 bits.
type Community string

// GracefulShutdown is the community that asks routers to look for another way,
// because this one is about to go (RFC 8326). Draining nodes add it.
const GracefulShutdown Community = "65535:0"

// Parts returns the two or three numbers of a community. The error says what is
// wrong, and how to write it.
func (c Community) Parts() ([]uint32, error) {
	words := strings.Split(string(c), ":")
	most := uint64(math.MaxUint16)
	switch len(words) {
	case 2:
	case 3:
		most = math.MaxUint32
	default:
		return nil, fmt.Errorf("must be two numbers of 16 bits, like 65000:100, or three of 32 bits, like 65000:1:2")
	}
	parts := make([]uint32, len(words))
	for i, w := range words {
		n, err := strconv.ParseUint(w, 10, 32)
		if err != nil || n > most || w[0] == '+' {
			return nil, fmt.Errorf("has a part that is no number of 0 to %d", most)
		}
		parts[i] = uint32(n)
	}
	return parts, nil
}

// Validate says what is wrong with a community, if anything is.
func (c Community) Validate() error {
	_, err := c.Parts()
	return err
}

// normal is the one way to write a community; what cannot be read stays as it is.
func (c Community) normal() Community {
	parts, err := c.Parts()
	if err != nil {
		return c
	}
	words := make([]string, len(parts))
	for i, p := range parts {
		words[i] = strconv.FormatUint(uint64(p), 10)
	}
	return Community(strings.Join(words, ":"))
}

// normalCommunities is a sorted copy: short ones first, then by their numbers. It
// is nil when there are none.
func normalCommunities(in []Community) []Community {
	var out []Community
	for _, c := range in {
		out = append(out, c.normal())
	}
	slices.SortFunc(out, func(a, b Community) int {
		x, _ := a.Parts()
		y, _ := b.Parts()
		return cmp.Or(cmp.Compare(len(x), len(y)), slices.Compare(x, y), cmp.Compare(a, b))
	})
	return out
}
