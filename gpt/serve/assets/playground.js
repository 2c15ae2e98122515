// The playground. The server reads and writes tokens; the page keeps them, with the probabilities that came with them.
// A text is a Passage: the ids before it (a start token, or a conversation), and its tokens. Both views continue one by
// sending its ids to /v1/completions, so that a token taken from the alternatives is read as it was taken.
"use strict";

const $ = (id) => document.getElementById(id);
const LIKELIEST = 10; // alternatives of each token
const REST_MS = 90; // a pointer that moves on to the panel changes nothing on its way

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children); // strings become text: a model may write HTML
  return element;
}

const storage = { // a browser may refuse to keep anything
  get(store, key) { try { return window[store].getItem(key); } catch { return null; } },
  set(store, key, value) { try { window[store].setItem(key, value); } catch { /* not kept */ } },
};

// --- the server ------------------------------------------------------------------------------------------------------

let model, vocabulary;

async function request(path, body, signal) {
  for (let refused = false; ; refused = true) {
    const key = storage.get("sessionStorage", "key");
    const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
    const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal };
    const response = await fetch(path, options).catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The server does not answer. Is it still running?");
    });
    if (response.ok) return response;
    if (response.status !== 401) throw new Error(await sentence(response));
    await askForKey(refused ? "The server does not know this key." : "This server asks for a key.");
  }
}

const sentence = (response) =>
  response.json().then((answer) => answer.error.message, () => `The server answered with status ${response.status}.`);

const json = async (...call) => (await request(...call)).json();

