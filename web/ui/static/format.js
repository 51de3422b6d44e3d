// Figures and times as people read them.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const num = (n) => whole.format(n || 0);
export const big = (n) => (n < 100000 ? whole : short).format(n || 0);
export const plural = (n, noun) => `${num(n)} ${noun}${n === 1 ? "" : "s"}`;

// scaled is a figure with three digits and a prefix: "1.23 k", "45.6 M".
function scaled(n, prefixes) {
  let i = 0;
  for (; n >= 999.5 && i < prefixes.length - 1; i++) n /= 1000;
  const digits = n === 0 || n >= 99.95 || (i === 0 && Number.isInteger(n)) ? 0 : n >= 9.995 ? 1 : 2;
  return `${n.toFixed(digits)} ${prefixes[i]}`;
}

export const bytes = (n) => scaled(n || 0, ["B", "kB", "MB", "GB", "TB", "PB"]);
export const bits = (n) => `${scaled(n || 0, ["bit", "kbit", "Mbit", "Gbit", "Tbit"])}/s`;
export const perSecond = (n) => `${n > 0 && n < 10 ? n.toFixed(1) : big(Math.round(n || 0))}/s`;

export function percent(part, all) {
  if (!all) return "0 %";
  const p = part / all * 100;
  return p > 0 && p < 0.1 ? "under 0.1 %" : `${p < 10 ? p.toFixed(1) : Math.round(p)} %`;
}

export function ms(n) {
  if (!n) return "0 ms";
  if (n >= 10000) return `${(n / 1000).toFixed(0)} s`;
  return n < 10 ? `${n.toFixed(1)} ms` : `${Math.round(n)} ms`;
}

export function age(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

// clock is the time of day, with the date where it is not today.
export function clock(iso) {
  const t = new Date(iso), now = new Date();
  const time = t.toLocaleTimeString("en-GB");
  return t.toDateString() === now.toDateString() ? time
    : `${t.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time.slice(0, 5)}`;
}

// span shortens "1h0m0s" to "1h".
export const span = (d) => (d || "").replace(/(\D)0s$/, "$1").replace(/(\D)0m$/, "$1");

// frontend is where clients connect to: "192.0.2.10:80/tcp", "[2001:db8::10]:8000-8100/udp".
export function frontend(svc) {
  const host = svc.vip.includes(":") ? `[${svc.vip}]` : svc.vip;
  const ports = svc.port_end ? `${svc.port}-${svc.port_end}` : svc.port;
  return `${host}:${ports}/${svc.protocol}`;
}
