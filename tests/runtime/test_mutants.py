"""Both readers of packages give the same verdict on every mutant, and what they accept runs without a fault.

The engine stands in a program of its own, under ASan and UBSan where the compiler has them. $STIC_MUTANTS is the number
of mutants of each package, and $STIC_MUTANTS_SEED chooses others.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from stic.compiler.report import contents, drawing, report
from stic.runtime.errors import InputError, PackageError
from stic.runtime.package import Package
from stic.targets.target import load
from stic.targets.toolchain import ToolchainError, find_c_compiler
from tests.runtime.mutants import Mutant, Mutants, Original

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
COUNT = int(os.environ.get("STIC_MUTANTS", "400"))
SEED = int(os.environ.get("STIC_MUTANTS_SEED", "0"))
FULL_BITS = ((16, 8, 5, 2), (6, 4, 3), (), (4, 4, 2, 2))
RESIDENT = ((0, 4, 2, 2), (6, 3, 0), (), (0, 0, 0, 0))


class Engine:
    """The engine's verdicts, one package at a time."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._start()

    def _start(self) -> None:
        environment = os.environ | {
            "STIC_OPENCL": "/nowhere/libOpenCL.so",
            "ASAN_OPTIONS": "max_allocation_size_mb=512:allocator_may_return_null=1",
        }
        self._process = subprocess.Popen(
            [str(self._program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, package: Path) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{package}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            error = self._process.communicate()[1]
            self._start()
            return f"failed: {error[-4000:]}"
        return line.strip()

    def close(self) -> None:
        """End it; a leak is a failure."""
        error = self._process.communicate()[1]
        assert self._process.returncode == 0, error[-4000:]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/runtime/verdict.c with the engine, under sanitizers where the compiler has them."""
    built = tmp_path_factory.mktemp("verdict") / "verdict"
    sources = [path for path in (ROOT / "runtime" / "src").glob("*.c") if path.name != "stic_run.c"]
    includes = [f"-I{ROOT / 'runtime' / part}" for part in ("src", "include")]
    files = [str(Path(__file__).with_name("verdict.c")), *map(str, sources)]
    line = ["-std=c11", "-g", "-O1", "-pthread", *includes, *files, "-ldl", "-o", str(built)]
    compiler = find_c_compiler(load("host"))
    try:
        compiler.run([*SANITIZERS, *line], "verdict")
    except ToolchainError:
        compiler.run(line, "verdict")
    return built


@pytest.fixture(scope="module")
def engine(program: Path) -> Iterator[Engine]:
    running = Engine(program)
    yield running
    running.close()


def _inspected(path: Path) -> None:
    """All that `stic inspect --verify` reads and computes."""
    whole = Package.open(path)
    whole.verify()
    for number in range(len(whole.plans)):
        package = whole.with_plan(number)
        plan, strip = contents.plan_of(package), contents.predicted_strip(package)
        report.plan_facts(plan, int(package.header["predicted_us"]), int(package.header["claimed_bytes"]))
        report.plan_table(plan, int(package.header["predicted_us"]), int(package.header["claimed_bytes"]))
        report.shard_table(plan.layers, contents.layer_bytes(package))
        report.size_table("on disk", contents.file_bytes(package))
        report.size_table("stored as", contents.kind_bytes(package))
        report.size_table("in memory", contents.memory_groups(package))
        contents.describe(package), contents.budget_words(package), contents.shard_bytes(package)
        drawing.terminal([strip], 100)
    report.family_table(contents.family_facts(whole))


def verdict(path: Path) -> str:
    """What Python's reader says; any exception but those of stic is a failure."""
    try:
        _inspected(path)
    except (PackageError, InputError) as error:
        return f"refused: {error}"
    return "ok"


def put(folder: Path, mutant: Mutant) -> None:
    for name, data in mutant.files.items():
        if data is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(data)


@pytest.mark.parametrize("kind", ("single", "family", "gpu", "alone"))
def test_readers_agree_on_mutants(
    kind: str, engine: Engine, make_package: Callable[..., Path], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    packages: dict[str, Callable[[], Any]] = {
        "single": lambda: request.getfixturevalue("package"),
        "family": lambda: request.getfixturevalue("family"),
        "gpu": lambda: request.getfixturevalue("gpu_package"),
        "alone": lambda: make_package(((8, 3), (4, 4)), ((0, 0), (4, 0)), slices=2, padding=1, table_resident=True),
    }
    folder = tmp_path / "mutant.stic"
    shutil.copytree(packages[kind](), folder, ignore=shutil.ignore_patterns("opencl-*"))
    original = Original(folder)
    assert verdict(folder) == engine(folder) == "ok"
    differing, accepted = [], 0
    for mutant in islice(Mutants(original, SEED), COUNT):
        put(folder, mutant)
        try:
            python = verdict(folder)
        except Exception as error:
            python = f"failed: {type(error).__name__}: {error}"
        c = engine(folder)
        by_people = "plan.json" in mutant.files  # which the engine does not read
        agree = python[:2] == c[:2] or (by_people and c[:2] == "ok")
        if not agree or "failed" in (python[:6], c[:6]):
            differing.append(f"{mutant.what}\n   python {python}\n   engine {c}")
        accepted += c[:2] == "ok"
        put(folder, Mutant("", {name: original.files[name] for name in mutant.files}))
    print(f"{kind}: {COUNT} mutants, {accepted} accepted by the engine, {len(differing)} differ")
    assert not differing, f"{len(differing)} of {COUNT} mutants: " + "\n".join(differing[:40])
