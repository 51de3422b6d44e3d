// Package host is the node's hand on the Linux network stack below the data
// plane: links, the addresses and routes that are Pontoon's, the sysctls
// forwarding needs, and a watch that says when any of it changed.
//
// It holds addresses and reads links; it decides nothing. Which address this
// machine should hold comes whole from the plan, and SyncAddresses makes it so,
// however often it is called and whatever was there before. It never announces
// (that is the announce package), never touches an address or a route the
// operator set, and never runs a program: everything goes over rtnetlink and /proc/sys.
//
// A Host belongs to the network namespace of the thread that made it. Netlink
// requests stay there; Prepare and Watch open files and sockets anew and must be
// called from a thread in the same namespace. A daemon has one namespace and
// need not care; tests lock their thread.
package host
