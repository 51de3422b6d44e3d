package web

import "pontoon/fsm"

func poolDocs() map[string]fieldDoc {
	return map[string]fieldDoc{
		"name":   {text: "As in the path, if given."},
		"cidrs":  {text: "Prefixes like 192.0.2.0/24, of one IP family."},
		"ranges": {text: "Ranges like 192.0.2.10-192.0.2.20, or single addresses."},
		"all_addresses": {
			text: "Hand out the first and the last address of the prefixes too. Without it the network and broadcast addresses of IPv4 prefixes " +
				"shorter than /31 are kept back, and the first of IPv6 prefixes shorter than /127.",
		},
		"instance":     {text: "Of the VIPs made from it; default \"default\"."},
		"announce":     {text: "Of the VIPs made from it; default l2, in an instance of kind ecmp bgp.", values: []any{fsm.AnnounceL2, fsm.AnnounceBGP, fsm.AnnounceNone}},
		"interface":    {text: "Of the VIPs made from it; default: the one whose subnet contains the address."},
		"default":      {text: "The pool that \"auto\" means while there are several. One has it at most: setting it takes it off another."},
		"reservations": {text: "Addresses that are kept back, for a service or for nobody. Without the key a pool keeps those it has."},
	}
}
