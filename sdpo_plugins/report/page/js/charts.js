// Curves, drawn by BokehJS when they come into sight.

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const runColour = (run) => style(`--run-${run % 6}`);

/** Exponential moving average without the bias of its beginning; gaps stay gaps. */
function smoothed(values, keepShare) {
  if (!keepShare) return values;
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = keepShare * mean + (1 - keepShare) * value;
    weight = keepShare * weight + 1 - keepShare;
    return mean / weight;
  });
}

const withGaps = (values) => values.map((value) => (value === null ? NaN : value));

function describe(curve) {
  return curve.lines.map((line) => {
    const values = line.values.filter((value) => value !== null);
    if (!values.length) return `${data.names[line.run]}: no finite value`;
    const [first, last] = [values[0], values[values.length - 1]];
    const steps = `step ${line.steps[0]} to ${line.steps[line.steps.length - 1]}`;
    return `${data.names[line.run]}: ${number(first)} to ${number(last)}, ${steps}`;
  }).join("; ");
}

function figure(lines) {
  const ink = style("--muted");
  const plot = new Bokeh.Plotting.Figure({
    height: 176, sizing_mode: "stretch_width", toolbar_location: null, tools: [],
    background_fill_alpha: 0, border_fill_alpha: 0, outline_line_color: null, min_border_left: 48, min_border_right: 12,
    lod_threshold: null,
  });
  const font = "system-ui, sans-serif";
  for (const axis of [...plot.below, ...plot.left]) {
    axis.setv({
      axis_line_color: null, major_tick_line_color: null, minor_tick_line_color: null, major_label_text_color: ink,
      major_label_text_font: font, major_label_text_font_size: "11px", axis_label: null,
    });
  }
  plot.below[0].formatter = new Bokeh.BasicTickFormatter({ use_scientific: false });
  plot.below[0].ticker = new Bokeh.BasicTicker({ min_interval: 1, desired_num_ticks: 5, num_minor_ticks: 0 });
  plot.left[0].ticker = new Bokeh.BasicTicker({ desired_num_ticks: 4, num_minor_ticks: 0 });
  for (const grid of plot.center) grid.setv({ grid_line_color: style("--grid") });
  plot.center[0]?.setv({ grid_line_color: null });
  const share = Number(state.smooth);
  const values = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const [low, high] = [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
  // Around a value that never changes, rather than ±1.
  if (low === high) plot.y_range = new Bokeh.Range1d({ start: Math.min(0, 2 * low), end: Math.max(2 * high, 0) || 1 });
  for (const line of lines) {
    const colour = runColour(line.run);
    const shown = smoothed(line.values, share);
    const source = new Bokeh.ColumnDataSource({
      data: { step: line.steps, shown: withGaps(shown), value: withGaps(line.values) },
    });
    if (share) plot.line({ field: "step" }, { field: "value" }, { source, line_color: colour, line_alpha: 0.25, line_width: 1 });
    plot.line({ field: "step" }, { field: "shown" }, { source, line_color: colour, line_width: 2, line_join: "round" });
    const few = line.steps.length <= 40;
    plot.scatter({ field: "step" }, { field: "shown" }, {
      source, size: few ? 5 : 3, fill_color: colour, line_color: null, fill_alpha: few ? 1 : 0,
    });
  }
  return plot;
}

/** Place of the step nearest to x; steps ascend. */
function nearest(steps, x) {
  let [low, high] = [0, steps.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= x) low = middle;
    else high = middle;
  }
  return Math.abs(steps[low] - x) <= Math.abs(steps[high] - x) ? low : high;
}

/** One small window for all runs, and a line at the step. */
function followPointer(plot, lines, holder) {
  const mark = new Bokeh.Span({ dimension: "height", location: null, line_color: style("--muted"), line_width: 1, line_dash: "dotted" });
  plot.add_layout(mark);
  const leave = () => { mark.location = null; tip.hide(); };
  const show = ({ x }) => {
    const all = lines.map((line) => ({ line, at: nearest(line.steps, x) }));
    const step = all.map(({ line, at }) => line.steps[at]).reduce((best, each) => (Math.abs(each - x) < Math.abs(best - x) ? each : best));
    mark.location = step;
    const rows = all.map(({ line, at }) => {
      const other = line.steps[at] === step ? "" : ` at ${line.steps[at].toLocaleString("en")}`;
      return [severalRuns ? [make("span", { class: "dot", style: `background:var(--run-${line.run % 6})` }), data.names[line.run]] : ["value"],
        [number(line.values[at], 4), other]];
    });
    const box = holder.getBoundingClientRect();
    const share = (step - plot.x_range.start) / (plot.x_range.end - plot.x_range.start);
    const [from, width] = [plot.inner_width ? box.width - plot.inner_width - 12 : 48, plot.inner_width || box.width - 60];
    tip.fill({ left: box.left + from + share * width + 12, top: box.top + 6, bottom: box.top + 6 },
      make("div", { class: "tip-head" }, make("strong", { text: `step ${step.toLocaleString("en")}` })),
      make("dl", {}, rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
  };
  plot.on_event("mousemove", show);
  plot.on_event("tap", show);
  plot.on_event("mouseleave", leave);
  holder.onmouseleave = leave;
}

const drawnCharts = new Map();

async function drawChart(holder, curve) {
  await loadCharts();
  const hidden = list(state.hidden);
  const lines = curve.lines.filter((line) => !hidden.includes(data.names[line.run]));
  drawnCharts.get(holder)?.clear();
  holder.replaceChildren();
  const sheet = new Bokeh.Document();
  drawnCharts.set(holder, sheet);
  if (!lines.length) return void holder.append(make("p", { class: "muted", text: "No run that is switched on has it." }));
  const plot = figure(lines);
  followPointer(plot, lines, holder);
  sheet.add_root(plot);
  await Bokeh.embed.add_document_standalone(sheet, holder);
  holder.dataset.drawn = String(lines.length);
}

const sight = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting && !entry.target.dataset.asked) {
      entry.target.dataset.asked = "1";
      drawChart(entry.target, entry.target.curve);
    }
  }
}, { rootMargin: "300px" });

