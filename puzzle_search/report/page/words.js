"use strict";
// The data of the page, what is chosen of it, and how words and numbers are written.

const data = JSON.parse(document.getElementById("data").textContent);
const { children, scenarios, variants, setting, measured } = data;
const parent = children[0];
// Numbers of the children that lie on frontiers, by rising throughput.
const walked = children.map((_, index) => index).filter((index) => children[index].kind === "frontier");
const state = { child: firstChild(), scenario: 0, unit: "time" };

const get = (id) => document.getElementById(id);
const number = (value, digits = 0) => value === null || value === undefined ? "–" :
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const short = (value) => value === null || value === undefined ? "–" :
  value.toLocaleString("en-US", { maximumSignificantDigits: 3 });
const percent = (value) => `${Math.round(100 * value)}%`;
const gigabytes = (bytes) => bytes >= 1e9 ? `${number(bytes / 1e9, 1)} GB` : `${short(bytes / 1e6)} MB`;
const billions = (count) => count >= 1e9 ? `${number(count / 1e9, 2)} B` : `${short(count / 1e6)} M`;
const lengths = (index) => `${scenarios[index].input_len}/${scenarios[index].output_len}`;
const at = (cost) => `${cost.batch} × ${cost.tp}`;
const where = (cost) => `batch ${cost.batch}, TP ${cost.tp}`;
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const faint = (hex, alpha) => hex + Math.round(alpha * 255).toString(16).padStart(2, "0");
const damageUnit = setting.metric === "kl" ? "nats, KL to the parent" : setting.metric;
const count = (names) => names.reduce((seen, name) => seen.set(name, (seen.get(name) ?? 0) + 1), new Map());

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function firstChild() {
  const found = ["run", "spec", "frontier"].map((kind) => children.findIndex((child) => child.kind === kind));
  return found.find((index) => index >= 0) ?? 0;
}

function evidence(id, ...kinds) {
  const words = { cost: ["costs", setting.evidence.cost], scores: ["scores", setting.evidence.scores ?? "none given"] };
  const line = get(id);
  line.replaceChildren("Evidence: ");
  kinds.forEach((kind, index) => {
    line.append(`${index ? ", " : ""}${words[kind][0]} `, element("b", words[kind][1]));
  });
  if (kinds.includes("cost")) line.append(` (${setting.cost_from} of ${setting.gpu}, ${setting.engine})`);
}

function fillTable(id, head, rows) {
  const headings = element("tr");
  head.forEach((text) => headings.append(element("th", text, { scope: "col" })));
  const body = element("tbody");
  for (const { cells, chosen } of rows) {
    const row = element("tr", null, chosen ? { class: "chosen" } : {});
    cells.forEach((cell, index) => row.append(cell instanceof Node ? cell :
      index ? element("td", cell) : element("th", cell, { scope: "row" })));
    body.append(row);
  }
  const top = element("thead");
  top.append(headings);
  get(id).replaceChildren(top, body);
}

