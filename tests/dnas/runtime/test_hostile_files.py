"""The C runtime under AddressSanitizer and UBSan: changed and cut files end in a status, never out of bounds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from torch import nn

from dnas.export.save import save_packed
from dnas.runtime.compiled import SOURCE, compile_to, find_compiler
from results.packed.file import write_packed
from tests.dnas.export.test_integer_reference import packed_layer
from tests.dnas.switchable.test_net import NESTED, assignments, net_of, pruned
from tests.packed_nets import packed_net
from tests.sparse_nets import sparse_net, stored_as

HARNESS = Path(__file__).with_name("fuzz.c")
FLAGS = ("-std=c11", "-O1", "-march=native", "-ffp-contract=off", f"-I{SOURCE.parent}")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SEED, CHANGES = "20", "100"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of every storage, of several profiles and of a pruned one."""
    folder = tmp_path_factory.mktemp("seeds")
    profiles = {**assignments("norm last", {"wide": (5, 4), "binary": (1, 1)}, NESTED)}
    profiles["small"] = pruned("norm last", (2, 2), NESTED)
    save_packed(folder / "many", net_of("norm last", profiles, NESTED))
    packed_layer(folder / "tables", nn.Conv2d(16, 32, 3, padding=1), (16, 4, 4), (1, 2), NESTED)
    for format in ("dense", "bitmask", "csr", "relative-3"):
        write_packed(folder / format, *stored_as(sparse_net(folder / format, "residual").file, format))
    for name, bits in (("shapes", (3, 8)), ("cube", (8, 2)), ("shared", (32, 32)), ("line", (4, 16))):
        packed_net(folder / name, name, bits)
    return sorted(folder.iterdir())


@pytest.mark.whole
@pytest.mark.parametrize(
    "build", ["native", *(pytest.param(name, marks=pytest.mark.slow) for name in ("AVX2", "portable"))]
)
def test_changed_files_end_in_a_status(tmp_path: Path, seeds: list[Path], build: str) -> None:
    more = {"native": (), "AVX2": ("-mno-avx512f",), "portable": ("-DDNAS_PORTABLE",)}[build]
    compile_to(tmp_path / "fuzz", find_compiler(), [str(HARNESS)], (*FLAGS, *SANITIZERS, *more))
    run = subprocess.run(
        [tmp_path / "fuzz", SEED, CHANGES, *seeds], capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    counts = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in run.stdout.splitlines()}
    assert sum(counts.values()) > len(seeds) * int(CHANGES)
    assert min(counts[status] for status in ("ok", "damaged", "cut off", "unsupported", "more memory")) > 0
