"use strict";
// The course of each search: figures by epoch, θ at the epoch that the slider says.

(() => {
  let cells = [];
  const searchOf = (run) => run.searches.find((each) => each.label === dnas.at("which").value) || run.searches[0];

  const line = (name, x, y, more) => ({ type: "scatter", mode: "lines+markers", name, x, y, marker: { size: 5 }, ...more });
  const epochs = (title, more) => ({ x: dnas.axis("epoch", { rangemode: "tozero" }), y: dnas.axis(title, more), hovermode: "x unified" });

  const curves = (search) => {
    const x = search.epochs, accent = dnas.colour("accent"), mark = dnas.colour("mark");
    dnas.plot("score-plot", [
      line("mixture", x, search.soft, { line: { color: accent }, marker: { size: 5, symbol: "circle" } }),
      line("likeliest net", x, search.argmax, { line: { color: mark, dash: "dash" }, marker: { size: 6, symbol: "diamond" } }),
    ], epochs(dnas.plain(search.metric.axis)));
    const dashes = ["solid", "dash", "dot", "dashdot"];
    const traces = search.costs.flatMap((cost, number) => [
      line(`expected ${dnas.plain(cost.label)}`, x, cost.values, { line: { color: accent, dash: dashes[number % 4] } }),
      ...(cost.budget === null ? [] : [{ type: "scatter", mode: "lines", name: `budget`, x: [x[0], x[x.length - 1]], y: [cost.budget, cost.budget], line: { color: mark, width: 1.5, dash: "dash" }, showlegend: number === 0 }]),
    ]);
    dnas.at("cost-plot").hidden = !traces.length;
    if (traces.length) dnas.plot("cost-plot", traces, epochs(dnas.plain(search.costs[0].label)));
    dnas.plot("entropy-plot", [
      line("entropy of θ", x, search.entropy, { line: { color: accent } }),
      line("temperature", x, search.temperature, { line: { color: mark, dash: "dash" }, marker: { size: 6, symbol: "diamond" } }),
    ], epochs("entropy, temperature", { rangemode: "tozero" }));
  };

  const heat = (part) => {
    const table = dnas.make("table"), headings = ["decision", ...part.widths.map((width) => dnas.bitText(width)), "entropy"];
    const own = part.names.map(() => [...part.widths, null].map((width) => dnas.make("td", { class: width === null ? "number" : "cell" })));
    dnas.table(table, headings, part.names.map((name, row) => [name, ...own[row]]), {
      caption: `${dnas.capital(part.what)}: ${part.exact ? "probability of each width, in %" : "the likeliest width; this run does not tell the probabilities"}`,
    });
    return [table, own];
  };

  const paint = (search) => {
    const epoch = Number(dnas.at("epoch").value), [red, green, blue] = [0, 114, 178];
    dnas.at("epoch-told").textContent = search.epochs.length ? `${search.epochs[epoch]} of ${search.epochs[search.epochs.length - 1]}` : "";
    search.theta.forEach((part, which) => {
      const values = part.values[epoch] || [], entropies = part.entropies[epoch] || [];
      cells[which].forEach((row, decision) => row.forEach((cell, column) => {
        if (column === part.widths.length) {
          cell.textContent = entropies[decision] === null || entropies[decision] === undefined ? "" : entropies[decision].toFixed(2);
          return;
        }
        const share = ((values[decision] || [])[column] || 0) / 1000;
        cell.textContent = share >= 0.005 ? Math.round(100 * share) : "";
        cell.style.backgroundColor = `rgba(${red}, ${green}, ${blue}, ${(0.65 * share).toFixed(3)})`;
      }));
    });
  };

  const show = (run) => {
    const search = searchOf(run);
    if (!search) return;
    dnas.tell("search-told", dnas.capital(search.told));
    dnas.list("search-notes", search.notes);
    curves(search);
    const parts = search.theta.filter((part) => part.widths.length).map(heat);
    cells = search.theta.map((part) => (part.widths.length ? parts.shift() : [null, []]));
    dnas.fill("theta", ...cells.filter(([table]) => table).map(([table]) => dnas.make("div", { class: "scroll" }, table)));
    cells = cells.map(([, own]) => own);
    const slider = dnas.at("epoch"), last = Math.max(0, search.epochs.length - 1), atEnd = slider.value === slider.max || Number(slider.value) > last;
    slider.max = last;
    if (atEnd || slider.dataset.search !== search.label) slider.value = last;
    slider.dataset.search = search.label;
    paint(search);
  };

  dnas.views.push({
    draw: (run) => {
      dnas.at("search").hidden = !run.searches.length;
      dnas.offer(dnas.at("which"), run.searches.map((each) => [each.label, each.label]));
      show(run);
    },
    // The search that an assignment came from, or that what it was made from came from.
    mark: (run, id) => {
      const entry = run.assignments.entries[id], origins = [id, entry.parent, entry.run];
      const found = run.searches.find((each) => origins.includes(each.label));
      if (!found || dnas.at("which").value === found.label) return;
      dnas.at("which").value = found.label;
      show(run);
    },
  });

  dnas.at("which").addEventListener("change", () => show(dnas.run));
  dnas.at("epoch").addEventListener("input", () => paint(searchOf(dnas.run)));
})();
