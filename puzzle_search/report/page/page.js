"use strict";
// Figures and tables, and what happens when someone chooses.

function showSummary() {
  const child = children[state.child], cost = child.costs[state.scenario], before = parent.costs[state.scenario];
  const speedup = cost && before ? `${number(cost.tokens_per_second_per_gpu / before.tokens_per_second_per_gpu, 2)} × the parent's ${number(before.tokens_per_second_per_gpu)}` :
    before ? "" : "the parent does not fit";
  const quality = child.kind === "run" && measured?.quality;
  const real = quality ? `; measured ${short((quality.built ?? quality.child).kl)}${quality.built ? `, distilled ${short(quality.child.kl)}` : ""}` : "";
  const proof = { parent: ["the parent", ""], optimal: ["optimal", "proven: none has less damage"], feasible: ["not proven", `gap ${short(child.gap)}`] }[
    child.kind === "parent" ? "parent" : child.status] ?? ["–", "the spec does not say how it was found"];
  const boxes = [
    ["Throughput", cost ? `${number(cost.tokens_per_second_per_gpu)}` : "does not fit", `tok/s/GPU${speedup ? `, ${speedup}` : ""}`],
    ["Damage, estimated", child.score === null ? "not known" : short(child.score), child.score === null ? "the score table lacks a variant" : damageUnit + real],
    ["Parameters", billions(child.parameters), `${percent(child.parameters / parent.parameters)} of the parent's`],
    ["KV cache of a token", `${short(child.kv_bytes_per_token / 1e3)} kB`, `${percent(child.kv_bytes_per_token / parent.kv_bytes_per_token)} of the parent's`],
    ["Batch × TP", cost ? at(cost) : "–", cost ? `${number(cost.tokens_per_second_per_user, 1)} tok/s for each user` : ""],
    ["Proof", ...proof],
  ];
  const solved = child.solved[state.scenario], now = cost?.tokens_per_second_per_gpu;
  get("summary-note").textContent = solved && now && Math.abs(solved / now - 1) > 0.005 ?
    `When this child was solved for, costs were others: they said ${number(solved)} tok/s/GPU.` : "";
  get("summary").replaceChildren(...boxes.map(([name, value, more]) => {
    const box = element("div"), shown = element("dd", value);
    shown.append(element("small", more));
    box.append(element("dt", name), shown);
    return box;
  }));
}

function showScenarios() {
  const child = children[state.child];
  get("scenarios-note").textContent = `Output tok/s/GPU with batch × TP below: the parent at its fastest, ${child.name} where it was solved for, or at its fastest. Then parent → child.`;
  const rate = (cost) => {
    const cell = element("td", cost ? number(cost.tokens_per_second_per_gpu) : "does not fit");
    if (cost) cell.append(element("br"), element("small", at(cost)));
    return cell;
  };
  fillTable("scenarios-table", ["in/out", "parent", "child", "ratio", "TTFT, ms", "TPOT, ms", "memory"], scenarios.map((_, index) => {
    const before = parent.costs[index], cost = child.costs[index];
    const ratio = before && cost ? `${number(cost.tokens_per_second_per_gpu / before.tokens_per_second_per_gpu, 2)}` : "–";
    const pair = (of, digits) => `${before ? number(of(before), digits) : "–"} → ${cost ? number(of(cost), digits) : "–"}`;
    return { chosen: scenarios.length > 1 && index === state.scenario, cells: [lengths(index), rate(before), rate(cost), element("td", ratio, { class: "strong" }),
      pair((of) => of.ttft_ms, 0), pair((of) => of.tpot_ms, 1), `${before ? gigabytes(total(before)) : "–"} → ${cost ? gigabytes(total(cost)) : "–"}`] };
  }));
}
const total = (cost) => cost.memory.weights + cost.memory.kv + cost.memory.activations;

