"use strict";
// What the chart shows: curves of methods, their fronts, reference levels; and the legend under it.

const plot = find("plot");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
// Cut in the middle, because names differ at their ends.
const short = (text) => (text.length > 40 ? `${text.slice(0, 20)}…${text.slice(-19)}` : text);

// Trials that agree in these share a front.
const COMPETING = ["setting", "scope", "units", "budget_terms", "regime"];
// So many curves need no emphasis.
const FEW = 6;
// Curves that the reader brought forward or back.
const turned = new Set();
const manner = (place) => ({ dash: data.dashes[place % data.dashes.length], hollow: place % 2 === 1 });
const height = (row) => upright.scale * row[upright.key];

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
  const colors = Object.fromEntries(["ink", "quiet", "line", "paper", "front"].map((name) => [name, color(name)]));
  const smaller = plot.clientWidth < 640 ? 2 : 0;
  const marks = (trials, title, { tint, symbol, hollow }, size, opacity) => trials.map((row) => ({
    row, title: short(title), tint, symbol, hollow, size, opacity, x: row[axis.key], y: height(row),
    low: Math.min(height(row), upright.scale * (row[upright.low] ?? row[upright.key])),
    high: Math.max(height(row), upright.scale * (row[upright.high] ?? row[upright.key])),
    told: [...rowFacts(row).map((pair) => pair.join(" ")), "click: plan and details"],
  }));
  const fronts = [...groupBy(curves, (curve) => curve.field).values()].map((rivals, i) => ({
    title: ["Pareto front", rivals[0].kind].filter(Boolean).join(" · "), dash: manner(i).dash, tint: colors.front,
    steps: true, width: 1.5, opacity: 1, points: frontier(rivals, dense.filter((row) => row.setting === rivals[0].setting)),
  })).filter(({ points }) => points.length);
  const scene = {
    colors, x: axis, y: upright, lines: [...fronts], marks: [], levels: [],
    uprights: data.reported.filter((figure) => figure[axis.key] !== undefined).map((figure) => (
      { x: figure[axis.key], text: `${figure.method}, reported` })),
  };
  // What is drawn later lies on top.
  for (const curve of [...curves].sort((a, b) => rank(a) - rank(b))) {
    const bold = strong.has(curve.title);
    const opacity = bold ? 1 : 0.35;
    const width = curve.studied && bold ? 3 : bold ? 2 : 1.2;
    scene.lines.push({ points: curve.path.map((point) => [point.x, point.y]), tint: curve.tint, dash: curve.dash, width, opacity });
    scene.marks.push(...marks(curve.members, curve.title, curve, (curve.studied ? 12 : 10) - (bold ? 0 : 3) - smaller, opacity));
  }
  scene.marks.push(...marks(dense, "dense", { tint: colors.ink, symbol: "circle" }, 10, 1));
  const floors = shown.filter((row) => given(row.blank_accuracy)).map((row) => 100 * row.blank_accuracy);
  if (floors.length) scene.levels.push({ y: mean(floors), dash: "2 2", text: "blind floor (image blanked)" });
  if (dense.length) scene.levels.push({ y: mean(dense.map(height)), dash: "6 3", text: "dense" });
  chart.draw(scene);
  legend([...curves].sort((a, b) => rank(b) - rank(a)), strong, fronts);
}

// The steps of the best points of curves that compete, by cost. A single budget has none: they would look like a curve.
function frontier(curves, dense) {
  const steps = [];
  if (upright.key !== "accuracy" || !curves.some((curve) => curve.path.length > 1)) return steps;
  const places = [...curves.flatMap((curve) => curve.path), ...dense.map((row) => ({ x: row[axis.key], y: height(row) }))];
  for (const { x, y } of places.sort((a, b) => axis.sign * (b.x - a.x) || b.y - a.y)) {
    if (!steps.length || y > steps.at(-1)[1]) steps.push([x, y]);
  }
  return steps;
}

// A line of the legend: a sample of the curve or front, and its title.
function sample(tag, { title, tint, dash, symbol, studied, hollow }) {
  const [element, svg] = [make(tag), drawn("svg", { width: 26, height: 14, stroke: tint })];
  svg.append(drawn("line", { x2: 26, y1: 7, y2: 7, "stroke-width": studied ? 3 : 2, "stroke-dasharray": dash.join(" ") }));
  if (symbol) svg.append(drawn("path", { d: MARKS[symbol], "stroke-width": 1.5, fill: hollow ? color("paper") : tint }));
  element.append(svg, make("span", title));
  return element;
}

// The legend under the chart, where it takes no room from it on a phone.
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

function pick({ row }) {
  const link = make("a", "plan and details", { href: `#trial=${row.trial}` });
  find("picked").replaceChildren(`${row.curve}: ${rowFacts(row).map((pair) => pair.join(" ")).join("; ")}. `, link);
}

find("front").hidden = !axis;
const chart = chartIn(plot, { point: pick, open: ({ row }) => { location.hash = `trial=${row.trial}`; } });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
