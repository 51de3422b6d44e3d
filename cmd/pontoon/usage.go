package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usageError marks an error of the command line itself: exit status 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// flagError words what pflag found wrong with a flag.
func flagError(_ *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return usageError{err}
	}
	want := invalid.Unwrap().Error()
	switch kind := invalid.GetFlag().Value.Type(); kind {
	case "duration":
		want = "want " + wantDuration
	case "int", "uint8", "uint16", "uint32":
		want = "want a whole number"
		if size, bits := strings.CutPrefix(kind, "uint"); bits {
			want += " of at most " + size + " bits"
		}
	}
	return usagef("--%s %q: %s", invalid.GetFlag().Name, invalid.GetValue(), want)
}

// usageLine is how a command is used, in one line.
func usageLine(cmd *cobra.Command) string {
	if cmd.HasAvailableSubCommands() {
		return cmd.CommandPath() + " COMMAND"
	}
	return strings.TrimSuffix(cmd.UseLine(), " [flags]")
}

// group returns a command that only holds others.
func group(use, short, long string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Long:  long,
		Args:  cobra.ArbitraryArgs, // so that RunE can answer in our words
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && !cmd.HasParent() {
				return cmd.Help()
			}
			if len(args) == 0 {
				return usagef("%s wants a command: %s", cmd.CommandPath(), strings.Join(commandNames(cmd), ", "))
			}
			return unknownCommand(cmd, args[0])
		},
	}
}

func unknownCommand(parent *cobra.Command, name string) error {
	if near := parent.SuggestionsFor(name); len(near) > 0 {
		return usagef("unknown command %q for %s: did you mean %s?", name, parent.CommandPath(), strings.Join(near, " or "))
	}
	return usagef("unknown command %q for %s: want one of %s", name, parent.CommandPath(), strings.Join(commandNames(parent), ", "))
}

// newHelpCmd is cobra's help command, but one that fails on a command there is
// not.
func newHelpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND ...]",
		Short: "Say more about a command",
		Long:  "Say more about a command.",
		RunE: func(help *cobra.Command, args []string) error {
			cmd, rest, err := help.Root().Find(args)
			if err != nil {
				return usageError{err}
			}
			if len(rest) > 0 {
				return unknownCommand(cmd, rest[0])
			}
			return cmd.Help()
		},
	}
}

func commandNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}

// wantArgs accepts exactly one argument for each name, and says which one is
// missing or too many.
func wantArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("missing %s", strings.Join(names[len(args):], " and "))
		case len(args) > len(names):
			return usagef("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// requireFlags says which of the named flags are not given.
func requireFlags(cmd *cobra.Command, names ...string) error {
	var missing []string
	for _, name := range names {
		if !cmd.Flags().Changed(name) {
			missing = append(missing, "--"+name)
		}
	}
	if len(missing) > 0 {
		return usagef("missing %s", strings.Join(missing, " and "))
	}
	return nil
}

// choice is a flag that takes one of a few words.
type choice struct {
	value   string
	allowed []string
}

func newChoice(value string, allowed ...string) *choice {
	return &choice{value: value, allowed: allowed}
}

func (c *choice) String() string { return c.value }

func (c *choice) Type() string { return strings.Join(c.allowed, "|") }

func (c *choice) Set(s string) error {
	for _, word := range c.allowed {
		if s == word {
			c.value = s
			return nil
		}
	}
	return fmt.Errorf("want %s", orList(c.allowed))
}

// addTo defines the flag and its completion on cmd.
func (c *choice) addTo(cmd *cobra.Command, name, short, usage string) *choice {
	cmd.Flags().VarP(c, name, short, usage)
	// The only error is a second registration, which this function's callers
	// cannot do: pflag refuses to define a flag twice.
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(c.allowed, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func orList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// withoutDaemon refuses the connection flags on a command that talks to no
// daemon, and leaves them out of its help.
func withoutDaemon(cmd *cobra.Command) *cobra.Command {
	return hideInherited(cmd, "socket", "server", "token", "ca")
}

// hideInherited takes away flags a command would inherit but cannot honour: a
// flag that is silently ignored misleads.
func hideInherited(cmd *cobra.Command, names ...string) *cobra.Command {
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		for _, name := range names {
			if f := cmd.InheritedFlags().Lookup(name); f != nil && f.Changed {
				return usagef("--%s has no meaning for %s", name, cmd.CommandPath())
			}
		}
		return nil
	}
	cmd.SetUsageFunc(func(cmd *cobra.Command) error {
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) {
			for _, name := range names {
				f.Hidden = f.Hidden || f.Name == name
			}
		})
		cmd.SetUsageFunc(nil)
		return cmd.Usage()
	})
	return cmd
}
