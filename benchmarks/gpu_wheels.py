"""Fill a folder with the wheels that a session on a GPU needs there beside PyTorch, where there is a network.

    python benchmarks/gpu_wheels.py WHEELS --python 3.12 --there numpy scipy

They are for x86-64 Linux and the Python of that machine, in the versions that are installed here: nothing is resolved
anew, so it takes a minute, and what runs there was tested here. Names after ``--there`` are on that machine already.
PyTorch and what belongs to it is always taken from there, since it has to fit the driver.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
ITS_OWN = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")
EXTRAS = ("timm", "torchmetrics", "onnx", "detection")
TESTING = ("pytest", "pytest-xdist", "hypothesis", "torchao")
PLATFORMS = (*(f"manylinux_2_{minor}" for minor in (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)), "manylinux2014")


def wanted() -> list[str]:
    """What the project, the extras that the session uses, and its tests require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(name for extra in EXTRAS for name in optional[extra]), *TESTING]


def needed(python: str, there: Sequence[str]) -> dict[str, str]:
    """Name and version of each package that this Python's own list of requirements leads to, but those ``there``."""
    left_out = {canonicalize_name(name) for name in there}
    waiting, seen = [Requirement(name) for name in wanted()], set[tuple[str, frozenset[str]]]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key not in seen and name not in left_out and not ITS_OWN.fullmatch(name):
            seen.add(key)
            waiting += _requirements(requirement, python)
    return {name: distribution(name).version for name, _ in sorted(seen, key=lambda key: key[0])}


def _requirements(of: Requirement, python: str) -> Iterator[Requirement]:
    """What a package that is installed here asks for on such a machine."""
    machine = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    machine |= {"platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    machine |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    for line in distribution(of.name).requires or ():
        found = Requirement(line)
        extras = ("", *of.extras)
        if found.marker is None or any(found.marker.evaluate({**machine, "extra": extra}) for extra in extras):
            yield found


def download(wheels: Path, python: str, packages: dict[str, str]) -> None:
    """Fetch the wheels of these packages, and nothing that they ask for."""
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    target += [word for each in PLATFORMS for word in ("--platform", f"{each}_x86_64")]
    names = [f"{name}=={version}" for name, version in packages.items()]
    pip = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*pip, *target, *names], check=True)


def main() -> None:
    """Fill a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="the version there")
    parser.add_argument("--there", nargs="*", default=[], metavar="NAME", help="packages that are there already")
    options = parser.parse_args()
    packages = needed(options.python, options.there)
    download(options.folder, options.python, packages)
    size = sum(path.stat().st_size for path in options.folder.glob("*.whl"))
    print(f"{len(packages)} wheels in {options.folder}, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
