package main

import (
	"runtime/debug"
	"strings"
)

// version is set by the linker (-X main.version=v1.2.3).
var version string

// versionString names this build: the version given to the linker, else the
// module's, and what the Go tool recorded of the source and the toolchain.
func versionString() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return describeBuild(version, info)
}

func describeBuild(version string, info *debug.BuildInfo) string {
	setting := map[string]string{}
	for _, s := range info.Settings {
		setting[s.Key] = s.Value
	}
	if version == "" {
		version = "devel"
		if v := info.Main.Version; v != "" && v != "(devel)" {
			version = v
		}
	}
	var more []string
	if rev := setting["vcs.revision"]; rev != "" {
		rev = "commit " + rev[:min(12, len(rev))]
		if setting["vcs.modified"] == "true" {
			rev += " with changes"
		}
		more = append(more, rev)
	}
	if t := setting["vcs.time"]; t != "" {
		more = append(more, t)
	}
	if info.GoVersion != "" {
		more = append(more, info.GoVersion)
	}
	if setting["GOOS"] != "" {
		more = append(more, setting["GOOS"]+"/"+setting["GOARCH"])
	}
	if len(more) == 0 {
		return version
	}
	return version + " (" + strings.Join(more, ", ") + ")"
}
