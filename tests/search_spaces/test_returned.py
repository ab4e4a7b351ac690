"""What a job names is called only where it may return what is asked for, as far as that is told before the call."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from search_spaces.errors import InputError
from search_spaces.models.load import load_model
from search_spaces.registry import import_callable, imported

OWN = """
from __future__ import annotations
import abc, functools, os, subprocess
from os import system
from subprocess import run as start
from typing import Any, Optional, Protocol
from torch import nn

called = []

def number(**given) -> float: called.append("number")
def nothing(**given) -> None: called.append("nothing")
def text(**given) -> "str | None": called.append("text")
def several(**given) -> list[nn.Module]: called.append("several")
class Settings:
    def __init__(self, **given): called.append("Settings")
bound = functools.partial(number, a=1)

def silent(**given): return nn.Linear(2, 2)
def told(**given) -> nn.Module: return nn.Linear(2, 2)
def narrower(**given) -> nn.Linear: return nn.Linear(2, 2)
def wider(**given) -> object: return nn.Linear(2, 2)
def perhaps(**given) -> Optional[nn.Module]: return nn.Linear(2, 2)
def anything(**given) -> Any: return nn.Linear(2, 2)
def unknown(**given) -> Nowhere: return nn.Linear(2, 2)
class Makes:
    def __new__(cls, **given): return nn.Linear(2, 2)
class Net(nn.Linear):
    def __init__(self): super().__init__(2, 2)
half = functools.partial(told)
@functools.cache
def kept() -> nn.Module: return nn.Linear(2, 2)
def in_module(function):
    return functools.wraps(function)(lambda **given: nn.Sequential(*function()))
@in_module
def decorated() -> list[nn.Module]: return [nn.Linear(2, 2)]
class Factory:
    def __call__(self, **given): return nn.Linear(2, 2)
factory = Factory()
"""
REFUSED = ("number", "nothing", "text", "several", "Settings", "bound")
TAKEN = (
    *("silent", "told", "narrower", "wider", "perhaps", "anything", "unknown", "Makes", "Net", "half", "kept"),
    *("decorated", "factory"),
)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("own_nets")
    sys.modules.pop("own_nets", None)


@pytest.mark.parametrize("name", REFUSED)
def test_what_says_that_it_makes_no_network_is_not_called(name: str, own: ModuleType) -> None:
    with pytest.raises(InputError, match=rf"^model 'own_nets:{name}' makes a \w+, not a Module, so it is not called"):
        load_model(f"own_nets:{name}", arguments={"a": 1})
    assert own.called == []


@pytest.mark.parametrize("name", TAKEN)
def test_what_may_make_one_is_called(name: str, own: ModuleType) -> None:
    assert load_model(f"own_nets:{name}").module(__import__("torch").zeros(1, 2)).shape == (1, 2)


@pytest.mark.parametrize(
    "source",
    [
        *("os:system", "posix:system", "subprocess:run", "subprocess:Popen", "builtins:exec", "runpy:run_path"),
        *("os.path:join", "pty:spawn", "own_nets:system", "own_nets:start"),
    ],
)
def test_nothing_of_pythons_own_library_is_called(source: str, own: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^model '{source}' is of Python's own library, which makes none"):
        load_model(source, arguments={"command": f"touch {tmp_path / 'ran'}"})
    assert not (tmp_path / "ran").exists()


def test_nor_is_a_module_of_it_imported() -> None:
    assert "antigravity" not in sys.modules  # which opens a browser
    with pytest.raises(InputError, match="Python's own library"):
        imported("antigravity:geohash", "model")
    assert "antigravity" not in sys.modules


def test_a_file_of_the_users_may_have_a_name_of_pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "sndhdr", raising=False)
    (tmp_path / "sndhdr.py").write_text("from torch import nn\ndef net(): return nn.Linear(2, 2)\n")
    assert load_model("sndhdr:net").source == "sndhdr:net"
    sys.modules.pop("sndhdr")


def test_a_partial_of_a_function_of_pythons_is_the_users_own(own: ModuleType) -> None:
    own.__dict__["joined"] = partial(max, 1)
    assert import_callable("own_nets:joined", "cost 'x'")(2) == 2
