// One function for each section: from the status to elements. No state is kept
// here, and nothing is fetched.

import { bar, chip, chips, h, spark, table } from "./dom.js";
import { age, big, bits, bytes, clock, frontend, ms, num, percent, perSecond, plural, span } from "./format.js";

const MAX_SERVICES = 50, MAX_ENDPOINTS = 32, MAX_PARTS = 4;
const OPEN_BELOW = 12; // so many endpoints in all are shown without being asked for, where there is room
const empty = (...text) => h("p", { class: "panel empty" }, ...text);
const code = (text) => h("code", {}, text);
const panel = (...children) => h("div", { class: "panel" }, ...children);
const yes = (good, text, otherwise) => good ? chip(text, "ok") : chip(otherwise, "bad");

export function flows(st, history) {
  const f = st.flows;
  const tile = (name, value, note, extra) => h("div", { class: "tile" },
    h("dt", {}, name), h("dd", { class: "big" }, big(value)), h("dd", { class: "small" }, note), extra && h("dd", { class: "spark" }, extra));
  return h("dl", { class: "tiles" },
    tile("Established", f.established, `${percent(f.established, f.max)} of ${big(f.max)}`,
      spark(history, `Established connections over the last minutes, now ${num(f.established)}`)),
    tile("Owned", f.owned, "forwarded here"),
    tile("Replica", f.replica, "copies from peers"),
    tile("Adopted", f.adopted, "survived a failover"),
    tile("Half-open", f.half_open, "in handshake"));
}

export function nodes(st) {
  if (!st.nodes.length) return empty("No members.");
  const top = Math.max(st.cluster.applied, ...st.nodes.map((n) => n.applied));
  const health = (n) => {
    if (!n.alive) return chips(chip("down", "bad"), n.draining && chip("draining", "warn"));
    const c = [chip("alive", "ok")];
    if (n.role !== "witness") {
      c.push(yes(n.ready, "ready", "not ready"), yes(n.in_sync, "in sync", "not in sync"));
      if (!n.links_up) c.push(chip("link down", "bad"));
    }
    if (n.draining) c.push(chip("draining", "warn"));
    return chips(...c);
  };
  return panel(table("Nodes", [
    { name: "Node", show: (n) => [n.name, n.name === st.self && h("span", { class: "muted" }, " · this node"), h("span", { class: "under mono" }, n.address)].filter(Boolean) },
    { name: "Role", show: (n) => h("span", { class: "nowrap" }, n.role === "witness" ? "witness" : "load balancer") },
    { name: "Raft", show: (n) => n.raft === "leader" ? chip("leader", "key") : n.raft === "nonvoter" ? "not yet voting" : n.raft },
    { name: "State", show: health },
    { name: "Master of", show: (n) => n.master_of.length ? chips(...n.master_of.map((i) => chip(i, "key"))) : h("span", { class: "muted" }, "–") },
    { name: "Applied", num: true, show: (n) => `${num(n.applied)} of ${num(top)}` },
  ], st.nodes, { rowClass: (n) => n.alive ? undefined : "gone" }));
}

export function instances(st) {
  const kept = new Set(st.vips.filter((v) => v.on_quorum_loss === "hold").map((v) => v.address));
  const routed = new Set(st.vips.filter((v) => v.announce === "bgp").map((v) => v.address));
  const address = (a) => h("span", {}, h("span", { class: "mono" }, a), routed.has(a) && h("span", { class: "muted" }, " by BGP"),
    kept.has(a) && h("span", { class: "muted" }, " held without quorum"));
  if (!st.instances.length) return empty("No instances.");
  return panel(table("Instances", [
    { name: "Instance", show: (i) => i.name },
    { name: "Master", show: (i) => i.master ? chip(i.master, "key") : i.kind === "ecmp" && i.succession.length ? chip("all", "key") : chip("none", "bad") },
    { name: "Succession", show: (i) => i.succession.length ? h("ol", { class: "chain" }, i.succession.map((n) => h("li", {}, n))) : h("span", { class: "muted" }, "nobody is eligible") },
    { name: "Addresses", show: (i) => i.vips.length ? chips(...i.vips.map(address)) : h("span", { class: "muted" }, "none") },
    { name: "Epoch", num: true, show: (i) => num(i.epoch) },
  ], st.instances));
}

