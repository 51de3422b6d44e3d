// A stream of server-sent events that does not give up. A browser retries by
// itself when a connection breaks, but not when the answer was an error, and it
// does not see a connection that has silently died.

const RETRY = 2000;   // ms until the next try after a refusal
const SILENCE = 12000; // ms; the node speaks at least every five seconds

export class Stream {
  #source; #retry; #url; #handlers;

  // handlers: name of the message -> function of its decoded data.
  constructor(url, handlers) {
    this.#url = url;
    this.#handlers = handlers;
    this.heard = null; // when the node spoke last, ms
    this.#open();
    addEventListener("pageshow", (e) => { if (e.persisted) this.#open(); });
  }

  #open() {
    clearTimeout(this.#retry);
    this.#source?.close();
    this.opened = Date.now();
    const source = this.#source = new EventSource(this.#url);
    source.addEventListener("heartbeat", () => { this.heard = Date.now(); });
    for (const [name, handle] of Object.entries(this.#handlers)) {
      source.addEventListener(name, (e) => {
        this.heard = Date.now();
        handle(JSON.parse(e.data));
      });
    }
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) this.#retry = setTimeout(() => this.#open(), RETRY);
    });
  }

  // live tells whether the stream works now, and starts it anew when it has fallen silent.
  live() {
    const open = this.#source.readyState === EventSource.OPEN;
    if (open && Date.now() - Math.max(this.heard ?? 0, this.opened) > SILENCE) {
      this.#open();
      return false;
    }
    return open && this.heard !== null;
  }
}
