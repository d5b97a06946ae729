"use strict";
// The curves of one setting's arms: upstream, downstream and LR over a common axis, both perplexities against each other,
// and a legend with the values at the cursor. All of it is drawn again from `state` whenever that changes.
const data = JSON.parse(document.getElementById("data").textContent);
const dashes = {solid: [], dashed: [8, 5], dotted: [2, 4]};
const dark = matchMedia("(prefers-color-scheme: dark)");
const explorers = [];

// Where a proxy stands in for old data, every text says so; commands keep their words.
const old = /(?<![\w./=@'"-])([Uu]pstream|old data)(?![\w./=:-]| \(proxy\))/g;
const called = (text) => data.proxy ? text.replace(old, "$1 (proxy)") : text;
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null).map((child) => typeof child === "string" ? called(child) : child));
  return node;
}
function button(text, act, attributes = {}) {
  const node = make("button", {type: "button", ...attributes}, text);
  node.addEventListener("click", act);
  return node;
}
function choice(label, options, value, act) {
  const select = make("select", {}, ...options.map(([key, text]) => make("option", {value: key}, text)));
  select.value = value;
  select.addEventListener("change", () => act(select.value));
  return make("label", {}, label, select);
}
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = () => dark.matches && !document.documentElement.classList.contains("light");
const colorOf = (arm) => (isDark() ? data.dark : data.palette)[arm.color];
function si(value) {
  for (const [unit, size] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]])
    if (Math.abs(value) >= size) return Number((value / size).toPrecision(4)) + unit;
  return String(Number(value.toPrecision(3)));
}
function figure(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && Math.abs(value) < 1e-2) return value.toExponential(2);
  return value.toFixed(Math.abs(value) < 10 ? 4 : 2);
}
function nearest(xs, at) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < at) low = middle; else high = middle; }
  return at - xs[low] <= xs[high] - at ? low : high;
}
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
function interval(values) {  // Student's t, as the verdicts have it
  const n = values.length, middle = mean(values);
  if (n < 2) return [middle, middle, middle];
  const half = data.t95[Math.min(n - 2, data.t95.length - 1)] * Math.sqrt(values.reduce((sum, v) => sum + (v - middle) ** 2, 0) / (n - 1) / n);
  return [middle, middle - half, middle + half];
}

