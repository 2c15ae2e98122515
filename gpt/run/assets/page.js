// The page of a run: curves by uPlot, samples, tokens and attention by tokens.js. The data are in the page.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const redrawn = []; // functions that draw again when colours change

// --- numbers ---------------------------------------------------------------------------------------------------------

/** Return a number as a text of about four digits: "1,234", "0.0123", "3e-4", "1.2M". */
function shown(x) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  if (size >= 1e6) return `${+(x / 1e6).toPrecision(4)}M`;
  if (size >= 1000) return Math.round(x).toLocaleString("en");
  if (size && size < 1e-3) return x.toExponential(2).replace(/\.?0*e/, "e").replace("e+", "e");
  return String(+x.toPrecision(4));
}

/** Return evenly spaced numbers as texts, with as many digits as tell them apart. */
function ticks(values) {
  const digits = Math.ceil(-Math.log10(Math.abs(values[1] - values[0]) || 1)) + 1;
  const isPlain = digits <= 5 && Math.abs(values.at(-1)) < 1e6;
  return values.map((y) => (isPlain ? y.toLocaleString("en", { maximumFractionDigits: Math.max(0, digits) }) : shown(y)));
}

// --- curves ----------------------------------------------------------------------------------------------------------

const DASHES = [[], [8, 4], [2, 3], [12, 3, 2, 3], [5, 2], [1, 5]]; // by run: colours alone do not tell curves apart
const NARROW = 480; // pixels: below it, labels of lines stand inside a chart
const X_NAMES = { step: "step", tokens_seen: `${data.curves.unit}s seen`, elapsed_s: "seconds" };
const charts = []; // uPlot's, in the order of data.curves.charts
const logs = data.curves.charts.map((chart) => chart.log);
let x = "step", range = [0, 1], full = [0, 1], hasLevels = true;

/** Return the series of a chart: their names, styles, and points [xs, ys, errors] without gaps. */
function seriesOf(chart, isLog) {
  const found = [], runs = data.curves.runs, many = runs.length > 1;
  runs.forEach(({ name, columns }, number) => {
    for (const column of chart.columns) {
      if (!columns[column]) continue;
      const isVal = column.startsWith("val_"), errors = column === "val_loss" ? columns.val_loss_se : undefined;
      const rows = columns[column].map((y, i) => [columns[x][i], y, errors?.[i]]).filter(
        ([place, y]) => place !== null && y !== null && (!isLog || y > 0));
      if (!rows.length) continue;
      const split = chart.columns.length > 1 || isVal ? (isVal ? "validation" : "training") : "";
      const label = [many ? name : "", split].filter(Boolean).join(", ") || chart.title;
      const points = [0, 1, 2].map((k) => rows.map((row) => row[k]));
      found.push({ label, isVal, points, number, colour: `--series-${(many ? number : isVal ? 1 : 0) % 6}` });
    }
  });
  return found;
}

/** Draw bands of two standard errors' width, and lines to compare with, under the curves. */
function drawUnder(u, chart, series) {
  const { ctx, bbox } = u, dpr = devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  series.forEach(({ points: [xs, ys, errors], colour }, i) => {
    if (errors[0] === undefined || !u.series[i + 1].show) return;
    const edge = (sign) => xs.map((at, k) =>
      [u.valToPos(at, "x", true), u.valToPos(Math.max(ys[k] + sign * (errors[k] ?? 0), u.scales.y.min), "y", true)]);
    ctx.fillStyle = css(colour);
    ctx.globalAlpha = 0.22;
    ctx.beginPath();
    [...edge(1), ...edge(-1).reverse()].forEach((point) => ctx.lineTo(...point));
    ctx.fill();
  });
  ctx.restore();
  ctx.save();
  ctx.font = `${11 * dpr}px system-ui, sans-serif`;
  ctx.textBaseline = "middle";
  ctx.lineWidth = dpr;
  const right = bbox.left + bbox.width, isBeside = u.width > NARROW;
  let lowest = Infinity; // labels do not overlap: from the bottom up
  const levels = hasLevels ? chart.levels.toSorted((a, b) => a[1] - b[1]) : [];
  for (const [name, y] of levels) {
    if (y < u.scales.y.min || y > u.scales.y.max) continue;
    const place = u.valToPos(y, "y", true), isFloor = name === "entropy floor", text = `${name} ${shown(y)}`;
    ctx.strokeStyle = ctx.fillStyle = css(isFloor ? "--series-2" : "--muted");
    ctx.setLineDash(isFloor ? [] : [4 * dpr, 4 * dpr]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, place);
    ctx.lineTo(right, place);
    ctx.stroke();
    lowest = Math.min(isBeside ? place : place - 8 * dpr, lowest - 13 * dpr);
    ctx.textAlign = isBeside ? "left" : "right";
    ctx.fillText(text, isBeside ? right + 6 * dpr : right - 4 * dpr, lowest);
  }
  ctx.restore();
}

