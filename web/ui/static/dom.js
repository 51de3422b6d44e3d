// Small builders. Nothing here takes markup: text is always text.

const SVG = "http://www.w3.org/2000/svg";

function fill(el, attrs, children) {
  for (const [k, v] of Object.entries(attrs || {})) {
    if (v !== undefined && v !== null && v !== false) el.setAttribute(k, v === true ? "" : v);
  }
  for (const c of children.flat()) {
    if (c !== undefined && c !== null && c !== false && c !== "") el.append(c);
  }
  return el;
}

export const h = (name, attrs, ...children) => fill(document.createElement(name), attrs, children);
const s = (name, attrs, ...children) => fill(document.createElementNS(SVG, name), attrs, children);

// chip is a small label. Its kind (ok, warn, bad, key) adds a sign as well as a colour.
export const chip = (text, kind) => h("span", { class: kind ? `chip ${kind}` : "chip" }, text);
export const chips = (...list) => h("span", { class: "chips" }, ...list);

// table builds rows that a narrow screen shows as cards. The explicit roles keep
// it a table for screen readers there. The first column is the row's heading.
// kind "slim" is for a few short columns, which stay a table everywhere.
export function table(label, columns, rows, { kind, rowClass } = {}) {
  const cell = (col, row, first) => h(first ? "th" : "td", {
    role: first ? "rowheader" : "cell", scope: first ? "row" : undefined,
    "data-label": col.name, class: col.num ? "num" : undefined,
  }, first ? col.show(row) : h("span", {}, col.show(row)));
  return h("table", { role: "table", "aria-label": label, class: kind },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" },
      columns.map((c) => h("th", { role: "columnheader", scope: "col", class: c.num ? "num" : undefined }, c.name)))),
    h("tbody", { role: "rowgroup" }, rows.map((r) => h("tr", { role: "row", class: rowClass && rowClass(r) },
      columns.map((c, i) => cell(c, r, i === 0))))));
}

// bar shows a share between 0 and 1. The figure stands beside it.
export function bar(share) {
  const w = Math.max(0, Math.min(1, share)) * 100;
  return s("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { width: w.toFixed(1), height: 6, rx: 3 }));
}

// spark draws the course of [time, value] pairs, from zero up. A page that was
// opened just now shows the little it has seen over the whole width.
export function spark(points, label) {
  const now = points.length ? points[points.length - 1][0] : 0;
  const seconds = points.length ? Math.max(15, now - points[0][0]) : 1;
  const top = Math.max(1, ...points.map((p) => p[1])) * 1.1;
  const at = (p) => `${(100 - (now - p[0]) / seconds * 100).toFixed(2)},${(30 - p[1] / top * 30).toFixed(2)}`;
  const svg = s("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": label });
  if (points.length > 1 && now - points[0][0] >= 2) {
    const line = points.map(at).join(" ");
    const left = (100 - (now - points[0][0]) / seconds * 100).toFixed(2);
    svg.append(s("polygon", { class: "area", points: `${left},30 ${line} 100,30` }), s("polyline", { class: "line", points: line }));
  }
  return svg;
}
