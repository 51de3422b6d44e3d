// Package logging makes the daemon's structured logger. It sets no global: the
// logger is handed to whoever needs it.
package logging

import (
	"fmt"
	"io"
	"log/slog"
)

// Config says how the log looks.
type Config struct {
	// Format is "text" (key=value lines) or "json" (one object per line).
	// Default: text.
	Format string
	// Level is the least level written: debug, info, warn or error.
	// Default: info.
	Level string
	// OmitTime leaves the time out, for a reader that stamps lines itself
	// (the journal does).
	OmitTime bool
}

// New returns a logger that writes to w. It fails on a format or level it does
// not know. The logger may be used concurrently; each record is one Write.
func New(w io.Writer, cfg Config) (*slog.Logger, error) {
	level, err := parseLevel(cfg.Level)
	if err != nil {
		return nil, err
	}
	opts := &slog.HandlerOptions{Level: level}
	if cfg.OmitTime {
		opts.ReplaceAttr = dropTime
	}
	switch cfg.Format {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	default:
		return nil, fmt.Errorf("log format %q: want text or json", cfg.Format)
	}
}

func parseLevel(name string) (slog.Level, error) {
	switch name {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	default:
		return 0, fmt.Errorf("log level %q: want debug, info, warn or error", name)
	}
}

func dropTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
