"use strict";
// The front: cost against the metric, by kind; of several runs, one over the other.

(() => {
  const RUNS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933", "#882255"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon"];
  const GROUPS = { found: "found", controls: "controls", profiles: "profiles of switchable nets" };
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const on = (id) => dnas.at(id).checked;
  const several = () => dnas.report.runs.length > 1;
  const cost = () => dnas.at("cost").value;
  const costOf = (run) => run.costs.findIndex((each) => each.name === cost());
  const drawable = (run) => costOf(run) >= 0 && run.metric.axis === dnas.run.metric.axis;
  const byId = (run) => (run.byId ??= new Map(run.points.map((point) => [point.id, point])));
  const ink = (colour) => (colour === "#000000" ? dnas.colour("ink") : colour);
  // The unit of the first run that knows the cost serves all.
  const unit = () => dnas.report.runs.map((run) => run.costs[costOf(run)]).find((each) => each) || { label: "", divisor: 1 };

  const shown = (point) => {
    const { group } = dnas.report.kinds[point.kind];
    return group === "controls" ? on("controls") : group === "profiles" ? on("profiles") : true;
  };

  // Of one run points differ by kind. Of several the symbol tells the run, and a filled one what it found.
  const looks = (run, number) => {
    const { kinds } = dnas.report;
    if (!several()) return Object.entries(kinds).map(([kind, look]) => ({ ...look, colour: ink(look.colour), of: (point) => point.kind === kind }));
    return Object.entries(GROUPS).map(([group, label]) => ({
      label: `${dnas.plain(run.name)}: ${label}`, colour: RUNS[number % RUNS.length], symbol: SYMBOLS[number % SYMBOLS.length], size: 10,
      ring: group !== "found", of: (point) => kinds[point.kind].group === group,
    }));
  };

  const series = (run, number) => looks(run, number).flatMap((look) => [true, false].flatMap((feasible) => {
    const column = costOf(run), { divisor } = unit(), { colour } = look;
    const points = run.points.filter((each) => look.of(each) && each.feasible === feasible && each.costs[column] !== null && shown(each));
    if (!points.length) return [];
    return [{
      type: "scatter", mode: "markers", name: `${look.label}${feasible ? "" : ", over budget"}`,
      x: points.map((each) => each.costs[column] / divisor), y: points.map((each) => each.val.mean),
      error_y: { type: "data", array: points.map((each) => each.val.std), visible: on("bars"), color: colour, thickness: 1, width: 2 },
      marker: { symbol: look.symbol + (look.ring || !feasible ? "-open" : ""), color: colour, size: look.size, opacity: feasible ? 1 : 0.55, line: { width: look.ring ? 2 : 0.8, color: look.ring ? colour : dnas.colour("ink") } },
      customdata: points.map((each) => [number, each.id]), hoverinfo: "none",
    }];
  }));

  const staircase = (run, number) => {
    const column = costOf(run), front = frontOf(run).map((id) => byId(run).get(id));
    if (!front.length) return [];
    const last = Math.max(...run.points.map((each) => each.costs[column] ?? 0));
    const x = [...front.map((each) => each.costs[column]), last], y = [...front, front[front.length - 1]].map((each) => each.val.mean);
    const colour = several() ? RUNS[number % RUNS.length] : dnas.colour("ink");
    return [{
      type: "scatter", mode: "lines", name: several() ? `${dnas.plain(run.name)}: front` : "front", x: x.map((each) => each / unit().divisor), y,
      line: { shape: "hv", width: 1.3, color: colour, dash: several() ? DASHES[number % DASHES.length] : "solid" }, hoverinfo: "skip",
    }];
  };

  // From an unpruned assignment to those pruned from it.
  const links = (run) => {
    const column = costOf(run), x = [], y = [];
    for (const point of run.points) {
      const parent = point.kind === "pruned" && byId(run).get(point.parent);
      if (!parent || parent.costs[column] === null || point.costs[column] === null) continue;
      for (const end of [parent, point]) { x.push(end.costs[column] / unit().divisor); y.push(end.val.mean); }
      x.push(null); y.push(null);
    }
    if (!x.length) return [];
    return [{ type: "scatter", mode: "lines", name: "pruned from", x, y, line: { dash: "dot", width: 1, color: dnas.colour("quiet") }, hoverinfo: "skip", showlegend: !several() }];
  };

  const frontOf = (run) => (run.fronts[cost()] || { front: [] }).front;

  const shapes = () =>
    dnas.report.runs.filter((run) => drawable(run) && run.float_score !== null).map((run) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: run.float_score, y1: run.float_score, line: { dash: "dash", width: 1.2, color: dnas.colour("quiet") },
      label: { text: several() ? `float, ${dnas.plain(run.name)}` : "float network", textposition: "start", font: { size: 11, color: dnas.colour("quiet") }, yanchor: "bottom" },
    }));

  // The ring around what is chosen, and its name, over the picture: to move them nothing of it is drawn again.
  const aim = () => {
    const { xaxis, yaxis } = dnas.at("front-plot")._fullLayout, ring = dnas.at("ring");
    const point = byId(dnas.run).get(dnas.chosen), value = point && point.costs[costOf(dnas.run)];
    const x = value === undefined || value === null ? NaN : xaxis.d2p(value / unit().divisor), y = point ? yaxis.d2p(point.val.mean) : NaN;
    ring.hidden = !(x >= 0 && x <= xaxis._length && y >= 0 && y <= yaxis._length);
    if (ring.hidden) return;
    ring.style.left = `${xaxis._offset + x}px`;
    ring.style.top = `${yaxis._offset + y}px`;
    ring.classList.toggle("turned", x > 0.6 * xaxis._length);
    dnas.tell("ring-name", point.id);
  };

  // Far outliers squeeze the rest: the axis is cut before them, at its worse end, until they are asked for. Over each
  // cost the points of its front are shown.
  const cut = () => {
    const runs = dnas.report.runs.filter(drawable), floors = runs.map((run) => run.fronts[cost()].floor);
    if (!runs.length || floors.some((floor) => floor === null)) return null;
    const { side } = dnas.run.metric;
    const bests = runs.flatMap((run) => [run.float_score === null ? -Infinity : side * run.float_score, ...run.points.map((each) => side * each.val.mean + each.val.std)]);
    const worst = Math.min(...floors.map((floor) => side * floor)), best = Math.max(...bests);
    return [side * worst, side * (best + 0.06 * (best - worst))].sort((one, other) => one - other);
  };

  const draw = () => {
    const known = dnas.report.runs.filter((run) => run.points.length), drawn = known.filter(drawable);
    dnas.at("front").hidden = !known.length;
    if (!known.length) return;
    const missing = known.filter((run) => !drawable(run)).map((run) => `${run.name} (${costOf(run) < 0 ? `it does not tell ${cost()}` : `measured by ${run.metric.axis}`})`);
    dnas.tell("front-told", missing.length ? `Not drawn: ${missing.join(", ")}.` : "");
    const all = (make) => dnas.report.runs.flatMap((run, number) => (drawn.includes(run) ? make(run, number) : []));
    const range = cut();
    dnas.at("far").parentElement.hidden = !range;
    dnas.tell("far-told", dnas.run.metric.side > 0 ? "points far below" : "points far above");
    const traces = [...all(links), ...all(staircase), ...all(series)];
    dnas.plot("front-plot", traces, {
      x: dnas.axis(dnas.plain(unit().label), { type: on("logarithmic") ? "log" : "linear", minexponent: 6 }),
      y: dnas.axis(dnas.plain(`validation ${dnas.run.metric.axis}`), range && !on("far") ? { range } : {}),
      shapes: shapes(), hovermode: "closest", hoverdistance: 24,
      uirevision: [cost(), on("logarithmic"), on("far")].join(),  // what was enlarged stays so while a job goes on
    });
    listen(dnas.at("front-plot"));
  };

  // All that lie where a point lies; only the uppermost of them is hit.
  const together = (run, id) => {
    const column = costOf(run), point = byId(run).get(id);
    const here = run.points.filter((each) => shown(each) && each.costs[column] === point.costs[column] && each.val.mean === point.val.mean);
    return here.map((each) => each.id);
  };

  const card = (run, id) => {
    const point = byId(run).get(id), table = dnas.make("table");
    const rows = [["kind", dnas.report.kinds[point.kind].label], ["validation", `${point.val.text} (${point.val.seeds})`]];
    if (point.test) rows.push(["test", `${point.test.text} (${point.test.seeds})`]);
    run.costs.forEach((cost, column) => { if (point.cost_texts[column]) rows.push([cost.name, point.cost_texts[column]]); });
    if (point.budget) rows.push(["budget", point.budget + (point.feasible ? "" : ", exceeded")]);
    if (point.kept) rows.push(["filters kept", point.kept]);
    if (point.parent) rows.push(["made from", point.parent]);
    const others = together(run, id).filter((each) => each !== id);
    if (others.length) rows.push(["also here", `${others.join(", ")}: click again`]);
    dnas.table(table, [], rows);
    return [dnas.make("strong", {}, several() ? `${run.name}: ${id}` : id), table];
  };

  const listen = (plot) => {
    if (plot.dataset.listens) return;
    plot.dataset.listens = "yes";
    const box = dnas.at("card");
    plot.on("plotly_hover", ({ points, event }) => {
      if (!points[0].customdata) return;
      const [number, id] = points[0].customdata;
      box.replaceChildren(...card(dnas.report.runs[number], id));
      box.hidden = false;
      box.style.left = `${Math.max(4, Math.min(event.clientX + 16, innerWidth - box.offsetWidth - 8))}px`;
      box.style.top = `${Math.max(4, Math.min(event.clientY + 16, innerHeight - box.offsetHeight - 8))}px`;
    });
    plot.on("plotly_afterplot", aim);
    aim();
    plot.on("plotly_unhover", () => { box.hidden = true; });
    plot.on("plotly_click", ({ points }) => {
      if (!points[0].customdata) return;
      const [number, id] = points[0].customdata;
      const run = dnas.report.runs[number], ids = together(run, id);
      if (run !== dnas.run) dnas.show(number);
      dnas.choose(ids.includes(dnas.chosen) ? ids[(ids.indexOf(dnas.chosen) + 1) % ids.length] : id);
    });
    plot.addEventListener("keydown", (event) => {
      const front = frontOf(dnas.run), here = front.indexOf(dnas.chosen);
      const to = { ArrowLeft: Math.max(0, here - 1), ArrowRight: Math.min(front.length - 1, here + 1), Home: 0, End: front.length - 1 }[event.key];
      if (to === undefined || !front.length) return;
      event.preventDefault();
      dnas.choose(front[to]);
    });
  };

  let rows = [], ids = [];
  const tabulate = (run) => {
    const headings = ["configuration", "kind", ...run.costs.map((cost) => cost.name), "validation", "test", "front"];
    const front = new Set(frontOf(run));
    ids = run.points.map((point) => [point.id]);
    rows = dnas.table(dnas.at("points"), headings, run.points.map((point) => [
      dnas.name(point.id), dnas.report.kinds[point.kind].label, ...point.cost_texts, point.val.text, point.test ? point.test.text : "",
      front.has(point.id) ? "yes" : point.feasible ? "" : "over budget",
    ]), { numbers: headings.map((_, column) => column).slice(2, -1) });
    if (dnas.chosen) dnas.marked(rows, ids, dnas.chosen);
  };

  // Thousands of rows take their time: they are made when somebody opens them.
  const whenOpen = () => { if (dnas.at("front-rows").open) tabulate(dnas.run); else { rows = []; ids = []; } };

  // As the cost asks for, until somebody has said otherwise.
  const scale = () => { if (!dnas.at("logarithmic").dataset.said) dnas.at("logarithmic").checked = Boolean(unit().log); };

  dnas.frontOf = frontOf;
  dnas.views.push({
    draw: (run) => {
      const offered = [...new Map(dnas.report.runs.flatMap((each) => each.costs.map((cost) => [cost.name, cost.label])))];
      const first = !dnas.at("cost").options.length && run.x;
      dnas.offer(dnas.at("cost"), offered, first || undefined);
      if (first) scale();
      dnas.at("profiles").parentElement.hidden = !dnas.report.runs.some((each) => each.points.some((point) => point.kind === "switchable"));
      draw();
      whenOpen();
    },
    mark: (run, id) => {
      if (run.points.length) aim();
      dnas.marked(rows, ids, id);
    },
  });

  for (const id of ["logarithmic", "bars", "controls", "profiles", "far"]) dnas.at(id).addEventListener("change", draw);
  dnas.at("logarithmic").addEventListener("change", (event) => { event.target.dataset.said = "yes"; });
  dnas.at("cost").addEventListener("change", () => { scale(); dnas.told(); draw(); whenOpen(); dnas.choose(dnas.chosen); });
  dnas.at("front-rows").addEventListener("toggle", () => { whenOpen(); dnas.reachable(); });
})();
