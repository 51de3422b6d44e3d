package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// cluster is a caricature of the product: nodes agree through files in the
// lab's directory, and the master is a TCP proxy in user space. It takes over
// and serves new connections, and loses every old one: what the demo must
// notice.
type cluster struct {
	dir, self string
}

const (
	vip       = "192.168.80.200"
	heartbeat = 50 * time.Millisecond
	deadAfter = 500 * time.Millisecond
)

func (c cluster) path(name string) string { return filepath.Join(c.dir, "fake-"+name) }

func (c cluster) lines(name string) []string {
	raw, _ := os.ReadFile(c.path(name))
	return strings.Fields(string(raw))
}

func (c cluster) add(name, line string) error {
	f, err := os.OpenFile(c.path(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, line)
	return err
}

func (c cluster) alive(node string) bool {
	st, err := os.Stat(c.path("beat-" + node))
	return err == nil && time.Since(st.ModTime()) < deadAfter
}

func (c cluster) master() string {
	if m := c.lines("master"); len(m) > 0 {
		return m[len(m)-1]
	}
	return ""
}

// command is the command line; it works on the files directly.
func command(socket string, args []string) error {
	node := filepath.Dir(filepath.Dir(socket))
	c := cluster{dir: filepath.Dir(node), self: filepath.Base(node)}
	switch strings.Join(args[:min(2, len(args))], " ") {
	case "init":
		return c.add("members", c.self)
	case "token create":
		fmt.Println("pt-secret")
		return nil
	case "vip create":
		return nil
	case "service create":
		for i, a := range args[:len(args)-1] {
			if a == "--endpoint" {
				if err := c.add("endpoints", args[i+1]); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if len(args) == 4 && args[0] == "join" && args[3] == "pt-secret" {
		return c.add("members", c.self)
	}
	fmt.Println(strings.Join(args, " "))
	return nil
}

func (c cluster) writeStatus(w io.Writer) {
	type node struct {
		Name   string `json:"name"`
		Raft   string `json:"raft"`
		Alive  bool   `json:"alive"`
		Ready  bool   `json:"ready"`
		InSync bool   `json:"in_sync"`
	}
	members := c.lines("members")
	master := c.master()
	if len(members) == 0 { // the tests of a single node know no init
		members, master = []string{c.self}, c.self
	}
	var nodes []node
	for _, m := range members {
		a := c.alive(m)
		nodes = append(nodes, node{m, "voter", a, a, a})
	}
	var endpoints []any
	for _, e := range c.lines("endpoints") {
		health := "down"
		if out, err := net.DialTimeout("tcp4", e, deadAfter); err == nil {
			out.Close()
			health = "up"
		}
		endpoints = append(endpoints, map[string]any{"address": e, "health": health})
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"services": []any{map[string]any{"name": "web", "endpoints": endpoints}},
		"cluster":  map[string]any{"leader": master, "quorum": true}, "self": c.self, "nodes": nodes,
		"instances": []any{map[string]any{"name": "default", "master": master, "epoch": len(c.lines("master"))}},
	})
}

// run beats, takes over from a dead master, and serves while it is one.
func (c cluster) run(ctx context.Context) {
	serving := false
	for tick := time.Tick(heartbeat); ; {
		_ = os.WriteFile(c.path("beat-"+c.self), nil, 0o600)
		select {
		case <-tick:
		case <-ctx.Done():
			return
		}
		if m := c.master(); (m == "" || !c.alive(m)) && c.next() == c.self {
			_ = c.add("master", c.self)
		}
		if c.master() == c.self && len(c.lines("endpoints")) > 0 && !serving {
			serving = true
			if err := c.serve(); err != nil {
				fmt.Println("serve:", err)
			}
		}
	}
}

// next is the first living member.
func (c cluster) next() string {
	for _, m := range c.lines("members") {
		if c.alive(m) {
			return m
		}
	}
	return ""
}

// serve takes the VIP and proxies its port.
func (c cluster) serve() error {
	link, err := netlink.LinkByName("eth1")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(vip + "/32")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	ln, err := net.Listen("tcp4", vip+":80")
	if err != nil {
		return err
	}
	// Any packet from the VIP makes the kernel ask for the client's hardware
	// address in the VIP's name, which corrects the client's own entry.
	from := &net.UDPAddr{IP: net.ParseIP(vip)}
	if u, err := net.DialUDP("udp4", from, &net.UDPAddr{IP: net.ParseIP("192.168.80.101"), Port: 9}); err == nil {
		_, _ = u.Write([]byte("here"))
		u.Close()
	}
	eps := c.lines("endpoints")
	go func() {
		for i := 0; ; i++ {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			go proxy(in, eps[i%len(eps)], eps[(i+1)%len(eps)])
		}
	}()
	return nil
}

// proxy connects to the first of the endpoints that lives.
func proxy(in net.Conn, to ...string) {
	defer in.Close()
	var out net.Conn
	err := io.EOF
	for i := 0; i < len(to) && err != nil; i++ {
		out, err = net.Dial("tcp4", to[i])
	}
	if err != nil {
		return
	}
	defer out.Close()
	go func() { _, _ = io.Copy(out, in); out.Close() }()
	_, _ = io.Copy(in, out)
}
