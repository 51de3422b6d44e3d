// Package e2e tests whole clusters: real pontoon processes in network
// namespaces, real clients and endpoints, real packets. It needs root and the
// binary that PONTOON_BINARY names, which it builds when that is empty.
package e2e
