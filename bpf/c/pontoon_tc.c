// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The data plane on the TC ingress hook (TCX, or clsact on kernels before 6.6). */
#include "tc_parse.h"
#include "tc_bring.h"
#include "tc_echo.h"
#include "tc_gate.h"
#include "tc_icmp.h"
#include "tc_trace.h"
#include "tc_tunnel.h"
#include "pontoon_xdp.h" /* one object, so that both hooks have the same maps and settings */
#include "tc_xlat_icmp.h"

/* tc_jump goes on with another program. It is missing only while another set of programs is
 * being put in place; the host must not answer for us then. */
static __always_inline int tc_jump(struct __sk_buff *skb, __u32 to)
{
	bpf_tail_call(skb, &tails, to);
	return tc_drop(DROP_NO_PROGRAM);
}

/* tc_jump_any is tc_jump for packets of which nobody knows yet whether they are ours. */
static __always_inline int tc_jump_any(struct __sk_buff *skb, const struct packet *p, __u32 to)
{
	bpf_tail_call(skb, &tails, to);
	if (bpf_map_lookup_elem(&flows, &p->key) || half_lookup(&p->key) ||
	    bpf_map_lookup_elem(&vips, &p->key.daddr))
		return tc_drop(DROP_NO_PROGRAM);
	return TC_ACT_UNSPEC;
}

/* tc_say has the sender told something. */
static __always_inline int tc_say(struct __sk_buff *skb, __u32 answer, __u32 number)
{
	skb->cb[0] = answer;
	skb->cb[1] = number;
	step(STEP_ANSWER, answer, number);
	return tc_jump(skb, TAIL_ANSWER);
}

/* ingress sends what is one more plain packet of an established connection. */
static __always_inline int ingress(struct __sk_buff *skb, struct packet *p)
{
	struct packet *current;
	struct flow *f;
	int action;

	if (!plain(p))
		return tc_jump_any(skb, p, TAIL_PARSE);
	f = bpf_map_lookup_elem(&flows, &p->key);
	if (f && !needs_care(p, f) && p->ttl > 1 && same_family(p, f) && f->mode != MODE_DSR_TUNNEL) {
		action = tc_forward(skb, p, f);
		if (action != TC_TOO_BIG)
			return action;
	}
	p->missed = !f;
	current = current_packet();
	if (current)
		*current = *p;
	return tc_jump_any(skb, p, TAIL_SLOW);
}

/* leave is the way of what is no IP packet for us. Who asks for an address asks everybody, so that is
 * among it. Where the program is missing for a moment the host answers, as it did. */
