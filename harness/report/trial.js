"use strict";
// The details of one trial, shown at the address #trial=<id>, and the start of the page.

function table(heads, lines) {
  const box = make("div", null, { className: "scroll", tabIndex: 0 });
  const element = make("table");
  const head = element.createTHead().insertRow();
  heads.forEach((text, i) => head.append(make("th", text, { scope: "col", className: i ? "n" : "" })));
  const rows = element.createTBody();
  for (const [first, ...others] of lines) {
    const row = rows.insertRow();
    row.append(make("th", first, { scope: "row" }));
    for (const cell of others) row.append(cell instanceof Node ? cell : make("td", cell, { className: "n" }));
  }
  box.append(element);
  return box;
}

function facts(pairs) {
  const list = make("dl", null, { className: "facts" });
  for (const [key, value] of pairs) list.append(make("dt", key), make("dd", value));
  return list;
}

const KEPT = "Filled squares are kept heads (or groups of heads). A stronger colour means that more of the block is kept, "
  + "relative to the largest count or rank in any plan on this board.";

// The details of all trials, once `unpack` has unpacked them; `sorted` has the places of blocks by their names.
let details = null;
let sorted = [];
const ranks = {};
async function unpack() {
  const bytes = Uint8Array.from(atob(find("details").textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  details = await new Response(stream).json();
  const { blocks, trials } = details;
  sorted = [...blocks.keys()].sort((a, b) => blocks[a].localeCompare(blocks[b], "en", { numeric: true }));
  for (const trial of trials) {
    (trial.plan || []).forEach((parts, i) => {
      const component = blocks[i].split(".")[0];
      for (const part of parts || []) {
        if (typeof part !== "string") continue;
        for (const rank of part.match(/\d+/g) || []) ranks[component] = Math.max(ranks[component] || 1, Number(rank));
      }
    });
  }
}

// The kept share of a part; null if the plan gives no number.
function share(part, component, kind) {
  if (part === null) return 1;
  if (Array.isArray(part)) return part[0] / details.sizes[component][kind];
  const words = part.match(/\d+|dense/g);
  return words && mean(words.map((word) => (word === "dense" ? 1 : Number(word) / ranks[component])));
}

function plan(trial) {
  const lines = sorted.flatMap((i) => {
    if (!trial.plan[i]) return [];
    const block = details.blocks[i];
    const component = block.split(".")[0];
    const cells = [];
    trial.plan[i].forEach((part, kind) => {
      const size = details.sizes[component][kind];
      const kept = share(part, component, kind);
      const text = part === null ? "whole" : Array.isArray(part) ? `${part[0]} of ${size}` : part;
      const cell = make("td", text, { className: "heat" });
      cell.style.setProperty("--share", kept ?? 0);
      if (kind === 0) {
        const strip = make("td");
        if (Array.isArray(part)) {
          const units = make("span", null, { className: "heads", ariaHidden: "true" });
          const mask = BigInt(`0x${part[2]}`);
          for (let unit = 0; unit < size; unit++) {
            const kept = (mask >> BigInt(unit)) & 1n;
            units.append(make("i", null, { className: kept ? "kept" : "", title: `${unit}: ${kept ? "kept" : "removed"}` }));
          }
          strip.append(units);
        }
        cells.push(strip);
      }
      cells.push(cell);
    });
    return [[block, ...cells]];
  });
  const element = table(["block", "which heads", "heads kept", "FFN kept"], lines);
  element.classList.add("plan");
  return element;
}

function examples([questions, lost, gained, shown]) {
  const box = make("div");
  box.append(make("p", `Of ${questions} questions, ${lost} that the dense model answers right were lost, and ${gained} were gained.`));
  for (const [title, isLost] of [["Lost", true], ["Gained", false]]) {
    const group = shown.filter((example) => example[1] === isLost);
    if (!group.length) continue;
    const list = make("ul", null, { className: "examples" });
    for (const [place, , before, after] of group) {
      const question = details.questions[place];
      const item = make("li");
      if (question.image !== undefined) {
        const alt = `the image of question ${question.id}`;
        item.append(make("img", null, { src: details.images[question.image], alt }));
      }
      const text = make("div");
      text.append(make("p", question.text ?? `question ${question.id} of image ${question.image_id}`));
      const pairs = [["dense", before], ["pruned", after], ["task", question.task]];
      if (question.truth) pairs.unshift(["truth", question.truth.join(", ")]);
      const answers = make("dl");
      for (const [key, value] of pairs) answers.append(make("dt", key), make("dd", value));
      text.append(answers);
      item.append(text);
      list.append(item);
    }
    box.append(make("h3", title), list);
  }
  return box;
}

function command(trial) {
  const box = make("div", null, { className: "command" });
  const setup = details.setups[trial.setup];
  const text = setup.checkout + trial.command + setup.command;
  const code = make("pre", null, { tabIndex: 0 });
  code.append(make("code", text));
  const button = make("button", "Copy the command", { type: "button" });
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected: copy it with the keyboard";
    }
  });
  box.append(code, button);
  return box;
}

