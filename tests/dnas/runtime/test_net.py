"""The C runtime gives, bit for bit, what the reference in numpy gives: every width, layer, operation and profile."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import dnas
from dnas.export.reference_net import run_net
from dnas.export.save import save_packed
from dnas.quantization.conversion import QuantizerChoice
from dnas.runtime import Runtime, compiled
from dnas.runtime.compiled import FLAGS, NoLibrary, find_compiler, library
from results.packed.file import read_packed, write_packed
from search_spaces.assignments import LayerBits
from search_spaces.errors import InputError, JobError
from search_spaces.sparse_weights.codes import INDEX_BITS
from tests.dnas.export.test_integer_reference import FAMILIES, layers, packed_layer
from tests.dnas.export.test_operations import FUNCTIONS, REFUSED, packed
from tests.dnas.switchable.test_net import CHOICES, NESTED, WIDTHS, assignments, net_of, pruned
from tests.own_schemes import Ternary
from tests.packed_nets import CASES, inputs_for, packed_net
from tests.sparse_nets import sparse_net, stored_as
from tests.toys import seeded

RUN = [name for name in CASES if name not in ("own forward", "own parameter", "attention")]
QUICK = tuple("-O1" if flag == "-O3" else flag for flag in FLAGS)  # to compile
BUILDS = {"native": FLAGS, "portable": ("-DDNAS_PORTABLE", *QUICK)}
if "avx512f" in compiled._processor().split():
    BUILDS["AVX2"] = (*QUICK, "-mno-avx512f")
UNSEEN = ("relative-3", "none")
"""Damage of sparse codes that nothing in the file contradicts."""
LAYERS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "wide": (lambda: nn.Conv2d(40, 64, 3, padding=1), (40, 5, 7)),
    "odd": (lambda: nn.Conv2d(21, 45, 3, padding=(2, 1), stride=2, dilation=2, bias=False), (21, 5, 7)),
    "grouped": (lambda: nn.Conv2d(32, 64, (2, 3), padding=(1, 1), groups=2), (32, 5, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(48, 64, 3, stride=2, padding=1, groups=2), (48, 5, 7)),
    "line": (lambda: nn.Conv1d(16, 33, 5, padding=2, padding_mode="circular"), (16, 9)),
    "long": (lambda: nn.Linear(70_000, 32), ()),
}
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every set of instructions that this machine has, and none."""
    monkeypatch.setattr("dnas.runtime.net.library", lambda: library(BUILDS[request.param]))
    return str(request.param)


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.array_equal(found.view(np.int32), np.ascontiguousarray(expected).view(np.int32))


def check(path: Path, x: Any, profile: str = "default") -> None:
    assert_same_bits(Runtime(path, profile, engine="c")(x), run_net(read_packed(path), np.asarray(x), profile))


Expected = tuple[Path, np.ndarray, np.ndarray]
"""A file, inputs for it, and what the reference gives."""


@pytest.fixture(scope="module")
def of_net(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, tuple[int, int]], Expected]:
    """A case at some widths, packed and run by the reference once for all builds."""

    @functools.cache
    def make(name: str, bits: tuple[int, int]) -> Expected:
        found = packed_net(tmp_path_factory.mktemp("net") / "a", name, bits)
        x = inputs_for(found.graph).numpy()
        return found.path, x, run_net(found.file, x)

    return make


@pytest.fixture(scope="module")
def of_layer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, tuple[int, int]], Expected]:
    """The same of one layer of :data:`LAYERS`."""

    @functools.cache
    def make(kind: str, bits: tuple[int, int]) -> Expected:
        layer, shape = LAYERS[kind][0](), LAYERS[kind][1]
        if kind == "long":
            nn.init.ones_(layer.weight)  # type: ignore[arg-type]  # so that every code is the largest
        path = tmp_path_factory.mktemp("layer") / "a"
        graph, *_ = packed_layer(path, layer, shape, bits, QuantizerChoice("nested", "nested", True))
        x = (3 * torch.rand(2, *graph.input_shape, generator=seeded(1))).numpy()
        return path, x, run_net(read_packed(path), x)

    return make


@pytest.mark.parametrize("name", RUN)
def test_whole_nets(of_net: Callable[..., Expected], name: str, build: str) -> None:
    for bits in [(1, 1), (2, 2), (7, 3), (8, 8), (4, 16), (32, 32)]:
        path, x, expected = of_net(name, bits)
        assert_same_bits(Runtime(path, engine="c")(x), expected)