/** Return a number above 0 rounded to one digit by `round`. */
function oneDigit(y, round) {
  const unit = 10 ** Math.floor(Math.log10(y));
  return round(y / unit) * unit;
}

/** Return the range of the vertical axis: that of the curves and, unless zoomed, of the lines to compare with. */
function yRange(chart, isLog, low, high) {
  if (low === null) return [isLog ? 0.1 : 0, 1];
  const isFull = range[0] === full[0] && range[1] === full[1];
  const levels = hasLevels && isFull ? chart.levels.map((level) => level[1]).filter((y) => !isLog || y > 0) : [];
  const [min, max] = [Math.min(low, ...levels), Math.max(high, ...levels)];
  if (isLog) return [oneDigit(min, Math.floor), oneDigit(max, Math.ceil)];
  const room = (max - min || Math.abs(max) || 1) * 0.06;
  return [min >= 0 ? Math.max(0, min - room) : min - room, max + room];
}

/** Return the nearest row to i in which a series has a point. */
function nearest(u, series, i) {
  const ys = u.data[series];
  if (!series || ys[i] != null) return i;
  for (let d = 1; d < ys.length; d++) for (const at of [i - d, i + d]) if (ys[at] != null) return at;
  return i;
}

/** Make uPlot draw a chart into its place. */
function plot(place, chart, number) {
  const isLog = logs[number], series = seriesOf(chart, isLog);
  const many = data.curves.runs.length > 1, styles = ["solid", "dashed", "dotted"];
  const axis = { stroke: () => css("--muted"), grid: { stroke: () => css("--grid"), width: 1 }, ticks: { show: false } };
  axis.font = "12px system-ui, sans-serif";
  const options = {
    width: place.clientWidth, height: number ? 230 : 340,
    padding: [12, (u) => (hasLevels && chart.levels.length && u.width > NARROW ? 118 : 12), 0, 0],
    scales: {
      x: { time: false, range: () => range },
      y: { distr: isLog ? 3 : 1, range: (u, low, high) => yRange(chart, isLog, low, high) },
    },
    axes: [
      { ...axis, values: (u, values) => values.map(shown), size: 26, label: X_NAMES[x], labelSize: 18, labelFont: axis.font, space: 70 },
      { ...axis, values: (u, values) => (isLog ? values.map((y) => (y === null ? "" : shown(y))) : ticks(values)), size: 58 },
    ],
    series: [
      { label: X_NAMES[x], value: (u, value) => shown(value ?? u.data[0].at(-1)) },
      ...series.map(({ label, isVal, colour, number: run, points: [, ys, errors] }) => ({
        label: isVal ? `● ${label}` : label, width: many && !isVal ? 1.25 : 2, spanGaps: true, stroke: () => css(colour), dash: DASHES[run % 6],
        points: { show: isVal || ys.length < 2, size: 7, fill: () => css(colour) },
        value: (u, value) => {
          const at = value == null ? ys.length - 1 : ys.indexOf(value);
          return shown(ys[at]) + (errors[at] ? ` ± ${shown(errors[at])}` : "");
        },
      })),
    ],
    legend: { markers: { dash: (u, i) => styles[series[i - 1].number % 3] } },
    cursor: {
      dataIdx: nearest, drag: { x: true, y: false, setScale: false }, points: { size: 9 },
      sync: { key: "run", scales: ["x", null], filters: { pub: (type) => !["mousedown", "mouseup", "dblclick"].includes(type) } },
      bind: { dblclick: () => () => zoom(...full) },
    },
    hooks: {
      drawAxes: [(u) => drawUnder(u, chart, series)],
      setSelect: [(u) => {
        if (u.select.width > 4) zoom(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"));
        u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
      }],
    },
  };
  const u = new uPlot(options, uPlot.join(series.map(({ points: [xs, ys] }) => [xs, ys])), place);
  u.root.querySelectorAll(".u-series:not(:first-child) th").forEach((name) => {
    name.tabIndex = 0;
    name.setAttribute("role", "button");
    name.addEventListener("keydown", (event) => event.key === "Enter" && name.click());
  });
  return u;
}

/** Show this range of the horizontal axis in all charts. */
function zoom(low, high) {
  const [first, last] = full;
  range = [Math.max(first, low), Math.min(last, high)];
  if (!(range[1] > range[0])) range = full;
  charts.forEach((u) => u.setScale("x", { min: range[0], max: range[1] }));
}

/** Zoom by a factor around the cursor, or the middle. */
function zoomBy(factor, u) {
  const [low, high] = range, middle = u?.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : (low + high) / 2;
  zoom(middle - (middle - low) * factor, middle + (high - middle) * factor);
}

/** Move the cursor by some points of the chart, and say what is there. */
function step(u, by) {
  const last = u.data[0].length - 1, before = u.cursor.idx ?? (by > 0 ? -1 : last + 1);
  const at = Math.max(0, Math.min(last, before + by));
  u.setCursor({ left: u.valToPos(u.data[0][at], "x"), top: 20 });
  const said = [...u.root.querySelectorAll(".u-series")].map((row) => [...row.children].map((cell) => cell.innerText).join(" "));
  get("spoken").textContent = said.join("; ");
}

/** Draw all charts from the start: the axis or a scale has changed. */
function plotAll() {
  const all = data.curves.runs.flatMap((run) => run.columns[x] ?? []).filter((value) => value !== null);
  full = [Math.min(...all), Math.max(...all)];
  if (full[0] === full[1]) full[1] += 1;
  range = full;
  data.curves.charts.forEach(plotOne);
}

function plotOne(chart, number) {
  const place = get("charts").children[number].lastChild;
  charts[number]?.destroy();
  charts[number] = plot(place, chart, number);
}

function makeCharts() {
  data.curves.charts.forEach((chart, number) => {
    const log = element("button", { type: "button" }, "log");
    const title = element("h3", {}, `${chart.title[0].toUpperCase()}${chart.title.slice(1)} `, element("small", {}, chart.unit));
    const place = element("div", { tabIndex: 0 });
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", `Chart of ${chart.title}`);
    log.setAttribute("aria-pressed", String(logs[number]));
    log.setAttribute("aria-label", `logarithmic scale of ${chart.title}`);
    log.addEventListener("click", () => {
      logs[number] = !logs[number];
      log.setAttribute("aria-pressed", String(logs[number]));
      plotOne(chart, number);
    });
    place.addEventListener("keydown", (event) => {
      const u = charts[number];
      const action = {
        ArrowLeft: () => step(u, -1), ArrowRight: () => step(u, 1), "+": () => zoomBy(0.5, u), "=": () => zoomBy(0.5, u),
        "-": () => zoomBy(2, u), 0: () => zoom(...full), Escape: () => zoom(...full),
      }[event.key];
      if (!action || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      action();
    });
    get("charts").append(element("div", { className: "chart" }, element("div", {}, title, log), place));
  });
  plotAll();
  document.querySelectorAll("input[name=x]").forEach((input) => input.addEventListener("change", () => {
    x = input.value;
    plotAll();
  }));
  get("in").addEventListener("click", () => zoomBy(0.5));
  get("out").addEventListener("click", () => zoomBy(2));
  get("all").addEventListener("click", () => zoom(...full));
  get("levels").addEventListener("change", (event) => {
    hasLevels = event.target.checked;
    data.curves.charts.forEach(plotOne);
  });
  get("levels").parentNode.hidden = !data.curves.charts.some((chart) => chart.levels.length);
  const resize = (widths) => charts.forEach((u, i) => {
    const wanted = widths?.[Math.min(i, 1)] ?? get("charts").children[i].lastChild.clientWidth;
    if (wanted && u.width !== wanted) u.setSize({ width: wanted, height: u.height });
  });
  new ResizeObserver(() => resize()).observe(get("charts"));
  redrawn.push(() => charts.forEach((u) => {
    u.redraw(false, true);
    [...u.root.querySelectorAll(".u-series")].slice(1).forEach((row, i) => {
      row.querySelector(".u-marker").style.borderColor = u.series[i + 1].stroke(u, i + 1);
    });
  }));
  addEventListener("beforeprint", () => resize([640, 300])); // of a page in portrait, which is not laid out yet
  addEventListener("afterprint", () => resize());
}

// --- samples and settings --------------------------------------------------------------------------------------------

function showSample() {
  const number = +get("sample").value, { step, text, verdict } = data.samples[number];
  get("sample-step").textContent = `step ${step.toLocaleString("en")}`;
  get("sample").setAttribute("aria-valuetext", `step ${step}`);
  get("sample-text").textContent = text;
  get("verdict").textContent =
    verdict === undefined ? "" : verdict ? `✗ The grammar rejects it, first broken rule: ${verdict}` : "✓ The grammar accepts it";
  get("earlier").disabled = number === 0;
  get("later").disabled = number === data.samples.length - 1;
}

function makeSamples() {
  get("sample").addEventListener("input", showSample);
  for (const [id, by] of [["earlier", -1], ["later", 1]]) {
    get(id).addEventListener("click", () => {
      get("sample").value = +get("sample").value + by;
      showSample();
    });
  }
  showSample();
}

get("find").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  document.querySelectorAll(".settings tbody tr").forEach((row) => (row.hidden = !row.textContent.toLowerCase().includes(wanted)));
  get("others").open = wanted !== "";
});

