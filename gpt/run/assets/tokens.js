// Text as tokens with a tooltip, and heat maps of attention: plain functions that know nothing of the page around them.
"use strict";

/** Return the bytes of a base64 text. */
function decodeBytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/** Return a token's text with its white space made visible. */
function visibleText(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
}

/** Return a new element with properties, such as className, and children: elements or texts. */
function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Return a tooltip that `show`s content below an element and `hide`s it. Escape hides it, too. */
function createTip() {
  const tip = element("div", { className: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  const hide = () => (tip.hidden = true);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  const show = (target, ...content) => {
    tip.replaceChildren(...content);
    tip.hidden = false;
    const box = target.getClientRects()[0], width = document.documentElement.clientWidth;
    tip.style.left = `${Math.max(8, Math.min(box.left, width - tip.offsetWidth - 8)) + scrollX}px`;
    const below = box.bottom + 6 + tip.offsetHeight <= innerHeight || box.top < tip.offsetHeight;
    tip.style.top = `${(below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + scrollY}px`;
  };
  return { show, hide };
}

/**
 * Show texts of tokens in a box, one element each; return { shade(values 0..1), select(i) }.
 *
 * `label(i)` is what a screen reader says of token i. `onSelect(i, element)` is called when a pointer or the keyboard
 * (arrows, Home, End) comes to a token, `onLeave()` when it leaves. Texts in `special` are drawn as tags; each
 * `breakBefore` starts a line.
 */
function showTokens(box, texts, { label, onSelect, onLeave = () => {}, special = [], breakBefore = null }) {
  box.classList.add("tokens");
  box.setAttribute("role", "listbox");
  const spans = texts.map((text, i) => {
    const isSpecial = special.includes(text);
    const span = element("span", { tabIndex: i ? -1 : 0, className: isSpecial ? "special" : "" });
    span.textContent = isSpecial ? text : text.replace(/\n/g, "⏎\n").replace(/^ +(?=[^ ])/, "");
    span.setAttribute("role", "option");
    span.setAttribute("aria-label", label(i));
    return span;
  });
  // a leading space stands before its element: lines break there, and it is not shaded
  const before = (text, i) => (i && text === breakBefore ? "\n" : special.includes(text) ? "" : text.match(/^ +(?=[^ ])|/)[0]);
  box.replaceChildren(...spans.flatMap((span, i) => [before(texts[i], i), span]));
  const index = (event) => spans.indexOf(event.target.closest("[role=option]"));
  let current = 0;
  const select = (i) => {
    spans[current].tabIndex = -1;
    spans[current].setAttribute("aria-selected", "false");
    current = i;
    spans[i].tabIndex = 0;
    spans[i].setAttribute("aria-selected", "true");
    onSelect(i, spans[i]);
  };
  const onLine = (step) => { // the nearest token of the line above or below
    const place = (i) => spans[i].getClientRects()[0];
    const here = place(current);
    let best = current, line = null;
    for (let i = current + step; i >= 0 && i < spans.length; i += step) {
      const there = place(i);
      if (Math.abs(there.top - here.top) < 4) continue;
      line ??= there.top;
      if (Math.abs(there.top - line) > 4) break;
      if (best === current || Math.abs(there.left - here.left) < Math.abs(place(best).left - here.left)) best = i;
    }
    return best;
  };
  box.addEventListener("mouseover", (event) => index(event) >= 0 && select(index(event)));
  box.addEventListener("focusin", (event) => index(event) >= 0 && select(index(event)));
  box.addEventListener("click", (event) => index(event) >= 0 && spans[index(event)].focus());
  box.addEventListener("mouseleave", () => box.contains(document.activeElement) || onLeave());
  box.addEventListener("focusout", onLeave);
  box.addEventListener("keydown", (event) => {
    const last = spans.length - 1;
    const to = {
      ArrowLeft: current - 1, ArrowRight: current + 1, ArrowUp: onLine(-1), ArrowDown: onLine(1), Home: 0, End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    spans[Math.max(0, Math.min(last, to))].focus();
  });
  return { shade: (values) => spans.forEach((span, i) => span.style.setProperty("--shade", values[i] ?? 0)), select };
}

/**
 * Return the content of a tooltip on a prediction: a title, a remark, and rows of text and probability, of which the
 * one that came true is marked.
 */
function prediction(title, remark, rows, truth) {
  const table = element("table", {});
  for (const [text, probability] of rows) {
    const isHit = text === truth;
    const row = element("tr", { className: isHit ? "hit" : "" });
    row.append(element("td", {}, (isHit ? "✓ " : "") + visibleText(text)), element("td", {}, percent(probability)));
    table.append(row);
  }
  return [element("strong", {}, title), remark, table];
}

/** Return a share as a text: "12%", "0.3%". */
function percent(share) {
  return `${(100 * share).toFixed(share >= 0.095 || share === 0 ? 0 : share >= 0.0005 ? 1 : 3)}%`;
}

/** Draw n x n weights, a byte each, in the canvas's text colour, as opaque as their square roots: small ones are seen. */
function drawWeights(canvas, weights, n) {
  canvas.width = canvas.height = n;
  canvas.classList.add("weights");
  const image = new ImageData(n, n), colour = getComputedStyle(canvas).color.match(/[\d.]+/g).map(Number);
  weights.forEach((weight, i) => image.data.set([colour[0], colour[1], colour[2], Math.sqrt(255 * weight)], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/**
 * Show a grid of heat maps, a button for each head of each layer; `onSelect(layer, head, weights)` is called for the
 * one chosen, at first the first. Weights are n x n bytes per head. Returns a function that draws all of them again.
 */
function showHeads(box, { layers, heads, weights, n }, onSelect) {
  box.classList.add("heads");
  box.style.gridTemplateColumns = `auto repeat(${heads}, minmax(44px, 9rem))`;
  const buttons = [], maps = [];
  for (let layer = 0; layer < layers; layer++) {
    box.append(element("span", {}, `layer ${layer + 1}`));
    for (let head = 0; head < heads; head++) {
      const canvas = element("canvas", {}), button = element("button", { type: "button" }, canvas);
      const start = (layer * heads + head) * n * n, map = weights.subarray(start, start + n * n);
      button.setAttribute("aria-label", `layer ${layer + 1}, head ${head + 1}`);
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        onSelect(layer, head, map);
      });
      box.append(button);
      buttons.push(button);
      maps.push([canvas, map, n]);
    }
  }
  const draw = () => maps.forEach((map) => drawWeights(...map));
  draw();
  buttons[0].click();
  return draw;
}