function showMemory() {
  const limit = setting.memory_limit_bytes, reserve = setting.reserve_bytes ?? 0;
  const most = Math.max(...[parent, children[state.child]].map((who) => who.costs[state.scenario]).filter(Boolean).map(total), 0);
  const tiny = most < 0.2 * limit; // of a large device: what is free would hide what is used
  const rows = [[parent, "parent", "parent"], ...(state.child ? [[children[state.child], "child", children[state.child].name]] : [])];
  get("memory").replaceChildren(...rows.map(([who, tone, name]) => {
    const row = element("div", null, { class: "memory-row", style: `--who: var(--${tone})` }), cost = who.costs[state.scenario];
    row.append(element("b", name), element("span", cost ? `${where(cost)}: ${gigabytes(total(cost))} of ${gigabytes(limit)}` : `does not fit ${setting.gpu}`));
    if (!cost) return row;
    const parts = [["weights", cost.memory.weights, "weights"], ["kv", cost.memory.kv, "KV cache"], ["activations", cost.memory.activations, "activations"],
      ["free", Math.max(0, (tiny ? most : limit) - total(cost)), "free"], ["reserve", tiny ? 0 : reserve, "reserve"]].filter(([, bytes]) => bytes > 0);
    const stack = element("div", null, { class: "stack", "aria-hidden": "true" }), legend = element("ul", null, { class: "legend" });
    for (const [kind, bytes, label] of parts) {
      stack.append(element("i", null, { class: kind, style: `flex: ${bytes} 1 0`, title: `${label} ${gigabytes(bytes)}` }));
      if (kind === "free" && tiny) continue;
      const item = element("li", null, { class: kind });
      item.append(element("i"), `${label} ${gigabytes(bytes)}`);
      legend.append(item);
    }
    row.append(stack, legend);
    return row;
  }));
}

// ---- what a run measured -----------------------------------------------------------------
function empty(sentence, command) {
  const box = element("p", `${sentence} `, { class: "empty" });
  box.append(element("code", command));
  return box;
}

function table(id, into) {
  const scroll = element("div", null, { class: "scroll" });
  scroll.append(element("table", null, { id }));
  into.append(scroll);
}

function showMeasured() {
  const into = get("measured");
  if (!measured?.rows) {
    into.append(measured ? empty("This run has not measured its child yet. End it:", "puzzle-search run RECIPE") :
      empty("Nothing on this page was measured here. To see predictions beside measurements, name a run directory:", "puzzle-search report runs/NAME"));
    return;
  }
  into.append(element("h3", "Predicted against measured"));
  table("predicted-table", into);
  const worst = Math.max(0.05, ...measured.rows.map((row) => Math.abs(row.error ?? 0)));
  fillTable("predicted-table", ["figure", "predicted", "measured", "error"], measured.rows.map((row) => {
    const error = element("td", row.error === null ? "" : `${row.error >= 0 ? "+" : "−"}${number(100 * Math.abs(row.error), 1)}%`);
    if (row.error !== null) {
      const bar = element("span", null, { class: "error", "aria-hidden": "true" }), size = 50 * Math.abs(row.error) / worst;
      bar.append(element("i", null, { style: `width: ${size}%; left: ${row.error >= 0 ? 50 : 50 - size}%` }));
      error.append(bar);
    }
    return { cells: [row.what, row.predicted === null ? "" : `${short4(row.predicted)} ${row.unit}`, `${short4(row.measured)} ${row.unit}`, error] };
  }));
  const notes = element("ul", null, { class: "notes" });
  measured.notes.forEach((note) => notes.append(element("li", note)));
  into.append(notes);
  showQuality(into);
  if (measured.rounds) {
    into.append(element("h3", "Estimated against real damage"), element("p", "What the solver took the damage of each round's child to be, and what it was: on the line both are the same.", { class: "note" }),
      element("div", null, { class: "plot tall", id: "rounds", role: "img" }), element("p", "Evidence: measured, on the tokens that replacements were scored on", { class: "evidence" }));
  }
}
const short4 = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 4 });

