"use strict";
// The page of a run on a server: it looks every second where the run stands, and fetches the report when that has changed.

(() => {
  const here = location.pathname.replace(/\/$/, "");
  const BETWEEN_LOOKS = 1000, BETWEEN_REPORTS = 2000;
  let version = null, last = -Infinity;

  // What the server says of the run; null where it does not answer.
  const ask = async (what) => {
    try {
      const answer = await fetch(`${here}/${what}`);
      return answer.headers.get("content-type").startsWith("application/json") ? await answer.json() : { error: await answer.text() };
    } catch {
      return null;
    }
  };

  // Whether there is nothing to show, which is then told.
  const refused = (found) => {
    const why = found === null ? "the server does not answer; this is what it last said" : found.error || "";
    dnas.tell("trouble", why);
    if (why && !dnas.run) dnas.tell("take", "there is nothing to show of this run");
    return Boolean(why);
  };

  const show = ({ state, place, progress, message, log }) => {
    dnas.at("live").hidden = false;
    dnas.at("stop").hidden = !dnas.at("may-stop") || state !== "running";
    dnas.tell("progress", [[state, place].filter((each) => each).join(": "), message].filter((each) => each).join("; "));
    dnas.at("share").hidden = !progress;
    if (progress) dnas.fill("share", dnas.make("progress", { max: 1, value: progress.fraction, "aria-hidden": "true" }), ` ${progress.text}`);
    const box = dnas.at("log"), atEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 4;
    dnas.tell("log", log.join("\n"));
    if (atEnd) box.scrollTop = box.scrollHeight;
  };

  const look = async () => {
    const state = await ask("state.json");
    if (refused(state)) return;
    show(state);
    if (state.version === version || performance.now() - last < BETWEEN_REPORTS) return;
    const report = await ask("report.json");
    last = performance.now();
    if (refused(report)) return;
    version = report.version;
    dnas.take(report);
  };

  const watch = async () => {
    try {
      await dnas.seen();
      await look();
    } finally {
      setTimeout(watch, BETWEEN_LOOKS);
    }
  };

  dnas.at("stop").addEventListener("submit", async (event) => {
    event.preventDefault();
    dnas.at("stopped").textContent = "";
    try {
      const answer = await fetch(`${here}/stop`, { method: "POST", headers: { Authorization: `Bearer ${encodeURIComponent(dnas.at("token").value)}` } });
      const { stopped, error } = await answer.json();
      dnas.at("stopped").textContent = stopped ? `asked to stop: ${stopped}` : error;
    } catch {
      dnas.at("stopped").textContent = "the server does not answer";
    }
  });

  document.querySelector("header").prepend(dnas.make("p", { class: "quiet" }, dnas.make("a", { href: "/" }, "all runs")));
  watch();
})();
