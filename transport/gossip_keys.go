package transport

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/hashicorp/memberlist"
)

// gossipNamePattern is nodeNamePattern with more room.
var gossipNamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,125}[A-Za-z0-9])?$`)

func checkGossipName(name string) error {
	if !gossipNamePattern.MatchString(name) {
		return fmt.Errorf("gossip name %q is not valid: use 1 to 127 letters, digits, '.', '_' and '-', with a letter or digit at both ends", name)
	}
	return nil
}

// SetKeys replaces the key ring while gossip runs: new keys are installed, the
// first becomes the one that encrypts, keys that are not named are removed. To
// rotate a cluster's key without losing a message, first give every node
// {old, new}, then {new, old}, then {new}.
func (g *Gossip) SetKeys(keys [][]byte) error {
	if err := checkGossipKeys(keys); err != nil {
		return fmt.Errorf("set gossip keys: %w", err)
	}
	g.keys.Lock()
	defer g.keys.Unlock()
	if err := setRing(g.keyring, cloneKeys(keys)); err != nil {
		return fmt.Errorf("set gossip keys: %w", err)
	}
	return nil
}

// setRing makes ring hold exactly keys, the first being primary.
//
// Removing a key from the middle of a memberlist key ring shifts the rest in
// place, under the eyes of goroutines that are decrypting with the same slice.
// Removing the last one shifts nothing. UseKey moves a key to the front of a
// fresh slice, so using the wanted keys from last to first leaves the unwanted
// ones at the end, to be removed from there. On that way each wanted key is
// primary for a moment; that is done only when something is to be removed, when
// all of them have been known everywhere for long.
func setRing(ring *memberlist.Keyring, keys [][]byte) error {
	for _, k := range keys {
		if err := ring.AddKey(k); err != nil {
			return err
		}
	}
	if len(ring.GetKeys()) > len(keys) {
		for _, k := range slices.Backward(keys) {
			if err := ring.UseKey(k); err != nil {
				return err
			}
		}
	}
	if err := ring.UseKey(keys[0]); err != nil {
		return err
	}
	for have := ring.GetKeys(); len(have) > len(keys); have = ring.GetKeys() {
		if err := ring.RemoveKey(have[len(have)-1]); err != nil {
			return err
		}
	}
	return nil
}

func checkGossipKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("no gossip key is given")
	}
	for i, k := range keys {
		if len(k) != gossipKeySize {
			return fmt.Errorf("gossip key %d has %d bytes, not %d", i+1, len(k), gossipKeySize)
		}
		for _, earlier := range keys[:i] {
			if bytes.Equal(k, earlier) {
				return fmt.Errorf("gossip key %d is there twice", i+1)
			}
		}
	}
	return nil
}

func cloneKeys(keys [][]byte) [][]byte {
	out := make([][]byte, len(keys))
	for i, k := range keys {
		out[i] = bytes.Clone(k)
	}
	return out
}
