// The view of one text: a field that is typed into, and its tokens above it.

const field = $("text"), mirror = $("mirror");
const draft = new Passage(mirror, mirror.appendChild(make("span")));
let isRead = true; // whether the tokens are those of the field

draft.changed = () => {
  if (isRead) field.value = draft.text();
  judge(draft, $("verdict"));
};

draft.write = () => {
  isRead = true;
  return work(draft, (signal) => run(draft, signal, settings.max_tokens));
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

function scoreSoon() {
  scoring?.abort();
  const mine = (scoring = new AbortController());
  setTimeout(async () => {
    try {
      if (mine.signal.aborted) return;
      if (!isRead && field.value) await read(mine.signal);
      if (draft.tokens.some((token) => !token.top)) await run(draft, mine.signal, 0);
      fail(null);
    } catch (error) {
      if (error.name !== "AbortError") fail(error.message);
    }
  }, 500);
}

field.addEventListener("input", () => {
  let n = 0, end = 0;
  while (n < draft.tokens.length && field.value.startsWith(draft.tokens[n].text, end)) end += draft.tokens[n++].text.length;
  draft.cut(n);
  draft.tail.textContent = field.value.slice(end);
  isRead = false;
  draft.changed();
  say(/ $/.test(field.value) && vocabulary.some((text) => /^ \w/.test(text))
    ? "The text ends with a space. Most tokens bring their own: without it the model continues better." : "");
  scoreSoon();
});

function generate() {
  work(draft, async (signal) => {
    if (!isRead || !draft.tokens.length) await read(signal);
    draft.remember();
    draft.cut(draft.tokens.length);
    await run(draft, signal, settings.max_tokens);
  });
}

function undo() {
  halt();
  draft.restore(draft.history.pop());
  field.value = draft.text() + draft.tail.textContent;
  isRead = !draft.tail.textContent;
  draft.changed();
  busy(null);
  scoreSoon();
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
