package main

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// File types in a cpio mode, as in stat(2).
const (
	modeDir     = 0o040000
	modeChar    = 0o020000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

// cpioWriter writes the "newc" form of a cpio archive, the one the kernel
// unpacks at boot (Documentation/driver-api/early-userspace/buffer-format.rst).
// Everything belongs to root. Folders are made as they are needed.
type cpioWriter struct {
	w     io.Writer
	inode int
	known map[string]bool // names that are in the archive
}

func newCPIO(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, known: map[string]bool{"": true, ".": true}}
}

// header writes one entry's head; size bytes of data are to follow it.
func (c *cpioWriter) header(name string, mode uint32, size int64, major, minor int) error {
	c.inode++
	if size >= 1<<32 {
		return fmt.Errorf("%s has %d bytes: the format ends at 4 GiB", name, size)
	}
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
	if _, err := io.WriteString(c.w, head+padding(int64(len(head)))); err != nil {
		return fmt.Errorf("write %s to archive: %w", name, err)
	}
	return nil
}

// padding is what brings n bytes to a multiple of four.
func padding(n int64) string { return "\x00\x00\x00"[:(4-n%4)%4] }

// parents makes the folders above name that are not there yet.
func (c *cpioWriter) parents(name string) error {
	dir := path.Dir(name)
	if c.known[dir] {
		return nil
	}
	return c.dir(dir, 0o755)
}

func (c *cpioWriter) dir(name string, perm uint32) error {
	if c.known[name] {
		return nil
	}
	if err := c.parents(name); err != nil {
		return err
	}
	c.known[name] = true
	return c.header(name, modeDir|perm, 0, 0, 0)
}

// file copies size bytes of r.
func (c *cpioWriter) file(name string, perm uint32, size int64, r io.Reader) error {
	return c.entry(name, modeRegular|perm, size, r)
}

func (c *cpioWriter) symlink(name, target string) error {
	return c.entry(name, modeSymlink|0o777, int64(len(target)), strings.NewReader(target))
}

func (c *cpioWriter) entry(name string, mode uint32, size int64, r io.Reader) error {
	if err := c.parents(name); err != nil {
		return err
	}
	c.known[name] = true
	if err := c.header(name, mode, size, 0, 0); err != nil {
		return err
	}
	n, err := io.Copy(c.w, io.LimitReader(r, size))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		_, err = io.WriteString(c.w, padding(size))
	}
	if err != nil {
		return fmt.Errorf("write %s to archive: %w", name, err)
	}
	return nil
}

func (c *cpioWriter) charDevice(name string, perm uint32, major, minor int) error {
	if err := c.parents(name); err != nil {
		return err
	}
	return c.header(name, modeChar|perm, 0, major, minor)
}

// close writes the trailer. The kernel takes several archives in one file, so
// another may follow.
func (c *cpioWriter) close() error {
	return c.header("TRAILER!!!", 0, 0, 0, 0)
}
