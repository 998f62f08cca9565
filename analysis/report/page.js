const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Tables: sort, open, filter

const value = (body, column) => body.rows[0].cells[column].dataset.value;

function compare(a, b) {
  return a - b || String(a).localeCompare(b);
}

function sort(table, column) {
  const heading = table.tHead.rows[0].cells[column];
  const first = heading.classList.contains("number") ? "descending" : "ascending";
  const order = heading.getAttribute("aria-sort") === first ? { ascending: "descending", descending: "ascending" }[first] : first;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const known = [...table.tBodies].filter((body) => value(body, column) !== undefined);
  known.sort((a, b) => sign * compare(value(a, column), value(b, column)));
  table.tHead.after(...known); // what has no value stays behind
}

function open(body, wanted) {
  body.querySelector(".opens").setAttribute("aria-expanded", wanted);
  body.querySelector(".more").hidden = !wanted;
}

for (const table of all(".sortable")) {
  all("thead button", table).forEach((button, column) => button.addEventListener("click", () => sort(table, column)));
  table.addEventListener("click", (event) => {
    const button = event.target.closest(".opens");
    if (button) open(button.closest("tbody"), button.getAttribute("aria-expanded") !== "true");
  });
}


const form = document.getElementById("filter");

// Timings of one machine at a time

const machine = document.getElementById("machine");

function time() {
  const headings = all("#leaderboard thead th").map((heading) => heading.textContent.trim());
  const columns = ["speedup", "passes", "seconds"].map((name) => [name, headings.indexOf(name)]);
  for (const body of all("#leaderboard tbody")) {
    const found = timings[machine.value]?.[body.id] ?? {};
    for (const [name, column] of columns) {
      const [text, number] = found[name] ?? ["–", null];
      const cell = body.rows[0].cells[column];
      cell.textContent = text;
      if (number === null) delete cell.dataset.value;
      else cell.dataset.value = number;
    }
  }
}

// The matrix: the columns of a model and a ratio, the methods that have something there, the least losing first

const choose = document.getElementById("choose");

function mean(values) {
  return values.reduce((sum, one) => sum + one, 0) / values.length;
}

function pick() {
  const table = document.querySelector(".matrix");
  const chosen = new FormData(choose);
  const columns = [...table.tHead.rows[0].cells].map(({ dataset: { task, model, ratio } }) =>
    !task || (model === chosen.get("model") && ratio === chosen.get("ratio") && chosen.getAll("task").includes(task)));
  const rows = [...table.tBodies[0].rows].map((row) => {
    [...row.cells].forEach((cell, i) => { cell.hidden = !columns[i]; });
    const values = [...row.cells].filter((cell, i) => columns[i] && cell.dataset.value).map((cell) => Number(cell.dataset.value));
    row.hidden = !values.length || (chosen.has("hide") && row.className === "ablation");
    return { row, values };
  });
  [...table.tHead.rows[0].cells].forEach((cell, i) => { cell.hidden = !columns[i]; });
  rows.sort((a, b) => b.values.length - a.values.length || mean(a.values) - mean(b.values));
  table.tBodies[0].append(...rows.map(({ row }) => row));
  document.getElementById("no-loss").hidden = rows.some(({ row }) => !row.hidden);
}

choose?.addEventListener("change", pick);
if (choose) pick();

// The leaderboard's filters

function filter() {
  const table = document.querySelector("#leaderboard table");
  const headings = all("thead th", table).map((heading) => heading.textContent.trim());
  const words = form.elements.text.value.toLowerCase().split(/\s+/);
  const chosen = all("select", form).filter((select) => select.value).map((select) => [headings.indexOf(select.name), select.value]);
  let shown = 0;
  for (const body of table.tBodies) {
    const row = body.rows[0];
    const text = row.textContent.toLowerCase();
    body.hidden = !(words.every((word) => text.includes(word)) && chosen.every(([i, one]) => row.cells[i].textContent.trim() === one));
    shown += !body.hidden;
  }
  document.getElementById("count").textContent = `${shown} of ${table.tBodies.length} rows`;
}

for (const change of ["input", "change"]) form?.addEventListener(change, filter);
form?.addEventListener("reset", () => setTimeout(filter));
if (form) filter();

// A link to a row or a run opens it

