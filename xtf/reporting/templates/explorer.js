"use strict";
// The explorer's page. Texts of the dataset are only ever put on the page as text nodes.

const BINS = 60;
const TYPES = { uint8: Uint8Array, uint32: Uint32Array, float32: Float32Array };
const $ = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function unpack(id) {
  const text = atob($(id).textContent), packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  $(id).remove();
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

const visible = (text) =>
  text.replace(/ /g, "·").replace(/\r/g, "␍").replace(/\n/g, "⏎").replace(/\t/g, "⇥")
    .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\u00a0]/gu, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
const percent = (share) => `${(100 * share).toFixed(2)} %`;
const number = (value) => (value === 0 || Math.abs(value) >= 0.001 ? value.toFixed(4) : value.toExponential(2));
const count = (value) => value.toLocaleString("en");

let meta, data;
let BITS, OTHER; // the bit of each attribute, by name, and that of a token without loss for a reason that is none of them
let state; // uint16 per response token: the bits of what drops it
let active, place; // by attribute name: in use?, position of its slider
let order = []; // examples that pass the filters, in the order shown
let wantedPieces = null; // places in meta.strings that the token filter asks for
let cards = [];
let droppedShare; // float64 per example
let judged; // how many tokens the thresholds judge: not the end that encoding appended to a response, where it is kept

const attributes = () => meta.attributes.filter((attribute) => active[attribute.name]);
const words = (code) =>
  code === 0 ? "kept" : code & OTHER ? "dropped by the method"
    : Object.keys(BITS).filter((name) => code & BITS[name]).map((name) => name.toUpperCase()).join(" + ");

// -- decisions --------------------------------------------------------------------------------------------------------

function decide() {
  if (!meta.live) {
    for (let i = 0; i < state.length; i++) state[i] = data.kept[i] ? 0 : OTHER;
    return;
  }
  for (let i = 0; i < state.length; i++) state[i] = data.untrained[i] ? OTHER : 0;
  for (const { name } of attributes()) {
    const first = data[`first_${name}`], limit = place[name], bit = BITS[name];
    for (let i = 0; i < state.length; i++) if (first[i] <= limit) state[i] |= bit;
  }
}

function tally() {
  const codes = new Array(2 * OTHER).fill(0);
  droppedShare.fill(0);
  for (let e = 0; e < meta.rows.length; e++) {
    let dropped = 0;
    for (let i = data.offsets[e]; i < data.offsets[e + 1]; i++) {
      if (data.judged[i]) codes[state[i]]++;
      if (state[i] && !data.untrained[i]) dropped++;
    }
    droppedShare[e] = dropped / Math.max(1, data.offsets[e + 1] - data.offsets[e]);
  }
  return codes;
}

// -- what is said about one token ------------------------------------------------------------------------------------

function quantile(sorted, q) {
  const at = q * (sorted.length - 1), below = Math.floor(at), above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (at - below);
}

function threshold(attribute, example) {
  const cut = attribute.cuts[place[attribute.name]];
  if ("p_above" in cut) return { text: cut.p_above === null ? "none" : `p above ${number(cut.p_above)}` };
  if (attribute.rule === "iqr") {
    const first = data.offsets[example], last = data.offsets[example + 1];
    const scores = data[`score_${attribute.source}`].slice(first, last).filter((_, k) => data.judged[first + k]).sort();
    const q1 = quantile(scores, 0.25), q3 = quantile(scores, 0.75);
    const fence = q1 - cut.c * (q3 - q1) - cut.below_fence_by;
    return { text: `below ${number(fence)}, this example's fence` };
  }
  if (attribute.rule === "multi_otsu") {
    if (cut.low === null || cut.high === null) return { text: "none: too few clusters" };
    return { text: `from ${number(cut.low)} to ${number(cut.high)}` };
  }
  const [side, at] = "below" in cut ? ["below", cut.below] : ["above", cut.above];
  return { text: at === null ? "none" : `${side} ${number(at)}` };
}


const chance = (p) => p.toFixed(p > 0.99 ? 4 : 2);

