from __future__ import annotations

import os
import string
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnas.config import file as jobfile
from dnas.config.fields import keys_of
from dnas.config.job import JobConfig
from dnas.config.text import toml_value
from dnas.config.toml_lines import key_lines, paths_of
from search_spaces.errors import InputError
from search_spaces.options import SpaceOptions

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "job-file.md"

JOB = """\
name = "mine"

[model]
source = "zoo:resnet20"

[search]   # a comment
epochs = 3
budgets = [
    { size_bytes = "12%" },  # one
    { bitops = 10, size_bytes = "40 KiB" },
]

[space.fix]
"layer1.0.conv1" = [4, 8]
"""


def job_file(folder: Path, text: str, name: str = "job.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def refusal(*arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        jobfile.load_job(*arguments)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_the_default_is_the_digits_preset() -> None:
    assert jobfile.load_job() == jobfile.load_job("digits", [])
    assert jobfile.load_job().model.source == "zoo:tiny_resnet"


def test_a_file_is_read_and_overridden(tmp_path: Path) -> None:
    source = job_file(tmp_path, JOB)
    assert jobfile.load_job(source).search.epochs == 3
    overrides = [
        "search.epochs=20",
        "model.arguments.num_classes=100",
        'space.fix."layer1.0.conv2"=[8, 8]',
        "device=cpu",
        "search.budgets=[{ size_bytes = '20%' }]",
        "finetune.learning_rate=1",
    ]
    job = jobfile.load_job(source, overrides)
    assert job.search.epochs == 20
    assert job.model.arguments == {"num_classes": 100}
    assert job.space.fix == {"layer1.0.conv1": (4, 8), "layer1.0.conv2": (8, 8)}
    assert job.device == "cpu"
    assert job.search.budgets == ({"size_bytes": "20%"},)
    assert job.finetune.learning_rate == 1.0


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    job = jobfile.load_job("digits", ["data.root=~/images", "model.checkpoint=weights/best.pt"])
    assert (job.data.root, job.model.checkpoint) == ("/home/somebody/images", "weights/best.pt")


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("epochs = 3", "epoch = 3", 7, ["[search] has no key 'epoch'", "did you mean 'epochs'?"]),
        ("[model]", "[modell]", 3, ["a job has no key 'modell'", "did you mean 'model'?"]),
        ("epochs = 3", "epochs = 'three'", 7, ['search.epochs = "three"', "expected a whole number"]),
        ("epochs = 3", "epochs = true", 7, ["search.epochs = true", "expected a whole number"]),
        ("epochs = 3", "epochs = -1", 7, ["search.epochs = -1", "expected at least 0"]),
        (
            "epochs = 3",
            "loss = 'hinje'",
            7,
            ["'two_sided', 'hinge', 'log_product' or 'additive'; did you mean 'hinge'?"],
        ),
        ("epochs = 3", "batch_size = 3", 7, ["[search] has no key 'batch_size'; did you mean data.batch_size?"]),
        ('{ size_bytes = "12%" }', '{ size_bytes = "12 parsecs" }', 9, ["search.budgets[0].size_bytes", "'40 KiB'"]),
        ("bitops = 10", "bitops = [10]", 10, ["search.budgets[1].bitops = [10]", "expected a number or"]),
        ("[4, 8]", "[4, 9]", 14, ["9 is not a bit-width"]),
        ("[4, 8]", "[4]", 14, ["expected 2 values in the list"]),
        ("[4, 8]", "[0, 8]", 14, ["0 is possible only", "0 bits for both"]),
        ('name = "mine"', 'name = "../mine"', 1, ["name", "letters, digits"]),
        ('name = "mine"', "seed = nan", 1, ["seed = nan: expected a finite number"]),
        ('name = "mine"', "name = 2024-01-01", 1, ["is a date or a time"]),
        ('name = "mine"', "name = ", 1, ["not valid TOML"]),
        ('name = "mine"', 'schema = "dnas.job/9"', 1, ["'dnas.job/1'"]),
        ('name = "mine"', "search = 3", 6, ["not valid TOML"]),
        ("source = ", "checkpoint = '' #", 4, ["model.checkpoint", "the path of a file or folder"]),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, line: int, parts: list[str]) -> None:
    assert old in JOB
    source = job_file(tmp_path, JOB.replace(old, new))
    message = refusal(source, [])
    assert f"{source}, line {line}:" in message
    assert any(part in message for part in parts) if old == "[4, 8]" else all(part in message for part in parts)