function describe(row) {
  const trial = details.trials[row.place];
  const setup = details.setups[trial.setup];
  const main = find("trial");
  const heading = make("h1", `${row.curve}, ${row.scope} at ${row.budget}, seed ${row.seed}`, { tabIndex: -1 });
  const back = make("p", null, { className: "quiet" });
  back.append(make("a", `Back to ${data.board}`, { href: "#" }));
  main.replaceChildren(back, heading, make("p", setup.title));
  const add = (title, ...elements) => main.append(make("h2", title), ...elements);
  if (row.status !== "ok") {
    main.append(make("p", row.status, { className: "failed" }));
  } else {
    main.append(facts(rowFacts(row)));
    const [accuracy, latency] = [trial.tasks, trial.latency];
    if (accuracy.length) {
      add("Accuracy", table(["task", "accuracy", "95 % interval", "questions", "images"], accuracy.map(
        ([task, mean, low, high, n, images]) => [task, points(mean), low == null ? data.few : `${points(low)} to ${points(high)}`, number(n, 0), number(images, 0)])));
    }
    if (latency.length) {
      add("Latency", table(["stage, batch", "dense ms", "pruned ms", "speedup", "95 % interval"], latency.map(
        ([stage, batch, dense, pruned, ratio, low, high]) =>
          [`${stage}, ${batch}`, number(dense, 2), number(pruned, 2), number(ratio, 2), `${number(low, 2)} to ${number(high, 2)}`])));
    }
    const widths = trial.plan.some(Boolean);
    if (widths || trial.tokens) add("What is kept", ...(trial.tokens ? [make("p", trial.tokens)] : []));
    if (widths) main.append(make("p", KEPT, { className: "quiet" }), plan(trial));
    if (trial.flips) add("Answers that changed", examples(trial.flips));
    else if (row.method !== "none") add("Answers that changed", make("p", "This trial or the dense one has no samples to compare."));
  }
  const dirty = setup.code.dirty === "True";
  add("Repeat", make("p", `Version ${setup.code.version}, revision ${setup.code.revision}${dirty ? ", with uncommitted changes" : ""}. `
    + "The board below has this trial, the dense trial and the earlier seeds."), command(trial));
  const pairs = [["trial", row.trial], ["options", Object.entries(trial.options || {}).map((pair) => pair.join("=")).join(" ") || "defaults"]];
  pairs.push(...Object.entries(setup.trial), ...Object.entries(setup.machine));
  pairs.push(["packages", Object.entries(setup.packages).map((pair) => pair.join(" ")).join(", ")]);
  for (const hashes of [setup.hashes, trial.hashes]) {
    pairs.push(...Object.entries(hashes).map(([key, value]) => [`hash of ${key}`, value]));
  }
  if (trial.seconds !== null) pairs.push(["seconds", number(trial.seconds, 1)]);
  add("Everything that decided it", facts(pairs));
  return heading;
}

const asked = () => /^#trial=([0-9a-f]+)$/.exec(location.hash)?.[1];
let scrolled = null; // scroll position of the board
async function route() {
  const id = asked();
  const row = places.has(id) ? rows[places.get(id)] : null;
  if (row && scrolled === null) scrolled = scrollY;
  if (row && !details) await unpack();
  if (id !== asked()) return; // the reader went on meanwhile
  find("board").hidden = document.querySelector("body > header").hidden = Boolean(row);
  find("trial").hidden = !row;
  if (row) {
    document.title = `${row.trial} · ${data.board}`;
    describe(row).focus({ preventScroll: true });
    scrollTo(0, 0);
  } else {
    document.title = `${data.board} · InfoPrune-Bench`;
    draw();
    if (scrolled !== null) scrollTo(0, scrolled);
    scrolled = null;
  }
}
addEventListener("hashchange", route);
show();
route();
