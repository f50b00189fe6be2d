"use strict";
// Content from runs is set as text, never as markup. Figures come from Python as Plotly has them (mtl.report.figures).
let DATA = JSON.parse(document.getElementById("data").textContent);
let FIGURES = null;  // of a page that is renewed, by id; otherwise each is in an element of its own
const chosen = new Map();  // what the reader has chosen, by the place of the choice: it outlives a renewal

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function brief(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

// ------------------------------------------------------------------------------------------------ controls

/** A field of options. `place`: under which the choice is kept; the first option stands for one that is gone. */
function choice(place, label, options, change, first = options[0][0]) {
  const kept = options.some(([value]) => value === chosen.get(place)) ? chosen.get(place) : first;
  const select = element("select", { onchange: () => { chosen.set(place, select.value); change(select.value); } });
  options.forEach(([value, text]) => select.append(element("option", { value, selected: value === kept ? "" : null }, text)));
  return { field: element("label", {}, label, select), value: kept };
}

function sortable(table, sticky, kinds = {}) {
  const body = element("tbody"), head = element("tr"), rows = [];
  const wide = table.header.findIndex(title => ["selected on validation", "what it is"].includes(title));
  const numberOf = text => { const found = parseFloat(text.replace("−", "-")); return Number.isNaN(found) ? null : found; };
  const best = new Set(table.bold.map(([line, column]) => `${line},${column}`));
  table.lines.forEach((line, i) => {
    const row = element("tr", { class: kinds[line[0]], "data-row": line[0] });
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
  return element("div", { class: `scroll ${sticky ? "sticky" : ""}`, tabindex: 0, role: "region", "aria-label": table.title || "table" },
    element("table", {}, element("thead", {}, head), body));
}

// ------------------------------------------------------------------------------------------------- figures

const panels = new Set();  // those of the page, drawn or not
const near = new IntersectionObserver(entries => entries.filter(e => e.isIntersecting).forEach(e => e.target.show()), { rootMargin: "400px" });
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 600px)");
const SETTINGS = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "autoScale2d", "resetScale2d"]] };

/** The parts of a layout that follow the page: its colours, and a phone's width. */
function themed(layout) {
  const style = getComputedStyle(document.documentElement), of = name => style.getPropertyValue(name).trim();
  const small = narrow.matches;
  return { ...layout, font: { ...layout.font, color: of("--text"), family: getComputedStyle(document.body).fontFamily },
    paper_bgcolor: of("--raised"), plot_bgcolor: of("--raised"), hoverlabel: { ...layout.hoverlabel, bgcolor: of("--raised") },
    dragmode: small ? false : "zoom",  // on a phone a finger scrolls the page
    margin: { ...layout.margin, l: small ? 44 : 60, t: 10, b: 50 } };
}

/** A panel: its figure with heading, caption, legend as buttons, and a slider where it has frames. */
function panel(place, name, label, figures) {
  const box = element("div", { class: "plot" }), heading = element("h3", { id: `${place}-title` }), caption = element("figcaption");
  const controls = element("div", { class: "controls" }), legend = element("div", { class: "chips legend" });
  const figure = element("figure", { "data-plot": name, role: "group", "aria-labelledby": `${place}-title` }, heading, controls, box, legend, caption);
  let current = null, dirty = true;
  const read = id => JSON.parse(FIGURES ? FIGURES[id] : document.getElementById(id).textContent);
  figure.show = () => {
    if (!dirty || current === null || !window.Plotly) return;
    dirty = false;
    const { data, layout, frames } = read(current);
    heading.textContent = layout.meta.title;
    caption.textContent = layout.meta.caption;
    const { title, sliders, annotations, ...rest } = layout;
    figure.layout = { ...rest, showlegend: false, annotations: (annotations || []).filter(a => a.name !== "caption") };
    figure.traces = data;
    data.forEach(trace => {
      trace.first = trace.visible !== "legendonly";
      if (narrow.matches && trace.mode === "markers+text") trace.mode = "markers";
    });
    filtered(figure);
    figure.drawn = Plotly.newPlot(box, { data, layout: themed(figure.layout), frames, config: SETTINGS });
    box.querySelectorAll(".main-svg").forEach((svg, i) => {  // one picture, in several layers
      svg.setAttribute(i ? "aria-hidden" : "role", i ? "true" : "img");
      if (!i) svg.setAttribute("aria-label", `${layout.meta.title}. ${layout.meta.caption}`);
    });
    controls.querySelector(".slider")?.remove();
    if (frames) controls.append(slider(figure, box, frames));
    legends(figure, legend);
  };
  figure.restyle = () => {
    if (dirty) return;
    filtered(figure);
    Plotly.react(box, figure.traces, themed(figure.layout), SETTINGS);
  };
  figure.choose = id => {
    current = id ?? null;
    dirty = true;
    figure.hidden = current === null;
    if (figure.isConnected && !figure.hidden) { near.unobserve(figure); near.observe(figure); }
  };
  const options = Object.keys(figures);
  if (label && options.length > 1) {
    const { field, value } = choice(place, label, options.map(o => [o, o]), v => figure.choose(figures[v]));
    controls.append(field);
    figure.choose(figures[value]);
  } else figure.choose(figures[options[0]]);
  panels.add(figure);
  near.observe(figure);
  return figure;
}