function askForKey(question) {
  $("key-question").textContent = question;
  $("key-dialog").showModal();
  return new Promise((resolve) => {
    $("key-dialog").onclose = () => resolve(storage.set("sessionStorage", "key", $("key").value.trim()));
  });
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The connection ended before the text did.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((line) => line.startsWith("data: "))) {
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// --- tokens ----------------------------------------------------------------------------------------------------------

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

// --- one thing at a time ---------------------------------------------------------------------------------------------

let job = null; // what writes
let scoring = null; // what reads a text while its author pauses

function halt() {
  scoring?.abort();
  job?.abort();
  job = null;
}

function say(text) { $("status").textContent = text; }

function fail(text) {
  $("error").textContent = text ?? "";
  $("error").hidden = !text;
}

async function work(passage, task) {
  halt();
  fail(null);
  const mine = (job = new AbortController());
  busy(passage);
  try {
    await task(mine.signal);
  } catch (error) {
    if (error.name === "AbortError") { if (!job) say("Stopped."); } else { say(""); fail(error.message); }
  }
  passage.finish();
  passage.element.classList.remove("writing");
  passage.changed();
  if (job !== mine && job) return; // another has begun
  job = null;
  busy(null);
  inspectSoon();
}

function busy(passage) {
  passage?.element.classList.add("writing");
  for (const id of ["stop-text", "stop-chat"]) $(id).disabled = !passage;
  $("text").readOnly = Boolean(passage);
  $("generate").textContent = draft.tokens.some((token) => token.origin !== "typed") ? "Continue" : "Generate";
  $("undo").disabled = !draft.history.length;
  $("messages").classList.toggle("busy", Boolean(passage));
}

// Continue a passage, or with maxTokens 0 only score it. Tokens without scores get theirs on the way.
async function run(passage, signal, maxTokens, stop) {
  const prompt = passage.ids(), echo = !passage.tokens.every((token) => token.top), began = performance.now();
  const room = model.context_length + 1 - prompt.length;
  const body = { ...sampling(), prompt, max_tokens: Math.min(maxTokens, Math.max(1, room)), logprobs: LIKELIEST };
  let n = echo ? 0 : prompt.length, first = null, reason = "";
  if (maxTokens) say("Writing…");
  for await (const { choices: [choice] } of events(
    await request("/v1/completions", { ...body, echo, stop, stream: true }, signal))) {
    signal.throwIfAborted();
    const { token_ids, token_logprobs, top_token_ids, top_logprobs } = choice.logprobs;
    const follow = follows(passage);
    token_ids.forEach((id, k) => {
      const p = token_logprobs[k] === null ? null : Math.exp(token_logprobs[k]);
      const top = top_token_ids[k].map((i) => ({ id: i, p: Math.exp(top_logprobs[k][raw(i)]) }));
      if (n < prompt.length) {
        const token = passage.tokens[n - passage.start.length];
        if (token) passage.paint(Object.assign(token, { p, top }));
      } else {
        passage.add(id, "model", { p, top });
        first ??= performance.now();
      }
      n += 1;
    });
    reason = choice.finish_reason ?? reason;
    passage.changed();
    follow();
  }
  if (!maxTokens) return;
  const written = n - prompt.length, seconds = (performance.now() - first) / 1000;
  const speed = written > 1 ? `, ${((written - 1) / seconds).toFixed(1)} a second after the first` : "";
  const why = reason === "stop" ? "It ended by itself." : n >= model.context_length ? "The context is full." : "";
  say(`${written} token${written === 1 ? "" : "s"} in ${((performance.now() - began) / 1000).toFixed(1)} s${speed}. ${why}`);
}

function follows(passage) { // scroll on only if the end was in view
  const bottom = () => (passage.tokens.at(-1)?.element ?? passage.element).getBoundingClientRect().bottom;
  const was = bottom();
  return () => {
    const over = bottom() - (window.innerHeight - 150);
    if (over > 0 && was < window.innerHeight && was > 0) window.scrollBy(0, over);
  };
}

function take(token, id) {
  const { passage } = token, n = passage.tokens.indexOf(token), { p, top } = token;
  if (n < 0) return;
  halt();
  passage.remember();
  passage.cut(n);
  if (passage.tail) passage.tail.textContent = "";
  if (id === undefined) return passage.write();
  if (model.stop_ids.includes(id)) {
    passage.changed();
    busy(null);
    return say("The text ends here.");
  }
  const own = top.find((other) => other.id === id)?.p ?? p;
  show(passage.add(id, "picked", { p: own, top }));
  passage.write();
}

// --- the text --------------------------------------------------------------------------------------------------------

const field = $("text"), mirror = $("mirror");
let current = null; // the token that the panel shows
const draft = new Passage(mirror, mirror.appendChild(make("span")));
let isRead = true; // whether the tokens are those of the field

draft.changed = () => {
  if (isRead) field.value = draft.text();
  judge(draft, $("verdict"));
};

draft.write = () => {
  isRead = true;
  return work(draft, (signal) => run(draft, signal, settings.max_tokens, []));
};

async function read(signal) {
  const text = field.value;
  const { token_ids, n_start } = await json("/playground/tokens", { text }, signal);
  const origins = draft.tokens.flatMap((token) => Array(token.text.length).fill(token.origin));
  const start = token_ids.slice(0, n_start), ids = token_ids.slice(n_start);
  let n = 0; // tokens that stay as they were, with their scores
  if (String(start) === String(draft.start)) while (n < ids.length && draft.tokens[n]?.id === ids[n]) n += 1;
  draft.cut(n);
  draft.start = start;
  let place = draft.text().length;
  for (const id of ids.slice(n)) place += draft.add(id, origins[place] ?? "typed").text.length;
  draft.finish();
  draft.dropsSpace = draft.text() === ` ${text}` || (draft.dropsSpace && draft.text() === text);
  draft.cut(ids.length);
  draft.finish();
  draft.tokens.forEach((token) => draft.paint(token));
  draft.tail.textContent = "";
  isRead = true;
  if (draft.text() !== text) draft.changed(); // a tokenizer may drop or compose characters
}

field.addEventListener("input", () => {
  scoring?.abort();
  let n = 0, end = 0;
  while (n < draft.tokens.length && field.value.startsWith(draft.tokens[n].text, end)) end += draft.tokens[n++].text.length;
  draft.cut(n);
  draft.tail.textContent = field.value.slice(end);
  isRead = false;
  draft.changed();
  const mine = (scoring = new AbortController());
  setTimeout(async () => {
    try {
      if (mine.signal.aborted) return;
      if (field.value) await read(mine.signal);
      if (draft.tokens.length) await run(draft, mine.signal, 0);
      fail(null);
    } catch (error) {
      if (error.name !== "AbortError") fail(error.message);
    }
  }, 500);
});

function generate() {
  draft.remember();
  work(draft, async (signal) => {
    if (!isRead || !draft.tokens.length) await read(signal);
    draft.cut(draft.tokens.length);
    await run(draft, signal, settings.max_tokens, []);
  });
}

function undo() {
  halt();
  draft.restore(draft.history.pop());
  field.value = draft.text() + draft.tail.textContent;
  isRead = !draft.tail.textContent;
  draft.changed();
  busy(null);
}

function clear() {
  halt();
  draft.remember();
  draft.cut(0);
  draft.tail.textContent = field.value = "";
  isRead = true;
  say("");
  fail(null);
  draft.changed();
  busy(null);
  field.focus();
}

// The tokens lie above the field and get the pointer; the caret and the selection are the field's.
function placeOf(node, offset) {
  const range = document.createRange();
  range.selectNodeContents(mirror);
  range.setEnd(node, offset);
  return range.toString().length;
}

mirror.addEventListener("pointerdown", (event) => {
  if (event.pointerType !== "mouse" || event.button) return; // a finger looks at a token without the keyboard
  document.addEventListener("pointerup", () => {
    const selection = getSelection(), range = selection.rangeCount && selection.getRangeAt(0);
    if (!range || !mirror.contains(range.startContainer) || !mirror.contains(range.endContainer)) return;
    const places = [placeOf(range.startContainer, range.startOffset), placeOf(range.endContainer, range.endOffset)];
    field.focus({ preventScroll: true });
    field.setSelectionRange(...places);
  }, { once: true });
});

field.addEventListener("keyup", (event) => {
  if (!/^(Arrow|Home|End|Page)/.test(event.key) || event.altKey || !isRead) return;
  let place = 0;
  const at = draft.tokens.find((token) => (place += token.text.length) > field.selectionStart) ?? draft.tokens.at(-1);
  if (at) show(at);
});

// --- the tales -------------------------------------------------------------------------------------------------------

const RULES = {
  pronoun: "the pronouns follow from the hero’s name", thing: "the thing that was lost is the one that is found",
  order: "friends help in the order in which they were met", count: "what is announced is counted",
};

async function judge(passage, line, asked) {
  passage.isStale = true;
  if (!model?.tales || passage.isJudged) return;
  passage.isJudged = true; // a verdict is on its way; what is written meanwhile gets the next one
  while (passage.isStale) {
    passage.isStale = false;
    await new Promise((resolve) => setTimeout(resolve, 150));
    const text = passage.text() + (passage.tail?.textContent ?? "");
    try {
      const found = text && (await json("/playground/verdict", { text, ...(asked && { request: asked }) }));
      verdict(passage, line, text, found);
    } catch (error) {
      verdict(passage, line, text, null);
      fail(error.message);
    }
  }
  passage.isJudged = false;
}

function verdict(passage, line, text, found) {
  line.hidden = !found?.judged;
  const viable = found?.judged ? [...text].slice(0, found.viable).join("").length : Infinity; // in UTF-16
  const isBroken = viable < text.length;
  let end = 0;
  for (const token of passage.tokens) token.element.classList.toggle("bad", (end += token.text.length) > viable);
  passage.tail?.classList.toggle("bad", isBroken);
  if (line.hidden) return;
  line.className = `verdict ${found.whole ? "whole" : isBroken ? "broken" : ""}`;
  const rule = found.rule ? `Breaks the rule “${found.rule}”${RULES[found.rule] ? `: ${RULES[found.rule]}` : ""}. ` : "";
  line.textContent = found.whole ? "✓ A whole tale." : !isBroken ? "So far this can be the beginning of a tale."
    : `✗ ${rule}No tale goes on like this after “${text.slice(Math.max(0, viable - 25), viable)}”.`;
}

// --- the chat --------------------------------------------------------------------------------------------------------

let messages = []; // {role, text, element, passage}

function conversation(end = messages.length) {
  const system = $("system").value.trim();
  const said = messages.slice(0, end).map(({ role, text, passage }) => ({ role, content: passage ? passage.text() : text }));
  return [...(system ? [{ role: "system", content: system }] : []), ...said];
}

function addMessage(role, text) {
  const message = { role, text }, words = make("div", { className: role === "user" ? "words" : "words tokens" }, text ?? "");
  const tools = make("div", { className: "bar tools" });
  const tool = (label, action, isLast) =>
    tools.append(make("button", { className: `plain ${isLast ? "last-only" : ""}`, textContent: label, onclick: action }));
  message.element = make("div", { className: `message ${role}` }, make("h3", {}, role === "user" ? "You" : model.id), words);
  if (role === "user") {
    tool("Edit", () => editMessage(message), true);
  } else {
    const line = make("p", { className: "verdict", hidden: true }), passage = (message.passage = new Passage(words));
    const asked = messages.findLast(({ role }) => role === "user")?.text;
    passage.changed = () => judge(passage, line, asked);
    passage.write = () => {
      dropAfter(message);
      return work(passage, (signal) => run(passage, signal, settings.max_tokens, stops()));
    };
    words.tabIndex = 0;
    words.setAttribute("role", "group");
    words.setAttribute("aria-label", "Answer: the arrow keys go through its tokens");
    words.addEventListener("keydown", stepThrough);
    message.element.append(line);
    tool("Retry", () => respond(message), true);
    tool("Continue", () => { passage.remember(); passage.cut(passage.tokens.length); passage.write(); }, true);
    tool("Undo", () => { if (passage.history.length) { halt(); passage.restore(passage.history.pop()); passage.changed(); } }, true);
    tool("Copy", () => copy(passage.text()));
  }
  message.element.append(tools);
  $("messages").append(message.element);
  messages.push(message);
  return message;
}

const stops = () => model.stop_ids.filter((id) => id !== model.eot_id).map(raw).slice(0, 8); // eot ends any text

function dropAfter(message) {
  for (const gone of messages.splice(messages.indexOf(message) + 1)) gone.element.remove();
}

function editMessage(message) {
  halt();
  $("message").value = message.text;
  dropAfter(message);
  messages.pop();
  message.element.remove();
  show(null);
  $("message").focus();
}

function respond(message) {
  const { passage } = message;
  dropAfter(message);
  if (passage.tokens.length) passage.remember();
  passage.cut(0);
  return work(passage, async (signal) => {
    const asked = conversation(messages.indexOf(message));
    passage.start = (await json("/playground/tokens", { messages: asked }, signal)).token_ids;
    await run(passage, signal, settings.max_tokens, stops());
  });
}

function send() {
  const text = $("message").value.trim();
  if (!text) return $("message").focus();
  halt();
  $("message").value = "";
  addMessage("user", text);
  const message = addMessage("assistant");
  message.element.scrollIntoView({ block: "nearest" });
  respond(message);
}

function stepThrough(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const { tokens } = messages.find(({ passage }) => passage?.element === event.currentTarget).passage;
  if (!step || !tokens.length) return;
  event.preventDefault();
  show(tokens[Math.min(tokens.length - 1, Math.max(0, tokens.indexOf(current) + step))]);
}

// --- the panel -------------------------------------------------------------------------------------------------------

function show(token, isSheet = true) {
  const before = current;
  current = token;
  for (const one of [before, token]) one?.passage.paint(one);
  if (before !== token) highlight([]);
  $("hint").hidden = Boolean(token);
  $("inside").hidden = !token;
  $("panel").classList.toggle("open", Boolean(token) && isSheet);
  document.body.classList.toggle("sheet", Boolean(token) && isSheet);
  if (!token) return;
  const { id, p, top, passage } = token, rank = top?.findIndex((other) => other.id === id) ?? -1;
  $("token").textContent = visible(id);
  $("figures").textContent = p == null
    ? `Token ${id}. ${top ? "Nothing comes before it, so it has no probability." : "Its probability is not known yet."}`
    : `Token ${id}, probability ${percent(p)}, surprise ${Math.abs(Math.log2(p)).toFixed(1)} bits`;
  const shown = top?.length && rank < 0 ? [...top, { id, p }] : top ?? [];
  $("alternatives").replaceChildren(...shown.map((other) => make("li", {}, choice(token, other))));
  $("note").textContent = rank < 0 && top?.length ? `It was not among the ${top.length} likeliest. ` : "";
  $("note").textContent += "These are the model’s own probabilities; temperature and the other settings come after them.";
  const n = passage.tokens.indexOf(token);
  $("previous").disabled = n === 0;
  $("next").disabled = n === passage.tokens.length - 1;
  inspectSoon();
}

function choice(token, { id, p }) {
  const button = make("button", { className: "choice", title: `Take token ${id} and continue from there` },
    make("span", {}, visible(id)), make("span", {}, percent(p)));
  button.style.setProperty("--p", p);
  Object.assign(button.dataset, { id, p });
  if (id === token.id) button.setAttribute("aria-current", "true");
  button.onclick = () => take(token, id);
  return button;
}

function step(by) {
  const { tokens } = current.passage;
  show(tokens[tokens.indexOf(current) + by] ?? current);
}

$("alternatives").addEventListener("keydown", (event) => {
  const item = document.activeElement.closest("li");
  const next = { ArrowDown: item?.nextSibling, ArrowUp: item?.previousSibling }[event.key];
  if (!next) return;
  event.preventDefault();
  next.firstChild.focus();
});

// --- a look inside ---------------------------------------------------------------------------------------------------

const looks = new Map(); // the last ones, by layer and tokens
let timer, asking;

function inspectSoon() {
  clearTimeout(timer);
  timer = setTimeout(inspect, 200);
}

async function inspect() {
  const token = current, n = token?.passage.tokens.indexOf(token);
  if (!token || n < 0 || !($("lens").open || $("attention").open) || !$("inside").offsetParent) return;
  if (job) return void ($("inside-note").textContent = "The look inside comes after the writing.");
  const all = token.passage.ids(n), ids = all.slice(-model.max_inspected), dropped = all.length - ids.length;
  const layer = Number($("layer").value), key = `${layer}:${ids}`;
  let note = dropped ? `Seen with the last ${ids.length} tokens before it.` : "";
  asking?.abort();
  asking = new AbortController();
  if (ids.length && !looks.has(key)) {
    $("inside").classList.add("looking");
    try {
      const found = await json("/playground/inspect", { token_ids: ids, layer }, asking.signal);
      const [attention, heads] = [found.attention, found.heads].map((s) => Uint8Array.from(atob(s), (c) => c.charCodeAt(0)));
      looks.set(key, { lens: found.lens, attention, heads });
      if (looks.size > 40) looks.delete(looks.keys().next().value);
    } catch (error) {
      if (error.name === "AbortError") return;
      note = error.message;
    }
    $("inside").classList.remove("looking");
  }
  if (!ids.length) note = "Nothing comes before the first token: the model has not predicted it.";
  $("inside-note").textContent = note;
  const found = looks.get(key);
  for (const id of ["lens", "attention"]) $(id).hidden = !found;
  if (!found || current !== token) return;
  drawLens(found.lens, token);
  drawAttention(found, ids, token.passage, dropped);
}

function drawLens(lens, token) {
  $("layers").replaceChildren(...lens.map(([best, ...others], layer) => {
    const guess = make("span", { className: "guess" }, visible(best.id));
    guess.style.setProperty("--p", best.p);
    const row = make("tr", { className: best.id === token.id ? "hit" : "" },
      make("td", {}, layer ? String(layer) : "embedding"), make("td", {}, guess), make("td", {}, percent(best.p)));
    row.title = others.map(({ id, p }) => `${visible(id)} ${percent(p)}`).join("   ");
    return row;
  }));
}

let redraw = () => {};

function drawAttention(found, ids, passage, dropped) {
  const { n_layers, n_heads } = model, size = ids.length, layer = Number($("layer").value), head = $("head").value;
  const row = (l, h) => found.attention.subarray((l * n_heads + h) * size, (l * n_heads + h + 1) * size);
  const rows = head === "mean" ? [...Array(n_heads).keys()].map((h) => row(layer, h)) : [row(layer, Number(head))];
  const weights = ids.map((_, t) => rows.reduce((sum, one) => sum + one[t], 0) / rows.length / 255);
  highlight(weights.map((weight, t) => [passage.tokens[t + dropped - passage.start.length], weight]));
  const seen = weights.map((weight, t) => [weight, t]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  $("seen").replaceChildren(...seen.map(([weight, t]) => {
    const item = make("li", { className: "choice" }, make("span", {}, visible(ids[t])),
      make("span", { className: "quiet" }, `${size - t} back`), make("span", {}, percent(weight)));
    item.style.setProperty("--p", weight);
    return item;
  }));
  $("layer-name").textContent = `layer ${layer + 1}`;
  const rgb = getComputedStyle(document.documentElement).getPropertyValue("--look-rgb").trim().split(" ");
  drawGrid(rgb, layer, head, (l, h) => Math.max(0, ...row(l, h).subarray(1, size - 1)) / 255);
  $("heads").replaceChildren(...Array.from({ length: n_heads }, (_, h) => {
    const canvas = make("canvas", { width: size, height: size }), pixels = new ImageData(size, size);
    found.heads.subarray(h * size * size, (h + 1) * size * size)
      .forEach((value, i) => pixels.data.set([...rgb, value], 4 * i));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    const button = make("button", { onclick: () => choose(layer, h) }, canvas, `head ${h + 1}`);
    button.setAttribute("aria-pressed", String(h) === head);
    return button;
  }));
  redraw = () => drawAttention(found, ids, passage, dropped);
}

function drawGrid(rgb, layer, head, strength) {
  const { n_layers, n_heads } = model, cell = Math.max(8, Math.min(28, Math.floor(660 / n_layers)));
  const canvas = Object.assign($("grid"), { width: n_layers * cell, height: n_heads * cell }), context = canvas.getContext("2d");
  canvas.style.maxWidth = `${canvas.width}px`;
  for (let l = 0; l < n_layers; l += 1) {
    for (let h = 0; h < n_heads; h += 1) {
      context.fillStyle = `rgb(${rgb.join(" ")} / ${strength(l, h)})`;
      context.fillRect(l * cell, h * cell, cell - 1, cell - 1);
    }
  }
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  context.lineWidth = 2;
  const [top, tall] = head === "mean" ? [0, n_heads] : [Number(head), 1];
  context.strokeRect(layer * cell, top * cell, cell - 1, tall * cell - 1);
}

function choose(layer, head) {
  $("layer").value = layer;
  $("head").value = head;
  inspect();
}

let highlighted = [];

function highlight(weights) {
  for (const token of highlighted) token.element.style.removeProperty("--a");
  highlighted = [];
  for (const [token, weight] of weights) {
    if (!token || weight < 0.01) continue;
    token.element.style.setProperty("--a", weight);
    highlighted.push(token);
  }
}

// --- the settings ----------------------------------------------------------------------------------------------------

const FIELDS = [
  { name: "temperature", label: "Temperature", value: 0.8, min: 0, max: 2, step: 0.05,
    help: "Low: safe and repetitive. High: bold. 0: always the likeliest token." },
  { name: "top_k", label: "Top-k", value: 0, min: 0, max: 200, step: 1, help: "Draw from the k likeliest tokens. 0: from all." },
  { name: "top_p", label: "Top-p", value: 1, min: 0.01, max: 1, step: 0.01,
    help: "Draw from the likeliest tokens that have this probability together. 1: from all." },
  { name: "min_p", label: "Min-p", value: 0, min: 0, max: 1, step: 0.01,
    help: "Leave out tokens below this share of the likeliest one’s probability." },
  { name: "repetition_penalty", label: "Repetition penalty", value: 1, min: 1, max: 2, step: 0.05,
    help: "Above 1: tokens that were used become less likely." },
  { name: "max_tokens", label: "Most tokens", value: 100, min: 1, max: 1000, step: 1, help: "Where to stop at the latest." },
  { name: "seed", label: "Seed", value: 1, min: 0, max: 2 ** 31 - 1, step: 1, noSlider: true,
    help: "The same seed and settings give the same text." },
];
const settings = {};

function set(name, value) {
  settings[name] = value;
  if (name === "new_seed") $(name).checked = value;
  else for (const suffix of ["", "-slider"]) if ($(name + suffix)) $(name + suffix).value = value;
  storage.set("localStorage", "playground", JSON.stringify(settings));
  const changed = FIELDS.filter((one) => one.name !== "seed" && settings[one.name] !== one.value);
  $("settings-summary").textContent = changed.map((one) => `${one.label.toLowerCase()} ${settings[one.name]}`).join(", ");
}

function defaults() {
  for (const { name, value } of FIELDS) set(name, value);
  set("new_seed", true);
}

function makeFields() {
  for (const { name, label, value, min, max, step, help, noSlider } of FIELDS) {
    const limit = (x) => (Number.isFinite(x) ? Math.min(max, Math.max(min, step === 1 ? Math.round(x) : x)) : value);
    const number = make("input", { type: "number", id: name, min, max, step });
    number.onchange = () => set(name, limit(number.value === "" ? NaN : Number(number.value)));
    number.setAttribute("aria-describedby", `${name}-help`);
    const parts = [make("label", { htmlFor: name }, label), number];
    if (!noSlider) {
      const slider = make("input", { type: "range", id: `${name}-slider`, min, max, step });
      slider.oninput = () => set(name, Number(slider.value));
      slider.setAttribute("aria-label", label);
      parts.push(slider);
    } else {
      const box = make("input", { type: "checkbox", id: "new_seed", onchange: () => set("new_seed", box.checked) });
      parts.push(make("label", { className: "check" }, box, "A new one each time"));
    }
    $("fields").append(make("div", { className: "field" }, ...parts, make("small", { id: `${name}-help` }, help)));
  }
  let kept = {};
  try { kept = JSON.parse(storage.get("localStorage", "playground")) ?? {}; } catch { /* not ours */ }
  defaults();
  for (const name of Object.keys(settings)) if (typeof kept[name] === typeof settings[name]) set(name, kept[name]);
}

function sampling() { // settings that change nothing are left out
  if (settings.new_seed) set("seed", Math.floor(Math.random() * 2 ** 31));
  const { temperature, top_k, top_p, min_p, repetition_penalty, seed } = settings;
  return { temperature, ...(top_k && { top_k }), ...(top_p < 1 && { top_p }), ...(min_p && { min_p }),
    ...(repetition_penalty !== 1 && { repetition_penalty }), seed };
}

// --- copying ---------------------------------------------------------------------------------------------------------

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page from another machine without HTTPS
    const area = document.body.appendChild(make("textarea", { value: text }));
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("Copied.");
}

function curl(path, body) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const key = storage.get("sessionStorage", "key") ? ` -H "Authorization: Bearer $GPT_API_KEY"` : "";
  copy(`curl ${location.origin}${path} -H 'Content-Type: application/json'${key} -d ${quote(JSON.stringify(body))}`);
}