def test_several_mistakes_are_told_together(tmp_path: Path) -> None:
    message = refusal(job_file(tmp_path, JOB.replace("epochs = 3", "epochs = -3\nfoo = 1")), [])
    assert message.count("line 7") == 1
    assert message.count("line 8") == 1


def test_settings_that_contradict_each_other_are_told_where_one_stands(tmp_path: Path) -> None:
    text = JOB.replace("epochs = 3", "temperature_end = 9.0")
    assert "line 7: search.temperature_end must not exceed" in refusal(job_file(tmp_path, text), [])


def test_a_wrong_override_is_told_as_given() -> None:
    assert "--set search.epochs=twenty: search.epochs" in refusal("digits", ["search.epochs=twenty"])
    assert "did you mean 'epochs'?" in refusal("digits", ["search.epoch=3"])
    assert "not of the form KEY=VALUE" in refusal("digits", ["search.epochs"])
    assert "is not a table" in refusal("digits", ["name.x=3"])
    assert "is not a key" in refusal("digits", ["search..epochs=3"])


@pytest.mark.parametrize(
    ("settings", "chooses"),
    [
        ([], True),
        (["choice.enabled=false"], False),
        (["finetune.epochs=0"], False),
        (["finetune.epochs=0", "choice.enabled=true"], True),
        (["search.budgets=[]", "search.loss='log_product'"], False),
        (["pipeline=['prune', 'search']", "prune.enabled=true"], False),
        (["pipeline=['search', 'prune']", "prune.enabled=true"], True),
        (["pipeline=['prune']", "prune.enabled=true"], False),
        (["compression='switchable'"], False),
        (["compression='squantizer'"], False),
    ],
)
def test_a_job_with_budgets_chooses_unless_it_says_otherwise(
    settings: list[str], chooses: bool, tmp_path: Path
) -> None:
    file = tmp_path / "job.toml"
    file.write_text(JOB)
    assert jobfile.load_job(file, settings).chooses is chooses


@pytest.mark.parametrize("name", ["dnas-resnet20-cifar10", "edmips-resnet18-imagenet"])
def test_a_published_recipe_does_not_choose_whatever_budgets_are_added(name: str) -> None:
    assert not jobfile.load_job(name, ["search.budgets=[{size_bytes='10%'}]"]).chooses


def test_a_missing_job_names_the_nearest_preset(tmp_path: Path) -> None:
    assert "did you mean 'digits'?" in refusal("digit", [])
    assert "presets are digits" in refusal(str(tmp_path / "nothing.toml"), [])
    assert "cannot be read" in refusal(str(tmp_path), [])
    assert "cannot be read" in refusal("a\0b", [])
    path = tmp_path / "latin.toml"
    path.write_bytes("name = 'é'".encode("latin-1"))
    assert "is not UTF-8" in refusal(str(path), [])


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    assert "nested too deeply" in refusal(job_file(tmp_path, f"a = {'[' * 5000}{']' * 5000}"), [])


def test_the_commented_job_is_the_digits_job_and_all_its_keys_are_usable(tmp_path: Path) -> None:
    text = jobfile.commented_job()
    assert jobfile.load_job(job_file(tmp_path, text)) == jobfile.load_job("digits")
    uncommented = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in text.splitlines()
    )
    job = jobfile.load_job(job_file(tmp_path, uncommented))
    given_keys = set(paths_of(tomllib.loads(uncommented)))
    for name, field in JobConfig.model_fields.items():
        for key in keys_of(type(getattr(job, name))):
            assert (name, key) in given_keys
        assert (field.alias or name,) in given_keys


def test_the_reference_on_disk_is_the_generated_one() -> None:
    assert DOCUMENTATION.read_text() == jobfile.job_file_reference(), "python -m dnas.config.file > docs/job-file.md"


def test_every_key_has_a_description() -> None:
    for section in (JobConfig, *(field.annotation for field in JobConfig.model_fields.values())):
        for name, field in keys_of(section).items():
            assert keys_of(field.annotation) or field.description, name


