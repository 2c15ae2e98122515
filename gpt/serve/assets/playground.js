// The page: its buttons, keys and pointers, and how it begins.

const REST_MS = 90; // a pointer that moves on to the panel changes nothing on its way

function open(view) {
  for (const name of ["text", "chat"]) {
    $(`view-${name}`).hidden = name !== view;
    $(`tab-${name}`).setAttribute("aria-selected", name === view);
    $(`tab-${name}`).tabIndex = name === view ? 0 : -1;
  }
  show(null);
  focusOn(view === "text" ? field : $("message"));
}

function focusOn(element) { // not where it would bring a keyboard onto the screen
  if (matchMedia("(pointer: fine)").matches) element.focus({ preventScroll: true });
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
document.addEventListener("click", ({ pointerType, target: { token } }) => {
  clearTimeout(rest);
  if (!token) return;
  if (pointerType !== "touch" || token !== current || token.passage !== draft) return show(token);
  show(null); // a second touch edits
  const place = draft.tokens.slice(0, draft.tokens.indexOf(token) + 1).reduce((sum, { text }) => sum + text.length, 0);
  field.focus();
  field.setSelectionRange(place, place);
});

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
  focusOn(field);
}

begin();