function explorer(setting, saved) {
  const every = setting.arms.map((_, i) => i), views = [...setting.views];
  if (views.length > 1 || views[0].arms.length < every.length)
    views.push({id: "all", title: "All arms", caption: "Every arm that can be compared.", arms: every, details: every.map(() => ""), files: []});
  const named = views.findIndex((view) => "#" + view.id === location.hash);
  const best = setting.arms.findIndex((arm) => arm.name === setting.answer.rows[0]?.[0]), first = views.findIndex((view) => view.arms.includes(best));
  const state = {view: Math.max(first, 0), hidden: [], x: "tokens", xlog: "", unit: "nats", lrlog: "", domain: "", minus: -1, zoom: null, ...saved};
  if (named >= 0 && !saved) state.view = named;
  const domains = [...new Set(setting.arms.flatMap((arm) => Object.keys(arm.curves)).filter((name) => name.includes("/")).map((name) => name.slice(name.indexOf("/") + 1)))];
  const scale = () => state.x === "tokens" ? 1 : 1 / setting.tokens_per_step;
  const hosts = {}, plots = {}, bar = make("div", {class: "bar"}), tabs = make("div", {class: "bar"}), note = make("p", {class: "soft"});
  for (const what of ["downstream", "upstream", "lr", "both"])
    hosts[what] = make("div", {class: "figure", "data-figure": what, tabindex: "0", role: "group"});
  const legend = make("table", {class: "legend"}), live = make("p", {class: "hidden", "aria-live": "polite"});
  const left = make("div", {}, hosts.downstream, hosts.upstream, hosts.lr), right = make("div", {}, hosts.both, make("div", {class: "scroll"}, legend));
  const root = make("div", {}, tabs, note, bar, make("div", {class: "explorer"}, left, right), live);
  let at = null, near = -1, frame = 0, moving = false;

  const shown = () => views[state.view].arms.filter((i) => !state.hidden.includes(i));
  function set(changes) { Object.assign(state, changes); render(); }

  // Means and bands: lowest to highest of the seeds or, of differences to another arm, the 95 % interval of their mean.
  function row(i, what) {
    const arm = setting.arms[i];
    const name = state.domain && what !== "lr" && what + "/" + state.domain in arm.curves ? what + "/" + state.domain : what;
    const curve = arm.curves[name], other = setting.arms[state.minus]?.curves[name];
    if (!curve) return null;
    const found = {i, arm, x: [], y: [], low: [], high: []}, differs = state.minus >= 0 && what !== "lr";
    const value = (v) => what === "lr" || state.unit === "nats" ? v : differs ? 100 * Math.expm1(v) : Math.exp(v);
    const place = differs && other ? new Map(other.tokens.map((tokens, k) => [tokens, k])) : null;
    const pairs = place && curve.ids.map((seed, k) => [k, other.ids.indexOf(seed)]).filter(([, j]) => j >= 0);
    if (differs && !pairs?.length) return null;
    curve.tokens.forEach((tokens, k) => {
      if ((state.xlog && tokens <= 0) || (place && !place.has(tokens))) return;
      const values = place ? pairs.map(([s, j]) => curve.seeds[s][k] - other.seeds[j][place.get(tokens)]) : curve.seeds.map((seed) => seed[k]);
      const [y, low, high] = place ? interval(values) : [mean(values), Math.min(...values), Math.max(...values)];
      found.x.push(tokens * scale());
      for (const [key, v] of [["y", y], ["low", low], ["high", high]]) found[key].push(value(v));
    });
    return found.x.length ? found : null;
  }
  function title(what) {
    if (what === "lr") return "learning rate";
    const name = what + (state.domain ? ` (${state.domain})` : "");
    if (state.minus >= 0) return `${name}: ${state.unit === "nats" ? "nats a token" : "% of perplexity"} minus ${setting.arms[state.minus].name}`;
    return state.unit === "nats" ? `${name} loss (nats a token)` : `${name} perplexity`;
  }
  function summary(what, rows) {
    const said = rows.map((r) => `${r.arm.name} from ${figure(r.y[0])} to ${figure(r.y.at(-1))}`).join("; ");
    return `${title(what)} over ${state.x}. ${said}. Arrow keys move the cursor, plus and minus zoom, escape resets.`;
  }
  const axis = (label, values) => ({label, labelSize: 18, labelFont: "12px system-ui", font: "11px system-ui", stroke: css("--soft"),
    grid: {stroke: css("--grid"), width: 1}, ticks: {show: false}, ...(values ? {values} : {})});
  const short = (_, values) => values.map((v) => v === null ? "" : si(v));
  const lrs = (_, values) => values.map((v) => v === null ? "" : v === 0 ? "0" : Number(v.toPrecision(2)).toExponential());
  const decades = (u, i, low, high) => [...Array(40).keys()].flatMap((k) => [1, 2, 5].map((m) => m * 10 ** (k - 20))).filter((v) => v >= low && v <= high);
  const log = {splits: decades, filter: (_, splits) => splits};
  const sizes = () => {
    const wide = left.clientWidth || 320;
    return {time: {width: wide, height: Math.round(Math.max(190, Math.min(wide * .34, 260)))},
      both: {width: right.clientWidth || wide, height: Math.round(Math.max(240, Math.min((right.clientWidth || wide) * .8, 420)))}};
  };

  function timePlot(what) {
    const rows = shown().map((i) => row(i, what)).filter((r) => r !== null), host = hosts[what];
    host.replaceChildren(make("h3", {}, title(what)));
    host.setAttribute("aria-label", called(summary(what, rows)));
    plots[what] = null;
    if (!rows.length) return host.append(make("p", {class: "soft"}, "no values"));
    const tip = make("div", {class: "tip", hidden: ""});
    const hidden = (r) => ({stroke: "transparent", width: 0, points: {show: false}, spanGaps: true, auto: !r.arm.far || rows.every((one) => one.arm.far)});
    const plot = new uPlot({
      ...sizes().time, legend: {show: false}, focus: {alpha: .35}, padding: [8, 8, 0, 0],
      scales: {x: {time: false, distr: state.xlog ? 3 : 1, range: (_, a, b) => [a, b]}, y: {distr: what === "lr" && state.lrlog ? 3 : 1}},
      axes: [{...axis(state.x, short), size: 26, ...(state.xlog ? log : {})},
        {...axis(null, what === "lr" ? lrs : null), size: 56, ...(what === "lr" && state.lrlog ? log : {})}],
      series: [{}, ...rows.flatMap((r) => [{...hidden(r), stroke: colorOf(r.arm), width: 2, dash: dashes[r.arm.dash]}, hidden(r), hidden(r)])],
      bands: rows.flatMap((r, k) => r.arm.curves[what]?.ids.length > 1 ? [{series: [3 * k + 3, 3 * k + 2], fill: colorOf(r.arm) + "38"}] : []),
      cursor: {sync: {key: setting.key, scales: ["x", null], setSeries: false}, drag: {x: true, y: false}, points: {size: 7},
        focus: {prox: 30, dist: (u, s, d, v, c) => s % 3 === 1 ? v - c : Infinity},
        dataIdx: (u, s, k, x) => { const r = rows[Math.floor((s - 1) / 3)]; return s && r ? nearest(u.data[0], r.x[nearest(r.x, x)]) : k; }},
      hooks: {
        setCursor: [(u) => {
          if (!moving) { at = u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null; later(); }
          const r = rows.find((one) => one.i === near), k = r && at !== null ? nearest(r.x, at) : 0;
          tip.hidden = !r || u.cursor.left < 0 || !u.over.matches(":hover");
          if (tip.hidden) return;
          tip.textContent = `${r.arm.name} ${figure(r.y[k])}`;
          const flip = u.cursor.left > u.over.clientWidth / 2;
          tip.style.cssText = `top:${u.cursor.top - 28}px;` + (flip ? `right:${u.over.clientWidth - u.cursor.left + 10}px` : `left:${u.cursor.left + 10}px`);
        }],
        setSeries: [(u, s) => { near = s ? rows[Math.floor((s - 1) / 3)].i : -1; later(); }],
        setScale: [(u, key) => { if (key === "x" && !moving) zoom([u.scales.x.min, u.scales.x.max], u); }],
        drawClear: [(u) => {
          const {ctx, bbox} = u;
          ctx.save();
          ctx.strokeStyle = css("--soft"); ctx.setLineDash([2, 4]);
          for (const end of new Set(rows.map((r) => r.arm.warmup * scale()).filter((v) => v > u.scales.x.min && v < u.scales.x.max))) {
            const x = u.valToPos(end, "x", true);
            ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
          }
          ctx.restore();
        }],
      },
    }, uPlot.join(rows.map((r) => [r.x, r.y, r.low, r.high])), host);
    plot.over.append(tip);
    plots[what] = plot;
  }
  const times = () => ["downstream", "upstream", "lr"].map((what) => plots[what]).filter((plot) => plot);
  function full() {
    const ends = times().map((plot) => plot.data[0]);
    return [Math.min(...ends.map((xs) => xs[0])), Math.max(...ends.map((xs) => xs.at(-1)))];
  }
  function zoom(range, from = null) {
    const [low, high] = full();
    state.zoom = range && (range[0] > low || range[1] < high) ? range : null;
    const [min, max] = state.zoom ?? [low, high];
    moving = true;
    for (const plot of times()) if (plot !== from && (plot.scales.x.min !== min || plot.scales.x.max !== max)) plot.setScale("x", {min, max});
    moving = false;
  }

  // Both perplexities: uPlot gives axes, zoom and cursor, the paths are drawn onto it.
  function bothPlot() {
    const host = hosts.both, save = {...state};
    Object.assign(state, {minus: -1, unit: "ppl", xlog: ""});
    const rows = shown().map((i) => {
      const up = row(i, "upstream"), down = row(i, "downstream");
      if (!up || !down) return null;
      const place = new Map(up.x.map((x, k) => [x, k])), kept = down.x.map((x, k) => [x, down.y[k], up.y[place.get(x)]]).filter(([x]) => place.has(x));
      return kept.length ? {i, arm: setting.arms[i], x: kept.map((p) => p[0]), points: kept.map((p) => [p[1], p[2]])} : null;
    }).filter((r) => r !== null);
    Object.assign(state, save);
    host.replaceChildren(make("h3", {}, "both perplexities: ring = start, square = warm-up ends, disc = end"));
    host.setAttribute("aria-label", called("Upstream against downstream perplexity. ") + rows.map((r) => `${r.arm.name} from ${r.points[0].map(figure)} to ${r.points.at(-1).map(figure)}`).join("; "));
    plots.both = null;
    const near_ = rows.filter((r) => !r.arm.far), held = (near_.length ? near_ : rows).flatMap((r) => r.points);
    if (!held.length) return;
    const ends = (k) => { const vs = held.map((p) => p[k]), low = Math.min(...vs), high = Math.max(...vs), m = .05 * (high - low) || .05 * high; return [low - m, high + m]; };
    const limits = [ends(0), ends(1)];
    plots.both = new uPlot({
      ...sizes().both, legend: {show: false}, padding: [8, 8, 0, 0],
      scales: {x: {time: false, range: (_, a, b) => [a, b]}, y: {range: (_, a, b) => [a, b]}},
      axes: [{...axis("downstream perplexity"), size: 26}, {...axis(called("upstream perplexity")), size: 50}],
      series: [{}, {stroke: "transparent", points: {show: false}}],
      cursor: {drag: {x: true, y: true, uni: 30}, points: {show: false}},
      hooks: {
        draw: [(u) => drawPaths(u, rows)],
        setCursor: [(u) => {
          if (moving || !u.over.matches(":hover")) return;
          let best = null;
          for (const r of rows) r.points.forEach(([x, y], k) => {
            const d = (u.valToPos(x, "x") - u.cursor.left) ** 2 + (u.valToPos(y, "y") - u.cursor.top) ** 2;
            if (!best || d < best.d) best = {d, r, k};
          });
          near = best && best.d < 1600 ? best.r.i : -1;
          moveTo(near >= 0 ? best.r.x[best.k] : null);
        }],
      },
    }, limits, host);
  }
  function drawPaths(u, rows) {
    const {ctx, bbox} = u, dot = devicePixelRatio;
    const place = (p) => [u.valToPos(p[0], "x", true), u.valToPos(p[1], "y", true)];
    ctx.save();
    ctx.beginPath(); ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height); ctx.clip();
    const disc = (p, r, fill) => { ctx.beginPath(); ctx.arc(...place(p), r * dot, 0, 7); if (fill) ctx.fill(); else ctx.stroke(); };
    for (const r of rows) {
      ctx.strokeStyle = ctx.fillStyle = colorOf(r.arm);
      ctx.globalAlpha = near < 0 || near === r.i ? 1 : .35;
      ctx.lineWidth = 1.6 * dot; ctx.setLineDash(dashes[r.arm.dash].map((v) => v * dot));
      ctx.beginPath(); r.points.forEach((p) => ctx.lineTo(...place(p))); ctx.stroke();
      ctx.setLineDash([]);
      for (const share of [.12, .3, .6]) {  // arrowheads
        const k = Math.max(1, Math.round(share * (r.points.length - 1))), [x, y] = place(r.points[Math.min(k, r.points.length - 1)]), [a, b] = place(r.points[Math.max(0, k - 1)]);
        if (Math.hypot(x - a, y - b) < dot) continue;
        ctx.save(); ctx.translate(x, y); ctx.rotate(Math.atan2(y - b, x - a));
        ctx.beginPath(); ctx.moveTo(4 * dot, 0); ctx.lineTo(-4 * dot, 3.5 * dot); ctx.lineTo(-4 * dot, -3.5 * dot); ctx.fill(); ctx.restore();
      }
      disc(r.points.at(-1), 4.5, true);
      const k = r.x.findIndex((x) => x >= r.arm.warmup * scale()), [x, y] = place(r.points[Math.max(k, 0)]);
      if (r.arm.warmup > 0 && k > 0) ctx.strokeRect(x - 5 * dot, y - 5 * dot, 10 * dot, 10 * dot);
      if (at !== null) disc(r.points[nearest(r.x, at)], 7, false);
      ctx.strokeStyle = css("--text");
      disc(r.points[0], 7, false);
    }
    ctx.restore();
  }

  function moveTo(x) {
    at = x;
    moving = true;
    for (const plot of times()) plot.setCursor(x === null ? {left: -10, top: -10} : {left: plot.valToPos(x, "x"), top: -100});
    moving = false;
    later();
  }
  function later() {
    if (!frame) frame = requestAnimationFrame(() => { frame = 0; readout(); plots.both?.redraw(false); });
  }
  const columns = ["downstream", "upstream", "lr"];
  function values(i) {
    return columns.map((what) => { const r = row(i, what); return r ? r.y[at === null ? r.y.length - 1 : nearest(r.x, at)] : null; });
  }
  const where = () => at === null ? "at the end" : `at ${si(at)} ${state.x}`;
  function readout() {
    legend.caption.textContent = `${where()}; a click takes an arm out or puts it back`;
    for (const tr of legend.tBodies[0].rows) {
      const i = Number(tr.dataset.arm);
      tr.classList.toggle("near", i === near);
      if (!state.hidden.includes(i)) values(i).forEach((v, k) => { tr.cells[k + 1].textContent = figure(v); });
    }
  }
  function say() {
    live.textContent = `${where()}: ` + shown().map((i) => `${setting.arms[i].name} ${values(i).map((v, k) => `${columns[k]} ${figure(v)}`).join(", ")}`).join("; ");
  }
  function key(event) {
    const plot = times()[0], [low, high] = state.zoom ?? (plot ? full() : [0, 1]);
    const xs = plot ? plot.data[0].filter((x) => x >= low && x <= high) : [], k = at === null ? 0 : nearest(xs, at), middle = at ?? (low + high) / 2;
    const acts = {
      ArrowRight: () => moveTo(xs[Math.min(k + 1, xs.length - 1)]), ArrowLeft: () => moveTo(xs[at === null ? xs.length - 1 : Math.max(k - 1, 0)]),
      Home: () => moveTo(xs[0]), End: () => moveTo(xs.at(-1)), Escape: () => { zoom(null); moveTo(null); },
      "+": () => zoom([middle - (middle - low) / 2, middle + (high - middle) / 2]),
      "-": () => zoom([Math.max(full()[0], middle - 2 * (middle - low)), Math.min(full()[1], middle + 2 * (high - middle))]),
    };
    if (!acts[event.key] || event.ctrlKey || event.metaKey || !xs.length) return;
    event.preventDefault();
    acts[event.key]();
    say();
  }
  for (const host of Object.values(hosts)) host.addEventListener("keydown", key);

  function swatch(arm) {
    const node = make("span", {}), line = `<svg width="24" height="8" aria-hidden="true"><line x1="0" x2="24" y1="4" y2="4" stroke-width="3" stroke="${colorOf(arm)}" stroke-dasharray="${dashes[arm.dash]}"/></svg>`;
    node.innerHTML = line;  // made of our own values alone
    return node;
  }
  function drawLegend() {
    const view = views[state.view];
    const body = make("tbody", {}, ...view.arms.map((i, k) => {
      const arm = setting.arms[i], pressed = String(!state.hidden.includes(i));
      const text = make("span", {}, make("span", {class: "name"}, arm.name), view.details[k] ? make("span", {class: "soft"}, ` ${view.details[k]}`) : null);
      const one = button(swatch(arm), () => set({hidden: state.hidden.includes(i) ? state.hidden.filter((j) => j !== i) : [...state.hidden, i]}), {"aria-pressed": pressed});
      one.append(text);
      return make("tr", {"data-arm": i}, make("td", {}, one), ...columns.map(() => make("td", {}, "–")));
    }));
    legend.replaceChildren(make("caption"), make("thead", {}, make("tr", {}, ...["arm", "downstream", "upstream", "LR"].map((name) => make("th", {scope: "col"}, name)))), body);
    readout();
  }
  function save() {
    const lines = ["arm,set,seeds,x,mean,low,high"];
    for (const i of shown()) for (const what of columns) {
      const r = row(i, what);
      r?.x.forEach((x, k) => lines.push([JSON.stringify(r.arm.name), what, r.arm.curves[what]?.ids.length ?? 1, x, r.y[k], r.low[k], r.high[k]].join(",")));
    }
    make("a", {href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"], {type: "text/csv"})), download: `${views[state.view].id}.csv`}).click();
  }
  function drawBars() {
    const view = views[state.view], onOff = (key, text) => button(text, () => set({[key]: state[key] ? "" : "1", zoom: null}), {"aria-pressed": String(Boolean(state[key]))});
    tabs.replaceChildren(...(views.length > 1 ? views : []).map((one, k) => button(one.title, () => {
      history.replaceState(null, "", "#" + one.id);
      set({view: k, hidden: [], minus: -1});
    }, {"aria-pressed": String(k === state.view)})));
    note.replaceChildren(view.caption + (view.files.length ? " For papers:" : ""), ...view.files.flatMap(([text, href]) => [" ", make("a", {href}, text)]));
    bar.replaceChildren(
      choice("x", [["tokens", "tokens"], ["steps", "steps"]], state.x, (x) => { at = null; set({x, zoom: null}); }), onOff("xlog", "log x"),
      choice("loss", [["nats", "nats a token"], ["ppl", "perplexity"]], state.unit, (unit) => set({unit})), onOff("lrlog", "log LR"),
      ...(domains.length ? [choice("domain", [["", "all text"], ...domains.map((name) => [name, name])], state.domain, (domain) => set({domain}))] : []),
      ...(view.arms.length > 1 ? [choice("minus", [[-1, "nothing"], ...view.arms.map((i) => [i, setting.arms[i].name])], state.minus, (i) => set({minus: Number(i)}))] : []),
      button("whole", () => zoom(null), {title: "undo the zoom; drag in a figure to zoom"}), button("CSV", save, {title: "what is shown, as a file"}));
  }
  function render() {
    const kept = state.zoom;  // a new plot says its own range first
    moving = true;
    for (const plot of Object.values(plots)) plot?.destroy();
    drawBars();
    for (const what of columns) timePlot(what);
    bothPlot();
    moving = false;
    if (times().length) zoom(kept);
    drawLegend();
  }
  let width = 0;
  new ResizeObserver(() => {
    if (Math.abs(left.clientWidth - width) < 2) return;
    const {time, both} = sizes(), begun = width > 0;
    width = left.clientWidth;
    if (!begun) return render();
    for (const plot of times()) plot.setSize(time);
    plots.both?.setSize(both);
  }).observe(left);
  explorers.push({state, plots, render});
  return root;
}
