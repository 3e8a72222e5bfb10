"use strict";
// The browser of responses. Model output is only ever set as textContent, so it is never parsed as HTML.
const ROW = 96, $ = (id) => document.getElementById(id);
const FIELDS = ["run", "condition", "question", "step", "beside", "judge", "verdict", "search"];
let data, rows = [[], []], chosen = [0, 0], side = 0;

async function load() {
  const packed = Uint8Array.from(atob($("data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  data = JSON.parse(await new Response(stream).text());
  data.lower = data.response.map((text) => text.toLowerCase());
}

function fill(id, options, all) {
  const select = $(id);
  select.replaceChildren();
  if (all !== null) select.add(new Option(all, ""));
  for (const [value, text] of options) select.add(new Option(text, value));
}

function fillVerdicts() {
  const judge = data.judges.find((j) => j.name === $("f-judge").value);
  const kinds = !judge ? [] : judge.options ? judge.options.map((o) => [o, o]) : judge.bins.map((b, i) => [String(i), `${b[0]} to ${b[1]}`]);
  fill("f-verdict", kinds.length ? [...kinds, ["missing", "missing"]] : [], "any");
}

function matches(i, want) {
  if (want.run !== "" && data.run[i] !== +want.run) return false;
  if (want.condition !== "" && data.condition[i] !== +want.condition) return false;
  if (want.question !== "" && data.question[i] !== +want.question) return false;
  if (want.step !== "" && data.step[i] !== +want.step) return false;
  if (want.judge && want.verdict !== "") {
    const verdict = data.verdicts[want.judge][i];
    if (want.verdict === "missing") return verdict === null && contains(i, want);
    if (verdict === null || verdict === false) return false; // false: the judge was not asked
    const judge = data.judges.find((j) => j.name === want.judge);
    if (judge.options ? judge.options[verdict] !== want.verdict : !inBin(verdict, judge.bins, +want.verdict)) return false;
  }
  return contains(i, want);
}
const contains = (i, want) => !want.search || data.lower[i].includes(want.search.toLowerCase());
const inBin = (value, bins, n) => value >= bins[n][0] && (value < bins[n][1] || n === bins.length - 1);

const view = () => Object.fromEntries(FIELDS.map((name) => [name, $("f-" + name).value]));

function update(keep) {
  const want = view(), pair = want.beside !== "";
  $("second").hidden = !pair;
  for (const n of pair ? [0, 1] : [0]) {
    const wanted = n ? { ...want, step: want.beside } : want;
    rows[n] = data.response.map((_, i) => i).filter((i) => matches(i, wanted));
    if (!keep) { chosen[n] = 0; $("list-" + n).scrollTop = 0; }
    const where = wanted.step === "" ? "all steps" : "step " + wanted.step;
    $("count-" + n).textContent = `${rows[n].length.toLocaleString("en")} of ${data.response.length.toLocaleString("en")} responses, ${where}`;
    $("list-" + n).firstElementChild.style.height = rows[n].length * ROW + "px";
    draw(n);
  }
  if (!pair) side = 0;
  show();
  remember(want);
}

function remember(want) {
  const parts = new URLSearchParams();
  for (const name of FIELDS) if (want[name] !== "") parts.set(name, want[name]);
  if (chosen[side]) parts.set("at", chosen[side]);
  history.replaceState(null, "", "#view?" + parts);
}

function recall() {
  const [place, query] = location.hash.split("?");
  if (place !== "#view" || query === undefined) return false;
  const parts = new URLSearchParams(query);
  $("f-judge").value = parts.get("judge") ?? "";
  fillVerdicts();
  for (const name of FIELDS) $("f-" + name).value = parts.get(name) ?? "";
  chosen = [+(parts.get("at") ?? 0), 0];
  return true;
}

function element(kind, name, text) {
  const node = document.createElement(kind);
  node.className = name;
  node.textContent = text;
  return node;
}

function marked(text, search, length) {
  // The part of a text around the first hit, with each hit in a span.
  const box = element("div", "text", ""), lower = text.toLowerCase(), hit = search ? lower.indexOf(search) : -1;
  const start = length && hit > 120 ? hit - 60 : 0;
  let rest = (start ? "… " : "") + text.slice(start, length ? start + length : undefined);
  for (let at; search && (at = rest.toLowerCase().indexOf(search)) >= 0; rest = rest.slice(at + search.length)) {
    box.append(rest.slice(0, at), element("span", "hit", rest.slice(at, at + search.length)));
  }
  box.append(rest);
  return box;
}

function verdicts(i) {
  return data.judges.filter((judge) => data.verdicts[judge.name][i] !== false).map((judge) => {
    const verdict = data.verdicts[judge.name][i];
    return `${judge.name}: ${verdict === null ? "missing" : judge.options ? judge.options[verdict] : verdict}`;
  }).join(" · ");
}

function draw(n) {
  const list = $("list-" + n), space = list.firstElementChild, first = Math.max(0, Math.floor(list.scrollTop / ROW) - 3);
  const last = Math.min(rows[n].length, first + Math.ceil(list.clientHeight / ROW) + 6), search = $("f-search").value.toLowerCase();
  const shown = [];
  for (let place = first; place < last; place++) {
    const i = rows[n][place], row = element("div", "row" + (place === chosen[n] ? " on" : ""), "");
    row.style.top = place * ROW + "px";
    row.setAttribute("role", "option");
    row.append(element("div", "meta", `step ${data.step[i]} · ${data.questions[data.question[i]][0]} · ${verdicts(i)}`));
    row.append(marked(data.response[i], search, 420));
    row.addEventListener("click", () => { side = n; choose(n, place); });
    shown.push(row);
  }
  space.replaceChildren(...shown);
}

function choose(n, place) {
  chosen[n] = Math.max(0, Math.min(place, rows[n].length - 1));
  const list = $("list-" + n), top = chosen[n] * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  draw(n);
  show();
  remember(view());
}

function show() {
  const i = rows[side][chosen[side]], detail = $("detail");
  if (i === undefined) return detail.replaceChildren(element("p", "meta", "No response matches these filters."));
  const run = data.runs[data.run[i]], where = `${run} · step ${data.step[i]} · ${data.conditions[data.condition[i]]} · sample ${data.sample[i]}`;
  detail.replaceChildren(
    element("h3", "", data.questions[data.question[i]][1]), element("div", "meta", where), element("div", "meta", verdicts(i)),
    marked(data.response[i], $("f-search").value.toLowerCase(), 0));
}

function stepBy(change) {
  const select = $("f-step"), at = Math.max(0, Math.min(select.options.length - 1, select.selectedIndex + change));
  select.selectedIndex = at;
  update();
}

function keys(event) {
  if (/^(INPUT|SELECT)$/.test(event.target.tagName)) { if (event.key === "Escape") event.target.blur(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inList = event.target.classList.contains("list");
  if (event.key === "j" || (inList && event.key === "ArrowDown")) choose(side, chosen[side] + 1);
  else if (event.key === "k" || (inList && event.key === "ArrowUp")) choose(side, chosen[side] - 1);
  else if (event.key === "[") stepBy(-1);
  else if (event.key === "]") stepBy(1);
  else if (event.key === "/") $("f-search").focus();
  else return;
  event.preventDefault();
}

async function start() {
  await load();
  const numbered = (names) => names.map((name, i) => [String(i), name]);
  fill("f-run", numbered(data.runs), "all");
  fill("f-condition", numbered(data.conditions), "all");
  fill("f-question", data.questions.map((q, i) => [String(i), q[0]]), "all");
  const steps = data.steps.map((s) => [String(s), String(s)]);
  fill("f-step", steps, "all");
  fill("f-beside", steps, "none");
  fill("f-judge", data.judges.map((j) => [j.name, j.name]), "any");
  fillVerdicts();
  const restored = recall();
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("f-judge").addEventListener("change", fillVerdicts);
  for (const name of FIELDS) $("f-" + name).addEventListener(name === "search" ? "input" : "change", () => update());
  for (const n of [0, 1]) {
    $("list-" + n).addEventListener("scroll", () => draw(n));
    $("list-" + n).addEventListener("focus", () => { side = n; show(); });
  }
  document.addEventListener("keydown", keys);
  window.addEventListener("hashchange", () => { if (recall()) update(true); });
  update(true);
  if (restored) { choose(0, chosen[0]); $("responses").scrollIntoView(); }
  document.body.dataset.ready = "yes";
}
start();
