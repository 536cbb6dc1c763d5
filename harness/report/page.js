"use strict";
// Filters, sorting and the plot of a board's page. All text is set as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows.trial.map((_, i) => {
  const row = { place: i, weights_mb: data.weights[i] === null ? null : data.weights[i] / 1e6 };
  for (const key in data.rows) row[key] = data.rows[key][i];
  return row;
});
const places = new Map(rows.map((row) => [row.trial, row.place]));

// Cheaper is to the right on every axis; `sign` says whether more or less of it is.
const AXES = [
  { key: "flops_kept", label: "FLOPs kept in the scope (share)", sign: -1 },
  { key: "total_flops_kept", label: "FLOPs kept end to end (share)", sign: -1 },
  { key: "latency_speedup", label: "measured speedup of the scope (factor)", sign: 1 },
  { key: "params_kept", label: "parameters kept (share)", sign: -1 },
  { key: "weights_mb", label: "memory of the weights (MB)", sign: -1 },
].filter((axis) => rows.some((row) => row[axis.key] !== null));
const FILTERS = [
  { key: "scope", label: "Scope", every: "every scope" },
  { key: "units", label: "Units", every: "heads or FFN" },
  { key: "setting", label: "Setting", every: "every setting" },
  { key: "method", label: "Method", every: "every method" },
  { key: "seed", label: "Seed", every: "every seed" },
];