// The steps of a failover in their order, as the API calls them.
const STEPS = [["detected", "Detected"], ["confirmed", "Confirmed"], ["elected", "Elected"], ["committed", "Committed"],
  ["announced", "Announced"], ["first_packet", "First packet"]];
const CAUSES = { lost: "its data plane was silent", silent: "it was silent", cut_off: "a link of it was cut off", report: "it could not serve", move: "asked for", drain: "drained", remove: "removed" };

export function failovers(st) {
  if (!st.failovers.length) return empty("No instance has moved yet.");
  return panel(table("Failovers", [
    { name: "When", show: (f) => h("time", { datetime: f.at }, clock(f.at)) },
    { name: "Instance", show: (f) => f.instance },
    { name: "Moved", show: (f) => [f.from, " → ", f.to, h("span", { class: "under" }, CAUSES[f.cause] || "nobody knows why")] },
    ...STEPS.map(([key, name]) => ({ name, num: true, show: (f) => f.parts_ms[key] ? ms(f.parts_ms[key]) : h("span", { class: "muted" }, "–") })),
  ], st.failovers.slice(0, 8)));
}

// address breaks before a colon where it has to break at all: IPv4 has one, before
// the port, and IPv6 is too long for a phone.
function address(s) {
  return h("span", { class: "mono" }, s.split(/(?=:)/).flatMap((part, i) => i ? [h("wbr"), part] : [part]));
}

function endpointState(e, svc) {
  const c = [];
  if (e.admin === "drain") c.push(chip(e.drain_until ? `draining until ${clock(e.drain_until)}` : "draining", "warn"));
  if (e.admin === "down") c.push(chip("taken down", "warn"));
  c.push(e.health === "up" ? chip("up", "ok") : e.health === "down" ? chip("down", "bad") : chip(svc.probe?.type === "none" ? "not probed" : "unknown"));
  if (e.flapping) c.push(chip("flapping", "warn"));
  if (e.share < 100) c.push(chip(`${e.share} % of its weight`));
  return [chips(...c), e.health === "down" && h("span", { class: "under reason" },
    [e.health_error, e.health_since && `since ${clock(e.health_since)}`, !e.why_out && "used all the same: all are down"].filter(Boolean).join(", "))];
}

// settings of a service in words; what everybody has is left out.
const settings = (svc) => [
  svc.tunnel ? `${svc.mode} by ${svc.tunnel}` : svc.mode,
  svc.algorithm,
  svc.affinity === "client-ip" && `client affinity ${span(svc.affinity_timeout)}`,
  svc.idle_timeout && `idle ${span(svc.idle_timeout)}`,
  svc.replicate && svc.replicate !== 'established' && `replicates ${svc.replicate}`,
  svc.drain_timeout && `drain ${span(svc.drain_timeout)}`,
  svc.instance && `instance ${svc.instance}`,
  svc.probe?.type && (svc.probe.type === "none" ? "not probed" : `${svc.probe.type} probe each ${span(svc.probe.interval)}`),
].filter(Boolean).join(" · ");

function service(svc) {
  const eps = svc.endpoints.slice(0, MAX_ENDPOINTS);
  const most = Math.max(1, ...svc.endpoints.map((e) => e.flows));
  const head = h("header", {},
    h("h3", {}, svc.name),
    h("span", { class: "mono" }, frontend(svc)),
    h("span", { class: "muted" }, settings(svc)),
    h("span", { class: "total" }, plural(svc.flows, "flow")));
  if (!eps.length) return h("article", { class: "panel service" }, head, h("p", { class: "empty" }, "It has no endpoints: connections are refused."));
  return h("article", { class: "panel service" }, head, table(`Endpoints of ${svc.name}`, [
    { name: "Endpoint", show: (e) => address(e.address) },
    { name: "State", show: (e) => endpointState(e, svc) },
    { name: "Weight", num: true, show: (e) => num(e.weight) },
    { name: "Flows", num: true, show: (e) => [bar(e.flows / most), num(e.flows)] },
  ], eps, { kind: "slim" }), svc.endpoints.length > eps.length && h("p", { class: "empty" }, `and ${plural(svc.endpoints.length - eps.length, "more endpoint")}: `, code(`pontoon service show ${svc.name}`)));
}