function slider(figure, box, frames) {
  const where = element("span");
  const say = i => { where.textContent = frames[i].name; input.setAttribute("aria-valuetext", `step ${frames[i].name}`); };
  const input = element("input", { type: "range", min: 0, max: frames.length - 1, value: frames.length - 1, oninput: () => {
    say(input.value);
    figure.traces[0].z = frames[input.value].data[0].z;  // for a change of colours or rows
    Plotly.animate(box, [frames[input.value].name], { mode: "immediate", frame: { duration: 0, redraw: true }, transition: { duration: 0 } });
  } });
  say(frames.length - 1);
  return element("label", { class: "slider" }, "step", input, where);
}

/** Buttons that show and hide the series of a figure that are no rows of the table: those have their own, above. */
function legends(figure, legend) {
  const groups = new Map();
  figure.traces.filter(t => t.legendgroup !== undefined && !state.rows.has(t.legendgroup)).forEach(t => {
    if (!groups.has(t.legendgroup)) groups.set(t.legendgroup, []);
    groups.get(t.legendgroup).push(t);
  });
  legend.replaceChildren(...[...groups].map(([label, traces]) => {
    const { line, marker } = traces.at(-1);  // points alone have no line
    const button = chip(label, line ?? marker, true, on => { traces.forEach(t => { t.first = on; }); figure.restyle(); });
    return button;
  }));
}

function chip(label, line, pressed, change) {
  const swatch = element("span", { class: "swatch", style: `border-top: 3px ${{ dash: "dashed", dot: "dotted", dashdot: "dashed" }[line.dash] || "solid"} ${line.color}` });
  const button = element("button", { class: "chip", type: "button", "aria-pressed": String(pressed), onclick: () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    change(on);
  } }, swatch, label);
  return button;
}

// ------------------------------------------------------------------------------------------- search and filters

const state = { rows: new Map(), matches: new Set(), switched: new Map() };  // of rows, by their labels

/** Sets which traces of a figure are visible: those of rows that match, and that no button has switched off. */
function filtered(figure) {
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--text").trim();
  for (const trace of figure.traces) {
    if (trace.texttemplate) trace.textfont = { color: colour };  // Plotly would choose one for a light surface
    const row = trace.legendgroup;
    if (!state.rows.has(row)) trace.visible = trace.first;
    else trace.visible = state.matches.has(row) && (state.switched.get(row) ?? trace.first);
  }
}