@pytest.mark.parametrize(
    "options",
    [
        {"weight_bits": [9]},
        {"weight_bits": [4.0]},
        {"weight_bits": [True]},
        {"weight_bits": [2, 2]},
        {"activation_bits": [0, 4]},
        {"pairs": [4, 8]},
        {"pairs": [[4, 0]]},
        {"pairs": [[4]]},
        {"pairing": "tight"},
        {"granularity": "blocks"},
        {"ties": ["residuals"]},
        {"first_layer": "serach"},
        {"last_layer": 0},
        {"include": [3]},
        {"fix": {"stem": "48"}},
        {"capability": " "},
        {"capability": 3},
    ],
    ids=str,
)
def test_a_call_and_a_job_file_refuse_the_same_space_in_the_same_words(options: dict[str, Any]) -> None:
    ((key, value),) = options.items()
    with pytest.raises(InputError) as called:
        SpaceOptions(**options)
    with pytest.raises(InputError) as written:
        jobfile.load_job(None, f"space.{key}={toml_value(value)}")
    assert f": {called.value}" in str(written.value)


def test_the_space_of_a_job_is_the_record_that_a_caller_gives() -> None:
    given = ["space.weight_bits=[2, 8]", "space.activation_bits=[4]", "space.fix={stem = [4, 8]}"]
    assert jobfile.load_job(None, given).space == SpaceOptions((2, 8), (4,), fix={"stem": (4, 8)})
    with pytest.raises(InputError, match=r"\[space\] has no key 'weight_bit'; did you mean 'weight_bits'"):
        jobfile.load_job(None, "space.weight_bit=[2]")
    with pytest.raises(InputError, match="space = 3: expected a table"):
        jobfile.load_job(None, "space=3")
    with pytest.raises(InputError, match=r"space\.capability is a table; write it into a JSON file"):
        jobfile.load_job(None, "space.capability={Linear = [[8, 8]]}")


# --- laws --------------------------------------------------------------------------------------------------------

KEYS = sorted(
    {name for section in JobConfig.model_fields for name in [section]}
    | {key for field in JobConfig.model_fields.values() for key in keys_of(field.annotation)}
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**30), max_value=10**30),
    st.floats(),
    TEXT,
    st.sampled_from(["12%", "search", "hinge", "digits", "~", "~nobody/x", "40 KiB"]),
    st.dates(),
    st.datetimes(),
)
NAMES = st.sampled_from([*KEYS, "schema", "schema_version", "size_bytes"]) | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=4), max_size=4)


def load_text(text: str, tmp_path_factory: pytest.TempPathFactory) -> JobConfig | None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_bytes(text.encode())
    return load_or_refuse(str(path))


def load_or_refuse(source: str, overrides: Sequence[str] = ()) -> JobConfig | None:
    try:
        return jobfile.load_job(source, overrides)
    except InputError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None


def is_refused_or_round_trips(config: JobConfig | None, tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whatever is not refused (in one sentence) must be a whole job: what it writes, it reads again."""
    return config is None or load_text(jobfile.dump_job(config), tmp_path_factory) == config


@settings(max_examples=30, deadline=None)
@example(text="0")
@example(text="\ufeff")
@example(text="9" * 5000)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40) | st.text(string.printable, max_size=40))
def test_any_text_is_a_job_or_an_input_error(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    for document in (text, f"name = {text}\n[search]\nbudgets = [{text}]\n"):
        assert is_refused_or_round_trips(load_text(document, tmp_path_factory), tmp_path_factory)


@settings(max_examples=30, deadline=None)
@given(document=DOCUMENTS)
def test_any_document_is_a_job_or_an_input_error(
    document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert is_refused_or_round_trips(load_text(tomlkit.dumps(document), tmp_path_factory), tmp_path_factory)


@settings(max_examples=30, deadline=None)
@example(override="\n")
@example(override="seed=\udcff")
@example(override="search.epochs=1\nseed=2")
@given(override=st.text(max_size=30) | st.builds("search.{}={}".format, st.sampled_from(KEYS), st.text(max_size=20)))
def test_any_override_is_applied_or_an_input_error(override: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert is_refused_or_round_trips(load_or_refuse("digits", [override]), tmp_path_factory)


@settings(max_examples=30, deadline=None)
@given(document=DOCUMENTS)
def test_every_key_has_a_line(document: dict[str, Any]) -> None:
    text = tomlkit.dumps(document)
    assert set(key_lines(text)) >= set(paths_of(tomllib.loads(text)))


def test_lines_of_all_ways_to_write_a_key() -> None:
    text = '\n'.join([
        "a.b.'c.d' = 1  # x = 1",
        '"e f" = """',
        "[not.a.table]",
        '"""',
        "[[g.h]]",
        "i = [1, # [",
        "  {j = ']', k = [",
        "2]}]",
        "[g.h.l]",
        "m = 1979-05-27 07:32:00",
        "[[g.h]]",
        "i = '''",
        "'''",
        "[ n . o ]",
        "p = {}",
    ])  # fmt: skip
    lines = key_lines(text)
    assert set(lines) == set(paths_of(tomllib.loads(text)))
    expected = {("a", "b", "c.d"): 1, ("e f",): 2, ("g", "h", 0): 5, ("g", "h", 0, "i"): 6, ("g", "h", 0, "i", 1): 7}
    expected |= {("g", "h", 0, "i", 1, "k", 0): 8, ("g", "h", 0, "l", "m"): 10, ("g", "h", 1, "i"): 12}
    expected |= {("n", "o", "p"): 15}
    assert {path: lines[path] for path in expected} == expected