function reasons(i, example) {
  const code = state[i];
  if (data.untrained[i]) return ["not trained: the rows themselves leave it out"];
  if (code & OTHER) return ["dropped: the method gives it no weight"];
  const said = [];
  for (const { name, reason } of meta.attributes.filter((a) => code & BITS[a.name])) {
    const p = data.score_logp ? chance(Math.exp(data.score_logp[i])) : "";
    said.push(`dropped: ${reason.replace("{score}", number(data[`score_${name}`][i])).replace("{p}", p)}`);
  }
  if (meta.live && !data.judged[i]) said.push("kept: it ends the response and is not the data's, so no threshold judges it");
  else if (data.guarded[i]) said.push("kept: the grader reads the answer here, so nothing drops it");
  else if (!code) said.push(meta.live ? "kept: no attribute in use drops it, so it trains" : "kept: it trains");
  return said;
}

function tip(i, example) {
  const rows = [
    ["token", element("code", {}, visible(meta.strings[data.piece[i]]) || "part of a character that a later token ends")],
    ["id", String(data.id[i])],
    ["position", `${i - data.offsets[example]} of 0 to ${data.offsets[example + 1] - data.offsets[example] - 1} in the response`],
  ];
  for (const attribute of meta.attributes) {
    const dropped = meta.live ? `; drops ${threshold(attribute, example).text}${active[attribute.name] ? "" : " (not in use)"}` : "";
    rows.push([attribute.name.toUpperCase(), `${number(data[`score_${attribute.name}`][i])}${dropped}`]);
  }
  if (data.score_logp) rows.push(["p", number(Math.exp(data.score_logp[i]))]);
  const table = element("table", {}, ...rows.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value))));
  const capped = meta.live ? attributes().filter((a) => a.cap !== null).map((a) => `${a.name.toUpperCase()} drops at most ${percent(a.cap)} of a response`) : [];
  return [table, ...reasons(i, example).map((line) => element("p", {}, line)), ...capped.map((line) => element("div", {}, line))];
}

function showTip(span) {
  const card = span.closest(".card"), example = Number(card.dataset.place);
  const box = $("tip");
  box.replaceChildren(...tip(data.offsets[example] + Number(span.dataset.k), example));
  box.hidden = false;
  span.setAttribute("aria-describedby", "tip");
  const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const below = at.bottom + 6 + box.offsetHeight < innerHeight;
  box.style.top = `${below ? at.bottom + 6 : Math.max(0, at.top - box.offsetHeight - 6)}px`;
  box.style.left = `${Math.max(0, Math.min(at.left, innerWidth - box.offsetWidth - 8))}px`;
}

function hideTip() {
  $("tip").hidden = true;
}

// -- the examples: only those near the window are on the page --------------------------------------------------------

function tokenClass(i) {
  const faded = wantedState !== null && !wantedState(state[i]);
  const hit = wantedPieces !== null && wantedPieces.has(data.piece[i]);
  return `t s${state[i]}${faded ? " faded" : ""}${hit ? " hit" : ""}${meta.strings[data.piece[i]] === "" ? " part" : ""}`;
}

function tokenText(i) {
  const text = meta.strings[data.piece[i]];
  if (text === "") return "◦";
  return $("blanks").checked ? text.replace(/ /g, "·").replace(/\t/g, "⇥\t").replace(/\r?\n/g, "⏎\n") : text;
}

const SHORT = 320;

function promptOf(example) {
  const text = meta.prompts[example];
  const box = element("div", { className: "prompt", dir: "auto" });
  if (text.length <= 2 * SHORT) {
    box.textContent = text;
    return box;
  }
  const more = element("button", { type: "button", onclick: () => { box.textContent = text; } }, `… ${count(text.length - 2 * SHORT)} characters more …`);
  box.append(text.slice(0, SHORT), more, text.slice(-SHORT));
  return box;
}

function fill(card) {
  if (card.dataset.filled) return;
  const example = Number(card.dataset.place), start = data.offsets[example], end = data.offsets[example + 1];
  const response = element("div", { className: "response", dir: "auto", role: "group" });
  response.setAttribute("aria-label", `Response of example ${meta.rows[example]}`);
  for (let i = start; i < end; i++) {
    const span = element("span", { className: tokenClass(i), textContent: tokenText(i), tabIndex: i === start ? 0 : -1 });
    span.dataset.k = i - start;
    response.append(span);
  }
  card.style.minHeight = "";
  card.append(promptOf(example), response);
  card.dataset.filled = "1";
}

