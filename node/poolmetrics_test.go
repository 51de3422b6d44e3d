package node

import (
	"fmt"
	"slices"
	"testing"

	"pontoon/fsm"
	"pontoon/web"
)

func TestPoolMetricsSayHowManyAddressesAreLeft(t *testing.T) {
	var got []string
	poolMetrics([]web.PoolBrief{{Pool: fsm.Pool{Name: "web"}, PoolCounts: fsm.PoolCounts{Size: 9, Used: 5, Reserved: 1, Free: 3}}},
		func(name, _ string, v float64, labels ...string) { got = append(got, fmt.Sprint(name, v, labels)) })
	of := []string{"pool", "web"}
	want := []string{
		fmt.Sprint("pool_size", 9.0, of), fmt.Sprint("pool_used", 5.0, of), fmt.Sprint("pool_reserved", 1.0, of), fmt.Sprint("pool_free", 3.0, of),
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