const find = (id) => document.getElementById(id);
const number = (value, digits) => (value === null || value === undefined ? data.nothing : value.toFixed(digits));
const points = (value) => number(value === null || value === undefined ? null : 100 * value, 1);
const within = (text, low, high) => (low === data.nothing || high === data.nothing ? text : `${text} [${low}, ${high}]`);
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
  const options = AXES.map((one) => [one.key, one.label]);
  select("Axis", options, axis.key, (value) => { axis = AXES.find((one) => one.key === value); draw(); });
}
const pruned = rows.filter((row) => row.method !== "none");
for (const { key, label, every } of FILTERS) {
  const values = [...new Set((key === "method" ? rows : pruned).map((row) => row[key]))];
  if (key === "seed") values.sort((a, b) => a - b);
  if (values.length < 2) continue;
  // One scope at a time is what a plot can show; the rest starts with everything.
  chosen[key] = key === "scope" || key === "setting" ? String(values[0]) : "";
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
    // Dense counts for every scope, choice of units and seed.
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
    // What was not measured stands last, whichever way.
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
// The library reads some tags in a text; as entities they stay what they are.
const literal = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const short = (text) => (text.length > 32 ? `${text.slice(0, 31)}…` : text);

function told(row) {
  const speedup = [row.latency_speedup, row.speedup_lo, row.speedup_hi].map((value) => number(value, 2));
  return [
    ["budget", `${row.budget} (${number(1 / row.budget, 2)}×), scope ${row.scope}, seed ${row.seed}`],
    ["accuracy", within(points(row.accuracy), points(row.accuracy_lo), points(row.accuracy_hi))],
    ["speedup", within(...speedup)],
    ["FLOPs kept", number(row.flops_kept, 4)],
    ["parameters kept", number(row.params_kept, 3)],
  ];
}

function draw() {
  if (!axis || find("board").hidden) return;
  const shown = rows.filter((row) => row.accuracy !== null && row[axis.key] !== null && matches(row));
  const dense = shown.filter((row) => row.method === "none");
  const varying = ["scope", "units", "setting"].filter((key) => chosen[key] === "");
  const kind = (row) => varying.map((key) => row[key]).join(" · ");
  const kinds = [...new Set(shown.filter((row) => row.method !== "none").map(kind))];
  const name = (row) => [row.curve, kind(row)].filter(Boolean).join(" · ");
  const curves = groupBy(shown.filter((row) => row.method !== "none"), name);
  const [ink, quiet, line, paper, front] = ["ink", "quiet", "line", "paper", "front"].map(color);
  const traces = [];
  const means = dense.map((row) => [row[axis.key], row.accuracy]);
  const marks = (own, title, look, size) => ({
    type: "scatter", mode: "markers", name: literal(short(title)), legendgroup: title,
    x: own.map((row) => row[axis.key]), y: own.map((row) => 100 * row.accuracy),
    customdata: own.map((row) => row.trial), hoverinfo: "text",
    hovertext: own.map((row) => [`<b>${literal(short(title))}</b>`, ...told(row).map((pair) => literal(pair.join(" "))), "click: plan and details"].join("<br>")),
    marker: { color: look[0], symbol: look[1], size, line: { color: look[1].includes("open") ? look[0] : paper, width: look[1].includes("open") ? 2 : 1 } },
  });
  for (const [title, own] of curves) {
    const [tint, symbol, dash, studied] = data.looks[own[0].curve];
    // The same colour in every scope shown at once, but not the same marks and lines.
    const place = kinds.indexOf(kind(own[0])) % 3;
    const look = [tint, symbol + ["", "-open", "-open-dot"][place], place ? ["dot", "dashdot"][place - 1] : dash];
    const byBudget = [...groupBy(own, (row) => row.budget).values()].sort((a, b) => b[0].budget - a[0].budget);
    const path = byBudget.map((group) => [mean(group.map((row) => row[axis.key])), mean(group.map((row) => row.accuracy))]);
    means.push(...path);
    traces.push({
      type: "scatter", mode: "lines", legendgroup: title, showlegend: false, hoverinfo: "skip",
      x: path.map((point) => point[0]), y: path.map((point) => 100 * point[1]),
      line: { color: look[0], dash: look[2], width: studied ? 3 : 1.7 },
    });
    traces.push(marks(own, title, look, studied ? 11 : 9));
  }
  if (dense.length) traces.push(marks(dense, "dense", [ink, "circle"], 10));
  traces.unshift(frontier(means, front));
  const shapes = [], annotations = [];
  const level = (value, dash, text) => {
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 100 * value, y1: 100 * value, line: { color: quiet, width: 1.2, dash }, layer: "below" });
    annotations.push({ xref: "paper", x: 0, xanchor: "left", y: 100 * value, yanchor: "bottom", text, showarrow: false, font: { size: 11, color: quiet } });
  };
  const floors = shown.filter((row) => row.blank_accuracy !== null).map((row) => row.blank_accuracy);
  if (floors.length) level(mean(floors), "dot", "blind floor (image blanked)");
  if (dense.length) level(mean(dense.map((row) => row.accuracy)), "dash", "dense");
  for (const figure of data.reported) {
    const x = figure[axis.key];
    if (x === undefined) continue;
    shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { color: quiet, width: 1, dash: "dashdot" }, layer: "below" });
    const text = `${literal(figure.method)}, reported`;
    annotations.push({ x, yref: "paper", y: 1, yanchor: "top", xanchor: "right", textangle: -90, text, showarrow: false, font: { size: 11, color: quiet } });
  }
  const narrow = plot.clientWidth < 640;
  const grid = { gridcolor: line, zeroline: false, linecolor: line, tickcolor: line, automargin: true };
  const layout = {
    paper_bgcolor: paper, plot_bgcolor: paper, hovermode: "closest", shapes, annotations,
    font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 13 },
    margin: { l: 48, r: 12, t: 36, b: 48 },
    xaxis: { ...grid, title: { text: axis.label }, autorange: axis.sign < 0 ? "reversed" : true },
    yaxis: { ...grid, title: { text: narrow ? "accuracy (points)" : "accuracy (points, mean over tasks)" } },
    legend: narrow ? { orientation: "h", y: -0.3, yanchor: "top", x: 0 } : { x: 1.01, y: 1 },
    hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink }, align: "left" },
  };
  const buttons = ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d"];
  Plotly.react(plot, traces, layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: buttons });
}

// What no point shown lies beyond: better in cost and in accuracy.
function frontier(means, stroke) {
  const path = [];
  for (const point of [...means].sort((a, b) => axis.sign * (b[0] - a[0]) || b[1] - a[1])) {
    if (!path.length || point[1] > path.at(-1)[1]) path.push(point);
  }
  return {
    type: "scatter", mode: "lines", name: "Pareto front", hoverinfo: "skip", line: { color: stroke, width: 1.5, shape: "hv" },
    x: path.map((point) => point[0]), y: path.map((point) => 100 * point[1]),
  };
}

function pick(row) {
  const link = make("a", "plan and details", { href: `#trial=${row.trial}` });
  find("picked").replaceChildren(`${row.curve}: ${told(row).map((pair) => pair.join(" ")).join("; ")}. `, link);
}

if (axis) {
  find("front").hidden = false;
  Plotly.newPlot(plot, [], {}, { responsive: true });
  const picked = (event) => rows[places.get(event.points[0].customdata)];
  plot.on("plotly_hover", (event) => pick(picked(event)));
  plot.on("plotly_click", (event) => { location.hash = `trial=${picked(event).trial}`; });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