@pytest.mark.parametrize("bits", [(3, 7), (5, 5), (7, 7), (8, 4), (8, 7), (8, 8)])
def test_products_of_bytes(tmp_path: Path, bits: tuple[int, int], build: str) -> None:
    """Of codes that are the largest, so that the sums of a narrow type would overflow where they could."""
    layer = nn.Conv2d(64, 16, 5, padding=2)
    nn.init.ones_(layer.weight)
    nn.init.constant_(layer.weight[::2], -1.0)
    packed_layer(tmp_path / "a", layer, (64, 7, 7), bits, QuantizerChoice("lsq", "pact", True))
    check(tmp_path / "a", np.full((1, 64, 7, 7), 10, np.float32))


@SETTINGS
@given(layers(), st.integers(1, 9), st.integers(1, 9), st.sampled_from(FAMILIES), st.booleans())
def test_random_layers(
    tmp_path: Path,
    drawn: tuple[nn.Module, tuple[int, ...]],
    weight_bits: int,
    activation_bits: int,
    family: tuple[str, str],
    per_channel: bool,
) -> None:
    widths = (weight_bits if weight_bits < 9 else 16, activation_bits if activation_bits < 9 else 16)
    graph, *_ = packed_layer(tmp_path / "a", *drawn, widths, QuantizerChoice(*family, per_channel))
    check(tmp_path / "a", torch.randn(2, *graph.input_shape, generator=seeded(9)))


@pytest.mark.parametrize("kind", ["wide", "grouped", "long"])
@pytest.mark.parametrize("bits", [(1, 2), (3, 8), (8, 8)])
def test_more_channels_than_a_word_has_bits(tmp_path: Path, kind: str, bits: tuple[int, int], build: str) -> None:
    layer: nn.Module = {
        "wide": lambda: nn.Conv2d(130, 20, 3, padding=1),
        "grouped": lambda: nn.Conv2d(192, 18, (2, 3), padding=(1, 1), groups=2, bias=False),
        "long": lambda: nn.Linear(40_000, 9),
    }[kind]()
    choice = QuantizerChoice("nested", "nested", True)
    shape = () if kind == "long" else (layer.in_channels, 5, 6)
    graph, *_ = packed_layer(tmp_path / "a", layer, shape, bits, choice)
    check(tmp_path / "a", 3 * torch.rand(2, *graph.input_shape, generator=seeded(1)))


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        *((kind, bits) for kind in ("wide", "odd", "grouped", "transposed", "line") for bits in ((1, 1), (2, 4))),
        *(("grouped", (1, 5)), ("odd", (3, 3)), ("long", (1, 5))),
    ],
)
def test_sums_that_are_looked_up_in_tables(
    of_layer: Callable[..., Expected], kind: str, bits: tuple[int, int], build: str
) -> None:
    """Of few bits, many filters: channels that fill no table, borders, groups, sums beyond 16 bits."""
    path, x, expected = of_layer(kind, bits)
    assert_same_bits(Runtime(path, engine="c")(x), expected)


@pytest.mark.parametrize("bits", [(8, 8), (7, 8)])
def test_sums_of_a_channel_by_itself_beyond_32_bits(tmp_path: Path, bits: tuple[int, int], build: str) -> None:
    layer = nn.Conv1d(2, 2, 90_000, groups=2)
    nn.init.ones_(layer.weight)  # so that every code is the largest
    packed_layer(tmp_path / "a", layer, (2, 90_000), bits, QuantizerChoice("lsq", "pact", True))
    check(tmp_path / "a", np.full((1, 2, 90_000), 10, np.float32))


