// The status page: two streams in, sections out.

import * as view from "./view.js";
import { Stream } from "./stream.js";

const WINDOW = 120; // seconds of history in the small charts
const KEEP = 14;    // events shown

const byId = (id) => document.getElementById(id);
const drawn = new Map(); // what each section was made from, so that only changes touch the page
const flowHistory = [], lagHistory = new Map();
let events = [];

// draw rebuilds a section when its data changed: a selection or a reader's place in the others stays.
function draw(id, data, build) {
  const key = JSON.stringify(data);
  if (drawn.get(id) === key) return;
  drawn.set(id, key);
  byId(id).replaceChildren(build());
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
  draw("instances", st.instances, () => view.instances(st));
  draw("services", st.services, () => view.services(st));
  draw("replication", [st.replication, [...lagHistory]], () => view.replication(st, lagHistory));
  draw("routing", [st.bfd, st.bgp], () => view.routing(st));
  byId("routing-section").hidden = !st.bfd.length && !st.bgp.length;
  draw("node", [st.interfaces, st.drops], () => view.node(st));
  byId("no-cluster").hidden = true;
  byId("content").hidden = false;
}

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
  byId("live").dataset.state = live ? "live" : status.heard === null ? "connecting" : "lost";
  text("live-text", live ? "live" : status.heard === null ? "connecting…" : view.lost((Date.now() - status.heard) / 1000));
  byId("content").classList.toggle("stale", !live);
}
setInterval(pulse, 500);
