"use strict";
// The pictures that plotly draws.

const wide = () => window.innerWidth > 640;
const HOVER = { hovertemplate: "%{text}<extra></extra>" };

// Draws traces; `extra.up` says what the vertical axis counts, `extra.told` what a reader of the screen hears.
function draw(id, traces, { up, told, xaxis = {}, yaxis = {}, annotations = [], ...extra }) {
  const font = { family: getComputedStyle(document.body).fontFamily, color: colour("ink"), size: 13 };
  const axis = { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, fixedrange: true, tickfont: { color: colour("muted"), size: 12 } };
  const title = { font: { color: colour("muted"), size: 13 }, standoff: 8 };
  const heading = { text: up, xref: "paper", yref: "paper", x: 0, y: 1, xanchor: "left", yanchor: "bottom", yshift: 6, showarrow: false,
    font: { color: colour("muted"), size: 13 } };
  get(id).setAttribute("aria-label", told);
  Plotly.react(id, traces, {
    margin: { l: 48, r: 14, t: 30, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font, showlegend: false,
    dragmode: false, hovermode: "closest", hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("line"), align: "left", font }, ...extra,
    xaxis: { ...axis, ...xaxis, title: { ...title, ...xaxis.title } }, yaxis: { ...axis, ...yaxis }, annotations: [heading, ...annotations],
  }, { displayModeBar: false, responsive: true });
}

// Labels of points beside them, each at the first place where it meets no other; where all are taken, only the
// first point, which is the chosen one, is named: pointing at the others tells.
function labelled(id, points, [x0, x1], [y0, y1], order = [0, 1, 2, 3]) {
  const width = get(id).clientWidth - 62, height = get(id).clientHeight - 74, taken = [];
  const spots = points.map(({ x, y }) => ({ px: (width * (x - x0)) / (x1 - x0), py: (height * (y1 - y)) / (y1 - y0) }));
  return points.flatMap((point, index) => {
    const long = 7.5 * point.text.length, { px, py } = spots[index];
    const beside = [[14, -12], [-14 - long, 12], [14, 12], [-14 - long, -12]];
    const places = order.map((place) => beside[place]).map(([dx, dy]) => ({ left: px + dx, top: py + dy, dx, dy }));
    const free = ({ left, top }) => left > 0 && left + long < width + 10 &&
      taken.every((other) => left > other.left + other.long || left + long < other.left || Math.abs(top - other.top) > 17) &&
      spots.every((spot) => spot.px < left - 8 || spot.px > left + long + 8 || Math.abs(spot.py - top) > 11);
    const place = places.find(free) ?? (index ? null : places[0]);
    if (!place) return [];
    taken.push({ ...place, long });
    return { x: point.x, y: point.y, text: plain(point.text), showarrow: false, xanchor: place.dx > 0 ? "left" : "right",
      xshift: place.dx > 0 ? place.dx : place.dx + long, yshift: -place.dy, font: { size: 13, color: colour(point.tone) } };
  });
}

// What a point says when it is pointed at; of hundreds of children, so each is told once.
const summaries = scenarios.map(() => new Map());
function summaryOf(child) {
  const known = summaries[state.scenario];
  if (!known.has(child)) known.set(child, summarised(child));
  return known.get(child);
}

function summarised(child) {
  const cost = child.costs[state.scenario];
  const used = (subblock, place) => [...count(child.blocks.map((block) => variants[subblock][block[place]].name))]
    .sort((a, b) => b[1] - a[1]).slice(0, 4).map(([name, times]) => `${times} × ${name}`).join(", ");
  return `<b>${plain(child.name)}</b><br>${number(cost?.tokens_per_second_per_gpu)} tok/s/GPU, ${cost ? where(cost) : "does not fit"}` +
    `<br>damage ${short(child.score)} ${damageUnit}<br>${billions(child.parameters)} parameters` +
    `<br>${used("attention", 0)}<br>${used("ffn", 1)}`;
}

// Where a run's child was found to be: its real damage at its real throughput, before distillation and after.
function measuredPoints() {
  if (!measured?.quality || !measured.serving) return [];
  const { built, child } = measured.quality, x = measured.serving.child[3];
  const point = (text, kl) => ({ x, y: kl, text, told: `<b>${text}</b><br>${number(x)} tok/s/GPU<br>damage ${short(kl)} nats` });
  return built ? [point("measured", built.kl), point("distilled", child.kl)] : [point("measured", child.kl)];
}

