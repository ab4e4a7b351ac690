"use strict";
// The list of runs, looked at again every few seconds.

(() => {
  const SECONDS = 5;
  const ago = (time) => {
    const seconds = Math.max(0, Math.round(Date.now() / 1000 - time));
    const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([each]) => seconds >= each) || [1, "s"];
    return `${Math.floor(seconds / size)} ${unit} ago`;
  };
  const place = (run) => [run.stage, run.label, run.epoch !== null ? `epoch ${run.epoch} of ${run.epochs ?? "?"}` : "", run.trial !== null ? `trial ${run.trial}` : ""].filter((each) => each).join(" ");
  const look = async () => {
    try {
      const { runs } = await (await fetch("/runs.json")).json();
      dnas.table(dnas.at("runs"), ["run", "state", "at", "last sign", "message"], runs.map((run) => [
        dnas.make("a", { href: `/run/${encodeURIComponent(run.name)}` }, run.name), run.state, place(run), run.updated === null ? "" : ago(run.updated), dnas.make("td", { class: "words" }, run.message),
      ]));
      dnas.at("state").textContent = runs.length ? "" : "there is no run yet";
    } catch {
      dnas.at("state").textContent = "the server does not answer; this is what it last said";
    }
    setTimeout(look, 1000 * SECONDS);
  };
  look();
})();
