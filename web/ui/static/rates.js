// How fast the figures of services and endpoints grow. The node sends totals, and only when
// something changed: between two messages far apart a total stood still until just before the second.

const WINDOW = 5;  // seconds that a rate is the mean of
const BEFORE = 0.5; // seconds between two readings of the node
const FIGURES = ["new", "forward_packets", "forward_bytes", "reply_packets", "reply_bytes"];

export class Rates {
  #courses = new Map(); // key -> [time, traffic] pairs, oldest first

  // note takes what one message says at time now, in seconds, of each [key, traffic] pair.
  // What it does not name is forgotten.
  note(now, entries) {
    const next = new Map();
    for (const [key, traffic] of entries) {
      let course = this.#courses.get(key) ?? [];
      const last = course.at(-1);
      if (last && FIGURES.some((f) => traffic[f] < last[1][f])) course = []; // the data plane was set up anew
      else if (last && now - last[0] > 2 * BEFORE) course.push([now - BEFORE, last[1]]);
      course.push([now, traffic]);
      while (course.length > 1 && course[1][0] <= now - WINDOW) course.shift();
      next.set(key, course);
    }
    this.#courses = next;
  }

  // of returns the growth of each figure in a second, as it is at time now; null until it can be told.
  of(key, now) {
    const course = this.#courses.get(key);
    if (!course) return null;
    const begin = now - WINDOW;
    const base = course.findLast((p) => p[0] <= begin) ?? course[0];
    const seconds = now - Math.max(base[0], begin);
    if (seconds < 2 * BEFORE) return null;
    const end = course.at(-1)[1];
    return Object.fromEntries(FIGURES.map((f) => [f, (end[f] - base[1][f]) / seconds]));
  }
}