function drawFrontier() {
  const shown = children.map((child, index) => ({ child, index, x: child.costs[state.scenario]?.tokens_per_second_per_gpu, y: child.score }))
    .filter(({ x, y }) => x !== undefined && y !== null);
  const trace = (points, extra) => ({ type: "scatter", mode: "markers", x: points.map((p) => p.x), y: points.map((p) => p.y),
    customdata: points.map((p) => p.index), text: points.map((p) => summaryOf(p.child)), ...HOVER, ...extra });
  const traces = [];
  for (const group of new Set(shown.map(({ child }) => child.group).filter(Boolean))) {
    const points = shown.filter(({ child }) => child.group === group).sort((a, b) => a.x - b.x);
    traces.push(trace(points, { mode: "lines+markers", line: { color: faint(colour("child"), 0.45), width: 2 }, marker: {
      color: colour("child"), size: points.length > 80 ? 4 : 6, symbol: points.map(({ child }) => child.status === "optimal" ? "circle" : "circle-open") } }));
  }
  const named = shown.filter(({ child }) => child.kind !== "frontier"), chosen = shown.filter(({ index }) => index === state.child);
  traces.push(trace(named, { marker: { size: 10, symbol: named.map(({ child }) => child.kind === "parent" ? "square" : "diamond"),
    color: named.map(({ child }) => colour(child.kind === "parent" ? "parent" : "ink")) } }));
  traces.push(trace(chosen, { hoverinfo: "skip", hovertemplate: null, marker: { size: 20, symbol: "circle-open", color: colour("child"), line: { width: 2.5 } } }));
  const real = state.scenario === 0 ? measuredPoints() : [];
  traces.push({ type: "scatter", mode: "markers", x: real.map((p) => p.x), y: real.map((p) => p.y), text: real.map((p) => p.told), ...HOVER,
    marker: { size: 11, symbol: "x-thin", line: { width: 2.5, color: colour("ink") } } });
  const proven = walked.every((index) => children[index].status === "optimal");
  const missing = children.filter((child) => child.score === null).map((child) => child.name);
  get("frontier-note").textContent = [
    walked.length ? `Every point is a child. On the line are the best there are at their throughput${proven ? ", each proven" : "; open points are not proven"}. Click one, or walk along the line with the slider above.` :
      shown.length ? "Every point is a child; click one. To see the best there are at every throughput, name the folder of 'puzzle-search frontier --out' too." : "",
    real.length ? "A cross is what was measured of the child." : "",
    missing.length ? `Not drawn, because the score table lacks a variant of theirs: ${missing.join(", ")}.` : "",
  ].filter(Boolean).join(" ");
  const values = (name) => [...shown, ...real].map((point) => point[name]);
  const across = [0, 1.06 * Math.max(1, ...values("x"))], most = Math.max(0.01, ...values("y")), least = Math.min(0, ...values("y"));
  const down = [most + 0.06 * (most - least), least - 0.06 * (most - least)];
  const labels = [...chosen, ...named.filter(({ index }) => index !== state.child)].map((point) => ({ x: point.x, y: point.y,
    text: point.child.kind === "parent" ? "parent" : point.child.name, tone: point.index === state.child ? "child" : "ink" }));
  labels.push(...real.map((point) => ({ ...point, tone: "ink" })));
  draw("frontier", traces, {
    up: `damage, ${damageUnit}: less is better`, told: `Damage against throughput of ${shown.length} children. Chosen: ${children[state.child].name}.`,
    xaxis: { title: { text: `output tok/s/GPU in ${lengths(state.scenario)}` }, range: across, tickformat: ",d" }, yaxis: { range: down, nticks: 6 },
    annotations: labelled("frontier", labels, across, down),
  });
}

const UNITS = {
  time: { price: "time_us", scale: (max) => max > 2e3 ? [1e-3, "ms"] : [1, "µs"] },
  memory: { price: "memory_bytes", scale: (max) => max > 2e9 ? [1e-9, "GB"] : max > 2e6 ? [1e-6, "MB"] : [1e-3, "kB"] },
  parameters: { scale: (max) => max > 2e6 ? [1e-6, "M"] : [1e-3, "k"] },
};
const CHANGES = { kept: "kept", windowed: "window", reduced: { attention: "fewer heads", ffn: "narrower" }, linear: "linear", dropped: "dropped" };
const changeName = (change, subblock) => CHANGES[change]?.[subblock] ?? CHANGES[change] ?? change;

