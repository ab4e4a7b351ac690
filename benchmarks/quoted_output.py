"""What the README and the pages under docs/ quote of a run of the default job: written and checked from a recorded run.

``python -m benchmarks.quoted_output`` writes the quoted output again from the recorded run;
``python -m benchmarks.quoted_output runs/digits`` records that run (made by ``dnas search``) before.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.commands.concluding import conclusion
from dnas.commands.terminal import PIPED_WIDTH
from results.events import Note
from results.pareto import COSTS
from results.run.folder import Run

ROOT = Path(__file__).parent.parent
RECORDED = ROOT / "tests" / "recorded" / "digits"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEPT_EVENTS = ("started", "note", "decoded", "pool", "judged", "float", "finished")
SHORTENED = ("doctor",)
FIRST_VERDICTS, LAST_VERDICTS = 1, 5
EXAMPLE, EXAMPLE_BLOCK = "search-1", r'```json\n\{\n  "schema": "dnas.assignment/1".*?```\n'
ANY_LINES, ANY_TEXT = "...", "…"

Lines = list[str]


def record(run: Path) -> None:
    """Keep what can be read of a run without its trained nets."""
    shutil.rmtree(RECORDED, ignore_errors=True)
    (RECORDED / "assignments").mkdir(parents=True)
    for name in ("job.toml", "environment.json", "front.json", "front.csv"):
        shutil.copyfile(run / name, RECORDED / name)
    for path in (run / "assignments").glob("*.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        (RECORDED / "assignments" / path.name).write_text(json.dumps(data) + "\n", encoding="utf-8")
    lines = (run / "journal.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["event"] in KEPT_EVENTS]
    (RECORDED / "journal.jsonl").write_text("".join(kept), encoding="utf-8")
    shutil.copyfile(run / "front.png", ROOT / "docs" / "front.png")


def output_of(words: Sequence[str]) -> Lines | None:
    """What a command on ``runs/digits`` prints, as pages show it; None where the recorded run cannot tell."""
    command, *arguments = words
    if words == ["show", "digits", "--pool"]:
        return [*_blocks(_printed(words))[0], ANY_LINES]
    if command in ("show", "switch", "doctor"):
        return _printed(words)
    if words == ["show", "digits"]:
        return _front_output()
    if words == ["search"]:
        return _search_output()
    if command == "evaluate" and arguments[0] == "digits":
        return _evaluate_output(arguments[1])
    if command == "export" and "packed" in arguments:
        return _packed_output(arguments)
    return None


def _printed(words: Sequence[str]) -> Lines:
    with TemporaryDirectory() as folder, chdir(folder):
        shutil.copytree(RECORDED, Path("runs", "digits"))
        result = CliRunner().invoke(app, list(words))
    if result.exit_code not in (0, 2):
        raise RuntimeError(f"dnas {shlex.join(words)}: {result.output}")
    return [line.rstrip() for line in result.stdout.rstrip("\n").splitlines()]


def _search_output() -> Lines:
    """The note before the first epoch, and how the command ends."""
    out = io.StringIO()
    console = Console(file=out, width=PIPED_WIDTH, color_system=None)
    for part in conclusion(Run.open(RECORDED).load_front(), "runs/digits"):
        console.print(part, soft_wrap=isinstance(part, str), markup=False)
    return [ANY_LINES, f"note: {_note()}", ANY_LINES, *(line.rstrip() for line in out.getvalue().splitlines())]


def _front_output() -> Lines:
    """The table of the front, the first and the last verdicts, what to take."""
    table, verdicts, advice, *_ = _blocks(_printed(["show", "digits"]))
    shown = [*verdicts[:FIRST_VERDICTS], ANY_LINES, *verdicts[-LAST_VERDICTS:]]
    return [*table, "", *shown, "", *advice, ANY_LINES]


def _blocks(lines: Lines) -> list[Lines]:
    """The lines, parted at empty ones."""
    return [block.splitlines() for block in "\n".join(lines).split("\n\n")]


def _note() -> str:
    notes = [event.text for event in Run.open(RECORDED).journal.events() if isinstance(event, Note)]
    return next(note for note in notes if "validation" in note)


def _evaluate_output(name: str) -> Lines:
    point = next(point for point in Run.open(RECORDED).load_front().points if point.assignment == name)
    found = re.search(r"(\d+) validation", _note())
    top1, images = point.val, found[1] if found else "?"
    mean, std = 100 * top1.mean, 100 * top1.std
    return [f"{name} on val: {mean:.2f} ± {std:.2f} % top-1 ({top1.n} seeds, {images} images)"]


def _packed_output(arguments: Sequence[str]) -> Lines:
    """The header's length is a matter of the version, and of a switchable net so is more."""
    run, name = Run.open(RECORDED), arguments[1]
    out = arguments[arguments.index("--out") + 1]
    if name in run.assignments():
        size = int(run.assignment(name).cost["size_bytes"])
        return [f"written: {out} ({size:,} bytes of tensors, size_bytes; {ANY_TEXT} of header)"]
    profiles = sum(item.provenance.net is not None for item in run.assignments().values())
    told = f"{ANY_TEXT} bytes of tensors for {profiles} profiles, {ANY_TEXT}x the largest alone; {ANY_TEXT} of header"
    return [f"written: {out} ({told})"]