function empty(card) {
  if (!card.dataset.filled || card.contains(document.activeElement)) return;
  card.style.minHeight = `${card.offsetHeight}px`;
  while (card.children.length > 1) card.lastChild.remove();
  delete card.dataset.filled;
}

const observer = new IntersectionObserver(
  (entries) => entries.forEach((entry) => (entry.isIntersecting ? fill : empty)(entry.target)),
  { rootMargin: "700px 0px" },
);

function makeCards() {
  cards = meta.rows.map((row, example) => {
    const card = element("article", { className: "card" }, element("h3"));
    card.dataset.place = example;
    const characters = 4 * (data.offsets[example + 1] - data.offsets[example]) + Math.min(meta.prompts[example].length, 2 * SHORT);
    card.style.minHeight = `${50 + 26 * Math.ceil(characters / 110)}px`;
    return card;
  });
}

function title(example) {
  const length = data.offsets[example + 1] - data.offsets[example];
  cards[example].firstChild.textContent =
    `Example ${meta.rows[example]} (${visible(meta.ids[example])}): ${percent(droppedShare[example])} of ${count(length)} tokens dropped`;
}

function recolour() {
  for (const card of cards) {
    if (!card.dataset.filled) continue;
    const start = data.offsets[Number(card.dataset.place)];
    for (const span of card.querySelector(".response").children) span.className = tokenClass(start + Number(span.dataset.k));
  }
}

// -- filters ----------------------------------------------------------------------------------------------------------

let wantedState = null;
let exactPiece = null; // set by the list of most-dropped tokens

function stateFilter(name) {
  if (name === "all") return null;
  if (name === "kept") return (code) => code === 0;
  if (name === "dropped") return (code) => code !== 0;
  if (name === "several") return (code) => (code & (code - 1)) !== 0;
  return (code) => (code & BITS[name]) !== 0;
}

const fullText = (example) => {
  let text = `${meta.ids[example]}\n${meta.prompts[example]}\n`;
  for (let i = data.offsets[example]; i < data.offsets[example + 1]; i++) text += meta.strings[data.piece[i]];
  return text.toLowerCase();
};

function filter() {
  wantedState = stateFilter($("only").value);
  const token = $("token").value.toLowerCase(), text = $("text").value.toLowerCase();
  if (exactPiece !== null) wantedPieces = new Set([exactPiece]);
  else if (token) wantedPieces = new Set([...meta.strings.keys()].filter((p) => meta.strings[p].toLowerCase().includes(token)));
  else wantedPieces = null;
  order = [];
  for (let e = 0; e < meta.rows.length; e++) {
    let found = wantedState === null && wantedPieces === null;
    for (let i = data.offsets[e]; i < data.offsets[e + 1] && !found; i++)
      found = (wantedState === null || wantedState(state[i])) && (wantedPieces === null || wantedPieces.has(data.piece[i]));
    if (found && (!text || fullText(e).includes(text))) order.push(e);
  }
  const length = (e) => data.offsets[e + 1] - data.offsets[e];
  const by = { most: (a, b) => droppedShare[b] - droppedShare[a], least: (a, b) => droppedShare[a] - droppedShare[b], longest: (a, b) => length(b) - length(a) };
  if ($("sort").value in by) order.sort((a, b) => by[$("sort").value](a, b) || a - b);
  $("matches").textContent = `${count(order.length)} of ${count(meta.rows.length)} examples`;
  $("examples").replaceChildren(...order.map((e) => cards[e]));
  recolour();
}

function clearFilters() {
  $("only").value = "all";
  $("token").value = $("text").value = "";
  exactPiece = null;
  filter();
}

// -- totals, plots, the reproducing lines ----------------------------------------------------------------------------

const SMALL = { displayModeBar: false, responsive: true };
const layout = (more) => ({ margin: { l: 42, r: 6, t: 6, b: 34 }, font: { size: 10 }, showlegend: false, bargap: 0.05, barmode: "stack", ...more });

