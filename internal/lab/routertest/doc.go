// Package routertest runs routers in a lab, for tests: BIRD 2 and FRRouting as Debian has
// them, and the product's own small one. The configuration of the first two is what
// docs/operations/routers shows to operators, so that what is written there is what works.
//
// Each router runs in its host's namespace, in the foreground, with all its files in a
// directory of its own; it is ended by its process id, with the test at the latest.
package routertest
