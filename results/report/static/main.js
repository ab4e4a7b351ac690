"use strict";
// Reads the report out of the page, shows it, and takes what is new of a running job.

(() => {
  const root = document.documentElement;

  dnas.told = () => {
    const { fronts, complete, status, points } = dnas.run, cost = dnas.at("cost").value || dnas.run.x;
    const words = fronts[cost] ? fronts[cost].take : points.length ? [`this run does not tell ${cost}: choose another cost`] : [];
    const [first = "nothing is measured yet: there is no front to choose from", ...others] = words;
    dnas.fill("take", dnas.make("strong", {}, complete || !words.length ? dnas.capital(first) : `So far (the job is ${status.state}): ${first}`), others.map(dnas.capital).join(". "));
  };

  dnas.standing = () => {
    const { status, name } = dnas.run, place = status.state === "finished" ? "" : status.place;
    dnas.at("state").textContent = [`${name}: ${status.state}`, place, status.message, status.updated ? `last sign ${new Date(1000 * status.updated).toISOString().slice(0, 19).replace("T", " ")} UTC` : ""].filter((each) => each).join("; ");
    dnas.list("problems", dnas.run.problems);
  };

  const contents = () => dnas.fill("contents", ...[...document.querySelectorAll("main > section:not([hidden])")].map((section) => dnas.make("li", {}, dnas.make("a", { href: `#${section.id}` }, section.querySelector("h2").textContent))));

  const best = (run) => {
    const front = run.fronts[run.x] || { front: [], taken: null };
    return front.taken || front.front[front.front.length - 1] || Object.keys(run.assignments.entries)[0];
  };

  dnas.show = (number, id) => {
    dnas.run = dnas.report.runs[number];
    dnas.at("run").value = number;
    dnas.chosen = dnas.run.assignments.entries[id] ? id : best(dnas.run);
    dnas.views.forEach((view) => view.draw(dnas.run));
    dnas.told();
    dnas.standing();
    contents();
    if (dnas.chosen) dnas.choose(dnas.chosen);
    dnas.reachable();
    root.dataset.shown = dnas.run.name;
  };

  // Take a report, the first one or a newer one of the same runs; what is chosen stays chosen.
  dnas.take = (report) => {
    const before = dnas.run && dnas.run.name, chosen = dnas.chosen;
    dnas.report = report;
    const names = report.runs.map((run) => run.name);
    document.querySelectorAll(".only-several").forEach((each) => { each.hidden = names.length < 2; });
    dnas.offer(dnas.at("run"), names.map((name, number) => [number, name]));
    if (before !== null) { dnas.show(Math.max(0, names.indexOf(before)), chosen); return; }
    const [run, id] = location.hash.slice(1).split("/").map((part) => { try { return decodeURIComponent(part); } catch { return ""; } });
    dnas.show(Math.max(0, names.indexOf(run)), id);
  };

  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const told = () => dnas.at("theme").setAttribute("aria-pressed", String(dark()));
  const again = () => { told(); if (dnas.run) dnas.show(dnas.report.runs.indexOf(dnas.run), dnas.chosen); };
  dnas.at("theme").addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; again(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  // Paper has colours and a width of its own (page.css); what is drawn by script does not follow by itself.
  const print = (begins) => {
    if (root.classList.contains("paper") === begins) return;
    root.classList.toggle("paper", begins);
    again();
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("print").addEventListener("change", ({ matches }) => print(matches));
  dnas.at("run").addEventListener("change", (event) => dnas.show(Number(event.target.value)));
  told();

  const unpacked = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };

  const start = async () => {
    const [plotly, report] = await Promise.all(["plotly", "report"].map((id) => unpacked(dnas.at(id).textContent)));
    document.body.append(dnas.make("script", {}, plotly));  // the policy knows its digest
    dnas.take(JSON.parse(report));
  };
  if (dnas.at("report")) start();
})();
