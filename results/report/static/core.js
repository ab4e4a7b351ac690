"use strict";
// What all views share: the report, what is chosen of it, and how elements and plots are made.
// Text that comes from files becomes text nodes only; nothing of it is ever parsed as HTML.

const dnas = { views: [], report: null, run: null, chosen: null };

dnas.at = (id) => document.getElementById(id);

// When somebody looks at the page: at once, or as soon as it is no longer hidden.
dnas.seen = () => new Promise((resolve) => {
  if (!document.hidden) resolve();
  else document.addEventListener("visibilitychange", () => resolve(dnas.seen()), { once: true });
});

dnas.make = (tag, attributes, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.map((child) => (child instanceof Node ? child : String(child ?? ""))));
  return element;
};

// Put children in the place of those there are; one of them takes over the focus of the one in whose place it is.
dnas.replace = (element, ...children) => {
  const reachable = () => [...element.querySelectorAll("a, button, [tabindex]")];
  const focused = reachable().indexOf(document.activeElement);
  element.replaceChildren(...children);
  if (focused >= 0) reachable()[focused]?.focus({ preventScroll: true });
};

dnas.fill = (id, ...children) => dnas.replace(dnas.at(id), ...children);

// Text that is there already stays as it is, with what is selected in it.
dnas.tell = (id, text) => { if (dnas.at(id).textContent !== text) dnas.at(id).textContent = text; };

dnas.capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

dnas.list = (id, sentences) => {
  dnas.fill(id, ...sentences.map((sentence) => dnas.make("li", {}, sentence)));
  dnas.at(id).hidden = !sentences.length;
};

// Options of a select, made anew where they are others; what was chosen stays chosen where it is still there.
dnas.offer = (select, pairs, value) => {
  const before = value ?? select.value, there = [...select.options];
  const same = there.length === pairs.length && pairs.every(([key, text], at) => there[at].value === String(key) && there[at].text === String(text));
  if (!same) select.replaceChildren(...pairs.map(([key, text]) => dnas.make("option", { value: key }, text)));
  if (pairs.some(([key]) => String(key) === String(before))) select.value = before;
};

// A table of rows of texts or elements; numbers are those columns that stand to the right.
dnas.table = (table, headings, rows, { numbers = [], caption = "" } = {}) => {
  const side = (column) => (numbers.includes(column) ? { class: "number" } : {});
  const head = headings.map((text, column) => (text ? dnas.make("th", { scope: "col", ...side(column) }, text) : dnas.make("td")));
  const body = rows.map((cells) =>
    dnas.make("tr", {}, ...cells.map((cell, column) =>
      cell instanceof HTMLTableCellElement ? cell : dnas.make(column ? "td" : "th", column ? side(column) : { scope: "row", ...side(column) }, cell))));
  dnas.replace(table,
    ...(caption ? [dnas.make("caption", {}, caption)] : []),
    dnas.make("thead", {}, dnas.make("tr", {}, ...head)),
    dnas.make("tbody", {}, ...body));
  return body;
};

// Tables that are wider than the window can be reached, and then moved, by keys.
dnas.reachable = () => document.querySelectorAll(".scroll:not(.graph)").forEach((box) => {
  const wide = box.scrollWidth > box.clientWidth, about = { tabindex: "0", role: "group", "aria-label": "a wide table" };
  for (const [name, value] of Object.entries(about)) if (wide) box.setAttribute(name, value); else box.removeAttribute(name);
});
addEventListener("resize", dnas.reachable);

// A name that chooses what it names when it is clicked.
dnas.name = (id, text) => {
  if (!dnas.run.assignments.entries[id]) return dnas.make("span", {}, text ?? id);
  const button = dnas.make("button", { type: "button", class: "name" }, text ?? id);
  button.addEventListener("click", () => dnas.choose(id));
  return button;
};

// Rows of assignments: those of the chosen one are marked.
dnas.marked = (rows, ids, id) => rows.forEach((row, number) => row.setAttribute("aria-current", String(ids[number].includes(id))));

dnas.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Plotly reads a few tags in labels; a name from a file is to be read as it is.
dnas.plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

dnas.figure = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(4))));

dnas.bytes = (value) => {
  const steps = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]];
  const [symbol, size] = steps.find(([, each]) => Math.abs(value) >= 10 * each) || steps[3];
  return `${dnas.figure(value / size)} ${symbol}`;
};

dnas.bitText = (bits) => (bits === null ? "" : bits === 0 ? "skipped" : bits === 32 ? "fp32" : `${bits} bit${bits === 1 ? "" : "s"}`);

const VIRIDIS = { 1: "#440154", 2: "#482878", 3: "#3e4989", 4: "#31688e", 5: "#26828e", 6: "#1f9e89", 7: "#35b779", 8: "#6ece58", 16: "#b5de2b", 32: "#fde725" };
dnas.bitColour = (bits) => VIRIDIS[bits] || "#d9d9d9";

// The part of a track that is filled, in [0, 1]; what it means stands beside it as text.
dnas.track = (share, colour) => {
  const filled = dnas.make("span");
  filled.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  if (colour) filled.style.background = colour;
  return dnas.make("span", { class: "track", "aria-hidden": "true" }, filled);
};

dnas.axis = (title, more) => ({
  title: { text: title }, gridcolor: dnas.colour("line"), linecolor: dnas.colour("line"), zeroline: false, automargin: true, ...more,
});

dnas.plot = (id, traces, { x, y, ...layout }) => {
  const ink = dnas.colour("ink"), narrow = innerWidth < 600 && dnas.at(id).classList.contains("tall");
  const legend = narrow ? { yanchor: "top", y: -0.2, entrywidth: 0.48, entrywidthmode: "fraction" } : { yanchor: "bottom", y: 1.02 };
  const width = document.documentElement.classList.contains("paper") ? dnas.at(id).clientWidth : undefined;
  return Plotly.react(dnas.at(id), traces, {
    width, autosize: true,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "system-ui, sans-serif", size: 12 },
    margin: { l: 10, r: 10, t: 10, b: 10 },
    xaxis: x, yaxis: y, legend: { orientation: "h", x: 0, ...legend }, hoverlabel: { namelength: -1 }, uirevision: id, ...layout,
  }, { displayModeBar: false, responsive: true, doubleClick: "reset+autosize" });
};

// Choose an assignment in every view. How long that took can be read off the page.
dnas.choose = (id) => {
  if (!dnas.run.assignments.entries[id]) return;
  const begin = performance.now();
  dnas.chosen = id;
  dnas.views.forEach((view) => view.mark && view.mark(dnas.run, id));
  const page = document.documentElement.dataset;
  [page.chosen, page.chosenMs] = [id, (performance.now() - begin).toFixed(1)];
  history.replaceState(null, "", `#${encodeURIComponent(dnas.run.name)}/${encodeURIComponent(id)}`);
};
