// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What lies in the maps: flows, services, endpoints and what goes with them. Structs are mirrored in
 * Go by bpf2go (see ../generate.go); sizes are asserted on both sides. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The UAPI headers of a C library drag in 32 bit stubs on a bpf target, so the few
 * constants that live outside them are written out. */
#define AF_INET 2
#define AF_INET6 10
#define EBUSY 16
#define EEXIST 17
#define ICMP_ECHO_REQUEST 8
#define ICMP6_ECHO_REQUEST 128
#define ICMP6_NDP_FIRST 133 /* router solicitation */
#define ICMP6_NDP_LAST 137  /* redirect */
#define VLAN_HLEN 4

/* An address on 128 bits; IPv4 is mapped (::ffff:a.b.c.d). */
struct addr {
	union {
		__u8 b[16];
		__be32 w[4];
		__u64 d[2];
	};
};

_Static_assert(sizeof(struct addr) == 16, "addr");

/* The tuple as it is seen on the wire, before any rewriting. */
struct flow_key {
	struct addr saddr;
	struct addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};

_Static_assert(sizeof(struct flow_key) == 40, "flow_key");

/* States below FLOW_ESTABLISHED live in half_open only, the others in flows only. */
enum flow_state {
	FLOW_NONE = 0,
	FLOW_SYN = 1,         /* first packet seen (also: UDP seen one way) */
	FLOW_SYNACK = 2,      /* the endpoint accepted */
	FLOW_REFUSED = 3,     /* reset before it was complete */
	FLOW_ESTABLISHED = 4, /* handshake complete; UDP seen both ways */
	FLOW_FIN = 5,         /* one side has closed */
	FLOW_CLOSED = 6,      /* both sides have closed, or a reset went by */
};

enum flow_flag {
	FLOW_F_REPLY = 1,    /* this half matches packets of the endpoint */
	FLOW_F_REPLICA = 2,  /* written by replication, no packet seen here yet */
	FLOW_F_OWN_FIN = 4,  /* FIN seen in this half's direction */
	FLOW_F_PEER_FIN = 8, /* FIN seen in the other direction */
	FLOW_F_OWN_RST = 16, /* RST seen in this half's direction */
	FLOW_F_PEER_RST = 32,
	FLOW_F_QUIET = 128,  /* nobody else is told of it, for now or at all */
	FLOW_F_DOOMED = 64, /* ended by user space: whoever still sends is told so; OWN_RST: has been */
};

#define FLOW_F_OWN (FLOW_F_OWN_FIN | FLOW_F_OWN_RST)
#define FLOW_F_PEER (FLOW_F_PEER_FIN | FLOW_F_PEER_RST)
#define FLOW_F_CLOSING (FLOW_F_OWN | FLOW_F_PEER)
#define FLOW_F_GUEST (FLOW_F_REPLICA | FLOW_F_QUIET) /* forwarded here beside the owner, which lives */

/* One half of a connection: what becomes of a packet that matches the key. It holds no
 * number that means something on this node only, so it can be written into the map of
 * another node as it is. last_seen is the low half of jiffies; created is jiffies >> 6,
 * which does not wrap within the life of a machine. */
struct flow {
	struct addr new_saddr;
	struct addr new_daddr;
	__be16 new_sport;
	__be16 new_dport;
	__u16 service;  /* replicated id */
	__u16 endpoint; /* replicated id */
	__u32 last_seen;
	__u32 created;
	__u8 state;
	__u8 flags;
	__u8 owner_slot;
	__u8 mode;
	__u32 bytes_lo;
	__u32 packets_lo;
	__u16 bytes_hi;
	__u16 packets_hi;
};

_Static_assert(sizeof(struct flow) == 64, "flow");
_Static_assert(offsetof(struct flow, service) == 36, "flow.service");
_Static_assert(offsetof(struct flow, last_seen) == 40, "flow.last_seen");
_Static_assert(offsetof(struct flow, state) == 48, "flow.state");
_Static_assert(offsetof(struct flow, bytes_lo) == 52, "flow.bytes_lo");

