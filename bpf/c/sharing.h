// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Where an instance has no master, routers bring its packets to any node: what belongs to a connection
 * that another node has just begun is not known here yet. Such packets are brought to the other nodes
 * on the same link, for as long as there is such an instance. What comes from one of them is not brought on.
 *
 * Where it has one, routers that learn its VIPs by BGP may still turn to the next node before the cluster does,
 * and the endpoints' answers go on arriving at the master, whose daemon may be dead and hear of nothing. So it
 * brings them to the next node, and that one brings to it what clients go on sending. */
#pragma once

#include "back.h"

/* peers_on returns the nodes that can be reached on an interface; NULL: none. */
static __always_inline struct peer_link *peers_on(__u32 ifindex)
{
	struct peer_link *n = on_link(peers, PEER_LINKS, ifindex);

	return n && n->there ? n : NULL;
}

/* has_begun tells whether the packet does not begin anything, as far as it says itself. */
static __always_inline int has_begun(const struct packet *p)
{
	if (p->key.proto == IPPROTO_TCP)
		return p->tcp_flags & TCP_ACK;
	return (p->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN;
}

/* may_stray tells whether the packet may belong to a connection that another node knows: to a VIP whose
 * packets other nodes get, too, or past this node. Whether it comes from an endpoint is looked up later. */
static __always_inline int may_stray(const struct packet *p, int verdict, __u32 ifindex)
{
	if (verdict != V_PASS && (verdict != V_NEW || !(p->vip & (VIP_F_SHARED | VIP_F_ASTRAY))))
		return 0;
	if (p->kind != KIND_FLOW || p->flags & (PACKET_F_LATER | PACKET_F_BODY) || !has_begun(p))
		return 0;
	if (verdict == V_NEW && p->key.proto == IPPROTO_UDP && bpf_ntohs(p->key.dport) < SNAT_PORT_MIN)
		return 0;
	return peers_on(ifindex) != NULL;
}

/* origin_of says whose answers come from where the packet does; 0: nobody's that another node may know. */
static __noinline __u32 origin_of(const struct packet *p)
{
	struct range_key key = {};
	__u32 *origin;

	key.prefix_len = 8 * (sizeof(key) - sizeof(key.prefix_len));
	__builtin_memcpy(key.vip, &p->key.saddr, sizeof(key.vip));
	key.proto = p->key.proto;
	key.port = p->key.sport;
	origin = bpf_map_lookup_elem(&origins, &key);
	return origin ? *origin : 0;
}

/* clients_at returns the nodes that may know the connections of clients to the packet's VIP. */
static __noinline __u32 clients_at(const struct packet *p)
{
	__u32 *vip;

	if (p->vip & VIP_F_SHARED)
		return ~0U;
	vip = bpf_map_lookup_elem(&vips, &p->key.daddr);
	return vip ? *vip >> SLOTS_SHIFT : 0;
}

/* giver returns the slot of the node that gives a source port out; PEER_SLOTS: nobody does. */
static __always_inline __u32 giver(__be16 port)
{
	__u32 number = bpf_ntohs(port);

	return number < SNAT_PORT_MIN ? PEER_SLOTS : (number - SNAT_PORT_MIN) / SNAT_PORTS_PER_SLOT;
}

/* Whose packets take which part of what may be brought in a second: nobody's flood is to cost the
 * others theirs. */
enum bringing {
	BRING_CLIENT = 0,
	BRING_ENDPOINT = 1,
};

/* may_bring takes so many frames from this second's budget. */
static __always_inline int may_bring(const struct packet *p, __u32 whose, __u32 frames)
{
	__u32 zero = 0, second = p->now / (cfg_hz ? cfg_hz : 250);
	struct workspace *w = bpf_map_lookup_elem(&workspaces, &zero);

	if (!w)
		return 0;
	if (w->bring_second != second) {
		w->bring_second = second;
		w->brought[BRING_CLIENT] = 0;
		w->brought[BRING_ENDPOINT] = 0;
	}
	whose &= 1;
	if (w->brought[whose] + frames > cfg_bring_max)
		return 0;
	w->brought[whose] += frames;
	return 1;
}
