"use strict";
// The network: a node for every layer, from the input down; an arc where a value passes others by.

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const ROW = 30, TALL_ROW = 46, LARGEST = 12, SMALLEST = 3;
  let circles = [], labels = [], groups = [];

  const shape = (tag, attributes, ...children) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // On a narrow page what is told of a layer stands below its name.
  const narrow = () => innerWidth < 600;
  const place = (number) => (narrow() ? TALL_ROW : ROW) * number + 20;

  // Wider the longer the way, so that arcs lie inside one another.
  const reach = (a, b) => Math.min(24 + 9 * Math.sqrt(Math.abs(b - a) * 6), 150);

  const edge = (left, a, b) => {
    const [from, to] = [place(a), place(b)];
    const path = b === a + 1 ? `M${left} ${from}V${to}` : `M${left} ${from}C${left - reach(a, b)} ${from},${left - reach(a, b)} ${to},${left} ${to}`;
    return shape("path", { class: "edge", d: path });
  };

  const tell = (run, number) => {
    const node = run.network.nodes[number];
    groups.forEach((group, other) => group.setAttribute("aria-current", String(other === number)));
    dnas.at("node").textContent = `${node.name}: ${[node.about, labels[number].textContent].filter((text) => text).join("; ")}`;
  };

  const draw = (run) => {
    const { nodes, edges, told, source } = run.network;
    dnas.at("network").hidden = !nodes.length;
    circles = []; labels = []; groups = [];
    const left = Math.max(30, ...edges.filter(([a, b]) => b !== a + 1).map(([a, b]) => reach(a, b) + 8));
    const longest = Math.max(...nodes.map((node) => node.name.length), 1);
    const width = narrow() ? left + 30 + Math.max(7.5 * longest, 6.2 * 52) : left + 40 + 7.5 * longest + 6.6 * 60, height = place(nodes.length);
    const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "the layers of the network" });
    svg.append(...edges.map(([a, b]) => edge(left, a, b)));
    nodes.forEach((node, number) => {
      const circle = shape("circle", { class: node.kind === "join" || node.kind === "input" ? "node join" : "node", cx: left, cy: place(number), r: 5 });
      const name = shape("text", { x: left + 22, y: place(number) + 4 }, node.name), label = shape("text", narrow() ? { x: left + 22, y: place(number) + 20 } : { x: left + 34 + 7.5 * longest, y: place(number) + 4 });
      const group = shape("g", { tabindex: 0, role: "button" }, circle, name, label);
      group.addEventListener("click", () => tell(run, number));
      group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); tell(run, number); } });
      svg.append(group);
      circles.push(circle); labels.push(label); groups.push(group);
    });
    dnas.fill("graph", svg);
    dnas.at("network-about").textContent = [source, told].filter((text) => text).join("; ");
    dnas.at("node").textContent = "";
  };

  const mark = (run, id) => {
    const entry = run.assignments.entries[id], sizes = entry.sizes || [], largest = Math.max(...sizes.map((size) => size || 0), 1);
    const used = new Set();
    run.network.nodes.forEach((node, number) => {
      if (node.layer === null || entry.weights[node.layer] === null) return;
      const bits = entry.weights[node.layer], size = sizes[node.layer], kept = entry.kept[node.layer];
      used.add(bits);
      circles[number].style.fill = dnas.bitColour(bits);
      if (size !== undefined && size !== null) circles[number].setAttribute("r", Math.max(SMALLEST, LARGEST * Math.sqrt(size / largest)).toFixed(1));
      const words = [`weights ${dnas.bitText(bits)}, inputs ${dnas.bitText(entry.inputs[node.layer])}`];
      if (size !== undefined && size !== null) words.push(dnas.bytes(size));
      if (kept) words.push(`${kept[0]} of ${kept[1]} filters`);
      labels[number].textContent = words.join(", ");
      groups[number].setAttribute("aria-label", `${node.name}: ${labels[number].textContent}`);
    });
    const swatches = [...used].sort((a, b) => a - b).map((bits) => {
      const swatch = dnas.make("span", { class: "swatch" });
      swatch.style.background = dnas.bitColour(bits);
      return dnas.make("span", {}, swatch, dnas.bitText(bits));
    });
    dnas.fill("legend", ...swatches, dnas.make("span", {}, sizes.length ? "the area of a layer is its size" : "sizes by layer are not in this run"));
  };

  dnas.views.push({ draw, mark });
})();