/* The four bytes from state on. In flows they are changed together and by compare-and-swap only
 * (change_word; user space by way of pontoon_doom), so that of two changes at once none is lost, and
 * that a connection closes or lives on is counted by the CPU that changed the forward half. In
 * half_open nothing but the state changes, and that somebody else owns it (adopt_half). */
struct flow_word {
	__u8 state;
	__u8 flags;
	__u8 owner_slot;
	__u8 mode;
};

_Static_assert(offsetof(struct flow, mode) == offsetof(struct flow, state) + 3, "flow_word");

#define CREATED_SHIFT 6

/* The half-open table (half.h). */
#define HALF_WAYS 8
#define HALF_FACTOR 0x9fb21c651e98df25ULL
#define HALF_FACTOR_0 0xbf58476d1ce4e5b9ULL
#define HALF_FACTOR_1 0x94d049bb133111ebULL
#define HALF_FACTOR_2 0xff51afd7ed558ccdULL
#define HALF_FACTOR_3 0xc4ceb9fe1a85ec53ULL
#define HALF_FACTOR_4 0xd6e8feb86659fd93ULL

struct half_slot {
	struct flow_key key;
	struct flow f;
};

/* The first cache line of a bucket says which places are taken, and by whom. */
struct half_bucket {
	__u32 lock; /* held while an entry is put in */
	__u32 next; /* place to give away next */
	__u32 used; /* one bit for each place: in use since it was made */
	__u32 tag[HALF_WAYS]; /* a part of the hash; 0: free */
	__u32 version; /* odd while an entry is put in, another afterwards */
	__u32 pad[4];
	struct half_slot slot[HALF_WAYS];
};

_Static_assert(offsetof(struct half_bucket, slot) == 64, "half_bucket.slot");
_Static_assert(sizeof(struct half_bucket) == 896, "half_bucket");

enum nat_mode {
	MODE_FULLNAT = 1,
	MODE_ONEARM = 2,
	MODE_DNAT = 3,
	MODE_DSR = 4,        /* only the MAC address changes */
	MODE_DSR_TUNNEL = 5, /* IP in IP */
};

enum algorithm {
	ALGORITHM_RR = 1,
	ALGORITHM_MAGLEV = 2,
	ALGORITHM_LC = 3, /* the table names each endpoint once */
};

enum service_flag {
	SERVICE_F_FULL_RESET = 1, /* a full flow table is answered, not silent */
	SERVICE_F_CLOSED = 2,     /* so is a flow that no endpoint takes */
};

enum vip_flag {
	VIP_F_RANGES = 1, /* a service on it has more than one port */
	VIP_F_SHARED = 2, /* packets to it may come to any node */
	VIP_F_ASTRAY = 4, /* packets to it may come to another node than the one that knows their connection */
};

/* Above the flags of a VIP and of an origin: the nodes that may know it, one bit for each slot. */
enum slots {
	SLOTS_SHIFT = 8,
};

/* Where answers come from. A word 1 is also what versions wrote that knew of shared services only. */
enum origin_flag {
	ORIGIN_F_ALL = 1,   /* any node may know their connections, and not the slots alone */
	ORIGIN_F_TO_US = 2, /* they go to addresses of ours and never past us: not MODE_DNAT */
};

enum endpoint_flag {
	ENDPOINT_F_NEW = 1,   /* takes new flows */
	ENDPOINT_F_QUIET = 2, /* they are FLOW_F_QUIET at first */
	ENDPOINT_F_EARLY = 4, /* the other nodes hear of them from the first packet on */
	ENDPOINT_F_SHARED = 8, /* any node may get packets of its flows at any time */
};

struct service_key {
	struct addr vip;
	__be16 port;
	__u8 proto;
	__u8 pad[5];
};

_Static_assert(sizeof(struct service_key) == 24, "service_key");

struct service {
	__u32 table_base; /* into selection, counted in references */
	__u32 table_len;  /* 0: no endpoint takes new flows */
	__u32 seed;
	__u32 rate;     /* new flows a second; 0: no limit */
	__u32 affinity; /* in units of created; 0: none */
	__u16 id;
	__u16 first_port; /* host order */
	__u8 mode;
	__u8 algorithm;
	__u8 flags;
	__u8 pad;
};