function filters(c, renew) {
  const query = element("input", { type: "search", placeholder: "name, setting or folder", oninput: () => { chosen.set("query", query.value); state.switched.clear(); apply(); } });
  query.value = chosen.get("query") ?? "";
  const of = key => [...new Set(c.runs.map(run => String(run[key])))].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  const all = (key, label) => choice(key, label, [["", "all"], ...of(key).map(v => [v, v])], () => { state.switched.clear(); apply(); });
  const method = all("method", "strategy"), seed = all("seed", "seed"), status = all("status", "status");
  const said = element("p", { class: "soft", role: "status" }), chips = element("div", { class: "chips rows", role: "group", "aria-label": "rows in the figures" });
  const text = run => [run.label, run.folder, run.command, run.status, ...run.changes.map(([key, , value]) => `${key}=${value}`)].join("\n").toLowerCase();
  const texts = new Map(c.runs.map(run => [run, text(run)]));
  const value = field => field.field.querySelector("select").value;
  function apply() {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const runs = c.runs.filter(run => words.every(word => texts.get(run).includes(word))
      && [[method, run.method], [seed, run.seed], [status, run.status]].every(([field, own]) => ["", String(own)].includes(value(field))));
    const narrowed = runs.length < c.runs.length;
    state.matches = new Set(runs.map(run => run.label));
    if (narrowed) state.matches.forEach(label => { if (!state.switched.has(label)) state.switched.set(label, true); });
    const rows = c.rows.filter(row => state.matches.has(row.label));
    said.textContent = `${rows.length} of ${c.rows.length} rows and ${runs.length} of ${c.runs.length} runs`
      + (narrowed ? "; means are those of all seeds of a row." : ".");
    chips.replaceChildren(...rows.map(row => chip(row.label, row.line, state.switched.get(row.label) ?? row.shown, on => { state.switched.set(row.label, on); panels.forEach(p => p.restyle()); })));
    document.querySelectorAll("tr[data-row]").forEach(tr => { tr.hidden = state.rows.has(tr.dataset.row) && !state.matches.has(tr.dataset.row); });
    panels.forEach(p => p.restyle());
    renew(runs);
  }
  state.rows = new Map(c.rows.map(row => [row.label, row]));
  const form = element("form", { role: "search", "aria-label": "runs", class: "controls", onsubmit: event => event.preventDefault() },
    element("label", {}, "search", query), method.field, seed.field, ...of("status").length > 1 ? [status.field] : []);
  const section = element("section", { id: "filter", "aria-label": "filter" }, form, said,
    element("details", { open: c.rows.length <= 40 ? "" : null }, element("summary", {}, "Rows in the figures: press to show or hide"), chips));
  return { section, apply };
}

// ------------------------------------------------------------------------------------------------ sections

function folded(table) {
  const caption = table.caption ? [element("p", { class: "soft" }, table.caption)] : [];
  return element("details", { class: "table" }, element("summary", {}, table.title), ...caption, sortable(table, true));
}

function results(c) {
  const [main, ...others] = c.tables;
  const kinds = Object.fromEntries(c.rows.map(row => [row.label, row.baseline ? "baseline" : null]));
  return element("section", { id: "results" }, element("h2", {}, main.title), element("p", { class: "soft" }, main.caption),
    sortable(main, true, kinds), ...others.map(folded));
}

function figures(s) {
  const grid = element("div", { class: "grid" });
  const shown = s.panels.map((p, i) => panel(`${s.id}-${i}`, p.name, s.rows ? "" : p.label, p.figures));
  const head = [element("h2", {}, s.title), ...s.text ? [element("p", { class: "soft" }, s.text)] : []];
  if (s.rows) {
    const set = row => shown.forEach((figure, i) => figure.choose(s.panels[i].figures[row]));
    const first = s.rows.find(row => state.rows.get(row).equal) || s.rows[0];
    const { field, value } = choice(s.id, "strategy", s.rows.map(row => [row, row]), set, first);
    head.push(element("div", { class: "controls" }, field));
    set(value);
  }
  grid.append(...shown);
  return element("section", { id: s.id }, ...head, grid, ...s.table ? [folded(s.table)] : []);
}