def test_what_is_no_input_is_refused_and_tensors_are_taken(tmp_path: Path) -> None:
    net = Runtime(packed_net(tmp_path / "a", "residual", (4, 4)).path)
    x = torch.rand(2, *net.input_shape, requires_grad=True)
    assert_same_bits(net(x), net(x.detach().numpy()))
    for wrong, sentence in (
        ("x", "of the type <U1"),
        (None, "of the type object"),
        ([[1.0], [1.0, 2.0]], "inputs are no array"),
        (np.zeros((1, *net.input_shape), complex), "of the type complex128"),
        (1.0, "inputs have the shape"),
    ):
        with pytest.raises(InputError, match=sentence):
            net(wrong)
    with pytest.raises(InputError, match="a profile cannot be an int; give its name"):
        net.switch(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations(tmp_path: Path, name: str) -> None:
    _, graph, _ = packed(tmp_path / "a", FUNCTIONS[name], (4, 4))
    x = inputs_for(graph).numpy()
    check(tmp_path / "a", x)
    strange = np.array([np.nan, np.inf, -np.inf, 1e30, -1e-40], np.float32)[np.arange(x.size).reshape(x.shape) % 5]
    check(tmp_path / "a", np.where(np.arange(x.size).reshape(x.shape) % 7 == 0, strange, x))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_profile_and_back(tmp_path: Path, choice: QuantizerChoice) -> None:
    profiles = assignments("shapes", WIDTHS, choice)
    save_packed(tmp_path / "a", net_of("shapes", profiles, choice))
    file = read_packed(tmp_path / "a")
    if choice.weights == "dorefa":
        with pytest.raises(InputError, match="several widths of 'dorefa'"):
            Runtime(tmp_path / "a")
        return
    net, x = Runtime(tmp_path / "a", engine="c"), inputs_for(net_of("shapes", profiles, choice).graph).numpy()
    assert net.profiles == tuple(profiles)
    for name in (*profiles, *reversed(profiles)):
        assert_same_bits(net.switch(name)(x), run_net(file, x, name))
    with pytest.raises(InputError, match=r"has no profile 'narow'; there are .*; did you mean 'narrow'"):
        net.switch("narow")
    assert_same_bits(net(x), run_net(file, x, net.profile))


@pytest.mark.parametrize("case", ["residual", "norm last", "shapes"])
def test_pruned_profiles(tmp_path: Path, case: str) -> None:
    profiles = {**assignments(case, WIDTHS, NESTED), "small": pruned(case, (3, 4), NESTED)}
    profiles["smaller"] = pruned(case, (2, 2), NESTED, every=3)
    net = net_of(case, profiles, NESTED)
    save_packed(tmp_path / "a", net)
    x = inputs_for(net.graph)
    for name in profiles:
        check(tmp_path / "a", x, name)
        with torch.inference_mode():
            expected = net.view(name)(x)
        torch.testing.assert_close(torch.tensor(Runtime(tmp_path / "a", name)(x)), expected, rtol=1e-4, atol=1e-5)


def test_a_file_with_json_runs_too_and_numpy_where_it_is_asked(tmp_path: Path) -> None:
    found = packed_net(tmp_path / "a.safetensors", "residual", (3, 4))
    x = inputs_for(found.graph).numpy()
    nets = [dnas.Runtime(found.path, engine=engine) for engine in ("c", "numpy")]
    assert [net.engine for net in nets] == ["c", "numpy"]
    assert_same_bits(nets[0](x), nets[1](x))
    assert nets[1].memory_bytes == {}
    assert nets[0].input_shape == (1, 6, 6)
    assert all(net(x[:0]).shape == (0, *net.output_shape) for net in nets)
    with pytest.raises(InputError, match="engine 'cuda' is none"):
        Runtime(found.path, engine="cuda")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"inputs have the shape \(4, 1, 5, 5\); this net takes \(N, 1, 6, 6\)"):
        nets[0](np.zeros((4, 1, 5, 5)))


def test_memory_is_that_of_the_profile(tmp_path: Path) -> None:
    layer = nn.Conv2d(256, 256, 3, padding=1)
    for bits in (1, 4, 8):
        packed_layer(tmp_path / "a", layer, (256, 8, 8), (bits, 2), QuantizerChoice(per_channel=True))
        kept = Runtime(tmp_path / "a", engine="c").memory_bytes["kept"]
        assert kept <= 1.1 * read_packed(tmp_path / "a").tensor_bytes + 4096


def test_calls_from_several_threads(tmp_path: Path) -> None:
    found = packed_net(tmp_path / "a", "residual", (3, 4))
    net, x = Runtime(found.path, engine="c"), inputs_for(found.graph).numpy()
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.extend(net(x) for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert all(np.array_equal(found, results[0]) for found in results)


def test_without_a_compiler_numpy_runs_the_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = packed_net(tmp_path / "a", "residual", (3, 4))
    x = inputs_for(found.graph).numpy()
    expected = Runtime(found.path, engine="c")(x)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "")
    monkeypatch.setattr("dnas.runtime.net.library", library.__wrapped__)
    with pytest.warns(UserWarning, match="there is no C compiler .* so numpy runs the net"):
        net = Runtime(found.path)
    assert net.engine == "numpy"
    assert_same_bits(net(x), expected)
    with pytest.raises(JobError, match="take engine='numpy'"):
        Runtime(found.path, engine="c")