static __always_inline int leave(struct __sk_buff *skb)
{
	if (skb->pkt_type != PACKET_OTHERHOST && skb->protocol != bpf_htons(ETH_P_IP))
		bpf_tail_call(skb, &tails, TAIL_GATE);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int pontoon_gate(struct __sk_buff *skb)
{
	return gate(skb);
}

/* Returns TC_ACT_UNSPEC (= TCX_NEXT) for what is not ours, so that other programs and
 * filters on the interface still see it. */
SEC("tc")
int pontoon_ingress(struct __sk_buff *skb)
{
	struct packet p = {};

	if (tc_parse(skb, &p, HEADERS_COMMON, 0) >= 0)
		return leave(skb);
	return ingress(skb, &p);
}

/* The entry program while packets are traced: those take the slow way, which says all it does. */
SEC("tc")
int pontoon_traced(struct __sk_buff *skb)
{
	struct packet p = {};

	if (tc_parse(skb, &p, HEADERS_COMMON, 0) >= 0)
		return leave(skb);
	if (trace_begin(skb, &p))
		return tc_done(skb, tc_jump_any(skb, &p, TAIL_PARSE));
	return ingress(skb, &p);
}

/* is_error: ICMP that speaks of another packet. */
static __always_inline int is_error(const struct packet *p)
{
	__u8 t = p->icmp_type;

	if (p->kind != KIND_ICMP)
		return 0;
	return p->flags & PACKET_F_V6 ? t < 128 : t == 3 || t == 4 || t == 5 || t == 11 || t == 12;
}

SEC("tc")
int pontoon_parse(struct __sk_buff *skb)
{
	struct packet p = {}, *current = current_packet();

	if (!current || tc_parse(skb, &p, HEADERS_ALL, 1) >= 0)
		return tc_done(skb, TC_ACT_UNSPEC);
	*current = p;
	note_packet(&p);
	if (is_solicitation(&p) && gate_solicitation(skb, &p) == TC_ACT_SHOT)
		return tc_done(skb, TC_ACT_SHOT);
	return tc_done(skb, tc_jump_any(skb, &p, is_error(&p) ? TAIL_ICMP : TAIL_SLOW));
}

/* tc_send sends what the core has decided to forward. */
static __always_inline int tc_send(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	int action;

	note_flow(STEP_SEND, f);
	if (p->ttl <= 1)
		return tc_say(skb, ANSWER_EXPIRED, 0);
	if (f->mode == MODE_DSR_TUNNEL)
		return tc_jump(skb, TAIL_TUNNEL);
	if (sctp_cut(p, port_pair(f->new_sport, f->new_dport)))
		return tc_drop(DROP_SCTP_FRAGMENT);
	if (!same_family(p, f))
		return tc_jump(skb, TAIL_XLAT);
	if (p->key.proto == IPPROTO_SCTP && tc_fix_sctp(skb, p, port_pair(f->new_sport, f->new_dport)))
		return tc_drop(DROP_REWRITE);
	action = tc_forward(skb, p, f);
	if (action == TC_TOO_BIG)
		return tc_say(skb, ANSWER_TOO_BIG, way_mtu(skb, p, &f->new_saddr, &f->new_daddr));
	half_touch(p, f);
	return action;
}

/* tc_conclude does what the core has decided: sends by f, or goes by the verdict. */
static __always_inline int tc_conclude(struct __sk_buff *skb, struct packet *p, struct flow *f,
				       int verdict)
{
	if (f)
		return tc_send(skb, p, f);
	if (verdict == V_PASS)
		return TC_ACT_UNSPEC;
	if (verdict == V_NEW)
		return tc_jump(skb, TAIL_NEW);
	if (verdict == V_ECHO)
		return tc_say(skb, ANSWER_ECHO, 0);
	if (verdict == V_REFUSE)
		return tc_say(skb, ANSWER_REFUSE, 0);
	return TC_ACT_SHOT;
}

static __always_inline int slow(struct __sk_buff *skb)
{
	struct packet *p = current_packet();
	struct flow *f;
	int verdict;

	if (!p)
		return TC_ACT_SHOT;
	f = find_slow(p, &verdict);
	if (!f && goes_on(p, verdict) && predecessor_on(skb->ifindex)) {
		skb->cb[0] = verdict;
		bpf_tail_call(skb, &tails, TAIL_BACK);
	}
	if (!f && may_stray(p, verdict, skb->ifindex)) {
		skb->cb[0] = verdict;
		bpf_tail_call(skb, &tails, TAIL_BRING);
	}
	return tc_conclude(skb, p, f, verdict);
}

SEC("tc")
int pontoon_slow(struct __sk_buff *skb)
{
	return tc_done(skb, slow(skb));
}

static __always_inline int new(struct __sk_buff *skb)
{
	struct packet *p = current_packet();
	struct flow *f;
	int verdict;

	if (!p)
		return TC_ACT_SHOT;
	f = find_new(p, &verdict);
	return tc_conclude(skb, p, f, verdict);
}

static __always_inline int back(struct __sk_buff *skb)
{
	struct packet *p = current_packet();
	int verdict = skb->cb[0], action;

	if (!p)
		return TC_ACT_SHOT;
	action = tc_back(skb, p, verdict);
	if (action >= 0)
		return action;
	return verdict == V_PASS ? TC_ACT_UNSPEC : tc_jump(skb, TAIL_NEW);
}

SEC("tc")
int pontoon_back(struct __sk_buff *skb)
{
	return tc_done(skb, back(skb));
}

static __always_inline int bring_to_others(struct __sk_buff *skb)
{
	struct packet *p = current_packet();
	int verdict = skb->cb[0], action;

	if (!p)
		return TC_ACT_SHOT;
	action = tc_bring(skb, p, verdict);
	if (action >= 0)
		return action;
	if (verdict == V_ICMP)
		return icmp_unknown(p);
	return verdict == V_PASS ? TC_ACT_UNSPEC : tc_jump(skb, TAIL_NEW);
}

SEC("tc")
int pontoon_bring(struct __sk_buff *skb)
{
	return tc_done(skb, bring_to_others(skb));
}

SEC("tc")
int pontoon_new(struct __sk_buff *skb)
{
	return tc_done(skb, new(skb));
}

SEC("tc")
int pontoon_answer(struct __sk_buff *skb)
{
	struct packet *p = current_packet();

	if (!p)
		return tc_done(skb, TC_ACT_SHOT);
	return tc_done(skb, skb->cb[0] == ANSWER_ECHO ? tc_echo(skb, p) : tc_answer(skb, p));
}

/* icmp_astray brings an error about what another node has sent, as far as is known, to that node. */
static __always_inline int icmp_astray(struct __sk_buff *skb, struct packet *p, const struct quoted *q)
{
	__u32 *vip = bpf_map_lookup_elem(&vips, &p->key.daddr);

	if (!vip || !(*vip & (VIP_F_SHARED | VIP_F_ASTRAY)) || !has_ports(q) || !peers_on(skb->ifindex))
		return icmp_unknown(p);
	p->vip = *vip;
	p->key.dport = q->key.sport;
	p->key.proto = q->key.proto;
	skb->cb[0] = V_ICMP;
	return tc_jump(skb, TAIL_BRING);
}

/* icmp sends an error on to the one whose packet it is about. */
static __always_inline int icmp(struct __sk_buff *skb)
{
	struct packet *p = current_packet();
	struct quoted q = {};
	struct addr source;
	struct flow *f;
	int v6, action;

	if (!p)
		return TC_ACT_SHOT;
	v6 = p->flags & PACKET_F_V6;
	q.off = p->l4_off + sizeof(struct error_header);
	if (!is_known_error(p) || read_quoted(skb, v6, &q))
		return icmp_unknown(p);
	if (is_tunnelled(p, &q)) {
		action = icmp_tunnel(skb, p, &q);
		return action == TC_ACT_UNSPEC ? icmp_unknown(p) : action;
	}
	f = has_ports(&q) ? find_quoting(&q) : NULL;
	if (!f)
		return icmp_astray(skb, p, &q);
	note_flow(STEP_SEND, f);
	if (p->ttl <= 1)
		return tc_drop(DROP_TTL);
	if (!same_family(p, f))
		return tc_jump(skb, TAIL_XLAT);
	if (f->mode == MODE_DSR)
		return icmp_dsr(skb, p, f);
	if (f->mode == MODE_DSR_TUNNEL) {
		/* The tunnel program sends what it finds on the way of the flow of p->key. */
		p->key.saddr = q.key.daddr;
		p->key.daddr = q.key.saddr;
		p->key.sport = q.key.dport;
		p->key.dport = q.key.sport;
		p->key.proto = q.key.proto;
		count(COUNTER_ICMP_ERROR);
		return tc_jump(skb, TAIL_TUNNEL);
	}
	if (icmp_rewrite(skb, p, &q, f, &source))
		return tc_drop(DROP_REWRITE);
	count(COUNTER_ICMP_ERROR);
	return icmp_send(skb, p, &source, &f->new_daddr);
}

SEC("tc")
int pontoon_icmp(struct __sk_buff *skb)
{
	return tc_done(skb, icmp(skb));
}

static __always_inline int translate(struct __sk_buff *skb)
{
	struct packet *p = current_packet();
	struct flow *f;
	__u32 mtu, room;

	if (!p)
		return TC_ACT_SHOT;
	if (p->kind == KIND_ICMP)
		return tc_jump(skb, TAIL_XLAT_ICMP);
	f = flow_of(&p->key);
	if (!f || same_family(p, f)) /* taken away, or another one, since it was found */
		return tc_drop(DROP_NO_FLOW);
	mtu = way_mtu(skb, p, &f->new_saddr, &f->new_daddr);
	room = xlat_excess(skb, p, mtu);
	return room ? tc_say(skb, ANSWER_TOO_BIG, room) : xlat(skb, p, f, mtu);
}

SEC("tc")
int pontoon_xlat(struct __sk_buff *skb)
{
	return tc_done(skb, translate(skb));
}

SEC("tc")
int pontoon_xlat_icmp(struct __sk_buff *skb)
{
	struct packet *p = current_packet();

	return tc_done(skb, p ? xlat_icmp(skb, p) : TC_ACT_SHOT);
}

static __always_inline int encapsulate(struct __sk_buff *skb)
{
	struct packet *p = current_packet();
	struct addr *source;
	struct flow *f;
	__u32 room;

	if (!p)
		return TC_ACT_SHOT;
	f = flow_of(&p->key);
	if (!f || f->mode != MODE_DSR_TUNNEL)
		return tc_drop(DROP_NO_FLOW);
	source = tunnel_source(f);
	if (!source)
		return tc_drop(DROP_NO_ENDPOINT);
	room = tunnel_excess(skb, p, way_mtu(skb, p, source, &f->new_daddr));
	return room ? tc_say(skb, ANSWER_TOO_BIG, room) : tunnel(skb, p, f, source);
}

SEC("tc")
int pontoon_tunnel(struct __sk_buff *skb)
{
	return tc_done(skb, encapsulate(skb));
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

/* Run by user space: a connection ends, whoever still sends is told so. User space could only write
 * over the whole entry, and with it over what packets change meanwhile. Returns how many halves
 * have been marked. */
SEC("tc")
int pontoon_doom(struct __sk_buff *skb)
{
	struct ending e;

	if (bpf_skb_load_bytes(skb, 0, &e, sizeof(e)))
		return 0;
	return doom(&e);
}

/* Puts in the half that question `at` asks for. A new connection then costs its two places in the table
 * and no look before: a batch write of user space would write over what is there. A global function, so
 * that the verifier follows it once and not once for each question. */
__noinline int find_put(__u32 at)
{
	struct find *e = bpf_map_lookup_elem(&finds, &at);
	struct find *first = NULL;
	__u32 before = at - 1;
	struct flow *f;

	if (!e)
		return 0;
	if (e->wanted == FIND_PUT_REPLY) {
		first = bpf_map_lookup_elem(&finds, &before);
		if (!first || first->found != FOUND_ROOM)
			goto look;
	}
	if (!bpf_map_update_elem(&flows, &e->key, &e->value, BPF_NOEXIST)) {
		e->found = FOUND_ROOM;
		return 0;
	}
	if (first) {
		bpf_map_delete_elem(&flows, &first->key);
		first->found = FOUND_NOTHING;
	}
look:
	f = bpf_map_lookup_elem(&flows, &e->key);
	e->found = f ? FOUND_FLOW : FOUND_NOTHING;
	if (f)
		e->value = *f;
	return 0;
}

/* Run by user space to look up many flows with one system call. */
SEC("syscall")
int pontoon_find(void *ctx)
{
	struct flow *f;
	struct find *e;
	__u32 i, at;

	for (i = 0; i < FINDS; i++) {
		at = i;
		e = bpf_map_lookup_elem(&finds, &at);
		if (!e || e->wanted == FIND_END)
			break;
		if (e->wanted >= FIND_PUT) {
			find_put(at);
			continue;
		}
		f = bpf_map_lookup_elem(&flows, &e->key);
		e->found = f ? FOUND_FLOW : FOUND_NOTHING;
		if (!f)
			continue;
		if (e->wanted == FIND_LOUDEN)
			louden(f);
		if (e->wanted == FIND_STAMP && (__s32)(e->value.last_seen - f->last_seen) > 0)
			f->last_seen = e->value.last_seen;
		e->value = *f;
	}
	return 0;
}

/* Run by user space: half-open connections that other nodes have told of. The table's places cannot be
 * given out by two sides by different means. */
SEC("syscall")
int pontoon_enter(void *ctx)
{
	__u32 i;

	for (i = 0; i < ARRIVALS; i++) {
		if (arrive(i) < 0)
			break;
	}
	return 0;
}

/* How the kernel spells the licence named in the first line. */
char _license[] SEC("license") = "Dual BSD/GPL";
