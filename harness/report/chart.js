"use strict";
// A chart in SVG: axes, curves, marks with bars; hovering, zoom, and a picture to save. All text is set as text.

function drawn(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Markers as paths around (13, 7), 9 wide.
const MARKS = {
  circle: "M8.5 7a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z", square: "M9 3h8v8h-8z", diamond: "M13 1.5l5.5 5.5-5.5 5.5-5.5-5.5z",
  "triangle-up": "M13 2l5 9h-10z", "triangle-down": "M13 12l5-9h-10z", "triangle-left": "M8 7l9-5v10z", "triangle-right": "M18 7l-9-5v10z",
  cross: "M11.5 2h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z", x: "M9.5 1.5l3.5 3.5 3.5-3.5 2 2-3.5 3.5 3.5 3.5-2 2-3.5-3.5-3.5 3.5-2-2 3.5-3.5-3.5-3.5z",
};
const NEAR = 14; // pixels around a mark that count as on it
const DRAG = 6; // pixels that make a press a drag

// Round figures within a range, at most this many, with their texts.
function ticks([from, to], most) {
  const [low, high] = [Math.min(from, to), Math.max(from, to)];
  const rough = (high - low) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) values.push([i * step, (i * step).toFixed(digits)]);
  return values;
}

// A range with room at both ends.
function roomy(values, share, least) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = share * Math.max(high - low, least);
  return [low - room, high + room];
}

