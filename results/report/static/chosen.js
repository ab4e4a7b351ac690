"use strict";
// The chosen assignment: what it costs and reaches, its bits beside the float net's, its files.

(() => {
  const FORMATS = { json: "json", csv: "csv", packed: "safetensors", onnx: "onnx", qonnx: "onnx", torchao: "json", aimet: "json" };
  const FLOAT_BITS = 32;

  const fileOf = (run, id, format) => {
    const parts = run.assignments.entries[id].files[format];
    return parts && parts.map((number) => run.assignments.parts[number]).join("");
  };

  const save = (format) => {
    const text = fileOf(dnas.run, dnas.chosen, format);
    const link = dnas.make("a", { download: `${dnas.chosen}.${format}` });
    link.href = URL.createObjectURL(new Blob([text], { type: format === "json" ? "application/json" : "text/csv" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\"'\"'")}'`);
  const command = (run, id) => {
    const format = dnas.at("format").value;
    return `dnas export ${quoted(run.folder)} ${quoted(id)} --format ${format} --out ${quoted(`${id}.${FORMATS[format]}`)}`;
  };

  const copy = async () => {
    const text = dnas.at("command").textContent;
    try {
      await navigator.clipboard.writeText(text);
      dnas.at("copied").textContent = "copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(dnas.at("command"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      dnas.at("copied").textContent = document.execCommand("copy") ? "copied" : "selected: copy it with the keyboard";
    }
  };

  const about = (run, id) => {
    const entry = run.assignments.entries[id], kind = dnas.report.kinds[entry.kind];
    const words = [kind ? kind.label : entry.kind];
    if (entry.budget) words.push(`made for the budget ${entry.budget}`);
    if (entry.parent) words.push(`from ${entry.parent}`);
    if (entry.net) words.push(`a profile of ${entry.net}`);
    if (!run.points.some((point) => point.id === id)) words.push("not measured by itself");
    return dnas.capital(words.join(", "));
  };

  const figures = (run, id) => {
    const point = run.points.find((each) => each.id === id), entry = run.assignments.entries[id], float = run.float;
    const rows = [];
    if (point || float) {
      rows.push(["validation", point ? `${point.val.text} (${point.val.seeds})` : "", float ? float.val_text : "", ""]);
      rows.push(["test", point && point.test ? `${point.test.text} (${point.test.seeds})` : "", float ? float.test_text : "", ""]);
    }
    const names = run.costs.length ? run.costs.map((cost) => cost.name) : Object.keys(entry.costs);
    names.forEach((name, column) => {
      const times = point && float && float.costs[column] && point.costs[column] ? float.costs[column] / point.costs[column] : 1;
      const ratio = times > 1.05 ? `${times.toFixed(1)}× less` : "";
      rows.push([name, entry.costs[name] || (point ? point.cost_texts[column] : ""), float ? float.cost_texts[column] : "", ratio]);
    });
    dnas.table(dnas.at("figures"), ["", "this configuration", "float network", ""], rows, { numbers: [1, 2, 3] });
  };

  const bar = (share, colour, text) => dnas.make("td", {}, dnas.track(share, colour), text);

  const layers = (run, id) => {
    const entry = run.assignments.entries[id], weights = new Map(run.network.nodes.map((node) => [node.layer, node.weights]));
    const kept = entry.kept.some((each) => each), schemes = [...new Set(entry.schemes.flatMap((each) => Object.keys(each || {})))];
    const largest = Math.max(...(entry.sizes || [0]).map((size) => size || 0), 1);
    const headings = ["layer", "weights", "inputs", ...(kept ? ["filters kept"] : []), ...(entry.sizes ? ["size"] : []), ...schemes];
    const rows = [];
    run.assignments.layers.forEach((name, number) => {
      if (entry.weights[number] === null) return;
      const bits = entry.weights[number], inputs = entry.inputs[number], filters = entry.kept[number], size = entry.sizes && entry.sizes[number];
      const float = weights.get(number) ? ` of ${dnas.bytes(4 * weights.get(number))}` : "";
      rows.push([
        name, bar(bits / FLOAT_BITS, dnas.bitColour(bits), dnas.bitText(bits)), bar(inputs / FLOAT_BITS, dnas.bitColour(inputs), dnas.bitText(inputs)),
        ...(kept ? [filters ? bar(filters[0] / filters[1], null, `${filters[0]} of ${filters[1]}`) : bar(1, null, `all ${entry.filters[number] ?? ""}`)] : []),
        ...(entry.sizes ? [size === null ? "" : bar(size / largest, null, `${dnas.bytes(size)}${float}`)] : []),
        ...schemes.map((heading) => (entry.schemes[number] || {})[heading] || ""),
      ]);
    });
    const caption = "A whole bar of bits is the float network's 32" + (kept ? ", one of filters all of them" : "") + (entry.sizes ? "; one of size is the largest layer here" + (weights.size > 1 ? ", beside the layer's weights in fp32" : "") : "") + ".";
    dnas.table(dnas.at("layers"), headings, rows, { caption });
  };

  const step = (by) => {
    const front = dnas.frontOf(dnas.run), here = front.indexOf(dnas.chosen);
    if (front.length) dnas.choose(front[Math.max(0, Math.min(front.length - 1, here + by))]);
  };

  dnas.views.push({
    draw: (run) => {
      const ids = Object.keys(run.assignments.entries);
      dnas.at("chosen").hidden = !ids.length;
      dnas.offer(dnas.at("choice"), ids.map((id) => [id, id]));
      dnas.offer(dnas.at("format"), Object.keys(FORMATS).map((format) => [format, format]));
    },
    mark: (run, id) => {
      dnas.at("choice").value = id;
      dnas.at("about").textContent = about(run, id);
      figures(run, id);
      layers(run, id);
      for (const format of ["json", "csv"]) {
        const there = Boolean(run.assignments.entries[id].files[format]);
        dnas.at(`save-${format}`).disabled = !there;
        dnas.at(`save-${format}`).title = there ? "" : "too much for this page: use the command";
      }
      dnas.at("command").textContent = command(run, id);
      dnas.at("copied").textContent = "";
    },
  });

  dnas.at("choice").addEventListener("change", (event) => dnas.choose(event.target.value));
  dnas.at("format").addEventListener("change", () => { dnas.at("command").textContent = command(dnas.run, dnas.chosen); });
  dnas.at("previous").addEventListener("click", () => step(-1));
  dnas.at("next").addEventListener("click", () => step(1));
  dnas.at("save-json").addEventListener("click", () => save("json"));
  dnas.at("save-csv").addEventListener("click", () => save("csv"));
  dnas.at("copy").addEventListener("click", copy);
})();
