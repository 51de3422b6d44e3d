// Package e2e tests whole clusters: real pontoon processes in network
// namespaces, real clients and endpoints, real packets. It needs root and the
// binary that PONTOON_BINARY names, which it builds when that is empty.
//
// Tests run one at a time, since many measure what clients feel and all share a few processors. Those that begin with
// t.Parallel() mostly wait, and their bounds hold on a busy machine: they run beside each other when the others are done, as
// many at a time as there are processors. A new test runs alone until somebody knows that it may do otherwise.
package e2e