function drawOverlap(codes) {
  const shown = codes.map((n, code) => [code, n]).filter(([code, n]) => code && n);
  const colour = (code) => (code & OTHER ? meta.colours.other : meta.attributes.find((a) => BITS[a.name] === code)?.colour ?? meta.colours.several);
  Plotly.react("overlap", [{
    type: "bar", x: shown.map(([code]) => words(code).replaceAll(" + ", "<br>+ ")), y: shown.map(([, n]) => (100 * n) / judged),
    text: shown.map(([, n]) => ((100 * n) / judged).toFixed(2)), textposition: "outside", cliponaxis: false,
    marker: { color: shown.map(([code]) => colour(code)) }, hoverinfo: "none",
  }], layout({ yaxis: { title: { text: "% of tokens" }, rangemode: "tozero" }, xaxis: { type: "category" }, margin: { l: 42, r: 6, t: 16, b: 50 } }), SMALL);
}

function histogram(attribute) {
  const scores = data[`score_${attribute.name}`], bin = new Uint8Array(scores.length);
  let low = Infinity, high = -Infinity;
  for (const x of scores) { if (x < low) low = x; if (x > high) high = x; }
  const width = (high - low || 1) / BINS;
  for (let i = 0; i < bin.length; i++) bin[i] = Math.min(BINS - 1, Math.floor((scores[i] - low) / width));
  return { bin, centres: Array.from({ length: BINS }, (_, k) => low + (k + 0.5) * width) };
}

let bins = {};

function drawHistogram(attribute) {
  const { name } = attribute, { bin, centres } = bins[name];
  const kept = new Array(BINS).fill(0), dropped = new Array(BINS).fill(0);
  const first = data[`first_${name}`], limit = place[name];
  for (let i = 0; i < state.length; i++) if (data.judged[i]) (first[i] <= limit ? dropped : kept)[bin[i]]++;
  const highest = Math.max(...kept.map((n, k) => n + dropped[k]));
  const cut = attribute.cuts[limit];
  const lines = (cut.p_above == null ? [cut.low, cut.high, cut.below, cut.above] : [1 - cut.p_above]).filter((x) => typeof x === "number");
  Plotly.react(`plot-${name}`, [
    { type: "bar", x: centres, y: kept, marker: { color: "#BDBDBD" }, hoverinfo: "none" },
    { type: "bar", x: centres, y: dropped, marker: { color: attribute.colour }, hoverinfo: "none" },
  ], layout({
    yaxis: { type: "log", title: { text: "tokens" }, nticks: 4, range: [Math.log10(0.7), Math.log10(2 * highest)] }, xaxis: { title: { text: attribute.axis } },
    shapes: lines.map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { dash: "dash", width: 1 } })),
  }), SMALL);
  $(`share-${name}`).textContent = percent(dropped.reduce((a, b) => a + b, 0) / judged);
}

const scorerName = () => {
  const names = attributes().map((a) => a.name), own = names.filter((name) => !meta.paper.includes(name));
  if (own.length) return `xtf scorer.attributes=[${names.join(",")}]`; // no file in conf/scorer has it
  return names.length === meta.paper.length ? "xtf" : names.join("_") || "none";
};

function drawCommand() {
  const moved = meta.attributes.filter((a) => place[a.name] !== a.chosen && active[a.name]);
  const scorerMoved = meta.attributes.some((a) => active[a.name] !== a.active);
  const settings = moved.map((a) => `${a.setting}=${a.values[place[a.name]]}`);
  if (scorerMoved) settings.unshift(`scorer=${scorerName()}`);
  $("command").textContent = [meta.command, ...settings].join(" ");
  const yaml = moved.map((a) => {
    const [, name, key] = a.setting.split(".");
    return `  ${name}:\n    ${key}: ${a.values[place[a.name]]}`;
  });
  $("yaml").textContent = [
    ...(scorerMoved ? [`# scorer: ${scorerName()}`] : []),
    ...(yaml.length ? ["threshold:", ...yaml] : ["# thresholds as in the run"]),
  ].join("\n");
}