export function services(st) {
  if (!st.services.length) return empty("No services yet: ", code("pontoon service create NAME --vip ADDRESS …"));
  const shown = st.services.slice(0, MAX_SERVICES);
  return h("div", {}, shown.map(service),
    st.services.length > shown.length && empty(`and ${plural(st.services.length - shown.length, "more service")}: `, code("pontoon service list")));
}

const whose = (svc, e) => JSON.stringify([svc.name, e?.address]);

// counted lists whose traffic is shown, as [key, traffic] pairs.
export const counted = (st) => st.services.slice(0, MAX_SERVICES).flatMap((svc) =>
  [[whose(svc), svc.traffic], ...svc.endpoints.slice(0, MAX_ENDPOINTS).map((e) => [whose(svc, e), e.traffic])]);

// traffics is what the section on traffic says: words, which change less often than time passes.
// opened tells by name which services somebody has opened or closed.
export function traffics(st, rates, now, opened) {
  const few = st.services.reduce((n, svc) => n + svc.endpoints.length, 0) <= OPEN_BELOW && matchMedia("(min-width: 901px)").matches;
  const side = (t, r, way) => ({
    bits: r ? bits(8 * r[`${way}_bytes`]) : "–", packets: r ? perSecond(r[`${way}_packets`]) : "–",
    bytes: bytes(t[`${way}_bytes`]), count: big(t[`${way}_packets`]),
  });
  const line = (name, key, t) => {
    const r = rates.of(key, now);
    return { name, active: t.active, fresh: r ? perSecond(r.new) : "–", all: t.new, in: side(t, r, "forward"), out: side(t, r, "reply") };
  };
  return st.services.slice(0, MAX_SERVICES).map((svc) => {
    const open = opened.get(svc.name) ?? few;
    const eps = open ? svc.endpoints.slice(0, MAX_ENDPOINTS) : [];
    return { ...line(svc.name, whose(svc), svc.traffic), open, none: !svc.endpoints.length, endpoints: eps.map((e) => line(e.address, whose(svc, e), e.traffic)) };
  });
}

export function traffic(list) {
  if (!list.length) return empty("No services.");
  const under = (text) => h("span", { class: "under" }, text);
  const way = (name, of) => ({ name, num: true, show: (l) => [l[of].bits, " · ", `${l[of].packets.replace("/s", "")} packets/s`, under(`${l[of].bytes} · ${l[of].count} packets`)] });
  const fact = (name, value) => h("span", {}, h("span", { class: "muted" }, `${name} `), value);
  return h("div", { class: "panel" }, list.map((svc) => h("details", { class: "traffic", open: svc.open, "data-service": svc.name },
    h("summary", { id: `traffic-${svc.name}` }, h("span", { class: "name" }, svc.name), h("span", { class: "facts" },
      fact("active", big(svc.active)), fact("new", svc.fresh), fact("in", svc.in.bits), fact("out", svc.out.bits))),
    svc.none ? h("p", { class: "empty" }, "It has no endpoints.") : svc.open && table(`Traffic of ${svc.name}`, [
      { name: "Endpoint", show: (l) => l.name === svc.name ? "all, with those that are gone" : address(l.name) },
      { name: "Active", num: true, show: (l) => num(l.active) },
      { name: "New", num: true, show: (l) => [l.fresh, under(`${big(l.all)} in all`)] },
      way("From clients", "in"), way("To clients", "out"),
    ], [...svc.endpoints, svc]))));
}

export function replication(st, histories) {
  if (!st.replication.length) return empty("No peers to copy flows to.");
  const state = (r) => chip(r.state, { streaming: "ok", snapshot: "warn", down: "bad" }[r.state]);
  return panel(table("Replication", [
    { name: "Peer", show: (r) => r.peer },
    { name: "State", show: state },
    { name: "Lag", num: true, show: (r) => r.state === "down" ? h("span", { class: "muted" }, "–") : h("span", { class: "lag" }, spark(histories.get(r.peer) || [], `Lag to ${r.peer} over the last minutes`), ms(r.lag_ms)) },
    { name: "Sent", num: true, show: (r) => big(r.sent) },
    { name: "Resyncs", num: true, show: (r) => num(r.resyncs) },
    { name: "Dropped", num: true, show: (r) => r.dropped ? chip(num(r.dropped), "warn") : "0" },
  ], st.replication));
}

