"""The programs of examples/ do what their comments say: built and run as there, and refusing what is wrong."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stic.runtime.native import FLAGS
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.targets.target import load
from stic.targets.toolchain import build_engine, find_c_compiler
from tests.runtime.conftest import make_package

__all__ = ["make_package"]

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
IDS = ["5", "7", "11"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


@pytest.fixture(scope="module")
def package(make_package: Callable[..., Path]) -> Path:
    """A package with streamed and resident shards."""
    return make_package(((8, 5, 4, 2), (4, 4, 2)), ((8, 4, 0, 0), (0, 0, 0)))


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """run.c against libstic.so, by the command in its own first comment."""
    folder = tmp_path_factory.mktemp("linked")
    build_engine(load("host"), folder / "build" / "engine")
    (line,) = [line[3:].strip() for line in (EXAMPLES / "run.c").read_text().splitlines() if " cc -std" in line]
    line = line.replace("runtime/include", str(ROOT / "runtime" / "include")).replace("examples/", f"{EXAMPLES}/")
    command = shlex.split(line.replace('"$PWD', f'"{folder}'))
    compiler = find_c_compiler(load("host")).command
    subprocess.run([*compiler, *WARNINGS, *command[1:]], cwd=folder, check=True, timeout=120)
    return [str(folder / "build" / "run")]


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """run.c together with the engine's sources."""
    program = tmp_path_factory.mktemp("static") / "run"
    sources = [path for path in sorted((ROOT / "runtime" / "src").glob("*.c")) if not path.name.startswith("stic_run")]
    line = [*find_c_compiler(load("host")).command, *FLAGS, *WARNINGS, "-I", ROOT / "runtime" / "include"]
    subprocess.run([*line, EXAMPLES / "run.c", *sources, "-ldl", "-o", program], check=True, timeout=120)
    return [str(program)]


@pytest.fixture(scope="module")
def python() -> list[str]:
    """run.py, under the Python that runs these tests."""
    return [sys.executable, str(EXAMPLES / "run.py")]


@pytest.fixture(params=["linked", "static", "python"])
def program(request: pytest.FixtureRequest) -> list[str]:
    return request.getfixturevalue(request.param)


def call(program: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    line = [*program, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, env=os.environ.copy())


def test_it_gives_the_reference_s_numbers(program: list[str], package: Path) -> None:
    done = call(program, package, *IDS)
    assert done.returncode == 0 and not done.stderr
    (line,) = [line for line in done.stdout.splitlines() if " numbers: " in line]
    want = Reference(Package.open(package)).run([int(word) for word in IDS])
    count, shown = line.split(" numbers: ")
    assert int(count) == want.size
    np.testing.assert_allclose([float(word) for word in shown.split()], want[:6], rtol=1e-4, atol=1e-5)
    assert "waiting for storage" in done.stdout and "claimed" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["p"], ["nowhere.stic", "1"], ["PACKAGE", "x"], ["PACKAGE", "99999999"]])
def test_what_is_wrong_ends_in_a_sentence(program: list[str], package: Path, arguments: list[str]) -> None:
    done = call(program, *(package if word == "PACKAGE" else word for word in arguments))
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(("usage: run", "run"))