// --- tokens ----------------------------------------------------------------------------------------------------------

const tip = createTip();

function makeSurprise({ texts, bits, ranks, likeliest, special, eot, most }) {
  const name = (i) => `“${visibleText(texts[i])}”`;
  const remark = (i) => (bits[i] === null ? "only read, not predicted" : `${bits[i].toFixed(2)} bits, rank ${ranks[i].toLocaleString("en")}`);
  const list = showTokens(get("surprise-text"), texts, {
    special, breakBefore: eot, onLeave: tip.hide,
    label: (i) => `${name(i)}: ${remark(i)}${likeliest[i].length ? `; likeliest: ${visibleText(likeliest[i][0][0])}, ${percent(likeliest[i][0][1])}` : ""}`,
    onSelect: (i, span) => tip.show(span, ...prediction(name(i), remark(i), likeliest[i], texts[i])),
  });
  list.shade(bits.map((value) => Math.min(1, (value ?? 0) / most)));
}

function makeAttention({ tokens, layers, heads, weights }) {
  const n = tokens.length, map = get("head-map"), row = document.querySelector(".map .row");
  let shownWeights = null, query = n - 1;
  row.style.height = `${100 / n}%`;
  const list = showTokens(get("sentence"), tokens, {
    label: (i) => `“${visibleText(tokens[i])}”`, onSelect: (i) => look(i), special: data.surprises.special,
  });
  const look = (i) => {
    query = i;
    const shares = [...shownWeights.subarray(i * n, (i + 1) * n)].map((weight) => weight / 255);
    list.shade(shares.map(Math.sqrt)); // small weights are seen, too
    row.hidden = false;
    row.style.top = `${(100 * i) / n}%`;
    const top = shares.map((share, j) => [share, j]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([share]) => share > 0.005);
    get("looks").textContent = `“${visibleText(tokens[i])}” looks at ` +
      top.map(([share, j]) => `“${visibleText(tokens[j])}” ${percent(share)}`).join(", ");
  };
  const enlarge = () => drawWeights(map, shownWeights, n);
  const drawAll = showHeads(get("heads"), { layers, heads, weights: decodeBytes(weights), n }, (layer, head, chosen) => {
    shownWeights = chosen;
    get("head-name").textContent = `Layer ${layer + 1}, head ${head + 1}`;
    map.setAttribute("aria-label", `Attention weights of layer ${layer + 1}, head ${head + 1}; the sentence below reads them out`);
    enlarge();
    look(query);
  });
  map.addEventListener("mousemove", (event) => {
    const i = Math.min(n - 1, Math.max(0, Math.floor((event.offsetY / map.clientHeight) * n)));
    const j = Math.min(n - 1, Math.max(0, Math.floor((event.offsetX / map.clientWidth) * n)));
    list.select(i);
    tip.show(map, `“${visibleText(tokens[i])}” looks at “${visibleText(tokens[j])}”: ${percent(shownWeights[i * n + j] / 255)}`);
  });
  map.addEventListener("mouseleave", tip.hide);
  redrawn.push(drawAll, enlarge);
}

// --- all of it -------------------------------------------------------------------------------------------------------

if (data.curves.charts.length) makeCharts();
if (data.samples.length) makeSamples();
if (data.surprises) makeSurprise(data.surprises);
if (data.attention) makeAttention(data.attention);

const redraw = () => redrawn.forEach((draw) => draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => {
  document.documentElement.classList.add("printing");
  redraw();
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("printing");
  redraw();
});