BUDGETS = st.dictionaries(TEXT, st.integers(1, 9) | st.just("9%"), min_size=1)
JOBS = st.builds(
    lambda values: JobConfig.model_validate(values),
    st.fixed_dictionaries(
        {
            "name": st.text(string.ascii_letters + string.digits, min_size=1, max_size=9),
            "seed": st.integers(0, 2**63 - 1),
            "model": st.fixed_dictionaries(
                {"source": TEXT, "arguments": st.dictionaries(TEXT, st.booleans() | st.integers(-9, 9) | TEXT)},
                optional={"checkpoint": st.text(string.ascii_letters + "/.", min_size=1)},
            ),
            "space": st.fixed_dictionaries(
                {"fix": st.dictionaries(TEXT, st.just((4, 8))), "groups": st.lists(TEXT)},
                optional={"first_layer": st.sampled_from(["search", 4, 32])},
            ),
            "search": st.fixed_dictionaries(
                {"budgets": st.lists(BUDGETS, min_size=1, unique_by=lambda budget: frozenset(budget.items()))},
                optional={"penalty": st.floats(0, 1e300), "theta_fraction": st.floats(0.001, 0.999)},
            ),
        }
    ),
)


@settings(max_examples=30, deadline=None)
@given(job=JOBS)
def test_a_dumped_job_loads_as_itself(job: JobConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert load_text(jobfile.dump_job(job), tmp_path_factory) == job


@given(value=st.recursive(st.booleans() | st.integers() | TEXT | st.floats(allow_nan=False), st.lists))
def test_a_value_is_written_as_toml(value: Any) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value


@pytest.mark.parametrize("schema", ["dnas.job/2", "dnas.job/17"])
def test_a_job_of_a_newer_version_is_told_as_such(schema: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f"""name = 'later'\nschema = '{schema}'\n[a_later_section]\nkey = 1\n""")
    with pytest.raises(InputError, match=rf"job.toml, line 2: a newer version of dnas wrote this job.*'{schema}'"):
        jobfile.load_job(path)
    with pytest.raises(InputError, match=r"^--set schema=dnas\.job/2: a newer version"):
        jobfile.load_job("digits", ["schema=dnas.job/2"])


@pytest.mark.parametrize("schema", ["'dnas.job/0'", "'dnas.front/2'", "'dnas.job/1.5'", "2", "''", "[]"])
def test_another_schema_is_only_wrong(schema: str) -> None:
    with pytest.raises(InputError, match="schema") as caught:
        jobfile.load_job("digits", [f"schema={schema}"])
    assert "newer" not in str(caught.value)


def test_a_pipe_is_no_job_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "job.toml")
    with pytest.raises(InputError, match="it is a pipe or a device; name a file"):
        jobfile.load_job(tmp_path / "job.toml")


@pytest.mark.parametrize("name", ["", " "])
def test_a_job_without_a_name_is_not_the_current_folder(name: str) -> None:
    with pytest.raises(InputError, match=f"^'{name}' is no name of a job; name a job file, or a preset: digits, "):
        jobfile.load_job(name)
