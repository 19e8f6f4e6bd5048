"""Opening a package with a GPU part: compiled programs beside it, and what happens where the GPU cannot be had.

Needs OpenCL; PoCL, which runs it on the CPU, will do. Limits of a device are Oclgrind's, which lets them be chosen.
"""

import json
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.runtime.errors import PackageError
from stic.runtime.format import FILE
from stic.runtime.package import Package
from stic.runtime.session import Session
from stic.targets.target import load
from stic.targets.toolchain import build_engine, find_c_compiler

ROOT = Path(__file__).resolve().parents[2]
IDS = "1,2,3,4,5,6,7,8,9"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stic_run for this machine."""
    return build_engine(load("host"), tmp_path_factory.mktemp("engine")).runner


pytestmark = pytest.mark.usefixtures("opencl")


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/runtime/serial_opencl.c as a library."""
    if shutil.which("oclgrind") is None:
        pytest.skip("needs oclgrind (Debian: oclgrind)")
    library = tmp_path_factory.mktemp("serial") / "libserial.so"
    source = ROOT / "tests" / "runtime" / "serial_opencl.c"
    line = ["-std=c11", "-shared", "-fPIC", "-O1", f"-I{ROOT / 'runtime' / 'src'}", "-o", str(library)]
    find_c_compiler(load("host")).run([*line, str(source), "-ldl", "-lpthread"], "serial library")
    return library


def under_oclgrind(serial: Path) -> tuple[str, ...]:
    """Oclgrind before a program that is told to load it, through the library that has it do one thing at a time."""
    return ("env", f"STIC_OPENCL={serial}", "oclgrind")


@pytest.fixture
def oclgrind(serial: Path) -> tuple[str, ...]:
    return under_oclgrind(serial)


def run(runner: Path, package: Path, *options: str, prefix: tuple[str, ...] = (), **environment: str) -> Any:
    """What stic_run says: its JSON, or its complaint as {"error": sentence}."""
    line = [*prefix, str(runner), str(package), "--ids", IDS, "--json", *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, env={**os.environ, **environment})
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr}


def cached(package: Path) -> list[Path]:
    return sorted(package.glob("opencl-*"))


def test_second_open_compiles_nothing(gpu_copy: Path) -> None:
    with Session(gpu_copy, gpu="required") as session:
        assert session.stats().gpu_builds == 1
        before = session.run([1, 2, 3])
    (file,) = cached(gpu_copy)
    with Session(gpu_copy, gpu="required") as session:
        assert session.stats().gpu_builds == 0
        assert np.array_equal(session.run([1, 2, 3]), before)
    assert cached(gpu_copy) == [file]
    with Session(gpu_copy, gpu="required", gpu_arithmetic="int8") as session:  # other options, another program
        assert session.stats().gpu_builds == 1
    assert len(cached(gpu_copy)) == 2


@pytest.mark.parametrize("damage", ("empty", "short", "flipped", "of another driver", "a folder"))
def test_damaged_cache_is_replaced(damage: str, gpu_copy: Path) -> None:
    with Session(gpu_copy, gpu="required") as session:
        before = session.run([1, 2, 3])
    (file,) = cached(gpu_copy)
    good = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    else:
        flipped = bytearray(good)
        flipped[-1000] ^= 4
        changed = {"empty": b"", "short": good[:-1], "flipped": bytes(flipped)}
        file.write_bytes(changed.get(damage, good.replace(b"\ndriver ", b"\ndrover ", 1)))
    with Session(gpu_copy, gpu="required") as session:
        assert session.stats().gpu_builds == 1
        assert np.array_equal(session.run([1, 2, 3]), before)
    if damage != "a folder":
        with Session(gpu_copy, gpu="required") as session:
            assert session.stats().gpu_builds == 0
    assert len(cached(gpu_copy)) == 1  # and no temporary file


