package web

import "pontoon/fsm"

func probeDocs() map[string]fieldDoc {
	return map[string]fieldDoc{
		"type": {
			text: "tcp: a connection is accepted. http, https: a request is answered as expected. icmp: an echo request is answered. udp: a datagram is. " +
				"sctp: INIT is answered by INIT ACK. grpc: the health service (grpc.health.v1) says SERVING. none: nothing is asked.",
			values: []any{fsm.ProbeTCP, fsm.ProbeHTTP, fsm.ProbeHTTPS, fsm.ProbeICMP, fsm.ProbeUDP, fsm.ProbeSCTP, fsm.ProbeGRPC, fsm.ProbeNone},
		},
		"port":         {text: "Default: the endpoint's own, of a port range its first.", max: 65535},
		"interval":     {text: "Between two probes of an endpoint, 100ms to 1h; default 2s. Nodes that do not own the instance probe at a fifth of the rate."},
		"timeout":      {text: "Of one probe as a whole, 10ms to ten intervals; default 1s."},
		"rise":         {text: "So many good probes in a row make an endpoint up, 1 to 100; default 2.", max: 255},
		"fall":         {text: "So many bad probes in a row make an endpoint down, 1 to 100; default 3.", max: 255},
		"source":       {text: "An address of the probing node that probes come from; the kernel's choice when left out."},
		"through_vip":  {text: "With mode dsr and type tcp, udp or icmp: probes are addressed to the VIP and the service's port, and sent to the endpoint as the data plane would."},
		"method":       {text: "Of http and https; default GET."},
		"path":         {text: "Of http and https; default /."},
		"host":         {text: "Of http and https, the Host header; default the endpoint's address and port."},
		"expect":       {text: "Of http and https: the status codes that are good, like \"200\" or \"200,204,300-399\"; default 200-399."},
		"body":         {text: "Has to be in the answer: of http and https in the first 64 KiB of its body, of udp in the datagram. Any answer when left out."},
		"send":         {text: "Of udp: what is sent, text with the escapes of Go like \\x00; an empty datagram when left out."},
		"tls":          {text: "Of grpc: by TLS."},
		"tls_verify":   {text: "By TLS: the certificate has to be valid for the server name (or the endpoint's address), by the certificate authorities of the probing node. Default false."},
		"server_name":  {text: "By TLS: the name that is asked for (SNI); when left out the host without its port, else the endpoint's address."},
		"grpc_service": {text: "Of grpc: the service that is asked about; the server as a whole when left out."},
	}
}