// What is left of every block and what its parent layers take, in the chosen unit.
function blocksOf(child, subblock) {
  const place = subblock === "attention" ? 0 : 1;
  const cost = child.costs[state.scenario];
  if (!cost && state.unit !== "parameters") return null;
  const prices = state.unit === "parameters" ? variants[subblock].map((variant) => variant.parameters) :
    scenarios[state.scenario].prices[`${cost.batch}x${cost.tp}`][subblock][UNITS[state.unit].price];
  const own = parent.blocks[0][place];
  let layer = 0;
  return child.blocks.map((block) => {
    const first = layer;
    layer += block[2];
    return { first, layers: block[2], variant: variants[subblock][block[place]], left: prices[block[place]],
      whole: block[2] * prices[own], damage: data.damage[first][`${block[0]},${block[1]}`] };
  });
}

function drawLayers() {
  const child = children[state.child];
  const both = ["attention", "ffn"].map((subblock) => blocksOf(child, subblock));
  const cost = child.costs[state.scenario];
  if (!both[0]) {
    get("layers-note").textContent = `${child.name} does not fit ${setting.gpu}: there are no times and no batch to show. Parameters are known.`;
    ["attention", "ffn"].forEach((subblock) => { Plotly.purge(subblock); get(`${subblock}-legend`).replaceChildren(); });
    get("layers-table").replaceChildren();
    return;
  }
  const top = (blocks) => Math.max(...blocks.map((block) => block.whole / block.layers));
  const [scale, unit] = UNITS[state.unit].scale(Math.max(...both.map(top)));
  get("layers-note").textContent = {
    time: `Time on each device until a request's last token, at ${cost && where(cost)} in ${lengths(state.scenario)}, beside what the parent's block takes there.`,
    memory: `Weights and KV cache on each device, at ${cost && where(cost)} in ${lengths(state.scenario)}, beside what the parent's block takes there.`,
    parameters: "Parameters of every block beside those of the parent's.",
  }[state.unit];
  ["attention", "ffn"].forEach((subblock, which) => {
    const blocks = both[which];
    const left = blocks.reduce((sum, block) => sum + block.left, 0), whole = blocks.reduce((sum, block) => sum + block.whole, 0);
    const tint = (block) => colour(block.variant.change);
    const x = blocks.map((block) => block.first + (block.layers - 1) / 2);
    const told = blocks.map((block) => `<b>layer ${block.layers > 1 ? `${block.first}–${block.first + block.layers - 1}` : block.first}</b><br>${block.variant.name}, ${changeName(block.variant.change, subblock)}` +
      `<br>left ${short(block.left * scale)} of ${short(block.whole * scale)} ${unit}` + (block.damage === undefined ? "" : `<br>damage of the block ${short(block.damage)}`));
    const bar = { type: "bar", x, width: blocks.map((block) => block.layers - (wide() ? 0.16 : 0)), text: told, textposition: "none", ...HOVER };
    const level = parent.blocks[0] && top(blocks) * scale;
    draw(subblock, [
      { ...bar, y: blocks.map((block) => block.left * scale), marker: { color: blocks.map(tint) } },
      { ...bar, y: blocks.map((block) => Math.max(0, block.whole - block.left) * scale), marker: { color: blocks.map((block) => faint(tint(block), 0.26)) } },
    ], {
      told: `${subblock} of ${child.name}, layer by layer: ${percent(left / whole)} of the parent's ${state.unit} is left.`,
      up: unit, barmode: "stack", margin: { l: 48, r: 14, t: 26, b: subblock === "ffn" ? 40 : 24 },
      xaxis: { range: [-0.8, data.parent.layers - 0.2], showgrid: false, title: { text: subblock === "ffn" ? "layer" : "" } },
      yaxis: { rangemode: "tozero", nticks: 4 },
      annotations: [{ text: "parent", xref: "paper", x: 1, y: level, xanchor: "right", yanchor: "bottom", showarrow: false, font: { color: colour("muted"), size: 12 } }],
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level, line: { color: colour("muted"), width: 1, dash: "dot" } }],
    });
    const seen = count(blocks.flatMap((block) => Array(block.layers).fill(block.variant.change)));
    const items = Object.keys(CHANGES).filter((change) => seen.has(change)).map((change) => {
      const item = element("li", null, { style: `--of: var(--${change})` });
      item.append(element("i"), `${seen.get(change)} ${changeName(change, subblock)}`);
      return item;
    });
    const saved = element("li", null, { class: "saved" });
    saved.append(element("i"), `saved: ${percent(1 - left / whole)} of the parent's ${state.unit}`);
    get(`${subblock}-legend`).replaceChildren(...items, ...(whole > left ? [saved] : []));
  });
  fillTable("layers-table", ["layer", "attention", `left, ${unit}`, "FFN", `left, ${unit}`, "damage"], both[0].map((block, index) => ({ cells: [
    block.layers > 1 ? `${block.first}–${block.first + block.layers - 1}` : `${block.first}`, block.variant.name, short(block.left * scale),
    both[1][index].variant.name, short(both[1][index].left * scale), short(block.damage)] })));
}

