// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* ICMP errors about packets of our flows (RFC 5508; RFC 792, RFC 4443): they are translated outside
 * and inside, so that the one who sent the quoted packet finds in it what it sent. */
#pragma once

#include "tc_chain.h"
#include "tc_icmp_error.h"

#define ICMP_UNREACHABLE_TYPE 3
#define ICMP_EXPIRED_TYPE 11
#define ICMP_PARAMETER_TYPE 12
#define ICMP6_UNREACHABLE_TYPE 1
#define ICMP6_PARAMETER_TYPE 4
#define PROTO_IPIP 4
#define PROTO_IP6IP6 41

/* The packet inside an error. */
struct quoted {
	struct flow_key key; /* as it was sent */
	__u32 off;           /* of its IP header */
	__u32 l4_off;
};

/* The types that are passed on. Redirects and source quenches are not for the ends of a NAT. */
static __always_inline int is_known_error(const struct packet *p)
{
	__u8 t = p->icmp_type;

	if (p->flags & PACKET_F_FRAGMENT)
		return 0;
	if (p->flags & PACKET_F_V6)
		return t >= ICMP6_UNREACHABLE_TYPE && t <= ICMP6_PARAMETER_TYPE;
	return t == ICMP_UNREACHABLE_TYPE || t == ICMP_EXPIRED_TYPE || t == ICMP_PARAMETER_TYPE;
}

static __always_inline int read_quoted_ip(struct __sk_buff *skb, int v6, struct quoted *q)
{
	if (v6) {
		struct chain c = {};
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, q->off, &ip, sizeof(ip)) || ip.version != 6)
			return -1;
		__builtin_memcpy(&q->key.saddr, &ip.saddr, sizeof(q->key.saddr));
		__builtin_memcpy(&q->key.daddr, &ip.daddr, sizeof(q->key.daddr));
		c.next = ip.nexthdr;
		c.off = q->off + sizeof(ip);
		if (follow_chain(skb, &c))
			return -1;
		q->key.proto = c.next;
		q->l4_off = c.off;
		return 0;
	}
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, q->off, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5 ||
	    ip.frag_off & bpf_htons(0x1fff)) /* a later fragment has no ports */
		return -1;
	map_v4(&q->key.saddr, ip.saddr);
	map_v4(&q->key.daddr, ip.daddr);
	q->key.proto = ip.protocol;
	q->l4_off = q->off + ip.ihl * 4;
	return 0;
}

/* read_quoted reads the packet that begins at q->off. */
static __noinline int read_quoted(struct __sk_buff *skb, int v6, struct quoted *q)
{
	__be16 ports[4];

	if (read_quoted_ip(skb, v6, q))
		return -1;
	/* Eight bytes are the least that an error quotes. */
	if (bpf_skb_load_bytes(skb, q->l4_off, ports, sizeof(ports)))
		return -1;
	q->key.sport = ports[0];
	q->key.dport = ports[1];
	return 0;
}

/* find_quoting finds the half that the answers to the quoted packet match. Replicas are not
 * adopted: an error is easily forged, and says nothing about who forwards the flow. */
static __noinline struct flow *find_quoting(const struct quoted *q)
{
	struct flow_key key = {};
	struct flow *f;

	key.saddr = q->key.daddr;
	key.daddr = q->key.saddr;
	key.sport = q->key.dport;
	key.dport = q->key.sport;
	key.proto = q->key.proto;
	f = bpf_map_lookup_elem(&flows, &key);
	return f ? f : half_copy(&key);
}

/* csum_more adds to sum the difference between two pieces of the packet. */
static __always_inline __u32 csum_more(__u32 sum, void *from, void *to, __u32 size)
{
	return bpf_csum_diff(from, size, to, size, sum);
}

/* inner_l4 rewrites ports and checksum of the quoted packet, as far as they are there. The CRC
 * of SCTP stays: less than the packet is quoted, and nobody verifies it. */
static __noinline int inner_l4(struct __sk_buff *skb, const struct quoted *q, const struct flow *f,
			       int v6, __u32 *sum)
{
	__u32 old = port_pair(q->key.sport, q->key.dport), off = q->l4_off;
	__u32 new = port_pair(f->new_dport, f->new_sport), diff;
	__u32 before = 0, after = 0;

	*sum = csum_more(*sum, &old, &new, sizeof(new));
	if (bpf_skb_store_bytes(skb, off, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM))
		return -1;
	if (q->key.proto == IPPROTO_TCP)
		off += offsetof(struct tcphdr, check);
	else if (q->key.proto == IPPROTO_UDP)
		off += offsetof(struct udphdr, check);
	else
		return 0;
	if (bpf_skb_load_bytes(skb, off, &before, 2) || (q->key.proto == IPPROTO_UDP && !before))
		return 0;
	diff = fold32((__u64)addr_diff(&q->key, f, v6) + new + (__u32)~old);
	after = csum_add(before, diff);
	if (!after && q->key.proto == IPPROTO_UDP)
		after = 0xffff;
	*sum = csum_more(*sum, &before, &after, sizeof(after));
	return bpf_skb_store_bytes(skb, off, &after, 2, BPF_F_RECOMPUTE_CSUM);
}