function drawTokens() {
  const dropped = new Uint32Array(meta.strings.length), all = new Uint32Array(meta.strings.length);
  for (let i = 0; i < state.length; i++) { all[data.piece[i]]++; if (state[i]) dropped[data.piece[i]]++; }
  const top = [...dropped.keys()].filter((p) => dropped[p] && meta.strings[p] !== "").sort((a, b) => dropped[b] - dropped[a] || a - b).slice(0, 25);
  $("tokens").tBodies[0].replaceChildren(...top.map((p) => element("tr", {},
    element("td", {}, element("button", { type: "button", title: "show the examples with this token", onclick: () => { exactPiece = p; $("token").value = ""; filter(); } }, visible(meta.strings[p]))),
    element("td", {}, count(dropped[p])), element("td", {}, percent(dropped[p] / all[p])))));
}

function drawTotals(codes) {
  const kept = codes[0];
  $("kept").textContent = `kept ${percent(kept / judged)}: ${count(kept)} of ${count(judged)} response tokens`;
  $("kept").dataset.kept = kept;
  $("kept").dataset.codes = JSON.stringify(codes);
  const present = codes.map((n, code) => [code, n]).filter(([code, n]) => n || meta.attributes.some((a) => BITS[a.name] === code));
  $("legend").replaceChildren(...present.map(([code, n]) => element("li", {},
    element("span", { className: `t s${code}` }, code ? "token" : "token"), ` ${words(code)} ${percent(n / judged)}`)));
}

let pending = false, stale = new Set(), plotting; // stale: attributes whose histogram is to be drawn again

function changed(which = meta.attributes) { // text and totals at the next frame, plots when there is time
  which.forEach((attribute) => stale.add(attribute));
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    decide();
    const codes = tally();
    cards.forEach((_, example) => title(example));
    drawTotals(codes);
    if (meta.live) drawCommand();
    recolour();
    clearTimeout(plotting);
    plotting = setTimeout(() => {
      drawOverlap(codes);
      if (meta.live) stale.forEach(drawHistogram);
      stale.clear();
    }, 30);
  });
}

function settled() { // after a slider is let go: what reorders the page
  requestAnimationFrame(() => { drawTokens(); filter(); });
}

// -- controls ---------------------------------------------------------------------------------------------------------

function makeSlider(attribute) {
  const { name, values } = attribute;
  const value = element("output", { id: `value-${name}` });
  const slider = element("input", { type: "range", id: `slider-${name}`, min: 0, max: values.length - 1, value: place[name] });
  const show = () => {
    place[name] = Number(slider.value);
    value.textContent = `${attribute.setting} = ${values[place[name]]}`;
    slider.setAttribute("aria-valuetext", value.textContent);
  };
  slider.setAttribute("aria-label", `${attribute.title}: ${attribute.setting}, from drops least to drops most`);
  slider.addEventListener("input", () => { show(); changed([attribute]); });
  slider.addEventListener("change", settled);
  const box = element("input", { type: "checkbox", id: `active-${name}`, checked: active[name] });
  box.addEventListener("change", () => { active[name] = box.checked; changed(); settled(); });
  const plot = element("div", { className: "plot", id: `plot-${name}` });
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `${attribute.title}: histogram of the scores, dropped tokens in colour`);
  $("sliders").append(element("section", {},
    element("h2", {}, element("label", { title: attribute.explanation }, box, `${attribute.title} (${attribute.label})`)),
    element("div", { className: "setting" }, value, element("output", { id: `share-${name}`, title: "share dropped by this attribute" })),
    slider, plot));
  show();
}

async function copy(id) {
  const range = document.createRange();
  range.selectNodeContents($(id));
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  try {
    await navigator.clipboard.writeText($(id).textContent);
    $("copied").textContent = "copied";
  } catch {
    $("copied").textContent = "selected: copy it with the keyboard";
  }
}

function land() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (!wanted.has("example")) return;
  const example = meta.rows.indexOf(Number(wanted.get("example")));
  if (example < 0) {
    $("matches").textContent = `example ${wanted.get("example")} is not among those in this file`;
    return;
  }
  if (!order.includes(example)) clearFilters();
  fill(cards[example]);
  const span = cards[example].querySelector(".response").children[Number(wanted.get("token") ?? 0)];
  span?.focus({ preventScroll: true });
  const centre = (again) => {
    (span ?? cards[example]).scrollIntoView({ block: "center" });
    if (again) requestAnimationFrame(() => centre(again - 1)); // neighbours take their real height when they come near
    else if (span) showTip(span);
  };
  centre(3);
}

