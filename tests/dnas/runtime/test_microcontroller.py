"""``zoo:tiny_resnet`` without heap and files, built by the host's compiler for no processor in particular."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dnas.runtime import Runtime
from dnas.runtime.compiled import SOURCE, compile_to, find_compiler
from dnas.runtime.embed import main
from tests.dnas.export.test_pack_switchable import saved
from tests.dnas.switchable.test_net import NESTED, WIDTHS, assignments, net_of
from tests.packed_nets import inputs_for, packed_net

FLAGS = ("-std=c11", "-Os", "-DDNAS_PORTABLE", "-ffp-contract=off")


@pytest.mark.whole
def test_tiny_resnet_runs_without_heap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = packed_net(tmp_path / "net.dnas", "norm last", (2, 4))  # a tiny_resnet
    assert main([str(found.path), str(tmp_path / "net.h")]) == 0
    program = tmp_path / "program"
    compile_to(program, find_compiler(), [str(SOURCE.with_name("microcontroller.c"))], (*FLAGS, f"-I{tmp_path}"))
    x = inputs_for(found.graph).numpy()
    for image, expected in zip(x, Runtime(found.path)(x), strict=True):
        text = " ".join(map(str, image.reshape(-1).tolist()))
        run = subprocess.run([program], input=text, capture_output=True, text=True, check=True, timeout=20)
        assert np.array_equal(np.array([float.fromhex(line) for line in run.stdout.split()], np.float32), expected)
    assert capsys.readouterr().err == ""


@pytest.mark.whole
def test_it_calls_nothing_but_the_copying_of_memory(tmp_path: Path) -> None:
    compile_to(tmp_path / "runtime.o", find_compiler(), [str(SOURCE)], (*FLAGS, "-c"))
    names = subprocess.run(
        [shutil.which("nm") or "nm", "-u", tmp_path / "runtime.o"], capture_output=True, text=True, check=True
    )
    called = {line.split()[-1] for line in names.stdout.splitlines()}
    assert called <= {
        "memcpy",
        "memset",
        "memcmp",
        "memmove",
        "_GLOBAL_OFFSET_TABLE_",
        "__stack_chk_fail",
        "__popcountdi2",
    }


def test_what_cannot_be_embedded_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "many", net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED))
    assert main([str(tmp_path / "many"), str(tmp_path / "net.h")]) == 2
    assert "holds 3 profiles; export the one that the program runs" in capsys.readouterr().err
    assert main([]) == 2
    assert not (tmp_path / "net.h").exists()
