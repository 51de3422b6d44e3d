package bpf

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// Bounds of selection tables.
const (
	maglevPerNode = 100   // entries per endpoint, as in the paper's "M much larger than N"
	maxSequence   = 16384 // longest round-robin sequence
)

// maglevSizes are the primes just below powers of two. A table has the first of them that is large
// enough: its size must not follow every change of the number of endpoints, because another size
// moves nearly every flow.
var maglevSizes = [...]int{251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071, 262139}

// selectionTable lists, for each position of the table, the index of the endpoint that takes it.
// It depends on nothing but its arguments, and not on the order of the endpoints beyond the
// indexes it names, so every node builds the same one. Endpoints of weight 0 are left out; nil
// means that none takes new flows.
func selectionTable(algorithm Algorithm, seed uint32, endpoints []Endpoint) []int {
	order := make([]int, 0, len(endpoints))
	for i, e := range endpoints {
		if e.takesNew() {
			order = append(order, i)
		}
	}
	if len(order) == 0 {
		return nil
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(endpoints[a].Addr.Compare(endpoints[b].Addr), cmp.Compare(a, b))
	})
	sorted := make([]Endpoint, len(order))
	for i, at := range order {
		sorted[i] = endpoints[at]
	}
	var table []int
	if algorithm == AlgorithmMaglev {
		table = maglev(seed, sorted)
	} else {
		table = smoothSequence(reduceWeights(sorted))
	}
	for i, at := range table {
		table[i] = order[at]
	}
	return table
}

// reduceWeights divides the weights by their common divisor, and by more where the sequence
// would be longer than maxSequence; then proportions are kept as nearly as they can be.
func reduceWeights(endpoints []Endpoint) []int {
	weights := make([]int, len(endpoints))
	divisor, sum := 0, 0
	for i, e := range endpoints {
		weights[i] = int(e.Weight)
		divisor = gcd(divisor, weights[i])
	}
	for i := range weights {
		weights[i] /= divisor
		sum += weights[i]
	}
	if sum <= maxSequence {
		return weights
	}
	for i := range weights {
		weights[i] = max(1, (weights[i]*maxSequence+sum/2)/sum)
	}
	return weights
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// smoothSequence is the smooth weighted round robin of nginx over one full cycle: at every step
// each endpoint gains its weight, the richest is taken and pays the sum of all.
func smoothSequence(weights []int) []int {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	table := make([]int, sum)
	credit := make([]int, len(weights))
	for step := range table {
		best := 0
		for i, w := range weights {
			credit[i] += w
			if credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= sum
		table[step] = best
	}
	return table
}

// maglev fills a table of prime size as in "Maglev: A Fast and Reliable Software Network Load
// Balancer" (NSDI 2016), section 3.4. An endpoint of less than the largest weight takes its turn
// in proportionally fewer rounds.
func maglev(seed uint32, endpoints []Endpoint) []int {
	size := maglevSize(len(endpoints))
	table := make([]int, size)
	for i := range table {
		table[i] = -1
	}
	type cursor struct{ at, skip, credit int }
	cursors := make([]cursor, len(endpoints))
	heaviest := 0
	for i, e := range endpoints {
		h := endpointHash(seed, e)
		cursors[i] = cursor{at: int(h>>32) % size, skip: int(uint32(h))%(size-1) + 1}
		heaviest = max(heaviest, int(e.Weight))
	}
	for filled := 0; ; {
		for i := range cursors {
			c := &cursors[i]
			c.credit += int(endpoints[i].Weight)
			if c.credit < heaviest {
				continue
			}
			c.credit -= heaviest
			for table[c.at] >= 0 {
				if c.at += c.skip; c.at >= size { // a remainder would cost most of all of this
					c.at -= size
				}
			}
			table[c.at] = i
			if filled++; filled == size {
				return table
			}
		}
	}
}

// endpointHash is FNV-1a over address and port, mixed with the seed; it must be the same in every
// version of the product that shares a cluster.
func endpointHash(seed uint32, e Endpoint) uint64 {
	var data [22]byte
	binary.BigEndian.PutUint32(data[:], seed)
	address := e.Addr.Addr().As16()
	copy(data[4:], address[:])
	binary.BigEndian.PutUint16(data[20:], e.Addr.Port())
	h := uint64(14695981039346656037)
	for _, b := range data {
		h = (h ^ uint64(b)) * 1099511628211
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// maglevSize is the size of a table for n endpoints; beyond 2621 of them the largest one, with
// fewer entries each.
func maglevSize(n int) int {
	for _, size := range maglevSizes {
		if size >= maglevPerNode*n {
			return size
		}
	}
	return maglevSizes[len(maglevSizes)-1]
}
