"use strict";
// The explorer's page. Texts of the dataset are only ever put on the page as text nodes.

const BINS = 60;
const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };
const LARGEST = 65535; // probabilities travel as uint16
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
let was; // tokens kept by the run's own mask
const controls = {}; // by attribute name: what sets its slider and box

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

const judgedOf = (example) => data.judged.subarray(data.offsets[example], data.offsets[example + 1]).reduce((sum, one) => sum + one, 0);

function tally() {
  const codes = new Array(2 * OTHER).fill(0);
  droppedShare.fill(0);
  for (let e = 0; e < meta.rows.length; e++) {
    let dropped = 0;
    for (let i = data.offsets[e]; i < data.offsets[e + 1]; i++) {
      if (data.judged[i]) codes[state[i]]++;
      if (state[i] && data.judged[i]) dropped++;
    }
    droppedShare[e] = dropped / Math.max(1, judgedOf(e));
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
const said = (piece) => visible(meta.strings[piece]) || "part of a character that a later token ends";

function decision(i) {
  const code = state[i];
  if (data.untrained[i]) return ["Not trained: the rows themselves leave it out"];
  if (code & OTHER) return ["Dropped by the method: it gives the token no weight"];
  const found = [];
  for (const { name, label, reason } of meta.attributes.filter((a) => code & BITS[a.name])) {
    const p = data.score_logp ? chance(Math.exp(data.score_logp[i])) : "";
    found.push(`Dropped by ${label}: ${reason.replace("{score}", number(data[`score_${name}`][i])).replace("{p}", p)}`);
  }
  if (meta.live && !data.judged[i]) found.push("Kept: it ends the response and is not the data's, so no threshold judges it");
  else if (data.guarded[i]) found.push("Kept: the grader reads the answer here, so nothing drops it");
  else if (!code) found.push(meta.live ? "Kept: no attribute in use drops it, so it trains" : "Kept: it trains");
  if (data.other) found.push(`${meta.against}: ${words(data.other[i])}`);
  return found;
}

const row = (...cells) => element("tr", {}, ...cells.map((cell, k) => element(k ? "td" : "th", k ? {} : { scope: "row" }, cell)));

function alternatives(i) { // what the base model would rather have said
  const p = Array.from(data.top_p.slice(i * meta.top, (i + 1) * meta.top), (x) => x / LARGEST);
  const rows = p.map((share, k) => row(element("code", {}, said(data.top_piece[i * meta.top + k])), chance(share)));
  return element("table", {}, element("caption", {}, "the base model expects, with p"), ...rows);
}

function attenders(i, example) { // [position in the response, share of attention], most first
  const found = [];
  for (let k = i * meta.attenders; k < (i + 1) * meta.attenders; k++)
    if (data.from_share[k]) found.push([data.from_at[k], data.from_share[k] / LARGEST]);
  return found;
}

function attended(i, example) {
  const first = data.offsets[example];
  const rows = attenders(i, example).map(([at, share]) =>
    row(element("code", {}, said(data.piece[first + at])), at + first === i ? "itself" : `${at + first - i} later`, share.toFixed(3)));
  return element("table", {}, element("caption", {}, "who attends to it, share of theirs"), ...rows);
}

function tip(i, example) {
  const rows = [
    row("token", element("code", {}, said(data.piece[i]))),
    row("id", String(data.id[i])),
    row("position", `${i - data.offsets[example]} of 0 to ${data.offsets[example + 1] - data.offsets[example] - 1} in the response`),
  ];
  for (const { name, label, cuts } of meta.attributes) {
    const byP = "p_above" in cuts[place[name]]; // score and cut in one unit
    const score = byP ? `p ${number(Math.exp(data.score_logp[i]))}` : number(data[`score_${name}`][i]);
    const attribute = meta.attributes.find((a) => a.name === name);
    rows.push(row(label, meta.live ? `${score}; drops ${threshold(attribute, example).text}${active[name] ? "" : " (not in use)"}` : score));
  }
  if (data.score_logp && !meta.attributes.some((a) => a.source === "logp")) rows.push(row("p", number(Math.exp(data.score_logp[i]))));
  const capped = meta.live ? attributes().filter((a) => a.cap !== null).map((a) => `${a.label} drops at most ${percent(a.cap)} of a response`) : [];
  const parts = [...decision(i).map((line) => element("p", {}, line)), element("table", {}, ...rows), ...capped.map((line) => element("div", {}, line))];
  const looks = [...(meta.top ? [alternatives(i)] : []), ...(meta.attenders ? [attended(i, example)] : [])];
  return looks.length ? [...parts, element("div", { className: "looks" }, ...looks)] : parts;
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

function followTip() { // on scrolling: the page still moves when a link has landed on its token
  const span = document.activeElement;
  if ($("tip").hidden) return;
  const at = span?.matches(".t") ? span.getBoundingClientRect() : null;
  if (at && at.top >= 0 && at.bottom <= innerHeight) showTip(span); else hideTip();
}

function mark(span) { // outlines the tokens that attend to this one
  document.querySelectorAll(".t.from").forEach((other) => other.classList.remove("from"));
  if (!span || !meta.attenders) return;
  const example = Number(span.closest(".card").dataset.place);
  for (const [at] of attenders(data.offsets[example] + Number(span.dataset.k), example)) span.parentNode.children[at].classList.add("from");
}

// -- colours: what drops a token, a score, or where two masks differ -----------------------------------------------------

let colour = "drop"; // "differ", "p" or an attribute's name
const heat = () => colour !== "drop" && colour !== "differ";
const differs = (i) => Boolean(state[i]) !== Boolean(data.other[i]);
const scales = {}; // by colour: what gives a token's score, and the scores that are palest and strongest

function scale() {
  if (!(colour in scales)) {
    const scores = data[`score_${colour}`];
    if (colour === "p") scales.p = { of: (i) => Math.exp(data.score_logp[i]), low: 0, high: 1 };
    else {
      const sorted = Float32Array.from(scores).sort(); // a few outliers must not take the whole scale
      scales[colour] = { of: (i) => scores[i], low: quantile(sorted, 0.01), high: quantile(sorted, 0.99) };
    }
  }
  return scales[colour];
}

function paint(span, i) {
  span.className = tokenClass(i, span.parentNode?.dataset.side);
  if (!heat()) return;
  const { of, low, high } = scale();
  span.style.setProperty("--q", `${(60 * Math.max(0, Math.min(1, (of(i) - low) / (high - low || 1)))).toFixed(1)}%`);
}

// -- the examples: only those near the window are on the page --------------------------------------------------------

let hits = null; // by example, the tokens of it that the text filter asks for

function tokenClass(i, side) {
  let code = side === "there" ? data.other[i] : state[i];
  if (colour === "differ" && !differs(i)) code = 0;
  const faded = wanted !== null ? !wanted(i) : colour === "differ" && !differs(i);
  const hit = (wantedPieces !== null && wantedPieces.has(data.piece[i])) || (hits !== null && hits.has(i));
  return `t s${code}${faded ? " faded" : ""}${hit ? " hit" : ""}${meta.strings[data.piece[i]] === "" ? " part" : ""}`;
}

function tokenText(i) {
  const text = meta.strings[data.piece[i]];
  if (text === "") return "◦";
  // A mark for a blank is a letter to the line breaker: the zero-width space keeps the place where a line may end.
  return $("blanks").checked ? text.replace(/ /g, "·\u200b").replace(/\t/g, "⇥\t").replace(/\r?\n/g, "⏎\n") : text;
}

const SHORT = 320;

function marked(text) { // with what the text filter asks for marked
  const wantedText = $("text").value.toLowerCase(), lower = text.toLowerCase(), parts = [];
  if (!wantedText || lower.length !== text.length) return [text];
  let start = 0;
  for (let at = lower.indexOf(wantedText); at >= 0; at = lower.indexOf(wantedText, start)) {
    parts.push(text.slice(start, at), element("mark", {}, text.slice(at, at + wantedText.length)));
    start = at + wantedText.length;
  }
  return [...parts, text.slice(start)];
}

function promptOf(example) {
  const text = meta.prompts[example];
  const box = element("div", { className: "prompt", dir: "auto" });
  const whole = () => box.replaceChildren(...marked(text));
  const wantedText = $("text").value.toLowerCase();
  if (text.length <= 2 * SHORT || (wantedText && text.slice(SHORT, -SHORT).toLowerCase().includes(wantedText))) {
    whole();
    return box;
  }
  const more = element("button", { type: "button", onclick: whole }, `… ${count(text.length - 2 * SHORT)} characters more …`);
  box.append(...marked(text.slice(0, SHORT)), more, ...marked(text.slice(-SHORT)));
  return box;
}

function responseOf(example, side) {
  const start = data.offsets[example], end = data.offsets[example + 1];
  const response = element("div", { className: "response", dir: "auto", role: "group" });
  response.dataset.side = side;
  response.setAttribute("aria-label", `Response of example ${meta.rows[example]}${side === "there" ? `, ${meta.against}` : ""}`);
  for (let i = start; i < end; i++) {
    const span = element("span", { textContent: tokenText(i), tabIndex: i === start ? 0 : -1 });
    span.dataset.k = i - start;
    response.append(span);
    paint(span, i);
  }
  return response;
}

function fill(card) {
  if (card.dataset.filled) return;
  const example = Number(card.dataset.place);
  card.style.minHeight = "";
  const one = (side, name) => element("div", {}, element("h4", {}, name), responseOf(example, side));
  card.append(promptOf(example), colour === "differ"
    ? element("div", { className: "pair" }, one("here", "this mask"), one("there", meta.against))
    : responseOf(example, "here"));
  card.dataset.filled = "1";
}

function refill() { // after a change of what stands in the cards
  for (const card of cards) {
    if (!card.dataset.filled) continue;
    while (card.children.length > 1) card.lastChild.remove();
    delete card.dataset.filled;
    fill(card);
  }
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
  cards[example].firstChild.textContent =
    `Example ${meta.rows[example]} (${visible(meta.ids[example])}): ${percent(droppedShare[example])} of ${count(judgedOf(example))} tokens dropped`;
}

function recolour() {
  for (const card of cards) {
    if (!card.dataset.filled) continue;
    const start = data.offsets[Number(card.dataset.place)];
    for (const span of card.querySelectorAll(".t")) paint(span, start + Number(span.dataset.k));
  }
}

// -- filters ----------------------------------------------------------------------------------------------------------

let wanted = null; // whether the filter asks for token i; null: any
let exactPiece = null; // set by the list of most-dropped tokens

function tokenFilter(name) {
  if (name === "all") return null;
  if (name === "kept") return (i) => state[i] === 0;
  if (name === "dropped") return (i) => state[i] !== 0;
  if (name === "several") return (i) => (state[i] & (state[i] - 1)) !== 0;
  if (name === "differ") return differs;
  if (name === "here") return (i) => state[i] !== 0 && data.other[i] === 0;
  if (name === "there") return (i) => state[i] === 0 && data.other[i] !== 0;
  return (i) => (state[i] & BITS[name]) !== 0;
}

function findText(example, text) { // whether the text stands in the example; its tokens go to `hits`
  let response = "";
  const first = data.offsets[example], ends = [];
  for (let i = first; i < data.offsets[example + 1]; i++) ends.push((response += meta.strings[data.piece[i]].toLowerCase()).length);
  let k = 0;
  for (let at = response.indexOf(text); at >= 0; at = response.indexOf(text, at + 1)) {
    while (ends[k] <= at) k++;
    for (let j = k; j < ends.length && (j === k || ends[j - 1] < at + text.length); j++) hits.add(first + j);
  }
  return response.includes(text) || `${meta.ids[example]}\n${meta.prompts[example]}\n`.toLowerCase().includes(text);
}

function filter() {
  wanted = tokenFilter($("only").value);
  const token = $("token").value.toLowerCase(), text = $("text").value.toLowerCase();
  if (exactPiece !== null) wantedPieces = new Set([exactPiece]);
  else if (token) wantedPieces = new Set([...meta.strings.keys()].filter((p) => meta.strings[p].toLowerCase().includes(token)));
  else wantedPieces = null;
  hits = text ? new Set() : null;
  order = [];
  for (let e = 0; e < meta.rows.length; e++) {
    let found = wanted === null && wantedPieces === null;
    for (let i = data.offsets[e]; i < data.offsets[e + 1] && !found; i++)
      found = (wanted === null || wanted(i)) && (wantedPieces === null || wantedPieces.has(data.piece[i]));
    if (found && (!text || findText(e, text))) order.push(e);
  }
  const length = (e) => data.offsets[e + 1] - data.offsets[e];
  const by = { most: (a, b) => droppedShare[b] - droppedShare[a], least: (a, b) => droppedShare[a] - droppedShare[b], longest: (a, b) => length(b) - length(a) };
  if ($("sort").value in by) order.sort((a, b) => by[$("sort").value](a, b) || a - b);
  $("matches").textContent = `${count(order.length)} of ${count(meta.rows.length)} examples`;
  $("examples").replaceChildren(...order.map((e) => cards[e]));
  const chips = active_filters();
  $("chips").replaceChildren(...chips.map(([label, drop]) => {
    const chip = element("button", { type: "button", onclick: () => { drop(); filter(); } }, `${label} ×`);
    chip.setAttribute("aria-label", `${label}: remove this filter`);
    return chip;
  }));
  $("none").hidden = order.length > 0;
  $("none").textContent = order.length ? "" : `No example fits: ${chips.map(([label]) => label).join("; ")}.`;
  if (shownText !== text) { // the marks in the prompts
    shownText = text;
    refill();
  } else recolour();
  remember();
}

let shownText = "";

function active_filters() { // each with its words and what removes it
  const found = [];
  if ($("only").value !== "all") found.push([`examples with ${$("only").selectedOptions[0].textContent}`, () => { $("only").value = "all"; }]);
  if (exactPiece !== null) found.push([`token ${visible(meta.strings[exactPiece])}`, () => { exactPiece = null; }]);
  if ($("token").value) found.push([`token has “${$("token").value}”`, () => { $("token").value = ""; }]);
  if ($("text").value) found.push([`text has “${$("text").value}”`, () => { $("text").value = ""; }]);
  return found;
}

function clearFilters() {
  $("only").value = "all";
  $("token").value = $("text").value = "";
  exactPiece = null;
  filter();
}

// -- the address: it holds what is set, so that a reload or a link shows the same -----------------------------------------

const FIELDS = { only: "all", token: "", text: "", sort: "file" }; // of the toolbar, with what stands there at first
let at = null; // example and token of the link, or of the last token looked at

function remember() {
  const found = new URLSearchParams(at ?? {});
  for (const a of meta.live ? meta.attributes : []) if (place[a.name] !== a.chosen) found.set(a.setting, a.values[place[a.name]]);
  if (moved().some((a) => active[a.name] !== a.active)) found.set("use", attributes().map((a) => a.name).join(","));
  for (const [id, first] of Object.entries(FIELDS)) if ($(id).value !== first) found.set(id === "token" ? "find" : id, $(id).value);
  if (exactPiece !== null) found.set("piece", meta.strings[exactPiece]);
  if (colour !== firstColour()) found.set("colour", colour);
  if ($("blanks").checked) found.set("blanks", "1");
  const text = found.toString();
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

const firstColour = () => (data.other ? "differ" : "drop");
const moved = () => (meta.live ? meta.attributes.filter((a) => place[a.name] !== a.chosen || active[a.name] !== a.active) : []);

function recall() {
  const given = new URLSearchParams(location.hash.slice(1));
  at = given.has("example") ? { example: given.get("example"), token: given.get("token") ?? "0" } : null;
  for (const a of meta.live ? meta.attributes : []) {
    const value = given.has(a.setting) ? a.values.indexOf(Number(given.get(a.setting))) : -1;
    controls[a.name](value < 0 ? a.chosen : value, given.has("use") ? given.get("use").split(",").includes(a.name) : a.active);
  }
  for (const [id, first] of Object.entries(FIELDS)) $(id).value = given.get(id === "token" ? "find" : id) ?? first;
  for (const id of ["only", "sort"]) if ($(id).selectedIndex < 0) $(id).value = FIELDS[id]; // not a choice of this page
  const piece = given.has("piece") ? meta.strings.indexOf(given.get("piece")) : -1;
  exactPiece = piece < 0 ? null : piece;
  $("colour").value = given.get("colour") ?? firstColour();
  if ($("colour").selectedIndex < 0) $("colour").value = firstColour();
  colour = $("colour").value;
  $("blanks").checked = given.has("blanks");
  if (active_filters().length) $("filters").open = true;
}

function reset() {
  for (const a of meta.attributes) controls[a.name](a.chosen, a.active);
  changed();
  settled();
}

// -- totals, plots, the reproducing lines ----------------------------------------------------------------------------

const SMALL = { displayModeBar: false, responsive: true };
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function layout({ xaxis, yaxis, ...more }) {
  const axis = (own) => ({ gridcolor: css("--line"), zerolinecolor: css("--line"), ...own });
  return {
    margin: { l: 42, r: 6, t: 6, b: 34 }, font: { size: 10, color: css("--ink") }, showlegend: false, bargap: 0.05, barmode: "stack",
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", xaxis: axis(xaxis), yaxis: axis(yaxis), ...more,
  };
}

function drawOverlap(codes) {
  const shown = codes.map((n, code) => [code, n]).filter(([code, n]) => code && n);
  const colour = (code) => (code & OTHER ? meta.colours.other : meta.attributes.find((a) => BITS[a.name] === code)?.colour ?? css("--several"));
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
    { type: "bar", x: centres, y: kept, marker: { color: css("--bar") }, hoverinfo: "none" },
    { type: "bar", x: centres, y: dropped, marker: { color: attribute.colour }, hoverinfo: "none" },
  ], layout({
    yaxis: { type: "log", title: { text: "tokens" }, dtick: 1, range: [Math.log10(0.7), Math.log10(2 * highest)] }, xaxis: { title: { text: attribute.axis } },
    shapes: lines.map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { dash: "dash", width: 1, color: css("--ink") } })),
  }), SMALL);
  $(`share-${name}`).textContent = percent(dropped.reduce((a, b) => a + b, 0) / judged);
}

