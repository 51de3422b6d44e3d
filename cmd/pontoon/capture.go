package main

import (
	"fmt"

	"github.com/google/renameio/v2"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"pontoon/web"
)

// The interfaces of a capture, by their number in the file.
const (
	captureBefore = 0
	captureAfter  = 1
)

// captureSnap is how many bytes of a packet the data plane keeps.
const captureSnap = 192

// capture writes traced packets to a pcapng file, which takes its name only
// when it is whole.
type capture struct {
	file   *renameio.PendingFile
	writer *pcapgo.NgWriter
}

func newCapture(path string) (*capture, error) {
	file, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o600))
	if err != nil {
		return nil, fmt.Errorf("write --write: %w", err)
	}
	c := &capture{file: file}
	if err := c.begin(); err != nil {
		c.discard()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return c, nil
}

func (c *capture) begin() (err error) {
	options := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "pontoon trace"}}
	face := pcapgo.NgInterface{
		Name: "before", Description: "packets as they came in", LinkType: layers.LinkTypeEthernet, SnapLength: captureSnap,
		TimestampResolution: 9,
	}
	if c.writer, err = pcapgo.NewNgWriterInterface(c.file, face, options); err != nil {
		return err
	}
	face.Name, face.Description = "after", "packets as they left"
	_, err = c.writer.AddInterface(face)
	return err
}

// add writes a packet as it came in, and as it left if it did.
func (c *capture) add(e web.TraceEvent) error {
	verdict := traceVerdict(e).text
	if e.Service != "" {
		verdict += "; service " + e.Service
	}
	if err := c.write(captureBefore, e, e.Before, e.Length, verdict); err != nil {
		return err
	}
	return c.write(captureAfter, e, e.After, e.SentLength, verdict)
}

func (c *capture) write(face int, e web.TraceEvent, data []byte, length uint32, comment string) error {
	if len(data) == 0 {
		return nil
	}
	info := gopacket.CaptureInfo{
		Timestamp: e.Time, CaptureLength: len(data), Length: max(int(length), len(data)), InterfaceIndex: face,
	}
	if err := c.writer.WritePacketWithOptions(info, data, pcapgo.NgPacketOptions{Comments: []string{comment}}); err != nil {
		return fmt.Errorf("write packet to file: %w", err)
	}
	return nil
}

// close finishes the file and gives it its name.
func (c *capture) close() error {
	if err := c.writer.Flush(); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	if err := c.file.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("finish file: %w", err)
	}
	return nil
}

// discard removes what was not closed.
func (c *capture) discard() { _ = c.file.Cleanup() }
