"use strict";
// Filters, sorting and the plot of a board's page. All text is set as text, never as HTML.

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
  { key: "units", label: "Units", every: "heads or FFN" },
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
  select("Axis", options, axis.key, (value) => { axis = AXES.find((option) => option.key === value); draw(); });
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
  draw();
}

// --- the plot -----------------------------------------------------------------------------------------------

const plot = find("plot");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
// Plotly interprets some tags in a text; entities keep them literal.
const literal = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
// Cut in the middle, because names differ at their ends.
const short = (text) => (text.length > 40 ? `${text.slice(0, 20)}…${text.slice(-19)}` : text);

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

// Trials that agree in these share a front.
const COMPETING = ["setting", "scope", "units", "budget_terms", "regime"];
// So many curves need no emphasis.
const FEW = 6;
// Curves that the reader brought forward or back.
const turned = new Set();
const manner = (place) => ({ dash: data.dashes[place % data.dashes.length], hollow: place % 2 === 1 });
const height = (row) => upright.scale * row[upright.key];
// The length of the bar between a trial and an end of its interval, if it has one.
const reach = (row, end, sign) => Math.max(0, sign * (upright.scale * (row[end] ?? row[upright.key]) - height(row)));
const stroke = (dash) => (dash.length ? dash.map((length) => `${length}px`).join() : "solid");

// The curves of these trials: each has a title, a look, its field (what it competes in) and its mean at every budget.
function curvesOf(trials) {
  const varying = ["scope", "regime", "units", "setting"].filter((key) => chosen[key] === "");
  const kind = (row) => varying.map((key) => row[key]).join(" · ");
  const kinds = groupBy(trials, (row) => row.method);
  for (const [method, members] of kinds) kinds.set(method, [...new Set(members.map(kind))]);
  const variants = groupBy(Object.values(data.looks), ([tint, symbol]) => tint + symbol);
  const named = groupBy(trials, (row) => [data.looks[row.curve][4], kind(row)].filter(Boolean).join(" · "));
  return [...named].map(([title, members]) => {
    const row = members[0];
    const [tint, symbol, variant, studied] = data.looks[row.curve];
    // Scopes and regimes that are shown together differ in dash and filling, as variants do.
    const look = manner(variant + kinds.get(row.method).indexOf(kind(row)) * variants.get(tint + symbol).length);
    const path = [...groupBy(members, (trial) => trial.budget)].sort((a, b) => b[0] - a[0]).map(([budget, group]) => (
      { budget, title, x: mean(group.map((trial) => trial[axis.key])), y: mean(group.map(height)) }));
    const field = COMPETING.map((key) => row[key]).join("|");
    return { title, tint, symbol, studied, ...look, members, path, field, setting: row.setting, kind: kind(row) };
  });
}

// The titles of strong curves: the method under study, the best of the others at every budget, and as the reader says.
function strongOf(curves) {
  const strong = new Set(curves.filter((curve) => curve.studied || curves.length <= FEW).map((curve) => curve.title));
  const rivals = curves.filter((curve) => !curve.studied).flatMap((curve) => curve.path.map((point) => ({ ...point, field: curve.field })));
  for (const points of groupBy(rivals, (point) => `${point.field}|${point.budget}`).values()) {
    strong.add(points.reduce((best, point) => (point.y > best.y ? point : best)).title);
  }
  for (const { title } of curves) if (turned.has(title)) strong[strong.has(title) ? "delete" : "add"](title);
  return strong;
}

