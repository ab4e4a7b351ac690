"""The C runtime for a 64-bit ARM, with NEON, on an emulator: bit for bit what the reference in numpy gives.

It takes a cross compiler and an emulator: ``apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user``.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dnas.export.reference_net import run_net
from dnas.export.save import save_packed
from dnas.quantization.conversion import QuantizerChoice
from dnas.runtime.compiled import SOURCE, compile_to
from results.packed.file import read_packed
from tests.dnas.export.test_integer_reference import packed_layer
from tests.dnas.switchable.test_net import NESTED, WIDTHS, assignments, net_of
from tests.packed_nets import inputs_for, packed_net
from tests.toys import seeded

COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
FLAGS = ("-std=c11", "-O2", "-static", "-ffp-contract=off", f"-I{SOURCE.parent}")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None or EMULATOR is None, reason="no cross compiler and emulator for ARM here"),
]


@pytest.fixture(scope="module", params=["neon", "portable"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arm") / "runner"
    more = ("-DDNAS_PORTABLE",) if request.param == "portable" else ()
    compile_to(path, [str(COMPILER)], [str(Path(__file__).with_name("runner.c"))], (*FLAGS, *more))
    return path


def check(program: Path, file: Path, x: np.ndarray, profile: str = "default") -> None:
    expected = np.ascontiguousarray(run_net(read_packed(file), x, profile))
    run = subprocess.run(
        [str(EMULATOR), program, file, profile], input=x.tobytes(), capture_output=True, check=True, timeout=100
    )
    assert np.array_equal(np.frombuffer(run.stdout, np.int32), expected.view(np.int32).reshape(-1))


@pytest.mark.parametrize("name", ["residual", "shapes", "line", "cube", "norm last"])
def test_whole_nets(tmp_path: Path, program: Path, name: str) -> None:
    for bits in [(1, 1), (2, 3), (7, 8), (8, 8), (4, 16), (32, 32)]:
        found = packed_net(tmp_path / "a", name, bits)
        check(program, found.path, inputs_for(found.graph).numpy())


@pytest.mark.parametrize("bits", [(1, 1), (2, 2), (3, 4), (8, 8)])
def test_words_of_channels(tmp_path: Path, program: Path, bits: tuple[int, int]) -> None:
    layer = nn.Conv2d(130, 20, 3, padding=1)
    packed_layer(tmp_path / "a", layer, (130, 5, 6), bits, QuantizerChoice("nested", "nested", True))
    check(program, tmp_path / "a", (3 * torch.rand(2, 130, 5, 6, generator=seeded(1))).numpy())


def test_every_profile(tmp_path: Path, program: Path) -> None:
    net = net_of("shapes", assignments("shapes", WIDTHS, NESTED), NESTED)
    save_packed(tmp_path / "a", net)
    for profile in WIDTHS:
        check(program, tmp_path / "a", inputs_for(net.graph).numpy(), profile)