function examples(c) {
  const rows = c.rows.filter(row => row.examples.length);
  if (!rows.length) return "";
  const show = (part, name) => part.src ? element("img", { src: part.src, alt: name }) : document.createTextNode(part.text);
  const body = element("div", { class: "examples" });
  const cell = (...content) => element("td", { class: "left" }, ...content);
  const fill = row => body.replaceChildren(...row.examples.map(e => element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": e.title }, element("table", {},
    element("thead", {}, element("tr", {}, ...["", "input", ...Object.keys(e.tasks)].map(t => element(t ? "th" : "td", { class: "left" }, t)))),
    element("tbody", {},
      element("tr", {}, cell("target"), cell(show(e.image, "input"), element("span", { class: "soft" }, e.title)), ...Object.entries(e.tasks).map(([task, part]) => cell(show(part.target, `target of ${task}`)))),
      element("tr", {}, cell("prediction"), cell(), ...Object.entries(e.tasks).map(([task, part]) => cell(show(part.prediction, `prediction of ${task}`)))))))));
  const of = label => rows.find(row => row.label === label);
  const { field, value } = choice("examples", "strategy", rows.map(row => [row.label, row.label]), v => fill(of(v)));
  fill(of(value));
  return element("section", { id: "examples" }, element("h2", {}, "Example predictions"), element("div", { class: "controls" }, field), body);
}

function listed(run) {
  const ended = run.status === "finished" ? "" : run.status;
  const details = element("details", {}, element("summary", {}, `${run.label}, seed ${run.seed} `, element("span", { class: "bad" }, ended)));
  details.addEventListener("toggle", () => {  // filled on first opening: a page may have hundreds of configurations
    if (details.childElementCount > 1) return;
    const test = Object.entries(run.test).map(([k, v]) => `${k} ${v}`).join(", ");
    details.append(element("pre", {}, element("code", {}, run.command)), element("p", { class: "soft" }, run.folder));
    if (run.error) details.append(element("p", { class: "bad" }, run.error));
    if (test) details.append(element("p", { class: "soft" }, `test: ${test}; best val/${run.monitor}: ${brief(run.best)}, the best of ${run.evaluations} evaluations and so flattering`));
    const rows = (header, lines) => element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": header.join(", ") }, element("table", {}, element("thead", {}, element("tr", {}, ...header.map(h => element("th", { class: "left" }, h)))),
      element("tbody", {}, ...lines.map(line => element("tr", {}, ...line.map(text => element("td", { class: "left" }, element("code", {}, text))))))));
    if (run.changes.length) details.append(rows(["differs in", run.against || "the reference", "this run"], run.changes));
    if (run.config.length) details.append(element("details", {}, element("summary", {}, "full configuration, the same for all seeds"), rows(["key", "value"], run.config)));
  });
  return details;
}

function runs(c) {
  const list = element("div");
  let matching = c.runs;
  const { field } = choice("runs", "show", [["few", "rows of the table"], ["all", "all settings, selected or not"]], () => fill(matching));
  const section = element("section", { id: "runs" }, element("h2", {}, "Runs"), ...c.runs.some(run => !run.selected) ? [element("div", { class: "controls" }, field)] : [], list);
  function fill(found) {
    matching = found;
    const few = field.querySelector("select").value === "few";
    list.replaceChildren(...found.filter(run => !few || run.selected || run.status !== "finished").map(listed));
  }
  return { section, fill };
}

// ---------------------------------------------------------------------------------------------------- live

