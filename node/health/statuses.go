package health

import (
	"fmt"
	"strconv"
	"strings"
)

// statuses is a set of HTTP status codes.
type statuses struct {
	text string // as it was written
	bits [10]uint64
}

const maxStatus = 599

// parseStatuses reads codes and ranges of codes between commas: 200,204,300-399.
func parseStatuses(text string) (statuses, error) {
	s := statuses{text: text}
	for part := range strings.SplitSeq(text, ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, err := strconv.Atoi(low)
		to := from
		if isRange && err == nil {
			to, err = strconv.Atoi(high)
		}
		if err != nil || from < 100 || to > maxStatus || from > to {
			return statuses{}, fmt.Errorf("expect must be status codes like 200,204,300-399, is %q", text)
		}
		for code := from; code <= to; code++ {
			s.bits[code/64] |= 1 << (code % 64)
		}
	}
	return s, nil
}

func (s *statuses) has(code int) bool {
	return code >= 0 && code <= maxStatus && s.bits[code/64]&(1<<(code%64)) != 0
}