_Static_assert(sizeof(struct service) == 28, "service");

/* Services of more than one port: the longest prefix of {vip, proto, port} names the first
 * port, under which the service stands in services. */
struct range_key {
	__u32 prefix_len;
	__be32 vip[4];
	__u8 proto;
	__u8 pad;
	__be16 port;
};

_Static_assert(sizeof(struct range_key) == 24, "range_key");

struct range {
	__be16 first_port;
	__u8 pad[2];
};

/* Selection tables hold replicated endpoint ids, four to an entry because an array rounds
 * each entry up to eight bytes. */
#define REFS_PER_ENTRY 4

struct references {
	__u16 ref[REFS_PER_ENTRY];
};

_Static_assert(sizeof(struct references) == 8, "references");

/* By replicated id. */
struct endpoint {
	struct addr addr;
	__be16 port;
	__u16 service;
	__u16 source_base; /* into sources */
	__u16 source_len;  /* 0: dnat, dsr by L2 */
	__u16 weight;
	__u8 flags;
	__u8 pad[5];
};

_Static_assert(sizeof(struct endpoint) == 32, "endpoint");
_Static_assert(offsetof(struct endpoint, source_base) % 4 == 0, "the run of sources is read at once");

/* What a service's new flows need to remember, by service id; shared by all CPUs. */
struct service_work {
	__u64 taken;    /* new flows in a second: its number and their count, 32 bits each */
	__u32 position; /* round robin */
	__u32 pad;
};

_Static_assert(sizeof(struct service_work) == 16, "service_work");

struct affinity_key {
	struct addr client;
	__u16 service;
	__u8 pad[6];
};

_Static_assert(sizeof(struct affinity_key) == 24, "affinity_key");

struct affinity {
	__u16 endpoint;
	__u8 pad[2];
	__u32 used; /* in units of created */
};

_Static_assert(sizeof(struct affinity) == 8, "affinity");

struct endpoint_stats {
	__u64 forward_packets;
	__u64 forward_bytes;
	__u64 reply_packets;
	__u64 reply_bytes;
	__u64 new_flows;
};

_Static_assert(sizeof(struct endpoint_stats) == 40, "endpoint_stats");