function draw() {
  if (!axis || find("board").hidden) return;
  const shown = rows.filter((row) => given(row[upright.key]) && given(row[axis.key]) && matches(row));
  const dense = shown.filter((row) => row.method === "none");
  const curves = curvesOf(shown.filter((row) => row.method !== "none"));
  const strong = strongOf(curves);
  const rank = (curve) => (curve.studied ? 2 : 0) + strong.has(curve.title);
  const [ink, quiet, line, paper, front] = ["ink", "quiet", "line", "paper", "front"].map(color);
  const narrow = plot.clientWidth < 640;
  const marks = (trials, title, { tint, symbol, hollow }, size, opacity) => ({
    type: "scatter", mode: "markers", name: literal(short(title)), opacity,
    x: trials.map((row) => row[axis.key]), y: trials.map(height),
    error_y: {
      type: "data", symmetric: false, thickness: 1, width: 0, color: tint,
      array: trials.map((row) => reach(row, upright.high, 1)), arrayminus: trials.map((row) => reach(row, upright.low, -1)),
    },
    customdata: trials.map((row) => row.trial), hoverinfo: "text",
    hovertext: trials.map((row) => [`<b>${literal(short(title))}</b>`, ...rowFacts(row).map((pair) => literal(pair.join(" "))), "click: plan and details"].join("<br>")),
    marker: { color: tint, symbol: symbol + (hollow ? "-open" : ""), size, line: { color: hollow ? tint : paper, width: hollow ? 2 : 1 } },
  });
  const fronts = [...groupBy(curves, (curve) => curve.field).values()].map((rivals, i) => ({
    title: ["Pareto front", rivals[0].kind].filter(Boolean).join(" · "), dash: manner(i).dash, tint: front,
    steps: frontier(rivals, dense.filter((row) => row.setting === rivals[0].setting)),
  })).filter(({ steps }) => steps.x.length);
  const traces = fronts.map(({ title, dash, steps }) => ({
    ...steps, type: "scatter", mode: "lines", name: literal(title), hoverinfo: "skip",
    line: { color: front, width: 1.5, shape: "hv", dash: stroke(dash) },
  }));
  // What is drawn later lies on top.
  for (const curve of [...curves].sort((a, b) => rank(a) - rank(b))) {
    const bold = strong.has(curve.title);
    const opacity = bold ? 1 : 0.35;
    traces.push({
      type: "scatter", mode: "lines", hoverinfo: "skip", opacity, x: curve.path.map((point) => point.x), y: curve.path.map((point) => point.y),
      line: { color: curve.tint, dash: stroke(curve.dash), width: curve.studied && bold ? 3 : bold ? 2 : 1.2 },
    });
    traces.push(marks(curve.members, curve.title, curve, (curve.studied ? 12 : 10) - (bold ? 0 : 3) - (narrow ? 2 : 0), opacity));
  }
  if (dense.length) traces.push(marks(dense, "dense", { tint: ink, symbol: "circle" }, 10, 1));
  const shapes = [], annotations = [];
  const level = (value, dash, text) => {
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: { color: quiet, width: 1.2, dash }, layer: "below" });
    annotations.push({ xref: "paper", x: 0, xanchor: "left", y: value, yanchor: "bottom", text, showarrow: false, font: { size: 11, color: quiet } });
  };
  const floors = shown.filter((row) => given(row.blank_accuracy)).map((row) => 100 * row.blank_accuracy);
  if (floors.length) level(mean(floors), "dot", "blind floor (image blanked)");
  if (dense.length) level(mean(dense.map(height)), "dash", "dense");
  for (const figure of data.reported) {
    const x = figure[axis.key];
    if (x === undefined) continue;
    shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { color: quiet, width: 1, dash: "dashdot" }, layer: "below" });
    const text = `${literal(figure.method)}, reported`;
    annotations.push({ x, yref: "paper", y: 1, yanchor: "top", xanchor: "right", textangle: -90, text, showarrow: false, font: { size: 11, color: quiet } });
  }
  const grid = { gridcolor: line, zeroline: false, linecolor: line, tickcolor: line, automargin: true };
  const layout = {
    paper_bgcolor: paper, plot_bgcolor: paper, hovermode: "closest", shapes, annotations, showlegend: false,
    font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 13 },
    // On a phone, a finger that moves over the plot scrolls the page.
    dragmode: narrow ? false : "zoom", margin: { l: 48, r: 12, t: narrow ? 12 : 36, b: 48 },
    xaxis: { ...grid, title: { text: axis.label }, autorange: axis.sign < 0 ? "reversed" : true },
    yaxis: { ...grid, title: { text: upright.label } },
    hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink }, align: "left" },
  };
  const buttons = ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d"];
  Plotly.react(plot, traces, layout, { responsive: true, displaylogo: false, displayModeBar: !narrow, modeBarButtonsToRemove: buttons });
  legend([...curves].sort((a, b) => rank(b) - rank(a)), strong, fronts);
}

