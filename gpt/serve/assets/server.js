// The playground. The server reads and writes tokens; the page keeps them, with the probabilities that came with them.
// A text is a Passage: the ids before it (a start token, or a conversation), and its tokens. Both views continue one by
// sending its ids to /v1/completions, so that a token taken from the alternatives is read as it was taken.
"use strict";

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children); // strings become text: a model may write HTML
  return element;
}

const storage = { // a browser may refuse to keep anything
  get(store, key) { try { return window[store].getItem(key); } catch { return null; } },
  set(store, key, value) { try { window[store].setItem(key, value); } catch { /* not kept */ } },
};

// The server: requests, its key, its streams.

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