/* The fragments of a datagram, by what RFC 791 and RFC 8200 know it by. */
struct fragment_key {
	struct addr saddr;
	struct addr daddr;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");

struct fragment {
	__be16 sport;
	__be16 dport;
	__u32 seen; /* low half of jiffies */
};

_Static_assert(sizeof(struct fragment) == 8, "fragment");

#define QUOTE_MAX 512 /* bytes of a packet that an ICMP error about it repeats */

/* What making ICMP errors needs, on each CPU. */
struct workspace {
	__u32 second; /* in which errors were counted */
	__u32 errors;
	__u32 bring_second; /* in which frames brought to other nodes were counted */
	__u32 brought[2];   /* those of clients, those of endpoints */
	__u8 quote[QUOTE_MAX + 8]; /* zeros after the quoted bytes complete the last word */
};

/* SYNs that came while a service was flooded: 16 bits of the tuple's hash, and of the time. They
 * are written in turn, so the next place holds the oldest. */
#define MARKS_PER_GROUP 15

struct marks {
	__u32 mark[MARKS_PER_GROUP];
	__u32 next;
};

_Static_assert(sizeof(struct marks) == 64, "marks");

struct next_hop {
	__u32 ifindex;
	__u8 smac[6];
	__u8 dmac[6];
	__u32 learned; /* low half of jiffies */
	__u32 generation;
	__u16 mtu; /* of the way; 0: not known */
	__u8 pad[2];
};

_Static_assert(sizeof(struct next_hop) == 28, "next_hop");

/* What the XDP hook has to know of an interface, in a table by the low bits of its index. */
#define STATIONS 1024

enum station_flag {
	STATION_F_XMIT = 1,       /* it sends frames that XDP redirects to it */
	STATION_F_XMIT_FRAGS = 2, /* also those of several buffers */
	STATION_F_TX = 4,         /* XDP_TX is safe: veth forgets to wake the other end for it */
};

struct station {
	__u32 ifindex; /* 0: nothing is known */
	__u32 mtu;
	__u8 mac[6];
	__u8 flags;
	__u8 pad;
};

_Static_assert(sizeof(struct station) == 16, "station");

/* Written by user space, read by the program. */
enum lease_flag {
	LEASE_F_HELD = 1,  /* this node holds the VIP */
	LEASE_F_BOUND = 2, /* and may say so only while terms says that it hears from the cluster */
};

/* By VIP of the cluster, whoever holds it. */
struct lease {
	__u64 epoch; /* of the mastership it is held under; for who looks at the map */
	__u32 flags; /* enum lease_flag */
	__u32 pad;
};

_Static_assert(sizeof(struct lease) == 16, "lease");

/* Until when this node may claim what is bound to its lease; one word for all VIPs, so that renewing
 * costs the same for one and for sixteen thousand. */
struct lease_term {
	__u64 until; /* nanoseconds of CLOCK_BOOTTIME, which goes on while the machine sleeps */
};

/* The node that was master before this one, and until when packets of connections that nobody knows here
 * are brought to it; in a table by the low bits of the interface's index. */
#define PREDECESSORS 256

/* At how many places of such a table an entry may stand. */
enum on_link {
	LINK_PROBES = 4,
};

struct predecessor {
	__u64 until; /* nanoseconds of CLOCK_BOOTTIME; 0: nobody */
	__u8 dmac[6], smac[6];
	__u32 ifindex;
};

_Static_assert(sizeof(struct predecessor) == 24, "predecessor");

/* The other nodes that a packet of a connection which is not known here can be brought to, on one
 * interface; in a table by the low bits of its index. */
#define PEER_LINKS 256
#define PEER_SLOTS 8

struct peer_link {
	__u32 ifindex;
	__u32 there; /* one bit for each slot whose node can be reached there */
	__u8 own[ETH_ALEN];
	__u8 mac[PEER_SLOTS][ETH_ALEN]; /* by slot */
	__u8 pad[2];
};

_Static_assert(sizeof(struct peer_link) == 64, "peer_link");

struct control_block {
	__u32 generation; /* of the next-hop cache */
	__u32 half_seed;  /* of the half-open table's hash; for the next who opens the maps */
};

struct clock {
	__u64 jiffies;
	__u64 ktime_ns;
};

/* What user space hands to pontoon_doom, in the place of a packet: the connection, told from a later
 * one of the same tuple, and when both halves are to have been seen last. With learn set it is not
 * ended: the flags are set and cleared, in terms of the forward half. */
struct ending {
	__u8 link[16]; /* a frame begins with a link header; zero */
	struct flow_key key; /* of the forward half */
	__u32 created;
	__u32 last_seen;
	__u16 endpoint;
	__u8 learn;
	__u8 set;
	__u8 clear;
	__u8 pad[3];
};

_Static_assert(sizeof(struct ending) == 72, "ending");

/* One question of user space to the flow table, and its answer. */
#define FINDS 512

enum find_what {
	FIND_END = 0,   /* no more questions */
	FIND_LOOK = 1,
	FIND_LOUDEN = 2, /* the flow is FLOW_F_QUIET no more */
	FIND_STAMP = 3,  /* it was last seen as value says, if that is later */
	FIND_PUT = 4,       /* put value in if the tuple is free, else as FIND_LOOK */
	FIND_PUT_REPLY = 5, /* the same for the other half of the entry before, or neither is put in */
};

/* What find.found says. */
enum found_what {
	FOUND_NOTHING = 0,
	FOUND_FLOW = 1, /* value is what is there */
	FOUND_ROOM = 2, /* value is there now */
};

struct find {
	struct flow_key key;
	__u32 wanted; /* enum find_what */
	__u32 found;  /* enum found_what */
	struct flow value;
};

/* A half-open connection that another node has told of: user space hands it in, pontoon_enter makes
 * both halves of it. */
#define ARRIVALS 256

struct arrival {
	struct flow_key key; /* of the forward half */
	struct flow forward;
	struct flow reply;
	__u32 wanted; /* 0: no more of them */
	__u32 taken;  /* the answer: it is in half_open now */
};

_Static_assert(sizeof(struct arrival) == 176, "arrival");
