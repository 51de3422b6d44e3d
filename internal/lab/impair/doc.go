// Package impair makes one cable of a lab bad: it loses, doubles, delays and
// reorders frames by rule, each direction by rules of its own.
//
// Where netem is a kernel's own means for this, many small kernels have none. So
// a [Port] puts two BPF programs on the segment's end of a cable, outside of the
// host that is hurt, which sees only what a bad network shows. The rules are
// compiled into the programs; changing them swaps a program, no frame meets half
// a change. Loss and doubles happen in the kernel. A frame that is to come late
// is copied to this process and dropped; [Port.Run] sends the copy out of the
// same port when its time has come, with the checksum and segmentation marks it
// had. What the programs let through themselves is untouched.
//
// Two frames that wait for random times overtake each other: that is how
// reordering is made. A segmentation offload's frame of many segments counts as
// one frame.
//
// The package refuses to run on kernels without TCX (before 6.6), and knows
// nothing of labs or of the product: it is handed a way into a namespace and the
// name of an interface there.
package impair
