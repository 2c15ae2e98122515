// Writing: one passage at a time is continued, from its end or from another token of it.

const LIKELIEST = 10; // alternatives of each token
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
  const mine = (job = Object.assign(new AbortController(), { passage }));
  busy(passage);
  try {
    await task(mine.signal);
  } catch (error) {
    if (error.name === "AbortError") { if (!job) say("Stopped."); } else { say(""); fail(error.message); }
  }
  const isReplaced = job && job !== mine; // another has begun, perhaps on the same passage
  if (isReplaced && job.passage === passage) return;
  passage.finish();
  passage.element.classList.remove("writing");
  passage.changed();
  if (isReplaced) return;
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
async function run(passage, signal, maxTokens) {
  const prompt = passage.ids(), echo = !passage.tokens.every((token) => token.top), began = performance.now();
  const room = model.context_length + 1 - prompt.length;
  const body = { ...(maxTokens ? sampling() : {}), prompt, max_tokens: Math.min(maxTokens, Math.max(1, room)), logprobs: LIKELIEST };
  let n = echo ? 0 : prompt.length, first = null, reason = "";
  if (maxTokens) say("Writing…");
  for await (const { choices: [choice] } of events(
    await request("/v1/completions", { ...body, echo, stop_token_ids: model.stop_ids, stream: true }, signal))) {
    signal.throwIfAborted();
    const { token_ids, token_logprobs, top_token_ids, top_token_logprobs } = choice.logprobs;
    const follow = follows(passage);
    token_ids.forEach((id, k) => {
      const p = token_logprobs[k] === null ? null : Math.exp(token_logprobs[k]);
      const top = top_token_ids[k].map((i, nth) => ({ id: i, p: Math.exp(top_token_logprobs[k][nth]) }));
      if (n < prompt.length) {
        const token = passage.tokens[n - passage.start.length];
        if (token) passage.paint(Object.assign(token, { p, top }));
      } else {
        if (!model.stop_ids.includes(id)) passage.add(id, "model", { p, top });
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
  const speed = written > 1 ? `, ${((written - 1) / seconds).toFixed(1)} a second` : "";
  const why = reason === "stop" ? "It ended by itself." : n > model.context_length ? "The context is full." : "";
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
