// The view of a conversation.

let messages = []; // {role, text, element, passage}

function conversation(end = messages.length) {
  const system = $("system").value.trim();
  const said = messages.slice(0, end).map(({ role, text, passage }) => ({ role, content: passage ? passage.text() : text }));
  return [...(system ? [{ role: "system", content: system }] : []), ...said];
}

function addMessage(role, text) {
  const message = { role, text }, words = make("div", { className: role === "user" ? "words" : "words tokens" }, text ?? "");
  const tools = make("div", { className: "bar tools" });
  const tool = (label, action, isLast) => tools.appendChild(
    make("button", { className: `plain ${isLast ? "last-only" : ""}`, textContent: label, onclick: action }));
  message.element = make("div", { className: `message ${role}` }, make("h3", {}, role === "user" ? "You" : model.id), words);
  if (role === "user") {
    tool("Edit", () => editMessage(message), true);
  } else {
    const line = make("p", { className: "verdict", hidden: true }), passage = (message.passage = new Passage(words));
    const asked = messages.findLast(({ role }) => role === "user")?.text;
    passage.changed = () => {
      undone.disabled = !passage.history.length;
      judge(passage, line, asked);
    };
    passage.write = () => {
      dropAfter(message);
      return work(passage, (signal) => run(passage, signal, settings.max_tokens));
    };
    words.tabIndex = 0;
    words.setAttribute("role", "group");
    words.setAttribute("aria-label", "Answer: the arrow keys go through its tokens");
    words.addEventListener("keydown", stepThrough);
    message.element.append(line);
    tool("Retry", () => respond(message), true);
    tool("Continue", () => { passage.remember(); passage.cut(passage.tokens.length); passage.write(); }, true);
    const undone = tool("Undo", () => { halt(); passage.restore(passage.history.pop()); passage.changed(); }, true);
    undone.disabled = true;
    tool("Copy", () => copy(passage.text()));
  }
  message.element.append(tools);
  $("messages").append(message.element);
  messages.push(message);
  return message;
}


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
    await run(passage, signal, settings.max_tokens);
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