function listen() {
  const list = $("examples");
  const token = (event) => event.target.closest?.(".t");
  list.addEventListener("mouseover", (event) => (token(event) ? showTip(token(event)) : hideTip()));
  list.addEventListener("mouseleave", hideTip);
  list.addEventListener("focusin", (event) => {
    const span = token(event);
    if (!span) return;
    const example = Number(span.closest(".card").dataset.place);
    history.replaceState(null, "", `#example=${meta.rows[example]}&token=${span.dataset.k}`);
    showTip(span);
  });
  list.addEventListener("focusout", hideTip);
  list.addEventListener("click", (event) => token(event)?.focus({ preventScroll: true }));
  list.addEventListener("keydown", (event) => {
    const span = token(event);
    const to = { ArrowRight: span?.nextSibling, ArrowLeft: span?.previousSibling, Home: span?.parentNode.firstChild, End: span?.parentNode.lastChild }[event.key];
    if (event.key === "Escape") hideTip();
    if (!to) return;
    event.preventDefault();
    span.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  });
  addEventListener("scroll", hideTip, { passive: true });
  addEventListener("hashchange", land);
  $("only").addEventListener("change", filter);
  $("sort").addEventListener("change", filter);
  for (const id of ["token", "text"]) $(id).addEventListener("input", () => { exactPiece = null; filter(); });
  $("clear").addEventListener("click", clearFilters);
  $("blanks").addEventListener("change", () => cards.forEach((card) => {
    if (!card.dataset.filled) return;
    const start = data.offsets[Number(card.dataset.place)];
    for (const span of card.querySelector(".response").children) span.textContent = tokenText(start + Number(span.dataset.k));
  }));
  $("copy-command").addEventListener("click", () => copy("command"));
  $("copy-yaml").addEventListener("click", () => copy("yaml"));
}

async function open() {
  const [text, buffer] = await Promise.all([unpack("meta"), unpack("arrays")]);
  meta = JSON.parse(new TextDecoder().decode(text));
  BITS = meta.bits;
  OTHER = 1 << Object.keys(BITS).length;
  data = Object.fromEntries(meta.columns.map(({ name, type, start, length }) => [name, new TYPES[type](buffer, start, length)]));
  if (data.score_logp) data.score_kn = data.score_logp.map((x) => -Math.expm1(x));
  state = new Uint16Array(data.piece.length);
  droppedShare = new Float64Array(meta.rows.length);
  judged = data.judged.reduce((sum, one) => sum + one, 0);
  active = Object.fromEntries(meta.attributes.map((a) => [a.name, a.active]));
  place = Object.fromEntries(meta.attributes.map((a) => [a.name, a.chosen]));
  const sampled = meta.rows.length < meta.total ? `a random sample of ${count(meta.rows.length)} of ${count(meta.total)} examples; thresholds are fitted to all of them` : `all ${count(meta.total)} examples`;
  const untrained = data.untrained.reduce((sum, one) => sum + one, 0), ends = state.length - judged - untrained;
  const apart = (ends ? ` The ${count(ends)} end tokens that encoding appended are kept and not counted.` : "")
    + (untrained ? ` ${count(untrained)} tokens that the rows themselves do not train (grey) are not counted.` : "");
  $("about").textContent = `Response tokens in colour train ${meta.effect}; the coloured underline says which attribute dropped them. Shown: ${sampled}.${apart}`;
  $("reproduce").hidden = !meta.live;
  const choices = [["all", "any tokens"], ["kept", "kept tokens"], ["dropped", "dropped tokens"]];
  if (meta.live) choices.push(...meta.attributes.map((a) => [a.name, `tokens dropped by ${a.name.toUpperCase()}`]), ["several", "tokens dropped by several"]);
  $("only").append(...choices.map(([value, label]) => element("option", { value }, label)));
  if (meta.live) meta.attributes.forEach((attribute) => { bins[attribute.name] = histogram(attribute); makeSlider(attribute); });
  makeCards();
  cards.forEach((card) => observer.observe(card));
  listen();
  changed();
  settled();
  requestAnimationFrame(() => requestAnimationFrame(() => { land(); document.body.dataset.ready = "1"; }));
}

open();