// A chart in a box. `point` is told which mark the reader points at, `open` which one is clicked.
function chartIn(box, { point, open }) {
  let scene = null; // what `draw` was given
  let view = null; // the ranges that the reader chose: {x, y}
  let frame = null; // the ranges and the area that are drawn
  let drag = null; // where a press began, while it lasts
  let dragged = false; // whether the last press was a drag, which opens nothing
  const tip = make("div", null, { id: "tip", hidden: true });
  const svg = drawn("svg", { role: "img" });
  const whole = make("button", "Whole view", { type: "button", hidden: true });
  const picture = make("button", "Save as PNG", { type: "button" });
  const tools = make("p", null, { className: "tools" });
  tools.append("Drag to zoom, drag with shift to move. ", whole, picture);
  box.append(svg, tip);
  box.after(tools);

  function ranges() {
    const xs = scene.marks.map((mark) => mark.x);
    const ys = [...scene.marks.flatMap((mark) => [mark.y, mark.low, mark.high]), ...scene.levels.map((level) => level.y)];
    const x = roomy(xs.length ? xs : [0, 1], 0.05, 0.02);
    return { x: scene.x.sign < 0 ? x.reverse() : x, y: roomy(ys.length ? ys : [0, 1], 0.06, 0.5) };
  }

  const right = (x) => frame.left + (frame.width * (x - frame.x[0])) / (frame.x[1] - frame.x[0]);
  const down = (y) => frame.top + (frame.height * (frame.y[1] - y)) / (frame.y[1] - frame.y[0]);
  // The figures at a place of the box.
  const figures = ([across, below]) => [
    frame.x[0] + ((across - frame.left) / frame.width) * (frame.x[1] - frame.x[0]),
    frame.y[1] - ((below - frame.top) / frame.height) * (frame.y[1] - frame.y[0]),
  ];
  const place = (event) => {
    const { left, top } = box.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };
  const narrow = () => box.clientWidth < 640;

  function render() {
    if (!scene || !box.clientWidth) return;
    const [wide, high] = [box.clientWidth, box.clientHeight];
    frame = { ...ranges(), ...view, left: 52, top: 10, width: wide - 64, height: high - 60 };
    const { ink, quiet, line, paper } = scene.colors;
    const texts = { fill: ink, stroke: "none", "font-size": 13 };
    const ends = [frame.left, frame.left + frame.width, frame.top, frame.top + frame.height];
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
    svg.setAttribute("width", wide);
    svg.setAttribute("height", high);
    svg.setAttribute("aria-label", `${scene.y.label} against ${scene.x.label}`);
    svg.setAttribute("font-family", getComputedStyle(document.body).fontFamily);
    svg.append(drawn("rect", { width: wide, height: high, fill: paper }));
    const clip = drawn("clipPath", { id: "area" });
    clip.append(drawn("rect", { x: ends[0], y: ends[2], width: frame.width, height: frame.height }));
    const area = drawn("g", { "clip-path": "url(#area)", fill: "none" });
    for (const [value, text] of ticks(frame.x, wide / 64)) {
      svg.append(drawn("line", { x1: right(value), x2: right(value), y1: ends[2], y2: ends[3], stroke: line }));
      svg.append(drawn("text", { ...texts, x: right(value), y: ends[3] + 18, "text-anchor": "middle", class: "tick" }, text));
    }
    for (const [value, text] of ticks(frame.y, high / 60)) {
      svg.append(drawn("line", { x1: ends[0], x2: ends[1], y1: down(value), y2: down(value), stroke: line }));
      svg.append(drawn("text", { ...texts, x: ends[0] - 8, y: down(value) + 4, "text-anchor": "end", class: "tick" }, text));
    }
    svg.append(drawn("text", { ...texts, x: (ends[0] + ends[1]) / 2, y: high - 8, "text-anchor": "middle", class: "title" }, scene.x.label));
    svg.append(drawn("text", { ...texts, "text-anchor": "middle", transform: `translate(14 ${(ends[2] + ends[3]) / 2}) rotate(-90)` }, scene.y.label));
    const said = { fill: quiet, "font-size": 11 };
    for (const { y, dash, text } of scene.levels) {
      area.append(drawn("line", { x1: ends[0], x2: ends[1], y1: down(y), y2: down(y), stroke: quiet, "stroke-width": 1.2, "stroke-dasharray": dash }));
      area.append(drawn("text", { ...said, x: ends[0] + 4, y: down(y) - 4 }, text));
    }
    for (const { x, text } of scene.uprights) {
      area.append(drawn("line", { x1: right(x), x2: right(x), y1: ends[2], y2: ends[3], stroke: quiet, "stroke-dasharray": "8 3 2 3", class: "upright" }));
      area.append(drawn("text", { ...said, transform: `translate(${right(x) - 4} ${ends[2] + 4}) rotate(-90)`, "text-anchor": "end" }, text));
    }
    for (const { points, steps, tint, dash, width, opacity } of scene.lines) {
      const path = points.map(([x, y], i) => (i && steps ? `H${right(x)}V${down(y)}` : `${i ? "L" : "M"}${right(x)} ${down(y)}`)).join("");
      area.append(drawn("path", { d: path, stroke: tint, "stroke-width": width, "stroke-dasharray": dash.join(" "), opacity }));
    }
    for (const mark of scene.marks) {
      const [x, y, scale] = [right(mark.x), down(mark.y), mark.size / 9];
      const group = drawn("g", { opacity: mark.opacity, stroke: mark.tint });
      if (mark.high > mark.low) group.append(drawn("line", { x1: x, x2: x, y1: down(mark.low), y2: down(mark.high) }));
      const look = mark.hollow ? { fill: paper, "stroke-width": 2 / scale } : { fill: mark.tint, stroke: paper, "stroke-width": 1 / scale };
      group.append(drawn("path", { d: MARKS[mark.symbol], transform: `translate(${x - 13 * scale} ${y - 7 * scale}) scale(${scale})`, ...look }));
      area.append(group);
    }
    svg.append(clip, area);
    whole.hidden = !view;
    tools.hidden = narrow();
  }

  // The mark at a place of the box: the nearest, of several the one on top.
  function at([across, below]) {
    let [best, nearest] = [null, NEAR];
    for (const mark of scene ? scene.marks : []) {
      const far = Math.hypot(right(mark.x) - across, down(mark.y) - below);
      if (far <= nearest) [best, nearest] = [mark, far];
    }
    return best;
  }

  function hover(mark) {
    tip.hidden = !mark;
    box.style.cursor = mark ? "pointer" : narrow() ? "" : "crosshair";
    if (!mark) return;
    tip.replaceChildren(make("strong", mark.title), ...mark.told.map((text) => make("div", text)));
    const [x, y] = [right(mark.x), down(mark.y)];
    tip.style.left = `${Math.max(0, Math.min(x + 12, box.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, y - tip.offsetHeight - 12)}px`;
    point(mark);
  }

  box.addEventListener("pointerdown", (event) => {
    // On a phone, a finger that moves over the chart scrolls the page.
    if (event.pointerType !== "mouse" || event.button !== 0 || !frame) return;
    drag = { from: place(event), frame: { ...frame }, moves: event.shiftKey };
    dragged = false;
    box.setPointerCapture(event.pointerId);
    event.preventDefault(); // selects no text
  });
  box.addEventListener("pointermove", (event) => {
    const to = place(event);
    if (!drag) return hover(at(to));
    const [dx, dy] = [to[0] - drag.from[0], to[1] - drag.from[1]];
    dragged ||= Math.hypot(dx, dy) > DRAG;
    if (!dragged) return;
    hover(null);
    if (drag.moves) {
      const { x, y, width, height } = drag.frame;
      const [sx, sy] = [(dx / width) * (x[1] - x[0]), (dy / height) * (y[1] - y[0])];
      view = { x: x.map((value) => value - sx), y: y.map((value) => value + sy) };
      render();
    } else {
      svg.querySelector(".zoom")?.remove();
      const corner = { x: Math.min(to[0], drag.from[0]), y: Math.min(to[1], drag.from[1]), width: Math.abs(dx), height: Math.abs(dy) };
      svg.append(drawn("rect", { ...corner, class: "zoom", fill: scene.colors.quiet, opacity: 0.25 }));
    }
  });
  box.addEventListener("pointerup", (event) => {
    if (drag && dragged && !drag.moves) {
      const [a, b] = [figures(drag.from), figures(place(event))];
      const sorted = [0, 1].map((axis) => [a[axis], b[axis]].sort((one, two) => one - two));
      // A stripe zooms along the other axis only.
      const flat = drag.from.map((start, axis) => Math.abs(place(event)[axis] - start) < 2 * DRAG);
      if (frame.x[0] > frame.x[1]) sorted[0].reverse();
      view = { x: flat[0] ? frame.x : sorted[0], y: flat[1] ? frame.y : sorted[1] };
      render();
    }
    drag = null;
  });
  box.addEventListener("pointercancel", () => { drag = null; });
  box.addEventListener("pointerleave", () => { if (!drag) hover(null); });
  box.addEventListener("click", (event) => {
    const mark = at(place(event));
    if (mark && !dragged) open(mark);
  });
  const reset = () => { view = null; render(); };
  box.addEventListener("dblclick", reset);
  whole.addEventListener("click", reset);
  picture.addEventListener("click", () => {
    const image = new Image();
    image.addEventListener("load", () => {
      const canvas = make("canvas", null, { width: 2 * box.clientWidth, height: 2 * box.clientHeight });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      make("a", null, { href: canvas.toDataURL("image/png"), download: `${data.board}.png` }).click();
    });
    image.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(svg))}`;
  });
  new ResizeObserver(render).observe(box);
  return {
    draw(given) { scene = given; render(); },
    reset() { view = null; },
    get scene() { return scene; },
    get frame() { return frame; },
    where: (mark) => [right(mark.x), down(mark.y)],
  };
}