def test_folder_that_cannot_be_written_to(gpu_package: Path, runner: Path, serial: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to run as a user who may only read the package")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        package = Path(shutil.copytree(gpu_package, folder / "model.stic", ignore=shutil.ignore_patterns("opencl-*")))
        checker = under_oclgrind(Path(shutil.copy(serial, folder)))
        line = [*checker, shutil.copy(runner, folder), str(package), "--ids", IDS, "--json", "--gpu-use", "required"]
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=240, user=65534, group=65534, extra_groups=[]
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["gpu_builds"] == 1
        assert not cached(package)


def test_no_opencl(gpu_package: Path, runner: Path) -> None:
    facts = run(runner, gpu_package, STIC_OPENCL="/nowhere/libOpenCL.so")
    assert facts["gpu_layers"] == 0 and "/nowhere/libOpenCL.so, which cannot be loaded" in facts["device"]
    on_cpu = run(runner, gpu_package, "--gpu-use", "off")
    assert facts["outputs"] == on_cpu["outputs"]
    assert facts["peak_bytes"] <= facts["claimed_bytes"]
    refused = run(runner, gpu_package, "--gpu-use", "required", STIC_OPENCL="/nowhere/libOpenCL.so")
    assert "cannot be loaded" in refused["error"]
    libc = run(runner, gpu_package, "--gpu-use", "required", STIC_OPENCL="libc.so.6")
    assert "libc.so.6 has no function clGetPlatformIDs" in libc["error"]


def test_no_such_device(gpu_package: Path, runner: Path) -> None:
    refused = run(runner, gpu_package, "--gpu-use", "required", STIC_OPENCL_DEVICE="Voodoo")
    assert 'no OpenCL device has "Voodoo"' in refused["error"]


def test_plan_that_needs_its_gpu(make_gpu_package: Callable[..., Path], runner: Path) -> None:
    package = make_gpu_package(fallback=False)
    refused = run(runner, package, STIC_OPENCL="/nowhere/libOpenCL.so")
    assert "cannot be loaded" in refused["error"]
    assert run(runner, package, "--gpu-use", "off")["gpu_layers"] == 0


def rewrite_program(package: Path, text: bytes, with_header: Callable[..., bytes]) -> None:
    """Replace kernels.cl, and its size and checksum in the index."""
    index = bytearray((package / "index.bin").read_bytes())
    opened = Package.open(package)
    at = int(opened.header["files_at"])
    rows = np.frombuffer(index, FILE, int(opened.header["files"]), at).copy()
    row = next(row for row in rows if row["name"] == b"kernels.cl")
    row["bytes"], row["crc"] = len(text), zlib.crc32(text)
    index[at : at + rows.nbytes] = rows.tobytes()
    (package / "kernels.cl").write_bytes(text)
    (package / "index.bin").write_bytes(with_header(bytes(index)))


def test_kernel_that_the_driver_refuses(
    gpu_copy: Path, runner: Path, oclgrind: tuple[str, ...], with_header: Callable[..., bytes]
) -> None:
    text = (gpu_copy / "kernels.cl").read_bytes()
    name = b"__kernel void stic_softmax("
    assert text.count(name) == 1
    rewrite_program(gpu_copy, text.replace(name, b"__kernel voyd stic_softmax("), with_header)
    facts = run(runner, gpu_copy, prefix=oclgrind)
    assert facts["gpu_layers"] == 0 and "refused by the compiler" in facts["device"] and "voyd" in facts["device"]
    refused = run(runner, gpu_copy, "--gpu-use", "required", prefix=oclgrind)["error"]
    assert "stic_softmax of kernels.cl was refused by the compiler" in refused
    assert not cached(gpu_copy)
    rewrite_program(gpu_copy, text.replace(name, b"__kernel void stic_softmix("), with_header)
    assert "kernel stic_softmax" in run(runner, gpu_copy, "--gpu-use", "required", prefix=oclgrind)["error"]


def test_damaged_program_text_is_no_reason_to_fall_back(gpu_copy: Path) -> None:
    text = bytearray((gpu_copy / "kernels.cl").read_bytes())
    text[100] ^= 1
    (gpu_copy / "kernels.cl").write_bytes(text)
    with pytest.raises(PackageError, match=r"kernels\.cl is corrupt"):
        Session(gpu_copy)
    Session(gpu_copy, gpu="off").close()


@pytest.mark.parametrize(
    ("option", "words"),
    (
        (("--max-wgsize", "4"), "work-items along axis 0"),
        (("--local-mem-size", "1024"), "bytes of local memory"),
        (("--global-mem-size", "65536"), "more than"),
    ),
)
def test_limits_of_the_device(
    option: tuple[str, ...], words: str, gpu_copy: Path, runner: Path, oclgrind: tuple[str, ...]
) -> None:
    refused = run(runner, gpu_copy, "--gpu-use", "required", prefix=(*oclgrind, *option))
    assert words in refused["error"] and "Oclgrind" in refused["error"]
    facts = run(runner, gpu_copy, prefix=(*oclgrind, *option))
    assert facts["gpu_layers"] == 0 and words in facts["device"]


def test_oclgrind_finds_nothing(gpu_copy: Path, runner: Path, oclgrind: tuple[str, ...]) -> None:
    """Accesses out of bounds, races and misuse of the API. Its check for values that were never written crashes where
    another thread than the first maps a buffer, as IO lanes do; kernels have that check in tests/schedules/opencl."""
    line = [
        *oclgrind,
        "--check-api",
        "--data-races",
        str(runner),
        str(gpu_copy),
        "--gpu-use",
        "required",
        "--runs",
        "2",
    ]
    for arithmetic, ids in (("float", IDS), ("int8", "3,4,5")):
        options = ["--cold", "--ids", ids, "--gpu-arithmetic", arithmetic, "--json"]
        done = subprocess.run([*line, *options], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["gpu_layers"] == 3 and "Oclgrind" in facts["device"]
        assert done.stderr == "" and "null" not in done.stdout, done.stderr[-3000:]


def struct_at(package: Path) -> tuple[int, bytes]:
    """Where the GPU part is in the index, and the index."""
    return int(Package.open(package).header["gpu_at"]), (package / "index.bin").read_bytes()


def test_a_launch_that_is_missing(gpu_copy: Path, runner: Path, with_header: Callable[..., bytes]) -> None:
    at, index = struct_at(gpu_copy)
    (launches_at,) = struct.unpack_from("<I", index, at + 12)
    changed = bytearray(index)
    changed[launches_at : launches_at + 6] = b"astic_"
    (gpu_copy / "index.bin").write_bytes(with_header(bytes(changed)))
    assert "does not say how kernel stic_" in run(runner, gpu_copy, "--gpu-use", "required")["error"]
    assert run(runner, gpu_copy)["gpu_layers"] == 0