const duration = seconds => seconds < 120 ? `${Math.round(seconds)} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
const live = element("section", { id: "live", hidden: "" });
const renewed = element("input", { type: "checkbox", checked: "" });

/** What is running, how far, when it should end, and what has failed. */
function progress(runs) {
  const counts = {};
  runs.forEach(run => { counts[run.status] = (counts[run.status] ?? 0) + 1; });
  const words = Object.entries(counts).map(([status, count]) => `${count} ${status}`).join(", ");
  const open = runs.filter(run => run.status !== "finished");
  const how = run => {
    if (run.status !== "running") return [element("span", { class: "bad" }, run.error ?? run.status)];
    if (run.step === null) return ["no row yet"];
    return [element("progress", { max: run.total ?? 1, value: run.step, "aria-label": run.name }), ` ${run.step} of ${run.total ?? "?"} steps`];
  };
  const until = run => {
    if (run.silent !== null) return element("span", { class: "bad" }, `no row for ${duration(run.silent)}: it may hang, or was killed`);
    return run.end === null ? "" : `in ${duration(Math.max(0, (new Date(run.end) - Date.now()) / 1000))}, at ${new Date(run.end).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}`;
  };
  live.querySelector("[role=status]").textContent = words;
  live.querySelector("tbody").replaceChildren(...open.map(run => element("tr", {},
    element("td", { class: "left" }, run.name), element("td", { class: "left" }, run.status), element("td", { class: "left" }, ...how(run)), element("td", { class: "left" }, until(run)))));
  live.querySelector(".scroll").hidden = !open.length;
}

async function renew() {
  const said = live.querySelector(".bad.lost");
  try {
    const answer = await fetch("state");
    if (!answer.ok) throw new Error(await answer.text());
    const state = await answer.json();
    progress(state.runs);
    if (renewed.checked && state.version !== DATA.version) {
      const found = await (await fetch("content")).json();
      DATA = found.content;
      FIGURES = found.figures;
      again();
    }
    said.textContent = "";
  } catch (error) {
    said.textContent = error instanceof TypeError ? "The server does not answer: mtl-report --watch has ended." : String(error.message);
  }
  setTimeout(renew, 3000);
}

/** Render anew, and leave the reader where they were. */
function again() {
  const name = d => `${d.parentNode.id} ${d.querySelector("summary").textContent}`;
  const open = new Set([...document.querySelectorAll("details[open]")].map(name)), at = scrollY;
  render();
  document.querySelectorAll("details").forEach(d => { d.open = open.has(name(d)); });
  scrollTo({ top: at, behavior: "instant" });
}

function watch() {
  live.hidden = false;
  const header = ["run", "status", "progress", "end, if the rest takes as long a step"];
  live.append(element("h2", {}, "Progress"), element("p", { role: "status" }), element("p", { class: "bad lost", role: "alert" }),
    element("div", { class: "controls" }, element("label", {}, renewed, "renew the page as runs go on")),
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "progress" }, element("table", {},
      element("thead", {}, element("tr", {}, ...header.map(h => element("th", { class: "left", scope: "col" }, h)))), element("tbody"))));
  renew();
}

// ---------------------------------------------------------------------------------------------------- page

function render() {
  const page = document.getElementById("page");
  const names = DATA.comparisons.map(c => c.data);
  const data = choice("data", "data", names.map(n => [n, n]), render);
  const c = DATA.comparisons[names.indexOf(data.value)];
  panels.forEach(p => { near.unobserve(p); window.Plotly?.purge(p.querySelector(".plot")); });
  panels.clear();
  const list = runs(c), filter = filters(c, list.fill);
  const sections = [results(c), ...c.sections.map(figures), examples(c), list.section].filter(Boolean);
  if (c.notes.length) sections.splice(1, 0, element("section", { id: "notes" }, element("h2", {}, "Notes"),
    element("ul", { class: "notes" }, ...c.notes.map(note => element("li", {}, note)))));
  const links = sections.map(s => element("a", { href: `#${s.id}` }, s.querySelector("h2").textContent));
  const header = element("header", {}, element("h1", {}, DATA.title), element("p", { class: "soft" }, c.summary), ...c.warnings.map(text => element("p", { class: "bad" }, `Warning: ${text}`)),
    element("div", { class: "controls" }, ...names.length > 1 ? [data.field] : [], element("button", { type: "button", class: "print", onclick: () => print() }, "Print")));
  page.replaceChildren(header, live, element("nav", { "aria-label": "sections" }, ...links), filter.section, ...sections);
  filter.apply();
}

const redraw = () => panels.forEach(p => p.restyle());
dark.addEventListener("change", redraw);
addEventListener("beforeprint", () => {
  document.querySelectorAll("details.table").forEach(d => { d.open = true; });
  document.documentElement.classList.add("paper");
  panels.forEach(p => { if (!p.hidden) p.show(); });
  redraw();
});
addEventListener("afterprint", () => { document.documentElement.classList.remove("paper"); redraw(); });
/** Plotly is half of the page: it is compiled when the tables are on the screen, and then draws what is near. */
function start() {
  document.body.append(element("script", {}, document.getElementById("plotly").textContent));
  panels.forEach(p => { near.unobserve(p); near.observe(p); });
}

render();
requestAnimationFrame(() => setTimeout(start));
if (DATA.version) watch();