function drawServing() {
  const child = children[state.child];
  const curves = [[parent, "parent", "parent"], ...(state.child ? [[child, "child", child.name]] : [])];
  const traces = [], labels = [];
  for (const [who, tone, name] of curves) {
    const cost = who.costs[state.scenario];
    if (!cost || !cost.serving.length) continue;
    const points = cost.serving;
    const tell = (p) => `<b>${plain(name)}</b><br>batch ${p[0]} × TP ${p[1]}<br>${number(p[3])} tok/s/GPU<br>${short(p[2])} tok/s/user<br>TTFT ${short(p[4])} ms`;
    traces.push({ type: "scatter", mode: "lines+markers", x: points.map((p) => p[2]), y: points.map((p) => p[3]), text: points.map(tell),
      ...HOVER, line: { color: colour(tone), width: 2 }, marker: { size: 5, color: colour(tone) } });
    traces.push({ type: "scatter", mode: "markers", x: [cost.tokens_per_second_per_user], y: [cost.tokens_per_second_per_gpu], hoverinfo: "skip",
      marker: { size: 16, symbol: "circle-open", color: colour(tone), line: { width: 2.5 } } });
    labels.push({ x: cost.tokens_per_second_per_user, y: cost.tokens_per_second_per_gpu, text: `${name}, ${where(cost)}`, tone: tone === "parent" ? "muted" : tone });
    const real = state.scenario === 0 && measured?.serving?.[who.kind === "run" ? "child" : who.kind];
    if (real && real[2] !== null) {
      traces.push({ type: "scatter", mode: "markers", x: [real[2]], y: [real[3]], marker: { size: 11, symbol: "x-thin", line: { width: 2.5, color: colour(tone) } },
        text: [`<b>${plain(name)}, measured</b><br>batch ${real[0]}<br>${number(real[3])} tok/s<br>${short(real[2])} tok/s/user`], ...HOVER });
    }
  }
  const missing = curves.filter(([who]) => !who.costs[state.scenario]).map(([, , name]) => name);
  get("serving-note").textContent = (traces.length ? "Over batch sizes and TP degrees, where nothing is better in both. The ring is where each is priced on this page" +
    (measured?.serving ? "; a cross is what was measured." : ".") : "") + (missing.length ? ` No curve of ${missing.join(" and ")}: it does not fit ${setting.gpu} at these TP degrees.` : "");
  const reach = (axis) => [0, 1.06 * Math.max(1, ...traces.flatMap((trace) => trace[axis]))];
  draw("serving", traces, {
    up: "tok/s/GPU", told: `Tokens per second of a GPU against those of a user, for ${curves.map(([, , name]) => name).join(" and ")}.`,
    xaxis: { title: { text: "tok/s/user" }, range: reach("x") }, yaxis: { range: reach("y"), tickformat: ",d" },
    annotations: labelled("serving", labels, reach("x"), reach("y"), [1, 3, 0, 2]), // curves fall to the right
  });
}

function drawRounds() {
  if (!measured?.rows || !measured.rounds) return;
  const rounds = measured.rounds, reach = 1.15 * Math.max(...rounds.flatMap((round) => [round.estimate, round.measured]));
  const name = (round) => round.number ? `round ${round.number}` : "one-shot";
  draw("rounds", [
    { type: "scatter", mode: "lines", x: [0, reach], y: [0, reach], hoverinfo: "skip", line: { color: colour("muted"), width: 1, dash: "dot" } },
    { type: "scatter", mode: "markers", x: rounds.map((r) => r.estimate), y: rounds.map((r) => r.measured), marker: { size: 9, color: colour("child") },
      text: rounds.map((r) => `<b>${name(r)}</b><br>estimated ${short(r.estimate)}<br>measured ${short(r.measured)}`), ...HOVER },
  ], {
    up: "measured damage, nats", told: `Estimated and measured damage of ${rounds.length} children.`,
    xaxis: { title: { text: "estimated damage, nats" }, range: [0, reach] }, yaxis: { range: [0, reach] },
    annotations: labelled("rounds", rounds.map((r) => ({ x: r.estimate, y: r.measured, text: name(r), tone: "ink" })), [0, reach], [0, reach]),
  });
}