const scorerName = () => {
  const names = attributes().map((a) => a.name), own = names.filter((name) => !meta.paper.includes(name));
  if (own.length) return `xtf scorer.attributes=[${names.join(",")}]`; // no file in conf/scorer has it
  return names.length === meta.paper.length ? "xtf" : names.join("_") || "none";
};

function drawCommand() {
  const shifted = meta.attributes.filter((a) => place[a.name] !== a.chosen && active[a.name]);
  const scorerMoved = meta.attributes.some((a) => active[a.name] !== a.active);
  const settings = shifted.map((a) => `${a.setting}=${a.values[place[a.name]]}`);
  if (scorerMoved) settings.unshift(`scorer=${scorerName()}`);
  if (meta.command) $("command").textContent = [meta.command, ...settings].join(" ");
  const yaml = shifted.map((a) => {
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
  const changedBy = moved().length > 0;
  $("kept").textContent = `kept ${percent(kept / judged)}: ${count(kept)} of ${count(judged)} response tokens`;
  $("kept").dataset.kept = kept;
  $("kept").dataset.codes = JSON.stringify(codes);
  $("was").textContent = changedBy ? `was ${percent(was / judged)}, now ${percent(kept / judged)}` : "";
  $("reset").hidden = !changedBy;
  if (data.other) {
    let here = 0, there = 0;
    for (let i = 0; i < state.length; i++) if (differs(i)) state[i] ? here++ : there++;
    $("was").textContent += `${changedBy ? "; " : ""}${count(here + there)} tokens differ from ${meta.against}: ${count(here)} dropped only here, ${count(there)} only there`;
    Object.assign($("was").dataset, { here, there });
  }
  const present = codes.map((n, code) => [code, n]).filter(([code, n]) => n || meta.attributes.some((a) => BITS[a.name] === code));
  const entries = present.map(([code, n]) => element("li", {}, element("span", { className: `t s${code}` }, "token"), ` ${words(code)} ${percent(n / judged)}`));
  if (heat()) {
    const { low, high } = scale(), name = meta.attributes.find((a) => a.name === colour)?.axis ?? "p, as the base model expects the token";
    entries.unshift(element("li", {}, `${name}: ${number(low)} `, element("span", { id: "scale" }), ` ${number(high)}; underlined: dropped`));
  }
  $("legend").replaceChildren(...entries);
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

function recoloured() { // after another choice of colour
  const before = colour;
  colour = $("colour").value;
  document.querySelector("main").classList.toggle("heat", heat());
  document.documentElement.style.setProperty("--heat", `var(--${colour === "p" ? "kn" : colour})`);
  if ((before === "differ") !== (colour === "differ")) refill();
  changed([]);
}

function settled() { // after a slider is let go: what reorders the page
  requestAnimationFrame(() => { drawTokens(); filter(); });
}

// -- controls ---------------------------------------------------------------------------------------------------------

const rule = (attribute) => element("p", { className: "rule" }, `${attribute.explanation[0].toUpperCase()}${attribute.explanation.slice(1)} As masked: ${attribute.sentence[0].toLowerCase()}${attribute.sentence.slice(1)}`);

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
  controls[name] = (to, used) => { slider.value = to; box.checked = active[name] = used; show(); };
  const plot = element("div", { className: "plot", id: `plot-${name}` });
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `${attribute.title}: histogram of the scores, dropped tokens in colour`);
  $("sliders").append(element("section", {},
    element("h2", {}, element("label", {}, box, `${attribute.title} (${attribute.label})`)), rule(attribute),
    element("div", { className: "setting" }, value, element("output", { id: `share-${name}`, title: "share dropped by this attribute" })),
    slider, element("div", { className: "ends" }, element("span", {}, "drops less"), element("span", {}, "drops more")), plot));
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
  if (at === null) return;
  const example = meta.rows.indexOf(Number(at.example));
  if (example < 0) {
    $("none").hidden = false;
    $("none").textContent = `Example ${at.example} is not among those in this file.`;
    return;
  }
  if (!order.includes(example)) clearFilters();
  fill(cards[example]);
  const span = cards[example].querySelector(".response").children[Number(at.token)];
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
    at = { example: meta.rows[Number(span.closest(".card").dataset.place)], token: span.dataset.k };
    remember();
    mark(span);
    showTip(span);
  });
  list.addEventListener("focusout", () => { hideTip(); mark(null); });
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
  addEventListener("scroll", followTip, { passive: true });
  addEventListener("hashchange", () => { recall(); recoloured(); refill(); changed(); settled(); requestAnimationFrame(() => requestAnimationFrame(land)); });
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    if (!order.length) return;
    fill(cards[order[0]]);
    cards[order[0]].querySelector(".t")?.focus();
  });
  $("only").addEventListener("change", filter);
  $("sort").addEventListener("change", filter);
  for (const id of ["token", "text"]) $(id).addEventListener("input", () => { exactPiece = null; filter(); });
  $("clear").addEventListener("click", clearFilters);
  $("reset").addEventListener("click", reset);
  $("colour").addEventListener("change", () => { recoloured(); remember(); });
  $("blanks").addEventListener("change", () => { refill(); remember(); });
  $("copy-command")?.addEventListener("click", () => copy("command"));
  $("copy-yaml").addEventListener("click", () => copy("yaml"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => changed());
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
  if ($("reasons") && innerWidth < 960) $("reasons").open = false; // examples are what the page is opened for
  const sampled = meta.rows.length < meta.total ? `a random sample of ${count(meta.rows.length)} of ${count(meta.total)} examples; thresholds are fitted to all of them` : meta.total === 1 ? "the one example" : `all ${count(meta.total)} examples`;
  const untrained = data.untrained.reduce((sum, one) => sum + one, 0), ends = state.length - judged - untrained;
  const apart = (ends ? ` The ${count(ends)} end tokens that encoding appended are kept and not counted.` : "")
    + (untrained ? ` ${count(untrained)} tokens that the rows themselves do not train (grey) are not counted.` : "");
  $("about").textContent = `Response tokens in colour train ${meta.effect}; the coloured underline says which attribute dropped them. Shown: ${sampled}.${apart}`;
  $("reproduce").hidden = !meta.live;
  const choices = [["all", "any tokens"], ["kept", "kept tokens"], ["dropped", "dropped tokens"]];
  if (meta.live) choices.push(...meta.attributes.map((a) => [a.name, `tokens dropped by ${a.label}`]), ["several", "tokens dropped by several"]);
  if (data.other) choices.push(["differ", "tokens that differ"], ["here", "tokens dropped only here"], ["there", `tokens dropped only in ${meta.against}`]);
  const colours = [...(data.other ? [["differ", "where the masks differ"]] : []), ["drop", "what drops a token"]];
  if (data.score_logp) colours.push(["p", "p under the base model"]);
  colours.push(...meta.attributes.filter((a) => a.source !== "logp").map((a) => [a.name, `${a.label} score`]));
  for (const [id, all] of [["only", choices], ["colour", colours]]) $(id).append(...all.map(([value, label]) => element("option", { value }, label)));
  FIELDS.only = $("only").value = data.other ? "differ" : "all";
  if (meta.live) meta.attributes.forEach((attribute) => { bins[attribute.name] = histogram(attribute); makeSlider(attribute); });
  else $("sliders").append(...meta.attributes.filter((a) => a.active).map((a) => element("section", {}, element("h2", {}, `${a.title} (${a.label})`), rule(a))));
  decide();
  was = tally()[0];
  makeCards();
  recall();
  recoloured();
  cards.forEach((card) => observer.observe(card));
  listen();
  changed();
  settled();
  requestAnimationFrame(() => requestAnimationFrame(() => { land(); document.body.dataset.ready = "1"; }));
}

open();