def test_a_compiler_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    with pytest.raises(NoLibrary, match="false cannot compile the C runtime"):
        library.__wrapped__()
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("cc", ()),
        ("env -u NOTHING cc", ("-u", "NOTHING", "cc")),
        ("cc -O1 '-DNAME=a b'", ("-O1", "-DNAME=a b")),
        ("nowhere-to-be-found --x", ()),
        ("cc 'unfinished", ()),
    ],
)
def test_the_compiler_of_the_environment_has_its_arguments(
    command: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", command)
    compiler, *given = find_compiler()
    assert Path(compiler).name == ("env" if "env" in command else "cc")
    assert tuple(given) == arguments


def test_a_compiler_with_arguments_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "env -u NOTHING cc -O0")
    assert library.__wrapped__(tuple(flag for flag in FLAGS if flag != "-O3"))
    assert len(list(tmp_path.rglob("*.so"))) == 1


def test_it_is_compiled_once_into_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = tuple("-O0" if flag == "-O3" else flag for flag in FLAGS)
    library.__wrapped__(flags)
    (made,) = (tmp_path / "dnas" / "runtime").iterdir()
    stamp = made.stat().st_mtime_ns
    library.__wrapped__(flags)
    assert made.stat().st_mtime_ns == stamp
    assert made.parent.stat().st_mode & 0o077 == 0
    made.parent.chmod(0o777)  # somebody else could have put a library there
    assert not str(compiled._cache()).startswith(str(tmp_path))


@pytest.mark.parametrize("name", REFUSED)
def test_nets_whose_operations_are_not_told(tmp_path: Path, name: str) -> None:
    packed(tmp_path / "a", REFUSED[name][0])
    with pytest.raises(InputError, match=r"a: the file does not tell the network's operations: \w"):
        Runtime(tmp_path / "a")


def test_what_is_no_net_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"DNASPACK")
    with pytest.raises(InputError, match="is cut off"):
        Runtime(tmp_path / "a")
    found = packed_net(tmp_path / "b", "residual", (3, 4))
    for change in (
        {"profiles": {}},
        {"profiles": {"default": {"operations": {"steps": [{"kind": 3}]}}}},
        {"layers": 7},
    ):
        write_packed(tmp_path / "c", {**found.file.description, **change}, found.file.tensors)
        with pytest.raises(InputError, match=r"c[: ]"):
            Runtime(tmp_path / "c")


@pytest.mark.parametrize("name", ["shapes", "cube", "shared"])
def test_sparse_weights_in_every_format(tmp_path: Path, name: str) -> None:
    found = sparse_net(tmp_path / "a", name)
    x = inputs_for(found.graph).numpy()
    expected = run_net(found.file, x)
    for format in ("dense", "bitmask", "csr", *(f"relative-{bits}" for bits in INDEX_BITS)):
        write_packed(tmp_path / "b", *stored_as(found.file, format))
        for engine in ("c", "numpy"):
            assert_same_bits(Runtime(tmp_path / "b", engine=engine)(x), expected)
    with torch.inference_mode():
        torch.testing.assert_close(torch.tensor(expected), found.network(torch.tensor(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["dense", "bitmask", "csr", "relative-3"])
@pytest.mark.parametrize("wrong", ["short", "more", "none", "bits", "ones"])
def test_sparse_codes_that_make_no_sense_are_refused(tmp_path: Path, format: str, wrong: str) -> None:
    described, tensors = stored_as(sparse_net(tmp_path / "a", "residual").file, format)
    stored = described["layers"]["second"]["weight"]
    if wrong in ("short", "ones"):
        data = tensors[stored["tensor"]]
        tensors[stored["tensor"]] = data[: len(data) // 3] if wrong == "short" else np.full_like(data, 255)
    else:
        stored.update(
            {"more": {"nonzeros": stored["nonzeros"] + 1}, "none": {"nonzeros": 0}, "bits": {"bits": 9}}[wrong]
        )
    write_packed(tmp_path / "b", described, tensors)
    if (format, wrong) == UNSEEN:
        Runtime(tmp_path / "b", engine="c")
    else:
        with pytest.raises(InputError, match=r"b[: ]"):
            Runtime(tmp_path / "b", engine="c")


def test_weights_of_a_scheme_that_no_runtime_reads_are_refused(tmp_path: Path) -> None:
    found = packed_net(
        tmp_path / "a",
        "residual",
        lambda graph: {s.name: LayerBits(2, 4, s.out_channels, scheme=Ternary()) for s in graph.layers},
    )
    assert found.path.is_file()
    with pytest.raises(
        InputError, match=r"is stored as 'tests\.own_schemes:Ternary', which dnas\.load reads and no runtime"
    ):
        Runtime(tmp_path / "a")
