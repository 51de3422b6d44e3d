// Command standin takes the product's place in the tests of the lab: `run`
// serves a status on the Unix socket until it is told to end and counts its
// starts in the data directory; the commands that the demo gives make it a
// cluster of user-space proxies (see cluster.go); anything else is echoed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"pontoon/internal/lab"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 && args[0] == "run" {
		return daemon(args[1:])
	}
	if len(args) > 2 && args[0] == "--socket" {
		if args[2] == "fail" {
			return errors.New("asked to fail")
		}
		return command(args[1], args[2:])
	}
	if len(args) == 3 && args[0] == "demo" && args[1] == "--endpoint" {
		return lab.ServeEndpoint(context.Background(), args[2])
	}
	if len(args) == 2 && args[0] == "owner" {
		return owner(args[1])
	}
	return fmt.Errorf("wrong usage: %q", args)
}

// owner builds a lab below dir with one running node, says so and waits to be
// killed.
func owner(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	l, err := lab.New(lab.Config{Binary: self, Nodes: 1, Dir: dir})
	if err != nil {
		return err
	}
	n := l.Node("lb1")
	if err := n.Start(context.Background()); err != nil {
		return errors.Join(err, l.Close())
	}
	fmt.Println(l.Prefix(), n.Process().PID)
	select {}
}

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func daemon(args []string) error {
	fs := flag.NewFlagSet("run", flag.ContinueOnError)
	name := fs.String("name", "", "")
	data := fs.String("data-dir", "", "")
	runDir := fs.String("run-dir", "", "")
	address := fs.String("address", "", "")
	pin := fs.String("pin-dir", "", "")
	fs.String("gossip-port", "", "")
	fs.String("api-listen", "", "")
	fs.String("max-flows", "", "")
	var ifs list
	fs.Var(&ifs, "interface", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	for _, i := range ifs {
		if _, err := net.InterfaceByName(i); err != nil {
			return fmt.Errorf("interface %s: %w", i, err)
		}
	}
	starts, err := os.OpenFile(filepath.Join(*data, "starts"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	fmt.Fprintln(starts, "start")
	starts.Close()
	if err := os.MkdirAll(*pin, 0o700); err != nil {
		return err
	}
	port, err := net.Listen("tcp4", *address)
	if err != nil {
		return err
	}
	defer port.Close()
	sock := filepath.Join(*runDir, "pontoon.sock")
	os.Remove(sock)
	ln, err := net.Listen("unix", sock)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fake := cluster{dir: filepath.Dir(filepath.Dir(*data)), self: *name}
	http.HandleFunc("/v1/status", func(w http.ResponseWriter, _ *http.Request) { fake.writeStatus(w) })
	go fake.run(ctx)
	srv := &http.Server{}
	context.AfterFunc(ctx, func() { srv.Close() })
	fmt.Println("standin", *name, "runs")
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
