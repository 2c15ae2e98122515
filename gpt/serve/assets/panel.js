// The panel: a token, its probability, and its alternatives.

function show(token, isSheet = true) {
  const before = current;
  current = token;
  for (const one of [before, token]) one?.passage.paint(one);
  if (before !== token) highlight([]);
  $("hint").hidden = Boolean(token);
  $("inside").hidden = !token;
  if (isSheet) for (const one of [$("panel"), document.body]) one.classList.toggle("sheet", Boolean(token));
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
  if ($("close").offsetParent) token.element.scrollIntoView({ block: "nearest" }); // above the sheet
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
