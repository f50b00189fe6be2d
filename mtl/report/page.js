"use strict";
// Content from runs is set as text, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "6 3", "2 3", "9 3 2 3"];

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function shape(name, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

const colour = index => `var(--c${index % 10})`;
const dash = index => DASHES[Math.floor(index / 10) % DASHES.length];
const arrow = higher => higher === null ? "" : higher ? " ↑" : " ↓";

function brief(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function ticks(low, high, count) {
  const raw = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function range(values, margin = 0.05) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low > high) return [0, 1];
  const room = high > low ? (high - low) * margin : Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

// ------------------------------------------------------------------------------------------------ tooltips

const tip = document.getElementById("tip");
function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 4))}px`;
}
const hideTip = () => { tip.hidden = true; };

// --------------------------------------------------------------------------------------------------- plots

const drawn = [];  // the drawing function of each plot, called again when the window's width changes
let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === lastWidth) return;  // on a phone, toolbars resize the height alone
  lastWidth = innerWidth;
  drawn.forEach(draw => draw());
});

/** A figure filled by `draw(svg, width, height)`; its viewBox is its width in pixels, so that text keeps its size. */
function plot(name, title, caption, height, draw) {
  const svg = shape("svg", { role: "img", "aria-label": title });
  const figure = element("figure", { "data-plot": name }, element("h3", {}, title), svg);
  if (caption) figure.append(element("figcaption", {}, caption));
  figure.redraw = () => {
    const width = Math.max(240, svg.clientWidth || svg.parentNode.clientWidth - 24);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    draw(svg, width, height);
  };
  drawn.push(figure.redraw);
  return figure;
}

function axes(svg, width, height, xs, ys, xLabel, yLabel, log = false) {
  const left = 52, right = 12, top = 10, bottom = 38;
  const scale = log ? Math.log10 : v => v;
  const [x0, x1] = xs, [y0, y1] = ys.map(scale);
  const x = v => left + (v - x0) / (x1 - x0) * (width - left - right);
  const y = v => height - bottom - (scale(v) - y0) / (y1 - y0) * (height - top - bottom);
  const decades = ticks(y0, y1, Math.max(2, Math.min(5, y1 - y0))).filter(t => Number.isInteger(t)).map(t => 10 ** t);
  const vertical = log && decades.length > 1 ? decades : ticks(ys[0], ys[1], 5).filter(t => !log || t > 0);
  for (const t of vertical) {
    svg.append(shape("line", { class: "gridline", x1: left, x2: width - right, y1: y(t), y2: y(t) }));
    svg.append(shape("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, brief(t)));
  }
  for (const t of ticks(x0, x1, Math.max(3, Math.floor(width / 110)))) {
    svg.append(shape("line", { class: "gridline", x1: x(t), x2: x(t), y1: top, y2: height - bottom }));
    svg.append(shape("text", { x: x(t), y: height - bottom + 15, "text-anchor": "middle" }, brief(t)));
  }
  svg.append(shape("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  svg.append(shape("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, xLabel));
  if (yLabel) svg.append(shape("text", { x: 12, y: height / 2 - 14, transform: `rotate(-90 12 ${height / 2 - 14})`, "text-anchor": "middle" }, yLabel));
  return { x, y, x0, x1, left, right, top, bottom };
}

/** Lines with bands. `series`: {label, colour, dash, x, y, lo, hi}. */
function lines(svg, width, height, series, yLabel, options = {}) {
  if (!series.length) {
    svg.append(shape("text", { class: "strong", x: width / 2, y: height / 2, "text-anchor": "middle" }, options.nothing || "nothing was logged"));
    return;
  }
  const all = series.flatMap(s => [...s.y, ...(s.lo || []), ...(s.hi || [])]);
  const log = Boolean(options.log) && all.every(v => v > 0) && Math.max(...range(all, 0)) > 10 * Math.min(...range(all, 0));
  let ys = log ? [Math.min(...range(all, 0)) / 1.1, Math.max(...range(all, 0)) * 1.1] : range(all);
  if (options.range) ys = options.range;
  if (options.zero) ys = [Math.min(ys[0], 0), Math.max(ys[1], 0)];
  const a = axes(svg, width, height, range(series.flatMap(s => s.x), 0), ys, "step", yLabel, log);
  if (options.zero) svg.append(shape("line", { class: "axis", x1: a.left, x2: width - a.right, y1: a.y(0), y2: a.y(0) }));
  const path = (x, y) => x.map((v, i) => `${i ? "L" : "M"}${a.x(v).toFixed(1)},${a.y(y[i]).toFixed(1)}`).join("");
  for (const s of series) if (s.lo && s.x.length > 1) {
    const back = path([...s.x].reverse(), [...s.lo].reverse()).replace("M", "L");
    svg.append(shape("path", { d: `${path(s.x, s.hi)}${back}Z`, fill: s.colour, opacity: 0.14 }));
  }
  for (const s of series) {
    if (s.x.length > 1) svg.append(shape("path", { d: path(s.x, s.y), fill: "none", stroke: s.colour, "stroke-width": 1.8, "stroke-dasharray": s.dash || "" }));
    if (s.x.length <= 12) s.x.forEach((v, i) => svg.append(shape("circle", { cx: a.x(v), cy: a.y(s.y[i]), r: 2.6, fill: s.colour })));
  }
  const cursor = shape("line", { class: "axis", y1: a.top, y2: height - a.bottom, visibility: "hidden" });
  svg.append(cursor);
  svg.onpointermove = event => {
    const box = svg.getBoundingClientRect();
    const at = a.x0 + ((event.clientX - box.left) * width / box.width - a.left) / (width - a.left - a.right) * (a.x1 - a.x0);
    const nearest = s => s.x.reduce((best, v, i) => Math.abs(v - at) < Math.abs(s.x[best] - at) ? i : best, 0);
    const step = series[0].x[nearest(series[0])];
    cursor.setAttribute("x1", a.x(step)); cursor.setAttribute("x2", a.x(step)); cursor.setAttribute("visibility", "visible");
    const words = series.slice(0, 14).map(s => `${s.label}  ${brief(s.y[nearest(s)])}`);
    showTip(event, [`step ${step}`, ...words, ...(series.length > 14 ? ["…"] : [])].join("\n"));
  };
  svg.onpointerleave = () => { hideTip(); cursor.setAttribute("visibility", "hidden"); };
}

/** Labelled points; a label without room is omitted. `points`: {label, colour, x, y, dx or from and to, dy, square, faint}. */
function scatter(svg, width, height, points, xLabel, yLabel, front = []) {
  if (!points.length) return lines(svg, width, height, [], "");
  const xs = range(points.flatMap(p => p.faint ? [p.x] : [p.from ?? p.x - (p.dx || 0), p.to ?? p.x + (p.dx || 0)]), 0.1);
  const ys = range(points.flatMap(p => p.faint ? [p.y] : [p.y - (p.dy || 0), p.y + (p.dy || 0)]), 0.1);
  const a = axes(svg, width, height, xs, ys, xLabel, yLabel);
  const inside = (v, from, to) => Math.max(from, Math.min(to, v));
  if (front.length > 1) {
    const d = front.map((p, i) => `${i ? "L" : "M"}${a.x(p.x)},${a.y(p.y)}`).join("");
    svg.append(shape("path", { d, fill: "none", stroke: "var(--soft)", "stroke-width": 7, opacity: 0.22, "stroke-linejoin": "round", "stroke-linecap": "round" }));
  }
  for (const p of points) if (!p.faint) {
    const bar = { stroke: p.colour, opacity: 0.3 };
    const [from, to] = [p.from ?? p.x - (p.dx || 0), p.to ?? p.x + (p.dx || 0)];
    if (to > from) svg.append(shape("line", { x1: inside(a.x(from), a.left, width - a.right), x2: inside(a.x(to), a.left, width - a.right), y1: a.y(p.y), y2: a.y(p.y), ...bar }));
    if (p.dy) svg.append(shape("line", { x1: a.x(p.x), x2: a.x(p.x), y1: inside(a.y(p.y - p.dy), a.top, height - a.bottom), y2: inside(a.y(p.y + p.dy), a.top, height - a.bottom), ...bar }));
  }
  const taken = [];
  for (const p of [...points].sort((p, q) => Number(Boolean(q.faint)) - Number(Boolean(p.faint)))) {
    const [cx, cy, r] = [a.x(p.x), a.y(p.y), p.faint ? 2.5 : 5];
    const mark = p.square
      ? shape("rect", { x: cx - r, y: cy - r, width: 2 * r, height: 2 * r, fill: p.faint ? "var(--soft)" : "var(--raised)", stroke: "var(--soft)", "stroke-width": p.faint ? 0 : 2 })
      : shape("circle", { cx, cy, r, fill: p.colour, opacity: p.faint ? 0.5 : 1 });
    mark.addEventListener("pointermove", event => showTip(event, `${p.label}\n${xLabel}: ${brief(p.x)}${p.dx ? ` ± ${brief(p.dx)}` : p.from ? ` (${brief(p.from)} to ${brief(p.to)})` : ""}\n${yLabel}: ${brief(p.y)}${p.dy ? ` ± ${brief(p.dy)}` : ""}`));
    mark.addEventListener("pointerleave", hideTip);
    svg.append(mark);
    if (!p.faint) taken.push({ x: cx - 6, y: cy - 6, w: 12, h: 12 });
  }
  const byWeight = [...points].sort((p, q) => Number(Boolean(q.square)) - Number(Boolean(p.square)));  // static weights get their labels first
  for (const p of byWeight) if (!p.faint) label(svg, p, a.x(p.x), a.y(p.y), taken, width, height);
}

function label(svg, point, cx, cy, taken, width, height) {
  const text = point.label.length > 26 ? `${point.label.slice(0, 25)}…` : point.label;
  const w = text.length * 6.3, h = 13;
  for (const [dx, dy, anchor] of [[8, 4, "start"], [-8, 4, "end"], [0, -9, "middle"], [0, 18, "middle"], [8, -7, "start"], [8, 15, "start"], [-8, -7, "end"], [-8, 15, "end"]]) {
    const x = cx + dx - (anchor === "end" ? w : anchor === "middle" ? w / 2 : 0);
    const box = { x, y: cy + dy - 11, w, h };
    const free = taken.every(o => box.x > o.x + o.w || o.x > box.x + box.w || box.y > o.y + o.h || o.y > box.y + box.h);
    if (!free || x < 50 || x + w > width - 2 || box.y < 2 || box.y + h > height - 36) continue;
    taken.push(box);
    svg.append(shape("text", { class: "strong halo", x: cx + dx, y: cy + dy, "text-anchor": anchor }, text));
    return;
  }
}

const cosineText = v => Math.abs(v) < 0.0005 ? "0.000" : `${v < 0 ? "−" : "+"}${Math.abs(v).toFixed(Math.abs(v) < 0.1 ? 3 : 2)}`;
const cosineFill = v => `rgba(var(--${v < 0 ? "fight" : "agree"}), ${Math.min(1, Math.abs(v)) * 0.85})`;

/** Cosines on a fixed scale from -1 to 1, with the scale below. */
function heatMap(svg, width, tasks, value) {
  const left = Math.min(110, 14 + 6.6 * Math.max(...tasks.map(t => t.length))), top = 8;
  const cell = Math.min(76, (width - left - 8) / tasks.length);
  const size = cell * tasks.length, tilted = tasks.some(t => t.length * 6.6 > cell);
  const below = top + size + (tilted ? 70 : 24), height = below + 40;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  tasks.forEach((a, i) => {
    const y = top + i * cell, x = left + i * cell;
    svg.append(shape("text", { x: left - 6, y: y + cell / 2 + 4, "text-anchor": "end" }, a));
    svg.append(tilted
      ? shape("text", { x: x + cell / 2, y: top + size + 10, transform: `rotate(-40 ${x + cell / 2} ${top + size + 10})`, "text-anchor": "end" }, a)
      : shape("text", { x: x + cell / 2, y: top + size + 16, "text-anchor": "middle" }, a));
    tasks.forEach((b, j) => {
      const v = i === j ? 1 : value(a, b);
      const fill = i === j || v === null ? "var(--grid)" : cosineFill(v);
      svg.append(shape("rect", { x: left + j * cell, y, width: cell - 1, height: cell - 1, fill, stroke: "var(--line)", "stroke-width": 0.5 }));
      if (cell >= 34 && i !== j) svg.append(shape("text", { class: "strong halo", x: left + (j + 0.5) * cell, y: y + cell / 2 + 4, "text-anchor": "middle" }, v === null ? "?" : cosineText(v)));
    });
  });
  const wide = Math.min(size, 210), parts = 42;
  for (let k = 0; k < parts; k++) svg.append(shape("rect", { class: "scale", x: left + k * wide / parts, y: below + 4, width: wide / parts, height: 10, "shape-rendering": "crispEdges", fill: cosineFill(2 * (k + 0.5) / parts - 1) }));
  [[-1, "start"], [0, "middle"], [1, "end"]].forEach(([v, anchor]) =>
    svg.append(shape("text", { x: left + (v + 1) / 2 * wide, y: below + 28, "text-anchor": anchor }, v < 0 ? "−1" : String(v))));
}

// ------------------------------------------------------------------------------------------------ controls

function choice(label, options, chosen, change) {
  const select = element("select", { onchange: () => change(select.value) });
  options.forEach(([value, text]) => select.append(element("option", { value, selected: value === chosen ? "" : null }, text)));
  return element("label", {}, label, select);
}

function sortable(table, sticky) {
  const body = element("tbody"), head = element("tr"), rows = [];
  const wide = table.header.findIndex(title => ["selected on validation", "what it is"].includes(title));
  const numberOf = text => { const found = parseFloat(text.replace("−", "-")); return Number.isNaN(found) ? null : found; };
  const best = new Set(table.bold.map(([line, column]) => `${line},${column}`));
  table.lines.forEach((line, i) => {
    const row = element("tr", { class: line.kind || null });
    line.forEach((text, j) => row.append(element("td", { class: j === wide ? "left" : best.has(`${i},${j}`) ? "best" : null }, text)));
    rows.push([line, row]);
    body.append(row);
  });
  table.header.forEach((title, j) => {
    const cell = element("th", { scope: "col", class: j === wide ? "left" : null });
    const sort = () => {
      const ascending = cell.getAttribute("aria-sort") !== "ascending";
      [...head.children].forEach(other => other.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const sign = ascending ? 1 : -1;
      rows.sort(([a], [b]) => {
        const [x, y] = [numberOf(a[j]), numberOf(b[j])];
        if (j === 0 || j === wide) return sign * a[j].localeCompare(b[j], undefined, { numeric: true });
        return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
      });
      body.append(...rows.map(([, row]) => row));
    };
    cell.append(element("button", { type: "button", onclick: sort }, title || "strategy"));
    head.append(cell);
  });
  return element("div", { class: `scroll ${sticky ? "sticky" : ""}`, tabindex: 0 }, element("table", {}, element("thead", {}, head), body));
}

// ------------------------------------------------------------------------------------------------ sections

function curve(c, row, index, name) {
  const found = row.curves[name];
  return found ? [{ label: row.label, colour: colour(index), dash: dash(index), ...found, x: c.steps[found.x] }] : [];
}

function results(c) {
  const [main, ...others] = c.tables;
  const kinds = Object.fromEntries(c.rows.map(row => [row.label, row.baseline ? "baseline" : ""]));
  main.lines.forEach(line => { line.kind = kinds[line[0]]; });
  const section = element("section", { id: "results" }, element("h2", {}, main.title), element("p", { class: "soft" }, main.caption), sortable(main, true));
  others.forEach(table => section.append(element("details", { class: "table" }, element("summary", {}, table.title), element("p", { class: "soft" }, table.caption), sortable(table, true))));
  return section;
}

function paretoFront(points, x, y, up) {
  const better = (p, q, m) => up[m] ? p.values[m] >= q.values[m] : p.values[m] <= q.values[m];
  const dominated = q => points.some(p => p !== q && better(p, q, x) && better(p, q, y) && (p.values[x] !== q.values[x] || p.values[y] !== q.values[y]));
  return points.filter(q => !dominated(q)).sort((p, q) => p.values[x] - q.values[x]).map(p => ({ x: p.values[x], y: p.values[y] }));
}

/** The end of a sentence on test metrics: bars are said only where some are drawn. */
const bars = rows => rows.some(row => Object.values(row.values).some(v => v[1])) ? "; vertical bars: 95 % intervals." : ".";

/** All settings with static weights, if they are more than equal weighting, which makes no front. */
const staticPoints = c => c.points.some(p => p.static && !p.equal) ? c.points.filter(p => p.static) : [];

function tradeoffCaption(c, methods) {
  const weighted = staticPoints(c).length;
  return "Test metrics" + bars(methods).replace("vertical bars", "bars") + " The axes do not start at zero; a label without room is left out."
    + (weighted ? ` Grey: the ${weighted} settings with static weights; the band is their Pareto front on the test split. A strategy is better than static weights only beyond the band, by more than its interval.` : "");
}

function tradeoffs(c) {
  const names = c.metrics.filter(m => m.higher !== null).map(m => m.name);
  const up = Object.fromEntries(c.metrics.map(m => [m.name, m.higher]));
  const methods = c.rows.map((row, i) => ({ ...row, index: i })).filter(row => !row.baseline);
  let [x, y] = [names[0], names.find(n => c.metrics.find(m => m.name === n).task !== c.metrics[0].task) || names[0]];
  const grid = element("div", { class: "grid" });
  if (names.length > 1) {
    const figure = plot("tradeoff", "Two tasks against each other", tradeoffCaption(c, methods), 380, (svg, w, h) => {
      const points = [];
      const weighted = staticPoints(c).filter(p => x in p.values && y in p.values);
      weighted.forEach(p => points.push({ label: p.label, x: p.values[x], y: p.values[y], colour: "var(--soft)", square: true, faint: true }));
      methods.forEach(row => {
        const [a, b] = [row.values[x], row.values[y]];
        if (a && b && a[0] !== null && b[0] !== null) points.push({ label: row.label, x: a[0], y: b[0], dx: a[1], dy: b[1], colour: colour(row.index), square: row.static });
      });
      scatter(svg, w, h, points, x + arrow(up[x]), y + arrow(up[y]), paretoFront(weighted, x, y, up));
    });
    const options = names.map(n => [n, n]);
    figure.insertBefore(element("div", { class: "controls" },
      choice("x", options, x, v => { x = v; figure.redraw(); }), choice("y", options, y, v => { y = v; figure.redraw(); })), figure.children[1]);
    grid.append(figure);
  }
  const qualities = [...(methods.some(r => r.delta) ? [["Δm by metric, %", "Δm by metric, % ↓"]] : []), ...names.map(n => [n, n + arrow(up[n])])];
  if (qualities.length) {
    let chosen = qualities[0][0];
    const shared = methods.filter(row => row.shared).map(row => row.label);
    const caption = "Median time of a training step, with the quartiles of the readings, against the test metrics" + bars(methods) + " The axes do not start at zero."
      + (methods.some(row => row.doubted && !row.shared) ? " Of a row marked † in the table, the time may be the machine's." : "")
      + (shared.length ? ` Not drawn, because they shared the machine with another run of this report, or are compared with one that did: ${shared.join(", ")}.` : "");
    const figure = plot("cost", "Training cost against quality", caption, 380, (svg, w, h) => {
      const points = methods.flatMap(row => {
        const found = chosen.startsWith("Δm") ? row.delta : row.values[chosen];
        if (!found || found[0] === null || row.seconds === null || row.shared) return [];
        const [low, middle, high] = row.seconds.map(s => s * 1000);
        return [{ label: row.label, x: middle, y: found[0], from: low, to: high, dy: found[1], colour: colour(row.index), square: row.static }];
      });
      if (!points.length) return lines(svg, w, h, [], "", { nothing: "no step times that could be compared" });
      scatter(svg, w, h, points, "milliseconds a step ↓", qualities.find(q => q[0] === chosen)[1]);
    });
    figure.insertBefore(element("div", { class: "controls" }, choice("quality", qualities, chosen, v => { chosen = v; figure.redraw(); })), figure.children[1]);
    grid.append(figure);
  }
  return element("section", { id: "tradeoffs" }, element("h2", {}, "Trade-offs"), grid);
}

function curvesCaption(c) {
  const seeds = Math.max(...c.rows.map(row => row.seeds));
  const unfinished = c.rows.filter(row => row.unfinished).map(row => row.label);
  return (seeds > 1 ? "Mean over the finished runs of a row, at the steps that all of them logged; the band spans the lowest and the highest seed." : "One run a row.")
    + " Long curves are averaged over neighbouring steps. The vertical axis spans the data."
    + (c.rows.length > 1 ? " Click a label to show or hide its curve." : "")
    + (unfinished.length ? ` Of runs that have not finished: ${unfinished.join(", ")}.` : "");
}

function curves(c) {
  const names = [...new Set(c.rows.flatMap(row => Object.keys(row.curves)))].filter(n => !/conflict\/cos\/|architecture\/gate\//.test(n));
  const order = n => n.startsWith("val/loss/total") ? 0 : n.startsWith("val/") ? 1 : n.startsWith("train/loss") ? 2 : 3;
  names.sort((a, b) => order(a) - order(b));
  const ranked = c.rows.map((row, i) => [row.equal ? -1 : row.rank ?? 1e9, i]).sort((a, b) => a[0] - b[0]);
  const active = new Set(c.rows.length <= 8 ? c.rows.keys() : ranked.slice(0, 6).map(([, i]) => i));
  const figures = [];
  const grid = element("div", { class: "grid" });
  const firsts = [names[0], names.find(n => order(n) === 1 && !n.includes("loss")) || names[1]].filter(Boolean);
  firsts.forEach((first, k) => {
    let chosen = first;
    const figure = plot("curves", "Over training", null, 320, (svg, w, h) =>
      lines(svg, w, h, c.rows.flatMap((row, i) => active.has(i) ? curve(c, row, i, chosen) : []), chosen.replace(/^(train|val)\//, ""), { log: chosen.includes("loss"), nothing: "none of the selected rows logged it" }));
    figure.insertBefore(element("div", { class: "controls" }, choice("metric", names.map(n => [n, n]), chosen, v => { chosen = v; figure.redraw(); })), figure.children[1]);
    figures.push(figure);
    grid.append(figure);
  });
  const chips = element("div", { class: "chips" });
  c.rows.forEach((row, i) => {
    const swatch = shape("svg", { viewBox: "0 0 20 8" });
    swatch.append(shape("line", { x1: 0, x2: 20, y1: 4, y2: 4, stroke: colour(i), "stroke-width": 3, "stroke-dasharray": dash(i) }));
    const chip = element("button", { class: "chip", type: "button", "aria-pressed": String(active.has(i)), onclick: () => {
      if (!active.delete(i)) active.add(i);
      chip.setAttribute("aria-pressed", String(active.has(i)));
      figures.forEach(figure => figure.redraw());
    } }, swatch, row.label);
    chips.append(chip);
  });
  return element("section", { id: "curves" }, element("h2", {}, "Curves"),
    element("p", { class: "soft" }, curvesCaption(c)), grid, chips);
}

/** The curves of a row whose names begin with `prefix`, each with its own colour. */
function seriesOf(c, row, prefix, filter = () => true) {
  return Object.keys(row.curves).filter(n => n.startsWith(prefix) && filter(n)).map((n, i) =>
    ({ label: n.slice(prefix.length), colour: colour(i), dash: dash(i), ...row.curves[n], x: c.steps[row.curves[n].x] }));
}

/** A plot of the series that `get` returns, with a legend. */
function panel(name, title, get, options = {}) {
  const legend = element("div", { class: "chips" });
  const figure = plot(name, title, null, 250, (svg, w, h) => {
    const found = get();
    lines(svg, w, h, found, "", options);
    if (options.heading) figure.querySelector("h3").textContent = options.heading();
    legend.replaceChildren(...found.map(s => {
      const swatch = shape("svg", { viewBox: "0 0 20 8" });
      swatch.append(shape("line", { x1: 0, x2: 20, y1: 4, y2: 4, stroke: s.colour, "stroke-width": 3, "stroke-dasharray": s.dash || "" }));
      return element("span", { class: "chip" }, swatch, s.label);
    }));
  });
  figure.append(legend);
  return figure;
}

function conflict(c) {
  const rows = c.rows.map((row, i) => ({ ...row, index: i })).filter(row => Object.keys(row.curves).some(n => /conflict\/cos|weight\//.test(n)) && row.tasks.length > 1);
  if (!rows.length) return "";
  let row = rows.find(r => r.equal) || rows[0], at = 1e9;
  const of = prefix => Object.keys(row.curves).filter(n => n.startsWith(prefix));
  const series = (prefix, filter) => seriesOf(c, row, prefix, filter);
  const cosine = (a, b) => row.curves[`train/conflict/cos/${a}~${b}`] || row.curves[`train/conflict/cos/${b}~${a}`];
  const axis = () => of("train/conflict/cos/").map(n => c.steps[row.curves[n].x]).reduce((best, s) => s.length > best.length ? s : best, []);
  const slider = element("input", { type: "range", min: 0, "aria-label": "step", oninput: () => { at = Number(slider.value); matrix.redraw(); } });
  const where = element("span");
  const matrix = plot("cosines", "Cosines of the task gradients", null, 300, (svg, w) => {
    const steps = axis();
    slider.max = Math.max(0, steps.length - 1);
    at = Math.min(at, slider.max);
    slider.value = at;
    where.textContent = steps.length ? `step ${steps[at]}; blue: agreement, red: opposition` : "not measured";
    heatMap(svg, w, row.tasks, (a, b) => {
      const found = cosine(a, b), i = found ? c.steps[found.x].indexOf(steps[at]) : -1;
      return i < 0 ? null : found.y[i];
    });
  });
  matrix.insertBefore(element("div", { class: "controls" }, element("label", {}, "step", slider), where), matrix.children[1]);
  const figures = [
    matrix,
    panel("fraction", "Share of pairs in conflict, mean and lowest cosine", () => series("train/conflict/", n => /\/(fraction|cos_mean|cos_min)$/.test(n)),
      { range: [-1, 1], heading: () => `Share of pairs with a cosine below ${row.tolerance ? `−${row.tolerance}` : "0"}; mean and lowest cosine` }),
    panel("norms", "Norms of the weighted losses' gradients", () => series("train/conflict/norm/"), { log: true }),
    panel("weights", "Task weights", () => series("train/weight/"), { zero: true }),
  ];
  const said = element("p", { class: "soft" });
  const spaces = { features: "with respect to the shared features, sample by sample", features_sum: "with respect to the shared features, summed over the batch", parameters: "with respect to the shared parameters" };
  const say = () => { said.textContent = `Gradients ${spaces[row.space] || `in the space ${row.space}`}, in training steps${row.seeds > 1 ? `, averaged over the ${row.seeds} finished runs` : ""}.`
    + (row.space === "features" ? ` ${c.smallCosines}` : ""); };
  say();
  const select = choice("strategy", rows.map((r, i) => [String(i), r.label]), String(rows.indexOf(row)), v => { row = rows[Number(v)]; say(); figures.forEach(f => f.redraw()); });
  const audited = rows.some(r => Object.keys(r.curves).some(n => n.startsWith("train/audit/")));
  const table = { header: ["metric", "what it is", "parallel", "orthogonal", "opposed"], lines: [...c.descriptions.conflict, ...(audited ? c.descriptions.audit : [])], bold: [] };
  const meaning = element("details", { class: "table" }, element("summary", {}, "What these numbers are, and what they are for two gradients of the same length"), sortable(table, true));
  return element("section", { id: "conflict" }, element("h2", {}, "Gradient conflict and task weights"), said,
    element("div", { class: "controls" }, select), element("div", { class: "grid" }, ...figures), meaning);
}

function sharing(c) {
  const prefix = "train/architecture/";
  const rows = c.rows.filter(row => Object.keys(row.curves).some(n => n.startsWith(prefix)));
  if (!rows.length) return "";
  let row = rows[0];
  const of = kind => seriesOf(c, row, prefix + kind).map(s => ({ ...s, label: s.label.replace(/^[/_]/, "") || "all tasks" }));
  const figures = [["gate/", "Weights that gates give to experts: task / expert"], ["gate_entropy", "Entropy of the gates, in nats"],
    ["selected", "Experts that a sample has on average"], ["alpha", "α: task ~ column / unit"], ["penalty", "Penalties"]]
    .map(([kind, title]) => [kind, panel(`sharing-${kind.replace("/", "")}`, title, () => of(kind))]);
  const fill = () => figures.forEach(([kind, figure]) => { figure.hidden = !of(kind).length; if (figure.isConnected) figure.redraw(); });
  fill();
  return element("section", { id: "sharing" }, element("h2", {}, "What the architecture decides"),
    element("p", { class: "soft" }, "The mean of a batch. Gates are those of one run, the first seed's, because an expert's number means nothing in another; the rest is averaged over the finished runs."),
    element("div", { class: "controls" }, choice("row", rows.map((r, i) => [String(i), r.label]), "0", v => { row = rows[Number(v)]; fill(); })),
    element("div", { class: "grid" }, ...figures.map(([, figure]) => figure)));
}

function examples(c) {
  const rows = c.rows.filter(row => row.examples.length);
  if (!rows.length) return "";
  const show = part => part.src ? element("img", { src: part.src, alt: "" }) : document.createTextNode(part.text);
  const body = element("div", { class: "examples" });
  const cell = (...content) => element("td", { class: "left" }, ...content);
  const fill = row => body.replaceChildren(...row.examples.map(e => element("div", { class: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, ...["", "input", ...Object.keys(e.tasks)].map(t => element("th", { class: "left" }, t)))),
    element("tbody", {},
      element("tr", {}, cell("target"), cell(show(e.image), element("span", { class: "soft" }, e.title)), ...Object.values(e.tasks).map(part => cell(show(part.target)))),
      element("tr", {}, cell("prediction"), cell(), ...Object.values(e.tasks).map(part => cell(show(part.prediction)))))))));
  fill(rows[0]);
  return element("section", { id: "examples" }, element("h2", {}, "Example predictions"),
    element("div", { class: "controls" }, choice("strategy", rows.map((r, i) => [String(i), r.label]), "0", v => fill(rows[Number(v)]))), body);
}

function runs(c) {
  const section = element("section", { id: "runs" }, element("h2", {}, "Runs"));
  let few = true;
  const list = element("div");
  const fill = () => list.replaceChildren(...c.runs.filter(run => !few || run.selected || run.status !== "finished").map(run => {
    const ended = run.status === "finished" ? "" : run.status;
    const details = element("details", {}, element("summary", {}, `${run.label}, seed ${run.seed} `, element("span", { class: "bad" }, ended)));
    details.addEventListener("toggle", () => {  // filled on first opening: a page may have hundreds of configurations
      if (details.childElementCount > 1) return;
      const test = Object.entries(run.test).map(([k, v]) => `${k} ${v}`).join(", ");
      details.append(element("pre", {}, element("code", {}, run.command)), element("p", { class: "soft" }, run.folder));
      if (run.error) details.append(element("p", { class: "bad" }, run.error));
      if (test) details.append(element("p", { class: "soft" }, `test: ${test}; best val/${run.monitor}: ${brief(run.best)}, the best of ${run.evaluations} evaluations and so flattering`));
      const rows = (header, lines) => element("div", { class: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, ...header.map(h => element("th", { class: "left" }, h)))),
        element("tbody", {}, ...lines.map(line => element("tr", {}, ...line.map(text => element("td", { class: "left" }, element("code", {}, text))))))));
      if (run.changes.length) details.append(rows(["differs in", run.against || "the reference", "this run"], run.changes));
      if (run.config.length) details.append(element("details", {}, element("summary", {}, "full configuration, the same for all seeds"), rows(["key", "value"], run.config)));
    });
    return details;
  }));
  fill();
  if (c.runs.some(run => !run.selected)) section.append(element("div", { class: "controls" },
    choice("show", [["few", "rows of the table"], ["all", "all settings, selected or not"]], "few", v => { few = v === "few"; fill(); })));
  section.append(list);
  return section;
}

// ---------------------------------------------------------------------------------------------------- page

function render(index) {
  const page = document.getElementById("page"), c = DATA.comparisons[index];
  drawn.length = 0;
  const sections = [results(c), tradeoffs(c), curves(c), conflict(c), sharing(c), examples(c), runs(c)].filter(Boolean);
  if (c.notes.length) sections.splice(1, 0, element("section", { id: "notes" }, element("h2", {}, "Notes"),
    element("ul", { class: "notes" }, ...c.notes.map(note => element("li", {}, note)))));
  const links = sections.map(s => element("a", { href: `#${s.id}` }, s.querySelector("h2").textContent));
  const header = element("header", {}, element("h1", {}, DATA.title), element("p", { class: "soft" }, c.summary), ...c.warnings.map(text => element("p", { class: "bad" }, `Warning: ${text}`)));
  if (DATA.comparisons.length > 1) header.append(element("div", { class: "controls" },
    choice("data", DATA.comparisons.map((d, i) => [String(i), d.data]), String(index), v => render(Number(v)))));
  page.replaceChildren(header, element("nav", {}, ...links), ...sections);
  drawn.forEach(draw => draw());
}
render(0);
