package fsm

import (
	"fmt"
	"time"
)

// Duration is a time.Duration that reads and writes as text in Go's notation
// ("1h0m0s"), in JSON and in YAML.
type Duration time.Duration

// MarshalText writes the duration in Go's notation.
func (d Duration) MarshalText() ([]byte, error) {
	return []byte(time.Duration(d).String()), nil
}

// UnmarshalText reads Go's notation ("90s", "1h").
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("duration %q: want a number with a unit, like \"90s\" or \"1h\"", b)
	}
	*d = Duration(v)
	return nil
}

// String returns Go's notation.
func (d Duration) String() string { return time.Duration(d).String() }