def quotations(text: str) -> list[tuple[Lines, Lines]]:
    """Every command in the console blocks of a page, as words, and the lines that are quoted of its output."""
    found: list[tuple[Lines, Lines]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ dnas "):
                found.append((shlex.split(line.removeprefix("$ dnas ")), []))
            elif found:
                found[-1][1].append(line)
    return found


def agrees(quoted: Sequence[str], real: Sequence[str]) -> bool:
    """Whether the quoted lines are the real ones; ``...`` stands for any lines, ``…`` for any text in one."""
    pattern = "".join(
        r"(?:[^\n]*\n)*?" if line == ANY_LINES else re.escape(line).replace(re.escape(ANY_TEXT), "[^\n]*") + "\n"
        for line in quoted
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in real)) is not None


def example_assignment() -> str:
    """The file of an assignment, shortened to its first layer, its first costs and rounded accuracies."""
    data = Run.open(RECORDED).assignment(EXAMPLE).to_json()
    data["layers"] = dict([next(iter(data["layers"].items()))])
    data["cost"] = {name: data["cost"][name] for name in COSTS}
    top1 = data["metrics"]["val_top1"]
    data["metrics"] = {"val_top1": {**top1, "mean": round(top1["mean"], 4), "std": round(top1["std"], 4)}}
    data.pop("layer_costs", None)
    rows = []
    for key, value in data.items():
        if key == "layers":
            inner = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            rows.append(f'  "layers": {{\n{inner}\n  }}')
        else:
            rows.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(rows) + "\n}\n"


def rewritten(text: str, output: Callable[[Lines], Lines | None] = output_of) -> str:
    """The page with all quoted output of the recorded run written anew; what agrees stays as it is.

    What a person has to shorten by hand is only checked.
    """
    text = re.sub(EXAMPLE_BLOCK, lambda found: f"```json\n{example_assignment()}```\n", text, flags=re.DOTALL)
    for words, quoted in quotations(text):
        real = output(words) if quoted else None
        if real is not None and words[0] not in SHORTENED and not agrees(quoted, real):
            command = next(line for line in text.splitlines() if line.startswith("$ dnas ") and _words(line) == words)
            before = "\n".join([command, *quoted]) + "\n"
            text = text.replace(before, "\n".join([command, *real]) + "\n")
    return text


def _words(line: str) -> Lines:
    return shlex.split(line.removeprefix("$ dnas "))


def main(arguments: Sequence[str]) -> None:
    """Record a run, if one is named, and write every page again."""
    if arguments:
        record(Path(arguments[0]))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(rewritten(text), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