// The steps of the best points of curves that compete, by cost. A single budget has none: they would look like a curve.
function frontier(curves, dense) {
  const steps = { x: [], y: [] };
  if (upright.key !== "accuracy" || !curves.some((curve) => curve.path.length > 1)) return steps;
  const places = [...curves.flatMap((curve) => curve.path), ...dense.map((row) => ({ x: row[axis.key], y: height(row) }))];
  for (const { x, y } of places.sort((a, b) => axis.sign * (b.x - a.x) || b.y - a.y)) {
    if (steps.y.length && y <= steps.y.at(-1)) continue;
    steps.x.push(x);
    steps.y.push(y);
  }
  return steps;
}

// Plotly's markers as paths around (13, 7).
const MARKS = {
  circle: "M8.5 7a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z", square: "M9 3h8v8h-8z", diamond: "M13 1.5l5.5 5.5-5.5 5.5-5.5-5.5z",
  "triangle-up": "M13 2l5 9h-10z", "triangle-down": "M13 12l5-9h-10z", "triangle-left": "M8 7l9-5v10z", "triangle-right": "M18 7l-9-5v10z",
  cross: "M11.5 2h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z", x: "M9.5 1.5l3.5 3.5 3.5-3.5 2 2-3.5 3.5 3.5 3.5-2 2-3.5-3.5-3.5 3.5-2-2 3.5-3.5-3.5-3.5z",
};

// A line of the legend: a sample of the curve or front, and its title.
function sample(tag, { title, tint, dash, symbol, studied, hollow }) {
  const [element, svg] = [make(tag), drawn("svg", { width: 26, height: 14, stroke: tint })];
  svg.append(drawn("line", { x2: 26, y1: 7, y2: 7, "stroke-width": studied ? 3 : 2, "stroke-dasharray": dash.join(" ") }));
  if (symbol) svg.append(drawn("path", { d: MARKS[symbol], "stroke-width": 1.5, fill: hollow ? color("paper") : tint }));
  element.append(svg, make("span", title));
  return element;
}

function drawn(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  return element;
}

// The legend under the plot. It is not plotly's, which takes its room from the plot on a phone.
function legend(curves, strong, fronts) {
  const buttons = curves.map((curve) => {
    const button = sample("button", curve);
    button.ariaPressed = strong.has(curve.title);
    button.addEventListener("click", () => {
      turned[turned.has(curve.title) ? "delete" : "add"](curve.title);
      draw();
      [...find("legend").children].find((entry) => entry.textContent === curve.title).focus();
    });
    return button;
  });
  find("legend").replaceChildren(...buttons, ...fronts.map((line) => sample("div", line)));
}

function pick(row) {
  const link = make("a", "plan and details", { href: `#trial=${row.trial}` });
  find("picked").replaceChildren(`${row.curve}: ${rowFacts(row).map((pair) => pair.join(" ")).join("; ")}. `, link);
}

if (axis) {
  find("front").hidden = false;
  Plotly.newPlot(plot, [], {}, { responsive: true });
  const rowOf = (event) => rows[places.get(event.points[0].customdata)];
  plot.on("plotly_hover", (event) => pick(rowOf(event)));
  plot.on("plotly_click", (event) => { location.hash = `trial=${rowOf(event).trial}`; });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