function curlOf(view) {
  const { new_seed } = settings;
  settings.new_seed = false; // the seed of the last text
  const body = { ...sampling(), max_tokens: settings.max_tokens };
  settings.new_seed = new_seed;
  if (view === "text") return curl("/v1/completions", { prompt: field.value, ...body });
  const asked = conversation(messages.findLastIndex(({ role }) => role === "user") + 1), text = $("message").value.trim();
  curl("/v1/chat/completions", { messages: text ? [...conversation(), { role: "user", content: text }] : asked, ...body });
}

// --- the page --------------------------------------------------------------------------------------------------------

function open(view) {
  for (const name of ["text", "chat"]) {
    $(`view-${name}`).hidden = name !== view;
    $(`tab-${name}`).setAttribute("aria-selected", name === view);
    $(`tab-${name}`).tabIndex = name === view ? 0 : -1;
  }
  show(null);
  $(view === "text" ? "text" : "message").focus({ preventScroll: true });
}

const isChat = () => !$("view-chat").hidden;

Object.entries({
  generate, undo, clear, send, "stop-text": halt, "stop-chat": halt, reset: defaults,
  copy: () => copy(field.value), "curl-text": () => curlOf("text"), "curl-chat": () => curlOf("chat"),
  "new-chat": () => { halt(); dropAfter(null); show(null); say(""); fail(null); $("message").focus(); },
  previous: () => step(-1), next: () => step(1), close: () => show(null), again: () => take(current),
  "tab-text": () => open("text"), "tab-chat": () => open("chat"),
}).forEach(([id, action]) => $(id).addEventListener("click", () => action()));