export function liveness(st) {
  const out = [];
  const state = (good) => (r) => chip(r.state, r.state === good ? "ok" : "bad");
  if (st.bfd.length) out.push(panel(table("BFD sessions", [
    { name: "BFD peer", show: (b) => [b.peer, h("span", { class: "under mono" }, b.address)] },
    { name: "State", show: state("up") },
    { name: "Detects in", num: true, show: (b) => ms(b.interval_ms * b.multiplier) },
  ], st.bfd)));
  return h("div", {}, out);
}

export function pools(st) {
  const state = (p) => p.free ? num(p.free) : chip("exhausted", "warn");
  const parts = (p) => [...(p.cidrs || []), ...(p.ranges || [])];
  return panel(table("Address pools", [
    { name: "Pool", show: (p) => [p.name, p.default && h("span", { class: "muted" }, " · default")].filter(Boolean) },
    { name: "Addresses", show: (p) => [...parts(p).slice(0, MAX_PARTS).map((a) => h("span", { class: "under mono" }, a.split(/(?=[-:])/).flatMap((w, i) => i ? [h("wbr"), w] : [w]))),
      parts(p).length > MAX_PARTS && h("span", { class: "under" }, `and ${plural(parts(p).length - MAX_PARTS, "more part")}`)].filter(Boolean) },
    { name: "Instance", show: (p) => [p.instance, h("span", { class: "muted" }, ` by ${p.announce}`)] },
    { name: "Used", num: true, show: (p) => [bar(p.used / p.size), `${big(p.used)} of ${big(p.size)}`] },
    { name: "Reserved", num: true, show: (p) => num(p.reserved) },
    { name: "Free", num: true, show: state },
  ], st.pools));
}

// bgp lists this node's sessions with routers; what counts messages is left out, it changes all the time.
export const sessions = (st) => st.bgp.map(({ messages_in, messages_out, ...shown }) => shown);

export function bgp(list) {
  const under = (...text) => h("span", { class: "under" }, ...text);
  const up = (b) => b.state === "established";
  return panel(table("BGP sessions", [
    { name: "Router", show: (b) => [address(b.peer), under(`AS ${b.as}`, b.router_id && ` · ${b.router_id}`)] },
    { name: "State", show: (b) => [chip(b.state, up(b) ? "ok" : "bad"), b.since && h("span", { class: "muted" }, ` since ${clock(b.since)}`), b.error && under(b.error)].filter(Boolean) },
    { name: "BFD", show: (b) => b.bfd === "off" ? h("span", { class: "muted" }, "off") : chip(b.bfd, b.bfd === "up" ? "ok" : "bad") },
    { name: "Advertised", num: true, show: (b) => num(b.advertised) },
    { name: "Received", num: true, show: (b) => [num(b.received), under(`${num(b.accepted)} let in`)] },
    { name: "Lost", num: true, show: (b) => b.flaps ? chip(num(b.flaps), "warn") : "0" },
  ], list));
}

export function node(st) {
  const drops = Object.entries(st.drops).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  return h("div", {},
    st.interfaces.length ? panel(table("Interfaces", [
      { name: "Interface", show: (i) => i.name },
      { name: "Link", show: (i) => yes(i.up, "up", "down") },
      { name: "Hook", show: (i) => i.hook || h("span", { class: "muted" }, "not attached") },
    ], st.interfaces, { kind: "slim" })) : empty("No data plane interfaces."),
    drops.length ? panel(table("Packets dropped, by reason", [
      { name: "Dropped because", show: ([why]) => why.replaceAll("_", " ") },
      { name: "Packets", num: true, show: ([, n]) => num(n) },
    ], drops, { kind: "slim" })) : empty("No packet dropped."));
}

export function events(list) {
  if (!list.length) return empty("Nothing has happened lately.");
  return h("ol", { class: "events" }, list.map((e) => h("li", {},
    h("time", { datetime: e.time, title: new Date(e.time).toLocaleString("en-GB") }, clock(e.time)),
    h("span", {}, chip(e.kind.replaceAll("_", " "), e.kind === "failover" ? "key" : undefined)),
    h("span", { class: "text" }, e.text))));
}

export const sub = (st) => [
  st.cluster.id && `cluster ${st.cluster.id.slice(0, 8)}`, `term ${num(st.cluster.term)}`,
  `${num(st.cluster.applied)} changes applied`, plural(st.services.length, "service"),
].filter(Boolean).join(" · ");

export const lost = (seconds) => seconds === null ? "reconnecting…" : `reconnecting… this is ${age(seconds)} old`;
