package transport

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// Names of the files that identity and CA keep in a node's data directory.
const (
	nodeKeyFile  = "node.key"
	nodeCertFile = "node.crt"
	caKeyFile    = "ca.key"
	caCertFile   = "ca.crt"
)

const (
	pemKey  = "PRIVATE KEY"
	pemCert = "CERTIFICATE"

	modeSecret fs.FileMode = 0o600
	modePublic fs.FileMode = 0o644
)

// writePEM replaces dir/name atomically. The temporary file is made in the same
// directory, so that a secret never passes through a shared /tmp, and the
// directory is synced, so that the new name survives a power loss.
func writePEM(dir, name, kind string, der []byte, mode fs.FileMode) error {
	path := filepath.Join(dir, name)
	data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	err := renameio.WriteFile(path, data, mode,
		renameio.WithTempDir(dir), renameio.WithStaticPermissions(mode))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(dir)
}

// readPEM returns the one block of the given kind in dir/name. A secret that
// others may read is refused: whoever could read it may have done so already,
// and the operator has to know.
func readPEM(dir, name, kind string, secret bool) ([]byte, error) {
	path := filepath.Join(dir, name)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if perm := info.Mode().Perm(); secret && perm&0o077 != 0 {
		return nil, fmt.Errorf("read %s: mode %04o lets others read the key; make it 0600", path, perm)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("read %s: holds no PEM block %q", path, kind)
	}
	return block.Bytes, nil
}

// removeFile deletes dir/name; a file that is not there is fine.
func removeFile(dir, name string) error {
	path := filepath.Join(dir, name)
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// parseKey reads a PKCS #8 private key of a kind that Pontoon makes.
func parseKey(der []byte) (crypto.Signer, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("parse private key: %w", err)
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("parse private key: a %T cannot sign", k)
	}
	if err := checkPublicKey(signer.Public()); err != nil {
		return nil, fmt.Errorf("parse private key: %w", err)
	}
	return signer, nil
}
