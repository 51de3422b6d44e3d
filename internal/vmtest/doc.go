// Command vmtest runs Pontoon's privileged tests on another kernel than the
// one it is started on: it builds the test binaries, boots a Debian kernel in
// a virtual machine with them, streams what they print, and exits with their
// verdict. `make test-vm KERNEL=6.1` is the usual way to call it.
//
// # The machine
//
// It has no disk and no network. Kernel, modules and the few programs the
// tests call come from Debian's packages through the host's own apt, unpacked
// without being installed, and go into one initial RAM file system together
// with the test binaries; nothing is mounted and no root rights are needed for
// it. The result is cached below .cache/vmtest and made anew when apt offers
// other versions. The first process in the machine is this same program: it
// runs one suite after another and powers off.
//
// The first serial port is the console and carries what the tests print. The
// second carries one JSON object for each finished suite, so that a verdict is
// never torn by a line of the kernel's.
//
// # What counts as success
//
// The machine must power itself off after every suite has reported; a suite
// passes when its binary exits with status 0 within its time and every test it
// was told to insist on has passed: a skipped test of that list is a failure,
// because this machine exists in order not to skip it.
//
// This is a tool of the tests and no part of the product; only here and in
// internal/lab may a program be started.
package main