function chartCard(curve, onclose) {
  const last = curve.lines.map((line) => {
    const values = line.values.filter((value) => value !== null);
    return make("span", { class: "last", title: data.names[line.run] },
      severalRuns && make("span", { class: "dot", style: `background:var(--run-${line.run % 6})` }),
      number(values.length ? values[values.length - 1] : null));
  });
  const holder = make("div", { class: "chart", role: "img", "aria-label": `${curve.title}. ${describe(curve)}` });
  holder.curve = curve;
  const card = make("figure", { class: "panel curve", "data-key": curve.key },
    make("figcaption", {},
      make("span", { class: "curve-title", text: curve.title }),
      curve.unit && make("span", { class: "muted unit", text: curve.unit }),
      make("span", { class: "lasts" }, last),
      onclose && make("button", { type: "button", class: "close", "aria-label": `Remove ${curve.title}`, onclick: onclose, text: "×" })),
    curve.help && make("p", { class: "curve-help" }, quoted(curve.help)), holder);
  sight.observe(holder);
  return card;
}

function redrawCharts() {
  for (const holder of document.querySelectorAll(".chart[data-asked]")) drawChart(holder, holder.curve);
}

function startCharts() {
  byId("curves").append(...data.curves.map((curve) => chartCard(curve)));
  byId("no-curves").hidden = data.curves.length > 0;
  byId("smooth").value = state.smooth;
  byId("smooth").addEventListener("change", (event) => {
    keep({ smooth: event.target.value });
    redrawCharts();
  });
  if (severalRuns) {
    byId("run-switches").append(...data.names.map((name, run) => make("button", {
      type: "button", class: "switch", "aria-pressed": String(!list(state.hidden).includes(name)),
      onclick: (event) => {
        keep({ hidden: toggled(state.hidden, name) });
        event.currentTarget.setAttribute("aria-pressed", String(!list(state.hidden).includes(name)));
        redrawCharts();
      },
    }, make("span", { class: "dot", style: `background:var(--run-${run % 6})` }), name)));
  }
  themeListeners.push(redrawCharts);
  startMetrics();
}

async function startMetrics() {
  const others = await loadOthers();
  const names = Object.keys(others);
  byId("metrics").hidden = !names.length;
  const search = byId("metric-search");
  search.value = state.metric;
  const curveOf = (name) => ({ key: name, title: name, unit: "", help: "", lines: others[name] });
  const cards = new Map();
  const buttons = new Map(names.map((name) => [name, make("button", { type: "button", class: "switch", text: name, onclick: () => flip(name) })]));
  byId("metric-list").append(...buttons.values());

  function show() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [name, button] of buttons) {
      button.hidden = !words.every((word) => name.toLowerCase().includes(word));
      shown += !button.hidden;
    }
    byId("metric-count").textContent = words.length ? `${shown} of ${names.length}` : String(names.length);
  }
  function draw() {
    const wanted = list(state.drawn).filter((name) => name in others);
    for (const [name, button] of buttons) button.setAttribute("aria-pressed", String(wanted.includes(name)));
    for (const [name, card] of cards) if (!wanted.includes(name)) card.remove(), cards.delete(name);
    for (const name of wanted) {
      if (cards.has(name)) continue;
      cards.set(name, chartCard(curveOf(name), () => { flip(name); buttons.get(name).focus(); }));
      byId("metric-curves").append(cards.get(name));
    }
  }
  function flip(name) {
    keep({ drawn: toggled(state.drawn, name) });
    draw();
  }
  search.addEventListener("input", () => { keep({ metric: search.value }); show(); });
  show();
  draw();
}
