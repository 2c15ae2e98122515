// A passage: tokens with their probabilities, and a span for each.

let current = null; // the token that the panel shows

const encoder = new TextEncoder();
const raw = (id) => vocabulary[id] ?? `token ${id}`;
const hexadecimal = (id) => [...raw(id).matchAll(/\\x(..)/g)].map((found) => found[1]);
const isBytes = (id) => raw(id).startsWith("bytes:\\x"); // no whole character

const bytesOf = (id) => isBytes(id) ? Uint8Array.from(hexadecimal(id), (x) => parseInt(x, 16)) : encoder.encode(raw(id));

function visible(id) {
  if (isBytes(id)) return `‹${hexadecimal(id).join(" ").toUpperCase()}›`;
  return raw(id).replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍") || "(empty)";
}

function percent(p) {
  if (p >= 0.9995) return p === 1 ? "100%" : "> 99.9%";
  return p >= 0.001 ? `${(100 * p).toFixed(1)}%` : p >= 1e-5 ? `${(100 * p).toPrecision(1)}%` : "< 0.001%";
}

class Passage {
  constructor(element, tail = null) {
    Object.assign(this, { element, tail, start: [], tokens: [], history: [], dropsSpace: false });
    this.cut(0);
  }

  ids(n = this.tokens.length) { return [...this.start, ...this.tokens.slice(0, n).map((token) => token.id)]; }

  text() { return this.tokens.map((token) => token.text).join(""); }

  add(id, origin, scores) {
    const token = { id, origin, passage: this, element: make("span"), ...scores };
    token.element.token = token;
    this.tokens.push(token);
    this.element.insertBefore(token.element, this.tail);
    this.decode(token);
    this.paint(token);
    return token;
  }

  decode(token) { // a character may take several tokens: the last of them shows it
    token.text = this.decoder.decode(bytesOf(token.id), { stream: true });
    if (this.dropsSpace && token === this.tokens[0]) token.text = token.text.replace(/^ /, "");
  }

  paint(token) {
    const level = token.p == null ? "" : `s${[0.9, 0.5, 0.1, 0.01].filter((limit) => token.p < limit).length}`;
    token.element.className = `token ${level} origin-${token.origin}`;
    token.element.classList.toggle("current", token === current);
    token.element.textContent = token.text;
  }

  cut(n) {
    for (const token of this.tokens.splice(n)) token.element.remove();
    if (current?.passage === this && !this.tokens.includes(current)) show(null);
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    for (const token of this.tokens) this.decode(token);
  }

  finish() { // a character that is not complete
    const rest = this.decoder.decode();
    if (!rest || !this.tokens.length) return;
    this.tokens.at(-1).text += rest;
    this.paint(this.tokens.at(-1));
  }

  remember() {
    const kept = this.tokens.map(({ id, origin, p, top }) => [id, origin, { p, top }]);
    this.history.push({ start: this.start, kept, tail: this.tail?.textContent });
  }

  restore({ start, kept, tail }) {
    this.cut(0);
    this.start = start;
    for (const token of kept) this.add(...token);
    this.finish();
    if (this.tail) this.tail.textContent = tail;
  }
}
