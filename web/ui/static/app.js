// The status page: two streams in, sections out.

import * as view from "./view.js";
import { Rates } from "./rates.js";
import { Stream } from "./stream.js";

const WINDOW = 120; // seconds of history in the small charts
const KEEP = 14;    // events shown

const byId = (id) => document.getElementById(id);
const drawn = new Map(); // what each section was made from, so that only changes touch the page
const flowHistory = [], lagHistory = new Map();
const rates = new Rates(), opened = new Map(); // opened: service -> whether its endpoints' traffic is to be seen
let events = [], latest = null;

// draw rebuilds a section when its data changed: a selection or a reader's place in the others stays.
function draw(id, data, build) {
  const key = JSON.stringify(data);
  if (drawn.get(id) === key) return;
  drawn.set(id, key);
  const focused = byId(id).contains(document.activeElement) && document.activeElement.id;
  byId(id).replaceChildren(build());
  if (focused) byId(focused)?.focus({ preventScroll: true });
}

function text(id, value) {
  const el = byId(id);
  if (el.textContent !== value) el.textContent = value;
}

// remember adds a point. The node sends changes only: what lies between two of
// them far apart was level, not a slope.
function remember(history, now, value) {
  const last = history.at(-1);
  if (last && now - last[0] > 1) history.push([now - 0.5, last[1]]);
  history.push([now, value]);
  while (history.length && now - history[0][0] > WINDOW) history.shift();
}

function headline(level, title, notes, sub) {
  byId("headline").dataset.level = level;
  text("headline-text", title);
  text("sub", sub);
  document.title = `${title} · Pontoon`;
  const key = JSON.stringify(notes);
  if (drawn.get("notes") === key) return;
  drawn.set("notes", key);
  byId("notes").replaceChildren(...notes.map((n) => Object.assign(document.createElement("li"), { textContent: n })));
}

function show(st) {
  const now = Date.now() / 1000;
  remember(flowHistory, now, st.flows.established);
  for (const r of st.replication) {
    if (!lagHistory.has(r.peer)) lagHistory.set(r.peer, []);
    remember(lagHistory.get(r.peer), now, r.lag_ms);
  }
  headline(st.summary.level, st.summary.text, [...st.summary.notes, ...st.warnings], view.sub(st));
  text("where", `seen from ${st.self}`);
  draw("flows", [st.flows, flowHistory], () => view.flows(st, flowHistory));
  draw("nodes", [st.nodes, st.cluster.applied, st.self], () => view.nodes(st));
  draw("instances", [st.instances, st.vips], () => view.instances(st));
  draw("pools", st.pools, () => view.pools(st));
  byId("pools-section").hidden = !st.pools.length;
  draw("failovers", st.failovers, () => view.failovers(st));
  const still = ({ traffic, latency_p50_ms, latency_p99_ms, ...rest }) => rest; // what changes all the time has a section of its own, or none
  draw("services", st.services.map((s) => ({ ...still(s), endpoints: s.endpoints.map(still) })), () => view.services(st));
  rates.note(now, view.counted(st));
  latest = st;
  traffic();
  draw("replication", [st.replication, [...lagHistory]], () => view.replication(st, lagHistory));
  draw("liveness", st.bfd, () => view.liveness(st));
  byId("liveness-section").hidden = !st.bfd.length;
  const sessions = view.sessions(st);
  draw("bgp", sessions, () => view.bgp(sessions));
  byId("bgp-section").hidden = !sessions.length;
  draw("node", [st.interfaces, st.drops], () => view.node(st));
  byId("no-cluster").hidden = true;
  byId("content").hidden = false;
}

// traffic is drawn without a message, too: rates fall when nothing happens any more.
function traffic() {
  if (!latest) return;
  const lines = view.traffics(latest, rates, Date.now() / 1000, opened);
  draw("traffic", lines, () => view.traffic(lines));
}

byId("traffic").addEventListener("click", (e) => {
  const service = e.target.closest("summary")?.parentElement;
  if (!service) return;
  e.preventDefault(); // the section is drawn anew, opened or closed
  opened.set(service.dataset.service, !service.open);
  traffic();
});

function problem(p) {
  const alone = p.code === "no_cluster";
  headline(alone ? "warn" : "bad", alone ? "This node is in no cluster" : "The status cannot be read", alone ? [] : [p.detail], "");
  byId("no-cluster").hidden = !alone;
  if (alone) byId("content").hidden = true;
}

function happened(e) {
  if (events.some((o) => o.time === e.time && o.text === e.text)) return;
  events = [e, ...events].sort((a, b) => Date.parse(b.time) - Date.parse(a.time)).slice(0, KEEP);
  draw("events", events, () => view.events(events));
}

draw("events", events, () => view.events(events));
const status = new Stream("/v1/status/stream", { status: show, problem });
const happenings = new Stream("/v1/events?since=24h&follow=true", { event: happened });

function pulse() {
  const live = status.live();
  happenings.live(); // so that it starts anew too
  if (live) traffic();
  byId("live").dataset.state = live ? "live" : status.heard === null ? "connecting" : "lost";
  text("live-text", live ? "live" : status.heard === null ? "connecting…" : view.lost((Date.now() - status.heard) / 1000));
  byId("content").classList.toggle("stale", !live);
}
setInterval(pulse, 500);