function reveal(anchor) {
  const target = document.getElementById(anchor);
  const body = target?.closest(".sortable tbody");
  if (!body) return;
  if (body.hidden) {
    form.reset();
    filter();
  }
  open(body, true);
  for (const other of all(".found")) other.classList.remove("found");
  (target === body ? body.querySelector("article") : target).classList.add("found");
  target.focus({ preventScroll: true });
  target.scrollIntoView({ block: "start", inline: "nearest" }); // below the headings, which stay
}

const revealHash = () => reveal(location.hash.slice(1));
addEventListener("hashchange", revealHash);
revealHash();

// Plots

function facts({ row }) {
  const target = document.getElementById(row);
  const names = all(target.matches("article") ? "dt" : "thead th", target.closest("article, table"));
  const texts = target.matches("article") ? all("dd", target) : [...target.rows[0].cells];
  return Object.fromEntries(names.map((name, i) => [name.textContent.trim(), texts[i].textContent.trim()]));
}

const select = document.getElementById("group");
const variants = document.getElementById("variants");
const dark = matchMedia("(prefers-color-scheme: dark)");
const picked = new Set();

function follow(point) {
  if (location.hash === `#${point.row}`) revealHash();
  else location.hash = point.row;
}

// Runs of any method, or points of those that are not hidden
function points(source) {
  const ablations = new Set(all(".legend .ablation").map((button) => button.dataset.method));
  return data[source].filter((point) => source === "runs" || !variants?.checked || !ablations.has(point.method));
}

function settings() {
  const own = points("cells").filter((cell) => cell.group === select?.value);
  return {
    group: select?.value,
    task: select?.selectedOptions[0].dataset.task,
    machine: machine.value,
    compared: [...new Set(data.published.map((point) => point.method))],
    shown: [...new Set(own.map((cell) => cell.method))].sort(),
    picked: [...picked],
  };
}

async function draw(node) {
  const params = settings();
  const { source, needs } = node.dataset;
  const datasets = structuredClone({ cells: points("cells"), [source]: points(source) });
  const holds = (point) => needs.split(" ").every((name) => (name in params ? point[name] === params[name] : point[name] !== null));
  const nothing = !datasets[source].some(holds);
  node.parentElement.classList.toggle("nothing", nothing);
  if (nothing) return null;
  const spec = structuredClone(plots[node.id][dark.matches ? "dark" : "light"]);
  spec.description = node.closest("figure").querySelector("h3").textContent;
  for (const point of Object.values(datasets).flat()) if (point.row) point.facts = facts(point); // a point tells what its row says
  spec.datasets = { ...spec.datasets, ...datasets };
  spec.params.push(...Object.entries(params).map(([name, value]) => ({ name, value })));
  const actions = { export: true, source: false, compiled: false, editor: false };
  const tooltip = { anchor: "mark", position: ["right", "left", "bottom", "top"] };
  const columns = Math.max(1, Math.floor(node.clientWidth / 150));
  const legend = { columns, labelLimit: node.clientWidth / columns - 35 };
  const result = await vegaEmbed(node, spec, { ast: true, renderer: "svg", actions, tooltip, config: { legend } });
  result.view.addEventListener("click", (_, item) => item?.datum?.row && follow(item.datum));
  return result;
}

let drawn = Promise.resolve([]);

function drawAll() {
  legend();
  drawn = drawn.then((before) => {
    for (const result of before) result?.finalize();
    return Promise.all(all(".chart").map(draw));
  });
}

// The legend names what the group has; a press singles out
function legend() {
  const { shown } = settings();
  for (const button of all(".legend button")) {
    button.hidden = !shown.includes(button.dataset.method);
    if (button.hidden) picked.delete(button.dataset.method);
    button.setAttribute("aria-pressed", picked.has(button.dataset.method));
  }
}

document.querySelector(".legend")?.addEventListener("click", async (event) => {
  const method = event.target.closest("button")?.dataset.method;
  if (!method) return;
  if (!picked.delete(method)) picked.add(method);
  legend();
  for (const result of await drawn) if (result) result.view.signal("picked", [...picked]).runAsync();
});

machine?.addEventListener("change", () => {
  time();
  drawAll();
});
for (const control of [select, variants, dark]) control?.addEventListener("change", drawAll);
document.documentElement.classList.add("ready");
drawAll();
await drawn;
document.documentElement.dataset.ready = "";
