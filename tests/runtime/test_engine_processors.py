"""What the engine knows of processors: their features, and on which of them compute threads run. Needs a C compiler."""

import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from stic.runtime.format import FEATURES
from stic.targets import target as targets
from stic.targets.target import load
from stic.targets.toolchain import find_c_compiler

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = sorted(os.sched_getaffinity(0))


def build(target: str, folder: Path) -> Path:
    program = folder / "processors"
    source = ROOT / "runtime" / "src"
    parts = [source / f"{name}.c" for name in ("pool", "platform", "error")]
    files = [Path(__file__).with_name("processors.c"), *parts]
    flags = ["-std=c11", "-O2", "-pthread", f"-I{source}", f"-I{ROOT / 'runtime' / 'include'}"]
    find_c_compiler(load(target)).run([*flags, *map(str, files), "-o", str(program)], "processors")
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("host", tmp_path_factory.mktemp("processors"))


def features(*command: str | Path) -> set[str]:
    done = subprocess.run([*map(str, command), "features"], capture_output=True, text=True, timeout=60, check=True)
    return {name for i, name in enumerate(FEATURES) if int(done.stdout) >> i & 1}


def bits(processors: list[int]) -> int:
    return sum(1 << n for n in processors if n < 64)


def pool(program: Path, cores: int, allowed: list[int] = ALLOWED) -> dict[str, list[int]]:
    """What the program prints for a process that may use the processors `allowed`."""
    command = [str(program), "pool", str(cores)]
    limit = partial(os.sched_setaffinity, 0, allowed)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, preexec_fn=limit)
    return {name: list(map(int, rest)) for name, *rest in map(str.split, done.stdout.splitlines())}


def test_features_are_those_that_the_system_shows(program: Path) -> None:
    flags = targets._cpu_flags()
    assert features(program) == {name for name, flag in targets.CPU_FLAGS.items() if flag in flags}


def test_features_of_arm_processors(tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None or shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("needs qemu-aarch64 and aarch64-linux-gnu-gcc (Debian: qemu-user, gcc-aarch64-linux-gnu)")
    program = build("aarch64-i8mm", tmp_path)
    emulator = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu")
    assert features(*emulator, "cortex-a53", program) == {"asimd"}
    assert features(*emulator, "cortex-a76", program) == {"asimd", "asimddp"}
    assert features(*emulator, "max", program) == {"asimd", "asimddp", "i8mm"}


def test_threads_may_run_anywhere_where_no_core_is_named(program: Path) -> None:
    seen, everywhere = pool(program, 0), bits(ALLOWED)
    assert seen["idle"] == [everywhere] * 2 and seen["lane"] == [everywhere] and seen["caller"] == [everywhere] * 3


@pytest.mark.parametrize("core", ALLOWED[:2])
def test_compute_keeps_to_the_named_cores(program: Path, core: int) -> None:
    seen, everywhere = pool(program, 1 << core), bits(ALLOWED)
    assert seen["idle"] == seen["run"] == [1 << core] * 2
    assert seen["caller"] == [everywhere, 1 << core, everywhere]
    assert seen["lane"] == [everywhere]


def test_cores_that_do_not_exist_are_ignored(program: Path) -> None:
    assert pool(program, 1 << 63)["idle"] == [bits(ALLOWED)] * 2
    both = (1 << 63) | (1 << ALLOWED[0])
    assert pool(program, both)["idle"] == [1 << ALLOWED[0]] * 2


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two processors")
def test_cores_that_the_process_may_not_use_are_ignored(program: Path) -> None:
    here, there = ALLOWED[:2]
    seen = pool(program, 1 << there, [here])
    assert seen["idle"] == seen["run"] == [1 << here] * 2 and seen["caller"] == [1 << here] * 3


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two processors")
@pytest.mark.parametrize("named", [False, True])
def test_workers_keep_off_the_callers_processor(program: Path, named: bool) -> None:
    everywhere = bits(ALLOWED)
    seen = pool(program, everywhere if named else 0)
    (off,) = seen["off"]
    assert off in ALLOWED and seen["run"] == [everywhere & ~(1 << off)] * 2
