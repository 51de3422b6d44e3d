// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The data plane on the TC ingress hook (TCX, or clsact on kernels before 6.6). */
#include "parse.h"
#include "tc_reset.h"

#define HEADERS_MAX (ETH_HLEN + 60 + sizeof(struct tcphdr))

/* tc_parse fills p. V_PASS: not ours. */
static __always_inline int tc_parse(struct __sk_buff *skb, struct packet *p)
{
	void *data, *end;
	__u64 now;

	if (skb->pkt_type != PACKET_HOST || skb->protocol != bpf_htons(ETH_P_IP) ||
	    skb->vlan_present)
		return V_PASS;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + HEADERS_MAX > end && end - data < skb->len) {
		/* Headers may lie in fragments. A short packet that does not is left as it is. */
		if (bpf_skb_pull_data(skb, skb->len < HEADERS_MAX ? skb->len : HEADERS_MAX))
			return V_PASS;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	now = bpf_jiffies64();
	p->now = now;
	p->created = now >> CREATED_SHIFT;
	p->bytes = skb->len - ETH_HLEN;
	p->segments = skb->gso_segs ? skb->gso_segs : 1;
	return parse_v4(data, end, p);
}

/* Returns TC_ACT_UNSPEC (= TCX_NEXT) for what is not ours, so that other programs and
 * filters on the interface still see it. */
SEC("tc")
int pontoon_ingress(struct __sk_buff *skb)
{
	struct packet p = {};
	struct flow *f;
	int verdict;

	if (tc_parse(skb, &p) >= 0)
		return TC_ACT_UNSPEC;
	f = find_flow(&p, &verdict);
	if (f) {
		if (p.ttl <= 1) {
			count(DROP_TTL);
			return TC_ACT_SHOT;
		}
		return tc_forward(skb, &p, f);
	}
	switch (verdict) {
	case V_PASS:
		return TC_ACT_UNSPEC;
	case V_REFUSE:
		return tc_refuse(skb, &p);
	}
	return TC_ACT_SHOT;
}

/* Run by user space to learn the clock in which flows are stamped. */
SEC("tc")
int pontoon_clock(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct clock *c = bpf_map_lookup_elem(&clocks, &zero);

	if (c) {
		c->jiffies = bpf_jiffies64();
		c->ktime_ns = bpf_ktime_get_ns();
	}
	return 0;
}

/* How the kernel spells the licence named in the first line. */
char _license[] SEC("license") = "Dual BSD/GPL";
