"use strict";
// The data, filters and table of a board's page. All text is set as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows.trial.map((_, i) => {
  const row = { place: i, weights_mb: data.weights[i] === null ? null : data.weights[i] / 1e6 };
  for (const key in data.rows) row[key] = Array.isArray(data.rows[key]) ? data.rows[key][i] : data.rows[key];
  return row;
});
const places = new Map(rows.map((row) => [row.trial, row.place]));

const pruned = rows.filter((row) => row.method !== "none");
const given = (value) => value !== null && value !== undefined;
// The vertical axis: accuracy, or speed on a board of random weights, which has no accuracy.
const upright = [
  { key: "accuracy", low: "accuracy_lo", high: "accuracy_hi", scale: 100, label: "accuracy (points)" },
  { key: "latency_speedup", low: "speedup_lo", high: "speedup_hi", scale: 1, label: "measured speedup (factor)" },
].find((option) => rows.some((row) => given(row[option.key])));
// Every axis puts better values at the right; `sign` is 1 if larger values are better, else -1.
const AXES = [...data.axes, { key: "weights_mb", label: "memory of the weights (MB)", sign: -1 }].filter(
  (axis) => upright && axis.key !== upright.key && rows.some((row) => given(row[axis.key])));
const FILTERS = [
  { key: "scope", label: "Scope", every: "every scope" },
  { key: "regime", label: "Regime", every: "every regime" },
  { key: "units", label: "Units", every: "every kind of units" },
  { key: "setting", label: "Setting", every: "every setting" },
  { key: "method", label: "Method", every: "every method" },
  { key: "seed", label: "Seed", every: "every seed" },
];

const find = (id) => document.getElementById(id);
const number = (value, digits) => (value === null || value === undefined ? data.nothing : value.toFixed(digits));
const points = (value) => number(value === null || value === undefined ? null : 100 * value, 1);
const within = (text, low, high, none = "") => (low === data.nothing || high === data.nothing ? text + none : `${text} [${low}, ${high}]`);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function make(tag, text, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== null && text !== undefined) element.textContent = text;
  return element;
}

function groupBy(items, key) {
  const groups = new Map();
  for (const item of items) {
    if (!groups.has(key(item))) groups.set(key(item), []);
    groups.get(key(item)).push(item);
  }
  return groups;
}

// --- filters ------------------------------------------------------------------------------------------------

const form = find("filters");
const chosen = {};
let words = [];

function select(label, options, value, change) {
  const box = make("label", label);
  const input = make("select");
  for (const [key, text] of options) input.append(make("option", text, { value: key }));
  input.value = value;
  input.name = label.toLowerCase();
  input.addEventListener("change", () => change(input.value));
  box.append(input);
  form.append(box);
}

let axis = AXES[0];
if (axis) {
  const options = AXES.map((option) => [option.key, option.label]);
  select("Axis", options, axis.key, (value) => { axis = AXES.find((option) => option.key === value); chart.reset(); draw(); });
}
// The first view has something to see, the method under study if it can.
const drawable = pruned.filter((row) => axis && given(row[upright.key]) && given(row[axis.key]));
const opening = drawable.find((row) => row.role === "studied") || drawable[0] || pruned[0];
for (const { key, label, every } of FILTERS) {
  const values = [...new Set((key === "method" ? rows : pruned).map((row) => row[key]))];
  if (key === "seed") values.sort((a, b) => a - b);
  if (values.length < 2) continue;
  // A plot shows one scope, regime and setting at a time; all other filters start open.
  chosen[key] = ["scope", "regime", "setting"].includes(key) ? String(opening[key]) : "";
  const options = [["", every], ...values.map((value) => [String(value), String(value)])];
  select(label, options, chosen[key], (value) => { chosen[key] = value; show(); });
}
const search = make("input", null, { type: "search", name: "search", placeholder: "words in a row" });
search.addEventListener("input", () => { words = search.value.toLowerCase().split(/\s+/).filter(Boolean); show(); });
const searchLabel = make("label", "Search");
searchLabel.append(search);
form.append(searchLabel);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;

function matches(row) {
  for (const key in chosen) {
    // The dense model fits every scope, regime, choice of units and seed.
    const open = row.method === "none" && key !== "setting" && key !== "method";
    if (chosen[key] !== "" && !open && String(row[key]) !== chosen[key]) return false;
  }
  return words.every((word) => lines[row.place].text.includes(word));
}

// --- the table ----------------------------------------------------------------------------------------------

const body = find("trials").tBodies[0];
const lines = [...body.rows].map((line, i) => ({ line, row: rows[i], text: line.textContent.toLowerCase() }));
let order = lines;

for (const head of find("trials").tHead.rows[0].cells) {
  const button = make("button", head.textContent, { type: "button" });
  head.replaceChildren(button);
  button.addEventListener("click", () => sort(head));
}

function sort(head) {
  const key = head.dataset.key;
  const numeric = head.classList.contains("n");
  const before = head.getAttribute("aria-sort");
  const direction = before ? (before === "descending" ? 1 : -1) : numeric ? -1 : 1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const value = ({ row }) => (row ? row[key] : null);
  order = [...lines].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    // Values that were not measured come last in both directions.
    if (x === null || y === null) return (x === null) - (y === null);
    return direction * (numeric ? x - y : String(x) < String(y) ? -1 : String(x) > String(y) ? 1 : 0);
  });
  body.append(...order.map(({ line }) => line));
}

function show() {
  let count = 0;
  for (const { line, row, text } of lines) {
    const visible = row ? matches(row) : words.every((word) => text.includes(word));
    line.hidden = !visible;
    count += Boolean(row && visible);
  }
  find("count").textContent = `${count} of ${rows.length} trials shown.`;
  chart.reset();
  draw();
}

function rowFacts(row) {
  const speedup = [row.latency_speedup, row.speedup_lo, row.speedup_hi].map((value) => number(value, 2));
  return [
    ["budget", `${row.budget} (${number(1 / row.budget, 2)}×), scope ${row.scope}, seed ${row.seed}`],
    ["accuracy", within(points(row.accuracy), points(row.accuracy_lo), points(row.accuracy_hi), row.accuracy == null ? "" : ` (${data.few})`)],
    ["speedup", within(...speedup)],
    ["FLOPs kept", number(row.flops_kept, 4)],
    ["parameters kept", number(row.params_kept, 3)],
  ];
}
