"use strict";
// The page around the curves: the answer, the table, claims, forecast and runs; what is open stays so when it loads again.
const store = "rewarm:" + location.pathname;
const saved = JSON.parse(sessionStorage.getItem(store) ?? "null");

function copyable(command) {
  const code = make("code", {}, command), copy = button("copy", async () => {
    getSelection().selectAllChildren(code);
    try { await navigator.clipboard.writeText(command); } catch { document.execCommand("copy"); }
    copy.textContent = "copied";
  });
  return make("div", {class: "copy"}, code, copy);
}
function tableOf(head, rows, attributes = {}) {
  return make("table", attributes, make("thead", {}, make("tr", {}, ...head.map((name) => make("th", {scope: "col"}, name)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((value) => make("td", {}, value))))));
}
function answerCard(answer) {
  const [first, ...rest] = answer.said;
  return make("article", {class: "card answer"},
    make("div", {}, answer.question ? make("h3", {}, answer.question) : null, first ? make("p", {class: "first"}, first) : null,
      ...rest.map((text) => make("p", {}, text)), make("p", {class: "soft"}, "next:"), copyable(answer.command)),
    answer.rows.length ? tableOf(["perplexity", "new data", "old data"], answer.rows) : null);
}
function verdictCard(verdict) {
  const mark = {supported: "✓ supported", contradicted: "✗ contradicted", undecided: "? undecided"}[verdict.verdict];
  const tests = tableOf(["measured", "mean", "95 % interval", "asked for", "holds"], verdict.tests);
  return make("article", {class: "card", "data-claim": verdict.number}, make("span", {class: `badge ${verdict.verdict}`}, mark),
    make("h3", {}, `${verdict.number}. ${verdict.title}`), make("p", {}, verdict.claim),
    verdict.verdict === "undecided" ? make("p", {class: "soft"}, `${verdict.reason}. Run:`) : null,
    verdict.verdict === "undecided" ? copyable(verdict.command) : null,
    make("details", {}, make("summary", {}, "what was measured"), make("div", {class: "scroll"}, tests),
      ...verdict.notes.map((note) => make("p", {class: "soft"}, note)), make("p", {class: "soft"}, `Runs: ${verdict.runs.join(" · ")}`)));
}
function tableCard(table) {
  const body = make("tbody"), heads = [], kind = (i) => table.columns[i].more ? {class: "more"} : {};
  const show = (rows) => body.replaceChildren(...rows.map((row) => make("tr", {}, ...row.texts.map((text, i) => make("td", kind(i), text)))));
  const head = make("tr", {}, ...table.columns.map(({name}, i) => {
    const th = make("th", {scope: "col", ...kind(i)}, button(name, () => {
      const down = th.getAttribute("aria-sort") === "ascending", missing = (row) => row.values[i] === null;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      show([...table.rows].sort((a, b) => missing(a) - missing(b) || (down ? -1 : 1) *
        (typeof a.values[i] === "number" ? a.values[i] - b.values[i] : String(a.values[i]).localeCompare(String(b.values[i])))));
    }));
    heads.push(th);
    return th;
  }));
  show(table.rows);
  const whole = make("table", {class: "sortable"}, make("thead", {}, head), body);
  const all = button("all columns", () => all.setAttribute("aria-pressed", String(whole.classList.toggle("all"))), {"aria-pressed": "false"});
  const files = data.files.map(([text, href]) => make("a", {href}, text));
  return [make("div", {class: "bar"}, all, ...files), make("div", {class: "scroll"}, whole)];
}
function mergedCard(merged) {
  return make("article", {class: "card"}, make("h3", {}, merged.title), ...merged.said.map((text) => make("p", {}, text)),
    merged.figure ? image(merged.figure, merged.title) : null,
    make("details", {}, make("summary", {}, "all averages"), tableOf(["", "upstream", "downstream"], merged.rows)));
}
function image(svg, alt) {
  return make("img", {src: `data:image/svg+xml;base64,${svg}`, alt, class: "paper"});
}
function runCard(run) {
  return make("details", {class: "card"}, make("summary", {}, run.name + (run.finished ? "" : " (not finished)") + (run.damage ? " (metrics damaged)" : "")),
    run.damage ? make("p", {}, run.damage) : null, make("p", {class: "soft"}, run.path), run.command ? copyable(run.command) : null,
    make("h3", {}, "config"), make("pre", {}, run.config), run.manifest ? make("h3", {}, "manifest") : null,
    run.manifest ? make("pre", {}, run.manifest) : null);
}

document.title = document.getElementById("title").textContent = data.title;
document.getElementById("subtitle").textContent = data.subtitle;
const main = document.getElementById("main"), nav = document.getElementById("nav");
function part(id, title, ...nodes) {
  nav.append(make("a", {href: "#" + id}, title));
  main.append(make("h2", {id}, title), ...nodes);
}
data.settings.forEach((setting, k) => {
  const own = (name) => k ? `${name}-${k + 1}` : name;
  if (data.settings.length > 1) main.append(make("h2", {}, setting.name));
  part(own("answer"), "Answer", answerCard(setting.answer));
  part(own("curves"), "Curves", explorer({...setting, key: own("curves")}, saved?.states[k]));
  part(own("arms"), "Arms", make("p", {class: "soft"}, "Losses are nats a token, means over seeds ± one standard deviation. A heading sorts."), ...tableCard(setting.table),
    setting.tree ? make("details", {}, make("summary", {}, "what was trained once"), make("pre", {}, setting.tree)) : "");
  if (setting.verdicts.length) part(own("claims"), "Claims of the paper", make("p", {class: "soft"}, data.note), make("div", {class: "grid"}, ...setting.verdicts.map(verdictCard)));
  if (setting.merged.length) part(own("averages"), "Averages of weights", make("div", {class: "grid"}, ...setting.merged.map(mergedCard)));
});
if (data.forecast.said || data.forecast.figures.length) part("forecast", "Forecast", data.forecast.said ? make("pre", {class: "card"}, data.forecast.said) : "",
  make("div", {class: "grid"}, ...data.forecast.figures.map(([name, svg]) => image(svg, name))));
part("runs", "Runs", make("details", {class: "runs", ...(data.runs.length > 6 ? {} : {open: ""})}, make("summary", {}, "configs, manifests and commands"),
  make("div", {class: "grid"}, ...data.runs.map(runCard))));

const again = () => explorers.forEach((one) => one.render());
dark.addEventListener("change", again);
addEventListener("beforeprint", () => { document.documentElement.classList.add("light"); again(); });
addEventListener("afterprint", () => { document.documentElement.classList.remove("light"); again(); });

const details = () => [...document.querySelectorAll("details")];
addEventListener("pagehide", () => sessionStorage.setItem(store, JSON.stringify({
  states: explorers.map((one) => one.state), open: details().map((one) => one.open), y: scrollY, wide: [...document.querySelectorAll(".sortable")].map((one) => one.classList.contains("all")),
})));
if (saved) {
  details().forEach((one, i) => { one.open = Boolean(saved.open[i]); });
  document.querySelectorAll(".sortable").forEach((one, i) => one.classList.toggle("all", Boolean(saved.wide[i])));
  requestAnimationFrame(() => requestAnimationFrame(() => scrollTo(0, saved.y)));
}
if (data.refresh) setTimeout(() => location.reload(), 1000 * data.refresh);
