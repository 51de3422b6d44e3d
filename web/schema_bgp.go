package web

import (
	"math"

	"pontoon/fsm"
)

func bgpDocs() map[string]fieldDoc {
	return map[string]fieldDoc{
		"as":           {text: "Of every node without one of its own; default 64512.", max: math.MaxUint32},
		"port":         {text: "Where the nodes listen (TCP); 0: nowhere, they only connect. Default 179.", max: 65535},
		"restart_time": {text: "For how long peers are to keep the routes of a daemon that restarts (RFC 4724), 1s to 4095s; default 2m."},
		"nodes":        {text: "Nodes whose AS or router id is not the derived one."},
		"import":       {text: "Which learned prefixes go into the nodes' kernels; none without a rule."},
		"max_import":   {text: "How many prefixes may be imported in all; default 1000.", max: math.MaxUint32},
	}
}

func bgpNodeDocs() map[string]fieldDoc {
	return map[string]fieldDoc{
		"as":        {text: "In place of the cluster's.", max: math.MaxUint32},
		"router_id": {text: "An IPv4 address, unique among the nodes. Default: that of the cluster port, or one made from the node's name."},
	}
}

func importDocs() map[string]fieldDoc {
	return map[string]fieldDoc{
		"prefix":  {text: "Without lengths: exactly this prefix."},
		"min_len": {text: "Prefixes within, of this length and longer; up to max_len, or to single addresses.", max: 128},
		"max_len": {text: "Prefixes within, up to this length; from min_len on, or from the prefix itself.", max: 128},
	}
}

func bgpPeerDocs() map[string]fieldDoc {
	return map[string]fieldDoc{
		"address":  {text: "As in the path, if given."},
		"node":     {text: "Who speaks with it; every node of role lb that has no entry of its own for the address when left out."},
		"as":       {text: "The peer's AS.", max: math.MaxUint32},
		"local_as": {text: "What the nodes say theirs is, to this peer; their own when left out.", max: math.MaxUint32},
		"port":     {text: "Where the peer listens; default 179.", max: 65535},
		"password": {
			text: "Signs every segment (TCP MD5, RFC 2385), at most 80 characters of ASCII. Shown as \"" + fsm.KeepPassword +
				"\", and in a request that stands for the one that is there.",
		},
		"multihop":            {text: "How many hops away a peer of another AS may be; on a link of the node when left out.", max: 255},
		"ttl_security":        {text: "Packets have to come from the link itself (RFC 5082); not with multihop."},
		"passive":             {text: "Wait for the peer to connect."},
		"hold":                {text: "Without a word for so long, the session ends: whole seconds, 3s to 65535s; default 9s."},
		"keepalive":           {text: "Whole seconds, at most a third of hold, which is the default."},
		"source":              {text: "This node's end of the session; the kernel's choice when left out. With node only."},
		"family":              {text: "Which routes are exchanged, whatever the family of the address; default both.", values: []any{fsm.FamilyIPv4, fsm.FamilyIPv6, fsm.FamilyBoth}},
		"no_graceful_restart": {text: "The peer is to drop the routes when the session ends."},
		"max_prefixes":        {text: "More than so many received end the session; default 10000.", max: math.MaxUint32},
		"bfd":                 {text: "A BFD session (RFC 5881) tells when the peer is gone; not with multihop."},
		"bfd_interval":        {text: "Between two packets, 10ms to 10s; default 50ms. With bfd only."},
		"bfd_multiplier":      {text: "How many in a row may be missing, 2 to 255; default 3. With bfd only.", max: 255},
	}
}