$("tabs").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
  open(isChat() ? "text" : "chat");
  $(isChat() ? "tab-chat" : "tab-text").focus();
});

for (const id of ["layer", "head"]) $(id).addEventListener("change", inspect);
for (const id of ["lens", "attention"]) $(id).addEventListener("toggle", inspectSoon);
$("grid").addEventListener("click", (event) => {
  const box = $("grid").getBoundingClientRect();
  choose(Math.floor((event.clientX - box.left) / box.width * model.n_layers),
    Math.floor((event.clientY - box.top) / box.height * model.n_heads));
});

let rest;
document.addEventListener("pointermove", ({ pointerType, target }) => {
  clearTimeout(rest);
  if (pointerType === "mouse" && target.token && target.token !== current)
    rest = setTimeout(() => target.isConnected && show(target.token, false), REST_MS);
});
document.addEventListener("click", ({ target }) => { if (target.token) show(target.token); });

document.addEventListener("keydown", (event) => {
  const { key, altKey, shiftKey, target } = event;
  if (key === "Enter" && !event.isComposing &&
    (event.ctrlKey || event.metaKey || (target === $("message") && !shiftKey))) {
    event.preventDefault();
    if (isChat()) send(); else generate();
  } else if (key === "Escape" && !$("key-dialog").open) {
    if (job) halt(); else if (current) { current.passage.element.focus(); if (!isChat()) field.focus(); show(null); }
  } else if (altKey && key === "ArrowDown" && current) {
    event.preventDefault();
    ($("alternatives").querySelector("[aria-current]") ?? $("again")).focus();
  }
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());

async function begin() {
  makeFields();
  if (window.innerWidth > 1180) $("controls").open = true;
  if (window.innerWidth <= 800) $("lens").open = $("attention").open = false; // asked for with a touch
  try {
    model = await json("/playground/model");
    vocabulary = await json("/playground/vocabulary");
  } catch (error) {
    return fail(error.message);
  }
  const { id, parameters, context_length, n_layers, n_heads, vocab_size } = model;
  const size = parameters < 1e6 ? `${Math.round(parameters / 1e3)} thousand` : `${(parameters / 1e6).toPrecision(3)} million`;
  $("name").textContent = id;
  document.title = `${id}: playground`;
  $("facts").textContent = `${size} parameters, ${n_layers} layers of ${n_heads} heads, ` +
    `${vocab_size.toLocaleString("en")} tokens, a context of ${context_length.toLocaleString("en")}`;
  $("tabs").hidden = !model.chat;
  $("layer").append(...Array.from({ length: n_layers }, (_, l) => make("option", { value: l }, String(l + 1))));
  $("head").append(make("option", { value: "mean" }, "mean of all"),
    ...Array.from({ length: n_heads }, (_, h) => make("option", { value: h }, String(h + 1))));
  $("layer").value = Math.floor((n_layers - 1) / 2);
  document.body.dataset.ready = "true";
  if (field.value) field.dispatchEvent(new Event("input")); // kept by the browser over a reload
  field.focus({ preventScroll: true });
}

begin();
