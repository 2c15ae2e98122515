// The settings of sampling, kept by the browser; and requests to copy.

const FIELDS = [
  { name: "temperature", label: "Temperature", value: 0.8, min: 0, max: 2, step: 0.05,
    help: "Low: safe and repetitive. High: bold. 0: always the likeliest token." },
  { name: "top_k", label: "Top-k", value: 0, min: 0, max: 200, step: 1, help: "Draw from the k likeliest tokens. 0: from all." },
  { name: "top_p", label: "Top-p", value: 1, min: 0.01, max: 1, step: 0.01,
    help: "Draw from the likeliest tokens whose probabilities sum to this. 1: from all." },
  { name: "min_p", label: "Min-p", value: 0, min: 0, max: 1, step: 0.01,
    help: "Leave out tokens below this share of the likeliest one’s probability." },
  { name: "repetition_penalty", label: "Repetition penalty", value: 1, min: 1, max: 2, step: 0.05,
    help: "Above 1: tokens that were used become less likely." },
  { name: "max_tokens", label: "Max tokens", value: 250, min: 1, max: 1000, step: 1, help: "The most tokens to write." },
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
