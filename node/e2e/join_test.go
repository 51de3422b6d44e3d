package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"pontoon/internal/lab"
)

// restart ends a daemon and starts it with these arguments of its own.
func restart(t testing.TB, n *lab.Node, args ...string) {
	t.Helper()
	if err := n.Terminate(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	n.SetArgs(args...)
	if err := n.Start(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitUp(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
}

func newToken(t testing.TB, n *lab.Node, args ...string) string {
	t.Helper()
	return strings.TrimSpace(cli(t, n, append([]string{"token", "create"}, args...)...))
}

// garble changes one character in the middle of a token.
func garble(token string) string {
	b := []byte(token)
	i := len(b) / 2
	if b[i] == 'x' {
		b[i] = 'y'
	} else {
		b[i] = 'x'
	}
	return string(b)
}

// otherSecret is the token with a secret nobody has made, and a right
// checksum: what a thief of the token's id could build.
func otherSecret(t testing.TB, token string) string {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 5 {
		t.Fatalf("a token of %d parts", len(parts))
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[3])
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	parts[3] = base64.RawURLEncoding.EncodeToString(raw)
	body := strings.Join(parts[:4], ".")
	return fmt.Sprintf("%s.%08x", body, crc32.ChecksumIEEE([]byte(body)))
}

func TestARefusedJoinLeavesNoTrace(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Config{Topology: lab.OneLeg, Nodes: 4})
	first, second, joiner, foreign := l.Nodes()[0], l.Nodes()[1], l.Nodes()[2], l.Nodes()[3]
	cli(t, first, "init")
	join(t, second, first)
	cli(t, foreign, "init")
	via := first.ClusterAddress().String()

	used := newToken(t, first)
	if err := joinAndLeave(t, joiner, via, used); err != nil {
		t.Fatal(err)
	}
	short := newToken(t, first, "--ttl", "1s")
	good := newToken(t, first)

	before := memberNames(t, first)
	tryJoin := func(via, token, words string) {
		t.Helper()
		refused(t, joiner, words, "join", via, "--token", token)
		if left := memberFiles(t, joiner); len(left) > 0 {
			t.Errorf("the refused joiner keeps %v", left)
		}
		for _, n := range []*lab.Node{first, second} {
			if after := memberNames(t, n); after != before {
				t.Errorf("%s now lists %s, before %s", n.Name(), after, before)
			}
		}
		if pins, _ := filepath.Glob(filepath.Join(joiner.PinDir(), "*")); len(pins) > 0 {
			t.Errorf("the refused joiner has pinned %v", pins)
		}
	}
	tryJoin(via, garble(good), "token")
	tryJoin(via, "nonsense", "token")
	tryJoin(via, otherSecret(t, good), "wrong secret|pontoon token create")
	tryJoin(via, newToken(t, foreign), "cluster|token")
	tryJoin(via, used, "used|pontoon token create")
	tryJoin(via, newToken(t, first, "--role", "witness"), "witness|--role lb")
	waitExpired(t, first, short)
	tryJoin(via, short, "expired|pontoon token create")
	tryJoin("192.168.80.99:7400", good, "192.168.80.99:7400")
	tryJoin(first.Addr().String()+":9", good, ":9")

	for _, port := range []netip.AddrPort{joiner.ClusterAddress(), netip.AddrPortFrom(joiner.Addr(), 7401)} {
		ln, err := joiner.Listen(port)
		if err != nil {
			t.Fatal(err)
		}
		tryJoin(via, good, port.String()+"|address already in use")
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
	restart(t, joiner, "--name", second.Name())
	tryJoin(via, good, second.Name()+"|name")

	// Configured like another one: the same address, here on lo so that it can
	// be opened, and asked by way of the other member.
	claim(t, joiner, first.Addr(), netlink.AddrAdd)
	restart(t, joiner, "--address", first.ClusterAddress().String())
	tryJoin(second.ClusterAddress().String(), good, first.ClusterAddress().String()+"|address")

	claim(t, joiner, first.Addr(), netlink.AddrDel)
	restart(t, joiner)
	refused(t, first, "already|pontoon leave", "init")
	refused(t, first, "already|pontoon leave", "join", second.ClusterAddress().String(), "--token", good)
	cli(t, joiner, "join", via, "--token", good) // none of all that has spoilt the token or the node
	waitMembers(t, 3, first, second, joiner)
	waitEvent(t, first, "node", joiner.Name()+" has caught up and votes")
}

// waitExpired waits until the node says of a token that its time is over.
func waitExpired(t testing.TB, n *lab.Node, token string) {
	t.Helper()
	eventually(t, 10*time.Second, "the token to expire", func(ctx context.Context) error {
		var list []struct {
			ID      string `json:"id"`
			Expired bool   `json:"expired"`
		}
		if err := get(ctx, n, "/v1/tokens", &list); err != nil {
			return err
		}
		for _, k := range list {
			if k.ID == strings.Split(token, ".")[1] && k.Expired {
				return nil
			}
		}
		return fmt.Errorf("not among %d tokens, or still good", len(list))
	})
}

// memberNames lists the members as n knows them.
func memberNames(t testing.TB, n *lab.Node) string {
	t.Helper()
	var out []string
	for _, m := range status(t, n).Nodes {
		out = append(out, m.Name)
	}
	return strings.Join(out, " ")
}

// joinAndLeave uses a token up.
func joinAndLeave(t testing.TB, n *lab.Node, via, token string) error {
	t.Helper()
	if _, err := n.CLI(within(t, 30*time.Second), "join", via, "--token", token); err != nil {
		return err
	}
	_, err := n.CLI(within(t, 30*time.Second), "leave")
	return err
}

// claim gives a node an address on lo, or takes it away, without telling the
// segment.
func claim(t testing.TB, n *lab.Node, addr netip.Addr, act func(netlink.Link, *netlink.Addr) error) {
	t.Helper()
	err := n.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/arp_ignore", []byte("1"), 0); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr.String() + "/32")
		if err != nil {
			return err
		}
		return act(lo, a)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheCAKeyStaysWithTheVoters(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3})
	var key []byte
	for _, n := range l.Nodes() {
		path := filepath.Join(n.DataDir(), "ca.key")
		eventually(t, 10*time.Second, n.Name()+" to have the key", func(context.Context) (err error) {
			key, err = os.ReadFile(path)
			return err
		})
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, st.Mode())
		}
	}
	shapes := keyShapes(t, key)
	clean := func(where string, b []byte) {
		t.Helper()
		for name, s := range shapes {
			if bytes.Contains(b, s) {
				t.Errorf("%s holds the CA key (%s)", where, name)
			}
		}
	}
	for _, n := range l.Nodes() {
		for _, path := range []string{"/v1/status", "/v1/nodes", "/v1/tokens", "/v1/events", "/v1/instances", "/v1/vips", "/v1/services", "/v1/flows", "/v1/openapi.json"} {
			var raw json.RawMessage
			if err := get(within(t, 5*time.Second), n, path, &raw); err != nil {
				t.Error(err)
			}
			clean(n.Name()+path, raw)
		}
		clean("token list", []byte(cli(t, n, "token", "list", "-o", "json")))
		b, err := os.ReadFile(n.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		clean(n.LogFile(), b)
	}
	err := filepath.WalkDir(l.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "ca.key" {
			return err
		}
		b, err := os.ReadFile(path)
		clean(path, b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// The key is what it is taken for: the test can find it where it is.
	found := false
	for _, s := range shapes {
		found = found || bytes.Contains(key, s)
	}
	if !found {
		t.Error("none of the key's shapes is in ca.key itself")
	}
}

// keyShapes are the forms in which the key might be written somewhere.
func keyShapes(t testing.TB, file []byte) map[string][]byte {
	t.Helper()
	block, _ := pem.Decode(file)
	if block == nil {
		t.Fatal("ca.key is not PEM")
		return nil
	}
	der := block.Bytes
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatalf("ca.key: %v", err)
	}
	ec, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("ca.key is %T", k)
	}
	secret, err := ec.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Split(strings.TrimSpace(string(file)), "\n")
	return map[string][]byte{
		"der": der, "raw": secret, "hex": []byte(hex.EncodeToString(secret)),
		"base64": []byte(base64.StdEncoding.EncodeToString(secret)), "pem": []byte(body[len(body)/2]),
		"base64 of der": []byte(base64.StdEncoding.EncodeToString(der)),
	}
}

func TestAJoinerVotesWhenItHasCaughtUp(t *testing.T) {
	l := newLab(t, lab.Config{Topology: lab.OneLeg, Nodes: 2})
	first, second := l.Nodes()[0], l.Nodes()[1]
	cli(t, first, "init")
	seen := map[string]bool{}
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			if s, err := first.Status(t.Context()); err == nil {
				if n, ok := s.Node(second.Name()); ok {
					seen[n.Raft] = true
				}
			}
			select {
			case <-stop:
				return
			case <-t.Context().Done():
				return
			case <-tick.C:
			}
		}
	}()
	join(t, second, first)
	close(stop)
	<-watched
	if !seen["nonvoter"] {
		t.Errorf("the joiner was never a nonvoter: %v", seen)
	}
	s := status(t, first)
	if n, _ := s.Node(second.Name()); n.Raft != "voter" {
		t.Errorf("after join it is %q", n.Raft)
	}
}
