package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"pontoon/internal/logging"
	"pontoon/internal/priority"
	"pontoon/internal/sdnotify"
	"pontoon/node"
)

func newRunCmd(a *app) *cobra.Command {
	var flags runFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground, until SIGTERM or SIGINT. It reads its node
file, tells the service manager when it is ready (sd_notify), and logs to
standard error. When it stops, the data plane goes on forwarding; the next run
adopts it.

Every key of the node file is also a flag, and flags win:

  name: lb1                        # --name
  role: lb                         # --role
  data_dir: /var/lib/pontoon       # --data-dir
  run_dir: /run/pontoon            # --run-dir
  cluster:
    address: 192.168.80.11:7400    # --address
    gossip_port: 7401              # --gossip-port
  api:
    listen: 127.0.0.1:7480         # --api-listen
  data_plane:
    interfaces: [eth1, eth2]       # --interface, repeated
    hook: auto                     # --hook auto|tc|xdp|xdp-generic
    pin_dir: /sys/fs/bpf/pontoon   # --pin-dir
    max_flows: 1048576             # --max-flows
  agent_grace: 3s                  # --agent-grace
  failover:
    echo_interval: 20ms            # --echo-interval
    echo_misses: 3                 # --echo-misses
    bfd_interval: 100ms            # --bfd-interval
    bfd_multiplier: 3              # --bfd-multiplier
    lease: 1s                      # --lease
  nice: -10                        # --nice, -20 to 19; 0 leaves the priority alone
  log_level: info                  # --log-level`,
		Example: `  pontoon run --config /etc/pontoon/node.yaml
  pontoon run --address 192.168.80.11:7400 --interface eth1 --interface eth2`,
		Args: wantArgs(),
	}
	flags.addTo(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := flags.load(cmd.Flags(), os.Hostname)
		if err != nil {
			return err
		}
		if err := cfg.Validate(); err != nil {
			return err
		}
		return a.daemon(cmd.Context(), cfg, flags)
	}
	return withoutDaemon(cmd)
}

// daemon runs the node until ctx ends.
func (a *app) daemon(ctx context.Context, cfg node.Config, flags runFlags) error {
	logger, err := logging.New(a.err, logging.Config{
		Format:   flags.logFormat.value,
		Level:    cfg.LogLevel,
		OmitTime: a.getenv("JOURNAL_STREAM") != "" && !isTerminal(a.err), // the journal stamps each line
	})
	if err != nil {
		return fmt.Errorf("set up the log: %w", err)
	}
	prioritize(logger, cfg.Nice)
	// Whoever reads the log may go away (a restarted journal, a closed
	// terminal); connections must not depend on that.
	signal.Ignore(syscall.SIGPIPE)
	notifier := sdnotify.New(a.getenv(sdnotify.EnvVar))
	told := func(err error) {
		if err != nil {
			logger.Warn("service manager not told", slog.Any("err", err))
		}
	}
	return node.Run(ctx, cfg, node.RunOptions{
		Logger:  logger,
		Version: versionString(),

		DiscardFlows: flags.discard,

		Ready:    func() { told(notifier.Ready()) },
		Stopping: func() { told(notifier.Stopping()) },
		Status:   func(line string) { told(notifier.Status(line)) },
	})
}

// prioritize gives this process its place among the others: a daemon that waits for its turn is late with all that tells
// the others that it lives. Without the right to it all works as well, on a machine that is not busy.
func prioritize(logger *slog.Logger, nice int) {
	if nice == 0 {
		return
	}
	if err := priority.Set(nice); err != nil {
		logger.Info("priority not as wanted: other processes may delay this one", "nice", nice, "err", err)
	}
}