function showQuality(into) {
  if (!measured.quality) return;
  const last = measured.quality.child, built = measured.quality.built;
  into.append(element("h3", "Accuracy preserved"));
  table("quality-table", into);
  const rows = [["next-token accuracy", "accuracy", 100, 2, "%"], ["among the first five", "top5_accuracy", 100, 2, "%"], ["loss, nats", "loss", 1, 3, ""], ["perplexity", "perplexity", 1, 2, ""]];
  const form = (value, [, , factor, digits, unit]) => value === undefined ? "" : `${number(factor * value, digits)}${unit}`;
  fillTable("quality-table", ["figure", "parent", ...(built ? ["child as built", "distilled"] : ["child"]), "preserved"], [
    ...rows.map((row) => ({ cells: [row[0], form(last[`parent_${row[1]}`], row), ...(built ? [form(built[`child_${row[1]}`], row)] : []), form(last[`child_${row[1]}`], row),
      row[4] ? `${number(100 * last[`child_${row[1]}`] / last[`parent_${row[1]}`], 1)}%` : ""] })),
    { cells: ["KL to the parent, nats", "", ...(built ? [number(built.kl, 4)] : []), number(last.kl, 4), ""] },
  ]);
  into.append(element("p", `Evidence: measured, on ${number(last.tokens)} held-out tokens`, { class: "evidence" }));
}

// ---- choosing ----------------------------------------------------------------------------
function choose(index) {
  state.child = index;
  get("child").value = index;
  const reach = (of) => Math.abs((children[of].costs[0]?.tokens_per_second_per_gpu ?? 0) - (children[index].costs[0]?.tokens_per_second_per_gpu ?? 0));
  if (walked.length) get("walk").value = walked.indexOf(walked.includes(index) ? index : walked.reduce((best, of) => reach(of) < reach(best) ? of : best));
  history.replaceState(null, "", `#show=${encodeURIComponent(children[index].name)}`);
  show();
}

// A slider moves faster than a page with hundreds of children draws: one drawing a frame is enough.
let waiting = false;
function chooseSoon(index) {
  state.child = index;
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; choose(state.child); });
}

function show() {
  showSummary();
  drawFrontier();
  drawLayers();
  drawServing();
  showScenarios();
  showMemory();
}

function start() {
  get("subtitle").textContent = `${setting.dtype} on ${setting.engine}; ${data.parent.layers} layers, ${billions(parent.parameters)} parameters` +
    (setting.scores_from ? `. Scores: ${setting.scores_from}.` : ". No score table: quality is not known.");
  get("made-by").textContent = `puzzle-search ${data.version}`;
  const groups = [["Parent", ["parent"]], ["Children", ["run", "spec"]], ["Frontier", ["frontier"]]];
  for (const [label, kinds] of groups) {
    const group = element("optgroup", null, { label });
    children.forEach((child, index) => { if (kinds.includes(child.kind)) group.append(element("option", child.name, { value: index })); });
    if (group.children.length) get("child").append(group);
  }
  get("child").addEventListener("change", (event) => choose(Number(event.target.value)));
  if (walked.length > 1) {
    get("walk-label").hidden = false;
    get("walk").max = walked.length - 1;
    get("walk").addEventListener("input", (event) => chooseSoon(walked[Number(event.target.value)]));
  }
  if (scenarios.length > 1) {
    get("scenario-label").hidden = false;
    scenarios.forEach((_, index) => get("scenario").append(element("option", lengths(index), { value: index })));
    get("scenario").addEventListener("change", (event) => { state.scenario = Number(event.target.value); show(); });
  }
  get("unit").addEventListener("change", (event) => { state.unit = event.target.value; drawLayers(); });
  evidence("frontier-evidence", "scores", "cost");
  evidence("layers-evidence", "cost", "scores");
  for (const id of ["serving-evidence", "scenarios-evidence"]) evidence(id, "cost");
  get("memory-evidence").textContent = "Evidence: closed forms of the architecture; they count every weight, every cached token of a full batch, and the largest step.";
  showMeasured();
  const asked = children.findIndex((child) => `#show=${encodeURIComponent(child.name)}` === location.hash);
  choose(asked < 0 ? state.child : asked);
  drawRounds();
  get("frontier").on("plotly_click", (event) => choose(event.points[0].customdata));
  const redraw = () => { show(); drawRounds(); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  matchMedia("(max-width: 640px)").addEventListener("change", redraw);
}
start();
