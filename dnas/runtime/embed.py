"""A packed file as a C array, for a program without a file system: ``python -m dnas.runtime.embed NET.dnas net.h``."""

from __future__ import annotations

import sys
from pathlib import Path

from dnas.runtime.net import Runtime
from results.files import write_text
from search_spaces.errors import InputError, JobError

_PER_LINE = 20
_SPARE = 64
"""Bytes: the memory that a program has may begin anywhere."""


def embedded(path: Path) -> str:
    """The text of a header: ``net_file``, and ``NET_MEMORY``, ``NET_INPUTS`` and ``NET_OUTPUTS`` for ``dnas_load``."""
    net = Runtime(path, engine="c")
    if len(net.profiles) > 1:
        raise InputError(f"{path} holds {len(net.profiles)} profiles; export the one that the program runs")
    data = path.read_bytes()
    lines = [", ".join(map(str, data[at : at + _PER_LINE])) for at in range(0, len(data), _PER_LINE)]
    sizes = {
        "NET_MEMORY": sum(net.memory_bytes.values()) + _SPARE,
        "NET_INPUTS": _count(net.input_shape),
        "NET_OUTPUTS": _count(net.output_shape),
    }
    defined = "\n".join(f"#define {name} {size}" for name, size in sizes.items())
    return f"{defined}\nstatic const unsigned char net_file[] = {{\n" + ",\n".join(lines) + "};\n"


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def main(words: list[str]) -> int:
    """Write the header; 2 for wrong words or a file that cannot be run."""
    if len(words) != 2:
        print("usage: python -m dnas.runtime.embed NET.dnas net.h", file=sys.stderr)
        return 2
    try:
        write_text(Path(words[1]), embedded(Path(words[0])))
    except (InputError, JobError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
