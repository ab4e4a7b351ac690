"use strict";
// The list of runs, looked at again every few seconds.

(() => {
  const SECONDS = 5;
  const ago = (time) => {
    const seconds = Math.max(0, Math.round(Date.now() / 1000 - time));
    const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([each]) => seconds >= each) || [1, "s"];
    return `${Math.floor(seconds / size)} ${unit} ago`;
  };
  const share = ({ progress }) => (progress ? dnas.make("td", {}, dnas.make("progress", { max: 1, value: progress.fraction, "aria-hidden": "true" }), ` ${progress.text}`) : "");
  const look = async () => {
    await dnas.seen();
    try {
      const { runs } = await (await fetch("/runs.json")).json();
      dnas.table(dnas.at("runs"), ["run", "state", "at", "done", "to take, or the best so far", "last sign", "message"], runs.map((run) => [
        dnas.make("a", { href: `/run/${encodeURIComponent(run.name)}` }, run.name), run.state, run.place, share(run), run.best, run.updated === null ? "" : ago(run.updated), dnas.make("td", { class: "words" }, run.message),
      ]));
      dnas.tell("state", runs.length ? "" : "there is no run yet; start one with: dnas search");
      dnas.tell("trouble", "");
      dnas.reachable();
    } catch {
      dnas.tell("trouble", "the server does not answer; this is what it last said");
    }
    setTimeout(look, 1000 * SECONDS);
  };
  look();
})();