/* inner_ip rewrites the quoted addresses. */
static __noinline int inner_ip(struct __sk_buff *skb, const struct quoted *q, const struct flow *f,
			       int v6, __u32 *sum)
{
	struct addr now[2], then[2];

	if (v6) {
		then[0] = q->key.saddr;
		then[1] = q->key.daddr;
		now[0] = f->new_daddr;
		now[1] = f->new_saddr;
		*sum = csum_more(*sum, then, now, sizeof(now));
		return bpf_skb_store_bytes(skb, q->off + offsetof(struct ipv6hdr, saddr), now,
					   sizeof(now), BPF_F_RECOMPUTE_CSUM);
	}
	struct iphdr old, new;

	if (bpf_skb_load_bytes(skb, q->off, &old, sizeof(old)))
		return -1;
	new = old;
	new.saddr = f->new_daddr.w[3];
	new.daddr = f->new_saddr.w[3];
	new.check = csum_add(old.check, addr_diff(&q->key, f, 0));
	*sum = csum_more(*sum, &old, &new, sizeof(new));
	return bpf_skb_store_bytes(skb, q->off, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM);
}

/* outer_ip addresses the error from source to f->new_daddr, one hop older. */
static __noinline int outer_ip(struct __sk_buff *skb, const struct packet *p, const struct flow *f,
			       const struct addr *source, __u32 *sum)
{
	struct flow to = {};
	__u32 diff;

	to.new_saddr = *source;
	to.new_daddr = f->new_daddr;
	diff = addr_diff(&p->key, &to, p->flags & PACKET_F_V6);
	if (p->flags & PACKET_F_V6) {
		struct ipv6hdr ip;

		*sum = fold32((__u64)*sum + diff);
		if (bpf_skb_load_bytes(skb, p->l3_off, &ip, sizeof(ip)))
			return -1;
		ip.hop_limit--;
		__builtin_memcpy(&ip.saddr, &to.new_saddr, sizeof(ip.saddr));
		__builtin_memcpy(&ip.daddr, &to.new_daddr, sizeof(ip.daddr));
		return bpf_skb_store_bytes(skb, p->l3_off, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	}
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, p->l3_off, &ip, sizeof(ip)))
		return -1;
	ip.check = csum_add(ip.check, fold32((__u64)diff + LESS_HOP_V4));
	ip.ttl--;
	ip.saddr = to.new_saddr.w[3];
	ip.daddr = to.new_daddr.w[3];
	return bpf_skb_store_bytes(skb, p->l3_off, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int same_addr(const struct addr *a, const struct addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

/* icmp_rewrite translates the error by f. A router's own address is kept only where the flow
 * leaves the address of the other side as it is; else the receiver could not reach it, or is not to
 * know it. */
static __noinline int icmp_rewrite(struct __sk_buff *skb, const struct packet *p,
				   const struct quoted *q, const struct flow *f, struct addr *source)
{
	__u32 sum = 0, check_off = p->l4_off + offsetof(struct error_header, check);
	int v6 = p->flags & PACKET_F_V6;
	__u16 check;

	*source = p->key.saddr;
	if (!same_addr(&f->new_saddr, &q->key.daddr) || same_addr(&p->key.saddr, &q->key.daddr))
		*source = f->new_saddr;
	if (inner_l4(skb, q, f, v6, &sum) || inner_ip(skb, q, f, v6, &sum) ||
	    outer_ip(skb, p, f, source, &sum) ||
	    bpf_skb_load_bytes(skb, check_off, &check, sizeof(check)))
		return -1;
	check = csum_add(check, sum);
	return bpf_skb_store_bytes(skb, check_off, &check, sizeof(check), BPF_F_RECOMPUTE_CSUM);
}

/* icmp_send sends the finished error from source to destination. */
static __noinline int icmp_send(struct __sk_buff *skb, const struct packet *p,
				const struct addr *source, const struct addr *destination)
{
	__u32 generation;
	struct next_hop *hop = next_hop_of(p, destination, &generation);
	__u8 mac[2 * ETH_ALEN];

	if (!hop)
		return tc_resolve(skb, p, source, destination, generation);
	__builtin_memcpy(mac, hop->dmac, ETH_ALEN);
	__builtin_memcpy(mac + ETH_ALEN, hop->smac, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
		return tc_drop(DROP_REWRITE);
	return bpf_redirect(hop->ifindex, 0);
}

/* tunnel_error maps an error about our outer packet to one about the packet inside (RFC 2003, 4;
 * RFC 2473, 8): 0 when the client is not to hear of it. number is the MTU left for it. */
static __always_inline __u32 tunnel_error(const struct packet *p, const struct error_header *h,
					  __u32 outer, __u32 *number)
{
	__u32 error = (__u32)h->type << 8 | h->code, mtu = bpf_ntohl(h->number);

	*number = 0;
	if (p->flags & PACKET_F_V6) {
		if (h->type != ICMP6_TOO_BIG >> 8)
			return ICMP6_ADDRESS_UNREACHABLE;
		*number = mtu > outer ? mtu - outer : 0;
		return ICMP6_TOO_BIG;
	}
	mtu &= 0xffff;
	if (error == ICMP_TOO_BIG) {
		*number = mtu > outer ? mtu - outer : 0;
		return ICMP_TOO_BIG;
	}
	if (h->type == ICMP_EXPIRED_TYPE || (h->type == ICMP_UNREACHABLE_TYPE && h->code < 4))
		return ICMP_HOST_UNREACHABLE;
	return 0;
}

/* icmp_tunnel turns an error about a packet that we sent through a tunnel (q) into one about the
 * client's packet in it, from the VIP. TC_ACT_UNSPEC: not ours. */
static __noinline int icmp_tunnel(struct __sk_buff *skb, struct packet *p, const struct quoted *q)
{
	__u32 outer = q->l4_off - q->off, number, error, length;
	int v6 = p->flags & PACKET_F_V6, options = p->l4_off - p->l3_off - ip_size(p);
	struct quoted in = {.off = q->l4_off};
	struct error_header h;
	struct flow *f;

	if (read_quoted(skb, v6, &in) || bpf_skb_load_bytes(skb, p->l4_off, &h, sizeof(h)))
		return TC_ACT_UNSPEC;
	f = bpf_map_lookup_elem(&flows, &in.key);
	if (!f)
		f = half_lookup(&in.key);
	if (!f || f->mode != MODE_DSR_TUNNEL || !same_addr(&f->new_daddr, &q->key.daddr))
		return TC_ACT_UNSPEC;
	error = tunnel_error(p, &h, outer, &number);
	if (!error)
		return tc_drop(DROP_ICMP_UNKNOWN);
	if (!error_allowed(p)) {
		count(COUNTER_ANSWER_LIMITED);
		return TC_ACT_SHOT;
	}
	/* What goes out is as long as our outer header; eight bytes for the error's are left. */
	length = p->l4_off + p->payload - in.off;
	if (bpf_skb_adjust_room(skb, -(int)(outer + options), BPF_ADJ_ROOM_NET, 0))
		return tc_drop(DROP_REWRITE);
	p->key = in.key; /* the error goes from where the client sent to to the client */
	if (put_error(skb, p, error, number, (length & QUOTE_LENGTH) | QUOTE_IN_PLACE))
		return tc_drop(DROP_REWRITE);
	count(COUNTER_ICMP_ERROR);
	return icmp_send(skb, p, &p->key.daddr, &p->key.saddr);
}

/* icmp_dsr passes the error on, as it is, to the endpoint that holds the VIP and sent the
 * quoted packet. */
static __always_inline int icmp_dsr(struct __sk_buff *skb, const struct packet *p, const struct flow *f)
{
	__u32 generation, ifindex = 0;
	struct next_hop *hop = next_hop_of(p, &f->new_daddr, &generation);

	if (hop)
		ifindex = hop->ifindex;
	if (tc_pass_on(skb, p, hop))
		return tc_drop(DROP_REWRITE);
	count(COUNTER_ICMP_ERROR);
	if (hop)
		return bpf_redirect(ifindex, 0);
	return tc_resolve(skb, p, &p->key.saddr, &f->new_daddr, generation);
}

/* icmp_unknown: an error that says nothing of a flow. */
static __always_inline int icmp_unknown(const struct packet *p)
{
	return bpf_map_lookup_elem(&vips, &p->key.daddr) ? tc_drop(DROP_ICMP_UNKNOWN) : TC_ACT_UNSPEC;
}

/* is_tunnelled: the quoted packet has a packet of the same family inside. */
static __always_inline int is_tunnelled(const struct packet *p, const struct quoted *q)
{
	return q->key.proto == (p->flags & PACKET_F_V6 ? PROTO_IP6IP6 : PROTO_IPIP);
}

static __always_inline int has_ports(const struct quoted *q)
{
	return q->key.proto == IPPROTO_TCP || q->key.proto == IPPROTO_UDP || q->key.proto == IPPROTO_SCTP;
}
