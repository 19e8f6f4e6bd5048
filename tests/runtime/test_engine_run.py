"""The C engine gives the reference's answer: every bitwidth, submodel and residence; also for aarch64, under QEMU.

Needs a C compiler; the aarch64 cases need a cross compiler and qemu-aarch64.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.targets.target import load
from stic.targets.toolchain import build_engine

LENGTHS = (1, 15, 16, 17, 40)
MIXED = ((16, 8, 5, 2), (6, 4, 3), (), (4, 4, 2, 2))
CASES: dict[str, dict[str, Any]] = {
    **{f"{bits} bits": dict(bits=((bits,) * 4, (bits,) * 4)) for bits in (2, 3, 4, 5, 6, 7, 8, 16)},
    "32 bits": dict(bits=((32,) * 4,) * 2, full_bits=32),
    "mixed, streamed": dict(bits=MIXED),
    "mixed, partly resident": dict(bits=MIXED, resident=((0, 4, 2, 2), (6, 3, 0), (), (0, 0, 0, 0))),
    "resident": dict(bits=MIXED, resident=MIXED, table_resident=True),
    "last layer left out": dict(bits=((4, 4), (3,), ())),
    "odd sizes": dict(bits=((8, 3), (4, 4)), hidden=40, heads=2, head_dim=20, ffn=50, slices=2, activation="relu"),
    "wide rows": dict(bits=((4,),), hidden=4096, heads=1, head_dim=16, ffn=32, slices=1),
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stic_run for this machine."""
    return build_engine(load("host"), tmp_path_factory.mktemp("engine")).runner


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command that runs an aarch64 stic_run under QEMU."""
    if shutil.which("qemu-aarch64") is None or shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("needs qemu-aarch64 and aarch64-linux-gnu-gcc (Debian: qemu-user, gcc-aarch64-linux-gnu)")
    runner = build_engine(load("aarch64-dotprod"), tmp_path_factory.mktemp("aarch64")).runner
    return ["qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu", str(runner)]


def run(command: list[str], package: Path, inputs: list[np.ndarray], *options: str) -> list[np.ndarray]:
    """Outputs of stic_run for mean-pooled inputs."""
    file, output = package.with_suffix(".ids"), package.with_suffix(".out")
    file.write_bytes(b"".join(np.array([len(ids), *ids], "<i4").tobytes() for ids in inputs))
    line = [*command, str(package), "--ids-file", str(file), "--output", str(output), *options]
    subprocess.run(line, check=True, timeout=120, stdout=subprocess.DEVNULL)
    return list(np.fromfile(output, "<f4").reshape(len(inputs), -1))


def assert_same(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    """Equal but for the order in which the head sums; had one int8 inside differed, it would show a thousandfold."""
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


def inputs_for(package: Path) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(0, int(Package.open(package).model["vocabulary"]), n) for n in LENGTHS]


@pytest.mark.parametrize("case", CASES)
def test_engine_equals_reference(case: str, make_package: Callable[..., Path], runner: Path) -> None:
    package = make_package(**CASES[case])
    inputs = inputs_for(package)
    reference = Reference(Package.open(package))
    want = [reference.run(ids) for ids in inputs]
    assert_same(run([str(runner)], package, inputs), want)


@pytest.mark.parametrize("options", (["--threads", "1"], ["--lanes", "1"], ["--buffered"], ["--cold", "--runs", "3"]))
def test_options_do_not_change_the_answer(options: list[str], package: Path, runner: Path) -> None:
    inputs = inputs_for(package)
    plain = run([str(runner)], package, inputs)
    assert np.array_equal(run([str(runner)], package, inputs, *options), plain)


@pytest.mark.parametrize("case", ("mixed, partly resident", "odd sizes", "8 bits", "2 bits"))
def test_avx2_engine_equals_reference(case: str, make_package: Callable[..., Path], runner: Path) -> None:
    target = load("x86-64-v3")
    if target.missing_features:
        pytest.skip(f"this machine lacks {', '.join(target.missing_features)}")
    package = make_package(**CASES[case], target=target.name)
    inputs = inputs_for(package)
    reference = Reference(Package.open(package))
    assert_same(run([str(runner)], package, inputs), [reference.run(ids) for ids in inputs])


@pytest.mark.parametrize("case", CASES)
def test_aarch64_engine_equals_reference(case: str, make_package: Callable[..., Path], aarch64: list[str]) -> None:
    package = make_package(**CASES[case], target="aarch64-dotprod")
    inputs = inputs_for(package)
    reference = Reference(Package.open(package))
    assert_same(run(aarch64, package, inputs), [reference.run(ids) for ids in inputs])


def test_cpu_without_what_the_package_needs(make_package: Callable[..., Path], aarch64: list[str]) -> None:
    package = make_package(bits=((4, 4),), target="aarch64-dotprod")
    old = [word if word != "max" else "cortex-a53" for word in aarch64]
    done = subprocess.run([*old, str(package), "--ids", "1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "lacks" in done.stderr and "dot product" in done.stderr


def test_other_architecture(make_package: Callable[..., Path], runner: Path) -> None:
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("needs a compiler for aarch64 (Debian: gcc-aarch64-linux-gnu)")
    package = make_package(bits=((4, 4),), target="aarch64-dotprod")
    done = subprocess.run([str(runner), str(package), "--ids", "1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "compiled for aarch64" in done.stderr


def test_json_and_trace(package: Path, runner: Path, tmp_path: Path) -> None:
    trace = tmp_path / "run.json"
    line = [str(runner), str(package), "--ids", "5,6,7", "--runs", "4", "--json", "--trace", str(trace)]
    facts = json.loads(subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert facts["runs"] == 4 and len(facts["outputs"][0]) == 64
    assert facts["peak_bytes"] <= facts["claimed_bytes"]
    assert facts["median_us"] <= facts["p95_us"]
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"compute", "IO lane 0", "IO lane 1"} <= {e["args"].get("name") for e in events if e["ph"] == "M"}
    assert {"read", "rows", "check", "qkv", "down", "head"} <= {e["name"] for e in events if e["ph"] == "X"}


def test_runs_under_a_budget(family: Path, runner: Path) -> None:
    plans = Package.open(family).plans
    ids = np.arange(5)
    for options, number in (([], 0), (["--deadline-us", "4000"], 3), (["--memory-bytes", "MOST"], len(plans) - 1)):
        most = max(plan.claimed_bytes for plan in plans)
        line = [str(runner), str(family), "--ids", "0,1,2,3,4", "--json", "--runs", "3"]
        line += [option.replace("MOST", str(most)) for option in options]
        facts = json.loads(subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout)
        assert (facts["plan"], facts["claimed_bytes"]) == (number, plans[number].claimed_bytes)
        assert facts["predicted_us"] == plans[number].predicted_us
        assert len(facts["times_us"]) == 3 and sorted(facts["times_us"])[1] == facts["median_us"]
        want = Reference(Package.open(family).with_plan(number)).run(ids)
        assert_same([np.array(facts["outputs"][0])], [want])
    line = [str(runner), str(family), "--ids", "1"]
    done = subprocess.run([*line, "--memory-bytes", "9"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "no plan of the package" in done.stderr
    done = subprocess.run(line, check=True, capture_output=True, text=True, timeout=60)
    assert f"plan 0 of {len(plans)}" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    (
        [],
        ["PACKAGE"],
        ["PACKAGE", "--ids", "1,x"],
        ["PACKAGE", "--ids", "1", "--runs", "-3"],
        ["PACKAGE", "--ids", "1", "--types", "0,0"],
        ["PACKAGE", "--ids"],
        ["PACKAGE", "--ids-file", "/nonexistent"],
        ["PACKAGE", "--unknown", "1"],
    ),
)
def test_wrong_usage(arguments: list[str], runner: Path) -> None:
    done = subprocess.run([str(runner), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--help" in done.stderr


def test_help(runner: Path) -> None:
    done = subprocess.run([str(runner), "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "--io-limit" in done.stdout and "--io-requests" in done.stdout


def test_resident_memory_stays_within_the_claim(package: Path, runner: Path) -> None:
    line = [str(runner), str(package), "--ids", "1,2,3", "--runs", "20", "--json"]
    facts = json.loads(subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert facts["rss_bytes"] <= facts["claimed_bytes"] + (2 << 20)
