"use strict";
// The page of a run on a server: what is new of it is fetched as soon as the server tells of it.

(() => {
  const here = location.pathname.replace(/\/$/, "");
  const SECONDS_BETWEEN = 2;
  let version = null, fetching = false, last = 0;

  const fetchReport = async () => {
    if (fetching) return;
    fetching = true;
    try {
      const answer = await fetch(`${here}/report.json`), report = await answer.json();
      if (report.error) dnas.at("state").textContent = report.error;
      else { version = report.version; dnas.take(report); }
    } catch {
      dnas.at("state").textContent = "the server does not answer; this is what it last said";
    }
    fetching = false;
    last = performance.now();
  };

  const told = (state) => {
    if (state.error) { dnas.at("state").textContent = state.error; return; }
    const { status, log } = state, at = status.epoch !== null ? `epoch ${status.epoch} of ${status.epochs ?? "?"}` : status.trial !== null ? `trial ${status.trial}` : "";
    dnas.at("live").hidden = false;
    dnas.at("stop").hidden = !dnas.at("may-stop") || status.state !== "running";
    dnas.at("progress").textContent = [`${status.state}:`, status.stage, status.label, at].filter((each) => each).join(" ");
    const box = dnas.at("log"), atEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 4;
    box.textContent = log.join("\n");
    if (atEnd) box.scrollTop = box.scrollHeight;
    if (state.version !== version) setTimeout(fetchReport, Math.max(0, 1000 * SECONDS_BETWEEN - (performance.now() - last)));
  };

  dnas.at("stop").addEventListener("submit", async (event) => {
    event.preventDefault();
    const answer = await fetch(`${here}/stop`, { method: "POST", headers: { Authorization: `Bearer ${dnas.at("token").value}` } });
    const { stopped, error } = await answer.json();
    dnas.at("stopped").textContent = stopped ? `asked to stop: ${stopped}` : error;
  });

  const events = new EventSource(`${here}/events`);
  events.addEventListener("message", (event) => told(JSON.parse(event.data)));
  events.addEventListener("error", () => { dnas.at("state").textContent = "the server does not answer; this is what it last said"; });
  document.querySelector("header").prepend(dnas.make("p", { class: "quiet" }, dnas.make("a", { href: "/" }, "all runs")));
})();
