"""A run takes no memory: counted by a library that stands before libc's allocator. Needs a C compiler and glibc."""

import subprocess
from pathlib import Path

import pytest

from stic.targets.target import load
from stic.targets.toolchain import build_engine, find_c_compiler

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["package", "family"])
def test_runs_and_changes_of_plan_allocate_nothing(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    package: Path = request.getfixturevalue(name)
    target = load("host")
    engine = build_engine(target, tmp_path)
    compiler = find_c_compiler(target)
    counter, program = tmp_path / "libcount.so", tmp_path / "run_and_count"
    tests = ROOT / "tests" / "runtime"
    compiler.run(["-shared", "-fPIC", "-O1", "-o", str(counter), str(tests / "count_allocations.c"), "-ldl"], "counter")
    line = ["-std=c11", "-O1", f"-I{ROOT / 'runtime' / 'include'}", "-o", str(program), str(tests / "run_and_count.c")]
    compiler.run([*line, str(counter), str(engine.library), f"-Wl,-rpath,{tmp_path}"], "program")
    done = subprocess.run([str(program), str(package)], capture_output=True, text=True, timeout=60)
    if "undefined symbol: __libc_" in done.stderr:
        pytest.skip("needs glibc, whose allocator can be wrapped by name")
    assert done.returncode == 0, done.stderr
    taken, before = (int(word) for word in done.stdout.split(" of "))
    assert before > 10, "the counter did not stand before libc's allocator"
    assert taken == 0
