"""The engine's own declarations of OpenCL are the specification's; libraries that fail, or do things their own way.

Needs a C compiler; some need OpenCL's headers, or OpenCL, for which PoCL will do.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stic.targets.target import load
from stic.targets.toolchain import build_engine, find_c_compiler

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "runtime" / "src"


def test_declarations_are_the_official_ones(tmp_path: Path) -> None:
    """Every constant has the official value; every function of the table has the official type."""
    if not Path("/usr/include/CL/cl.h").is_file():
        pytest.skip("needs OpenCL's headers (Debian: opencl-c-headers)")
    header = (SOURCES / "opencl.h").read_text()
    values = dict(re.findall(r"\b(CL_\w+) = ([^,}\n]+)", header) + re.findall(r"#define (CL_\w+) (\w+)", header))
    assert len(values) > 45
    checks = [f'_Static_assert({name} == ({value}), "{name}");' for name, value in values.items()]
    functions = re.findall(r"X\([\w ]+\*?, (\w+),", header)
    assert len(functions) > 28
    checks += [f"  check.{name} = cl{name};" for name in functions]
    split = len(values)
    text = [
        "#define CL_TARGET_OPENCL_VERSION 120",
        "#define CL_USE_DEPRECATED_OPENCL_1_1_APIS",
        "#include <CL/cl.h>",
        '#include "opencl.h"',
        *checks[:split],
        "stic_opencl compare(void);",
        "stic_opencl compare(void) {",
        "  stic_opencl check;",
        *checks[split:],
        "  return check;",
        "}",
    ]
    source = tmp_path / "compare.c"
    source.write_text("\n".join(text))
    compiler = find_c_compiler(load("host"))
    line = ["-std=c11", "-Werror", "-Wno-deprecated-declarations", f"-I{SOURCES}", "-c", "-o", str(tmp_path / "o")]
    compiler.run([*line, str(source)], "comparison")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/runtime/faulty_opencl.c as a library."""
    library = tmp_path_factory.mktemp("faulty") / "libfaulty.so"
    source = ROOT / "tests" / "runtime" / "faulty_opencl.c"
    line = ["-std=c11", "-shared", "-fPIC", "-O1", f"-I{SOURCES}", "-o", str(library), str(source), "-ldl"]
    find_c_compiler(load("host")).run(line, "faulty library")
    return library


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stic_run for this machine."""
    return build_engine(load("host"), tmp_path_factory.mktemp("engine")).runner


def run(runner: Path, package: Path, **environment: str) -> dict[str, Any]:
    line = [str(runner), str(package), "--ids", "1,2,3,4,5,6,7,8,9,10", "--json", "--cold", "--runs", "2"]
    line += ["--gpu-use", "required"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, env={**os.environ, **environment})
    assert done.returncode in (0, 1), done.stderr
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {"error": done.stderr}


@pytest.mark.usefixtures("opencl")
@pytest.mark.parametrize("fault", ("none", "moves", "unreadable"))
def test_memory_that_cannot_be_shared_is_replaced(fault: str, gpu_package: Path, runner: Path, faulty: Path) -> None:
    facts = run(runner, gpu_package, STIC_OPENCL=str(faulty), FAULT=fault)
    assert facts["gpu_layers"] == 3
    assert facts["outputs"] == run(runner, gpu_package)["outputs"]


@pytest.mark.usefixtures("opencl")
def test_dot_product_that_the_compiler_refuses_is_done_without(gpu_copy: Path, runner: Path, faulty: Path) -> None:
    fault = {"STIC_OPENCL": str(faulty), "FAULT": "lists cl_qcom_dot_product8"}
    first, second = (run(runner, gpu_copy, **fault) for _ in range(2))
    assert first["gpu_builds"] == 3  # in two standards, then float arithmetic
    assert second["gpu_builds"] == 0
    assert first["outputs"] == second["outputs"] == run(runner, gpu_copy)["outputs"]


@pytest.mark.usefixtures("opencl")
@pytest.mark.parametrize(
    ("fault", "words"),
    (
        ("launch 1", "kernel stic_embed could not be launched (CL_OUT_OF_RESOURCES)"),
        ("launch 9", "could not be launched (CL_OUT_OF_RESOURCES)"),
        ("callback", "clSetEventCallback failed with CL_OUT_OF_HOST_MEMORY"),
    ),
)
def test_device_that_fails_in_a_run(fault: str, words: str, gpu_package: Path, faulty: Path) -> None:
    """The run ends with a sentence, later ones say why they cannot be, and closing works."""
    program = """
import sys
from stic.runtime.errors import EngineError
from stic.runtime.session import Session
with Session(sys.argv[1], gpu="required") as session:
    for _ in range(2):
        try:
            session.run([1, 2, 3])
        except EngineError as error:
            print(error)
"""
    environment = {**os.environ, "STIC_OPENCL": str(faulty), "FAULT": fault}
    line = [sys.executable, "-c", program, str(gpu_package)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment, check=True)
    first, second = done.stdout.splitlines()
    assert words in first
    assert "failed in an earlier run: open the package again" in second
