"use strict";
// What is read as a table: profiles, pools, sensitivities, trials, verdicts, times, settings.

(() => {
  let marks = [];
  const remember = (rows, ids) => marks.push([rows, ids]);
  const boxed = (table) => dnas.make("div", { class: "scroll" }, table);

  const profiles = (run) => {
    const all = run.switchable.flatMap((net) => net.profiles.map((profile) => ({ net: net.net, ...profile })));
    dnas.at("switchable").hidden = !all.length;
    if (!all.length) return;
    const unit = dnas.plain(run.metric.axis), known = all.filter((each) => each.alone_val !== null);
    const links = { x: known.flatMap((each) => [each.size, each.size, null]), y: known.flatMap((each) => [each.val, each.alone_val, null]) };
    const dots = (name, key, symbol, colour) => ({
      type: "scatter", mode: "markers", name, x: all.map((each) => each.size), y: all.map((each) => each[key]), text: all.map((each) => dnas.plain(each.profile)),
      marker: { symbol, size: 10, color: colour }, customdata: all.map((each) => (key === "val" ? each.id : each.alone)), hovertemplate: "%{text}: %{y:.4g}<extra></extra>",
    });
    dnas.plot("profiles-plot", [
      { type: "scatter", mode: "lines", ...links, line: { color: dnas.colour("quiet"), width: 1 }, hoverinfo: "skip", showlegend: false },
      dots("in the switchable net", "val", "hexagon-open", dnas.colour("mark")), dots("trained alone", "alone_val", "circle", dnas.colour("accent")),
    ], { x: dnas.axis("size (B)"), y: dnas.axis(`validation ${unit}`), hovermode: "closest" });
    const plot = dnas.at("profiles-plot");
    if (!plot.dataset.listens) {
      plot.dataset.listens = "yes";
      plot.on("plotly_click", ({ points }) => points[0].customdata && dnas.choose(points[0].customdata));
    }
    const headings = ["net", "profile", "size", "bit operations", "validation", "alone", "difference", "test", "alone"];
    remember(dnas.table(dnas.at("profile-rows"), headings, all.map((each) => [
      each.net, dnas.name(each.id, each.profile), each.size_text, each.bitops_text, each.texts.val, each.texts.alone_val, each.gap ?? "", each.texts.test, each.texts.alone_test,
    ]), { numbers: [2, 3, 4, 5, 6, 7, 8] }), all.map((each) => [each.id, each.alone]));
  };

  const pools = (run) => {
    dnas.fill("pools", ...run.pools.flatMap((pool) => {
      const rounds = Math.max(0, ...pool.candidates.map((each) => each.texts.length)), table = dnas.make("table");
      const headings = ["proposal", "from", "cost", ...Array.from({ length: rounds }, (_, number) => `round ${number + 1}: loss ± error (metric)`), ""];
      remember(dnas.table(table, headings, pool.candidates.map((each) => [
        dnas.name(each.id), dnas.make("td", { class: "words" }, each.from.join(", ") + (each.free ? " (free)" : " (of the search)")), each.cost,
        ...Array.from({ length: rounds }, (_, number) => each.texts[number] || ""), each.chosen ? "chosen" : "",
      ])), pool.candidates.map((each) => (each.chosen ? [each.id, pool.search] : [each.id])));
      return [dnas.make("h3", {}, pool.search), dnas.make("p", {}, pool.above), boxed(table), dnas.make("p", {}, pool.below)];
    }));
  };

  const sensitivities = (run) => {
    dnas.at("sensitivity").hidden = !run.sensitivities.length;
    const DECADES = 6, SENSITIVITIES = { hessian: "Expected, by the Hessian", measured: "Measured" };
    dnas.fill("sensitivities", ...run.sensitivities.flatMap((found) => {
      const values = found.parts.flatMap((part) => part.rows.flat()).filter((value) => value > 0), top = Math.log10(Math.max(...values, 1e-30));
      const cell = (value) => {
        const share = value > 0 ? Math.max(0, 1 - (top - Math.log10(value)) / DECADES) : 0, small = value !== 0 && Math.abs(value) < 1e-3;
        const made = dnas.make("td", { class: "cell" }, small ? value.toExponential(1) : Number(value.toPrecision(2)));
        made.style.backgroundColor = `rgba(213, 94, 0, ${(0.6 * share).toFixed(3)})`;
        return made;
      };
      const tables = found.parts.map((part) => {
        const table = dnas.make("table");
        dnas.table(table, ["layer", ...part.widths.map(dnas.bitText)], found.layers.map((layer, row) => [layer, ...part.rows[row].map(cell)]), { caption: `${dnas.capital(part.what)}: increase of the loss (nats), darker where it is larger` });
        return boxed(table);
      });
      return [dnas.make("h3", {}, SENSITIVITIES[found.kind] || found.kind), dnas.make("p", { class: "quiet" }, dnas.capital(found.told)), dnas.make("div", { class: "plots" }, ...tables)];
    }));
  };

  const trials = (run) => {
    dnas.at("trials").hidden = !run.trials.length && !run.ratios.length;
    const NAMES = { bayesian: "Bayesian optimization", random: "random trials" };
    const looks = { bayesian: ["accent", "solid", "circle"], random: ["quiet", "dash", "triangle-down"] };
    dnas.fill("trial-plots", ...run.trials.map((each, number) => dnas.make("div", {}, dnas.make("h3", {}, `${each.run}: ${each.title}`), dnas.make("div", { class: "plot", id: `trial-${number}` }), dnas.make("p", { class: "quiet" }, dnas.capital(each.told)))));
    run.trials.forEach((each, number) => {
      const count = Math.max(...each.curves.map((curve) => curve.best.length));
      const traces = each.curves.map((curve) => {
        const [colour, dash, symbol] = looks[curve.kind] || ["mark", "dot", "square"];
        return { type: "scatter", mode: "lines+markers", name: NAMES[curve.kind] || dnas.plain(curve.kind), x: curve.best.map((_, at) => at + 1), y: curve.best, line: { color: dnas.colour(colour), dash, shape: "hv" }, marker: { symbol, size: 6 } };
      });
      if (each.uniform !== null) traces.push({ type: "scatter", mode: "lines", name: "one ratio for all", x: [1, count], y: [each.uniform, each.uniform], line: { color: dnas.colour("mark"), dash: "dot" } });
      dnas.plot(`trial-${number}`, traces, { x: dnas.axis("trial"), y: dnas.axis(dnas.plain(each.value_label)) });
    });
    const groups = [...new Set(run.ratios.flatMap((panel) => panel.groups.map((group) => group.group)))], table = dnas.make("table");
    const rows = dnas.table(table, ["configuration", "budget", ...groups], run.ratios.map((panel) => [
      dnas.name(panel.assignment), panel.budget || "",
      ...groups.map((name) => { const own = panel.groups.find((group) => group.group === name); return own ? dnas.make("td", {}, dnas.track(1 - own.ratio), own.text) : ""; }),
    ]), { caption: "Units (filters that go together) kept of each channel group" });
    remember(rows, run.ratios.map((panel) => [panel.assignment]));
    dnas.fill("ratios", ...(run.ratios.length ? [boxed(table)] : []));
  };

  const times = (run) => {
    dnas.at("time").hidden = !run.times.length;
    dnas.table(dnas.at("times"), ["stage", "time", "share"], run.times.map((each) => [
      each.stage, each.text, dnas.make("td", {}, dnas.track(each.share), `${(100 * each.share).toFixed(0)} %`),
    ]), { numbers: [1] });
  };

  const settings = (run) => {
    const { runs, differences } = dnas.report, table = dnas.make("table");
    dnas.table(table, ["setting", ...runs.map((each) => each.name)], differences.map((row) => [row.key, ...row.values]));
    dnas.fill("differences", ...(runs.length < 2 ? [] : [dnas.make("h3", {}, "Settings that differ"), differences.length ? boxed(table) : dnas.make("p", {}, "None.")]));
    dnas.at("commands").textContent = run.commands.join("\n");
    dnas.at("job").textContent = run.job;
    dnas.table(dnas.at("environment"), ["", ""], Object.entries(run.environment));
  };

  dnas.views.push({
    draw: (run) => {
      marks = [];
      [profiles, pools, sensitivities, trials, times, settings].forEach((view) => view(run));
      dnas.list("verdicts", run.verdicts);
      dnas.at("verdict").hidden = !run.verdicts.length;
      dnas.at("pool").hidden = !run.pools.length && !run.verdicts.length;
    },
    mark: (run, id) => marks.forEach(([rows, ids]) => dnas.marked(rows, ids, id)),
  });
})();
