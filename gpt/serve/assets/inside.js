// A look inside the model: the logit lens, and attention.

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
  const isNew = ids.length && !looks.has(key);
  $("inside").classList.toggle("looking", Boolean(isNew));
  if (isNew) {
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
