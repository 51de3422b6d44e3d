package host

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// perLink are the IPv4 settings every data interface needs (kernel document
// networking/ip-sysctl.rst). For all but rp_filter, send_redirects and
// arp_notify, the interface's own value is enough; those three are also
// governed by conf/all, see lowered.
var perLink = []struct {
	key   string
	value int
}{
	// The return packets of dnat flows, and whatever the data plane leaves to the
	// kernel, are routed between interfaces. Per interface, so that the machine
	// does not become a router on the others.
	{"forwarding", 1},
	// A packet from a VIP can arrive at a node holding that VIP: what the former
	// master still had in flight at a failover, and an endpoint that is a client.
	// Without this the kernel drops it as a martian.
	{"accept_local", 1},
	// A flow may come in by one leg and its answer leave by another, or reach a
	// node that has no route back to the client; reverse path filtering drops both.
	{"rp_filter", 0},
	// Answer ARP for an address on the interface that holds it only. The default
	// answers on every interface, so a two-leg node would claim a VIP on both.
	{"arp_ignore", 1},
	// Never use a VIP as the sender of an ARP request when the subnet has a better
	// address: each such request teaches the neighbours that the VIP lives here,
	// at a moment nobody decided.
	{"arp_announce", 2},
	// In a one-leg layout every forwarded packet leaves where it came in; a
	// redirect would tell the client to go round the load balancer.
	{"send_redirects", 0},
	// The kernel must not announce addresses by itself when a link comes back: a
	// node that was cut off would claim VIPs that have moved.
	{"arp_notify", 0},
}

// lowered are the settings where conf/all counts too, as a maximum (rp_filter,
// arp_notify) or as "either" (send_redirects), which for 0 and 1 is the same. To
// lower them on one interface conf/all has to be lowered; the interfaces that
// are not ours then get what conf/all gave them as their own value, so that
// nothing changes for them.
var lowered = []string{"rp_filter", "send_redirects", "arp_notify"}

// family names a folder of settings below /proc/sys/net.
type family string

const (
	ipv4 family = "ipv4"
	ipv6 family = "ipv6"
)

// setting is one file below /proc/sys/net/FAMILY/conf and the value it must have.
type setting struct {
	family    family
	link, key string
	old, want int
}

func (s setting) name() string {
	return "net." + string(s.family) + ".conf." + s.link + "." + s.key
}

// conf is what is there: link (or "all", "default") and key to value.
type conf map[string]map[string]int

// Prepare writes the IPv4 sysctls that links need to forward and to hold VIPs;
// PrepareIPv6 does those of IPv6. Only what differs is written, and each such write is logged with the old value.
//
// restore puts the old values back, except where someone has changed one since,
// or the interface is gone. It is for a node that leaves the cluster; one that
// merely stops must go on forwarding. Old values are known to this call only, not
// to a later process.
//
// If a write fails (no privilege, /proc/sys read-only in a container), the
// others are undone and the error names the settings to make by hand.
func (h *Host) Prepare(links []string) (restore func() error, err error) {
	current, err := h.readConf(ipv4, keysOfIPv4())
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if _, ok := current[l]; !ok || l == "all" || l == "default" {
			return nil, fmt.Errorf("prepare interface %q: %w", l, ErrNoLink)
		}
	}
	var written []setting
	var errs []error
	for _, s := range planSettings(current, links) {
		if err := h.set(s); err != nil {
			errs = append(errs, err)
			continue
		}
		written = append(written, s)
	}
	restore = func() error { return h.restoreSettings(written) }
	if len(errs) > 0 {
		return nil, errors.Join(append(errs, restore())...)
	}
	return restore, nil
}

// planSettings lists the writes that bring current to what links need. It is
// pure. The order matters: other interfaces get their own value before conf/all
// is lowered, and ours come after conf/default, whose value the kernel copies to
// every interface that was never set (devinet_copy_dflt_conf). For the same
// reason ours are written then even where they read as wanted.
func planSettings(current conf, links []string) []setting {
	var plan []setting
	add := func(link, key string, want int) {
		plan = append(plan, setting{family: ipv4, link: link, key: key, old: current[link][key], want: want})
	}
	others := slices.DeleteFunc(slices.Sorted(maps.Keys(current)), func(l string) bool {
		return l == "all" || l == "default" || slices.Contains(links, l)
	})
	for _, key := range lowered {
		for _, l := range append([]string{"default"}, others...) {
			if all := current["all"][key]; current[l][key] < all {
				add(l, key, all)
			}
		}
	}
	for _, l := range links {
		for _, p := range perLink {
			copied := slices.Contains(lowered, p.key) && current["all"][p.key] > 0
			if copied || current[l][p.key] != p.value {
				add(l, p.key, p.value)
			}
		}
	}
	for _, key := range lowered {
		if current["all"][key] > 0 {
			add("all", key, 0)
		}
	}
	return plan
}

// set writes one setting, and logs it when it is a change.
func (h *Host) set(s setting) error {
	if err := h.writeSetting(s.family, s.link, s.key, s.want); err != nil {
		return fmt.Errorf("set %s=%d (is %d): %w", s.name(), s.want, s.old, err)
	}
	if s.old != s.want {
		h.logger.Info("sysctl set", "sysctl", s.name(), "old", s.old, "new", s.want)
	}
	return nil
}

// restoreSettings undoes written, last first.
func (h *Host) restoreSettings(written []setting) error {
	var errs []error
	for _, s := range slices.Backward(written) {
		now, err := h.readSetting(s.family, s.link, s.key)
		if errors.Is(err, fs.ErrNotExist) || err == nil && now != s.want {
			continue // the interface is gone, or someone has decided otherwise since
		}
		if s.old == s.want && err == nil {
			continue
		}
		if err == nil {
			err = h.writeSetting(s.family, s.link, s.key, s.old)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("restore %s=%d: %w", s.name(), s.old, err))
			continue
		}
		h.logger.Info("sysctl restored", "sysctl", s.name(), "old", s.want, "new", s.old)
	}
	return errors.Join(errs...)
}

func keysOfIPv4() []string {
	keys := make([]string, len(perLink))
	for i, p := range perLink {
		keys[i] = p.key
	}
	return keys
}

// readConf reads the settings named by keys for every interface.
func (h *Host) readConf(f family, keys []string) (conf, error) {
	entries, err := os.ReadDir(h.confDir(f))
	if err != nil {
		return nil, fmt.Errorf("list sysctls: %w", err)
	}
	current := make(conf, len(entries))
	for _, e := range entries {
		values := make(map[string]int, len(keys))
		for _, key := range keys {
			v, err := h.readSetting(f, e.Name(), key)
			if errors.Is(err, fs.ErrNotExist) {
				values = nil // the interface went away meanwhile
				break
			}
			if err != nil {
				return nil, fmt.Errorf("read sysctl: %w", err)
			}
			values[key] = v
		}
		if values != nil {
			current[e.Name()] = values
		}
	}
	return current, nil
}

func (h *Host) confDir(f family) string { return filepath.Join(h.procSys, "net", string(f), "conf") }

func (h *Host) readSetting(f family, link, key string) (int, error) {
	path := filepath.Join(h.confDir(f), link, key)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// writeSetting opens without creating: a file that is not there is an interface
// that is not there.
func (h *Host) writeSetting(f family, link, key string, value int) error {
	file, err := os.OpenFile(filepath.Join(h.confDir(f), link, key), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(strconv.Itoa(value))
	return errors.Join(err, file.Close())
}
