// Package bpf is the data plane: the eBPF programs that forward packets, and the code that
// loads them, tells them what to do and reads what happened.
//
// User space is never on the packet path. Programs, links and maps are pinned below
// Options.PinDir, so packets go on flowing when the process ends, and the next one adopts what
// it finds. The package decides nothing about mastership, addresses or health: it is handed the
// whole wanted set (Desired) and makes the maps say so.
//
// The why of it is in DESIGN.md beside this file.
package bpf
