"""Instructions that kernels execute and that their inner loops hold, against benchmarks/results/instructions.json.

Counts are exact and the same on a busy machine, so a kernel that became slower shows here and not in a noisy time. A
count may not grow by more than 2 %; STIC_UPDATE=1 writes the file again, and benchmarks/core_bounds.py derives what the
inner loops allow on Arm's cores. Code depends on the compiler: with another LLVM than the file's it skips.

Needs apache-tvm and a C compiler; the aarch64 targets also need qemu-aarch64 and aarch64-linux-gnu-gcc.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.target.codegen import llvm_version_major

from stic.runtime.format import TILE
from stic.schedules.pack import GROUP, interleave
from stic.schedules.shape import KernelShape

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FILE = BENCHMARKS / "results" / "instructions.json"
MOST = 1.02  # of the recorded count
# Machines of conftest.py whose instruction sets differ in what they multiply with.
COUNTED = ("host", "host-avx-vnni", "x86-64-v3", "aarch64-i8mm", "aarch64-dotprod", "raspberry-pi-4")
K = 768
KEYS = 128
QUERIES = 2  # tiles
VECTORS = 64
INNER_LOOPS = ("stic_dot", "stic_rows_b4")
SHAPE = KernelShape(hidden=384, head_dim=64, activation="relu", embed_epsilon=1e-5, norm_epsilon=1e-12)
GELU = KernelShape(hidden=52, head_dim=20, activation="gelu", embed_epsilon=1e-5, norm_epsilon=1e-12)
TANH = KernelShape(hidden=5, head_dim=8, activation="gelu_tanh", embed_epsilon=1e-5, norm_epsilon=1e-12)

# Multiply-adds of one instruction: bytes of the register it reads from memory or a panel, one product a byte.
MACS: dict[str, int | dict[str, int]] = {
    "vpdpbusd": {"zmm": 64, "ymm": 32},
    "vpmaddubsw": {"zmm": 64, "ymm": 32},
    "smmla": 32,
    "sdot": 16,
    "smull": 8,
    "smull2": 8,
    "smlal": 8,
    "smlal2": 8,
}
# Classes of instructions by the start of their names; the first that fits.
CLASSES = (
    ("dot", ("vpdpb", "vpmaddubsw", "vpmaddwd", "smmla", "sdot", "smull", "smlal", "sadalp", "sadd")),
    ("broadcast", ("vpbroadcast", "vbroadcast", "ld1r", "dup")),
    ("load", ("ldr", "ldp", "ldu", "ld1", "ldn")),
    ("shuffle", ("vpshuf", "vpunpck", "vperm", "vinsert", "vextract", "tbl", "tbx", "zip", "uzp", "trn", "ext")),
)
Call = tuple[str, list[Any]]


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def codes(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


def dot_call(tiles: int) -> Call:
    panel, x = codes(TILE * K), np.zeros((tiles, K, TILE), np.int8)
    sums, y = np.zeros((tiles, TILE), np.int32), floats(tiles, TILE, TILE)
    arguments = [panel, x, sums, floats(tiles, TILE), floats(TILE), floats(TILE), floats(tiles, TILE, TILE), y]
    return "stic_dot", [*arguments, K, K * TILE, TILE, tiles]


def rows_call(rows: int, q: int) -> Call:
    """4 bits."""
    planes = [codes(TILE * K // 8) for _ in range(4)] + [codes(8)] * 4
    x, sums = np.zeros((K // q, TILE, q), np.int8), np.zeros((TILE, TILE), np.int32)
    return "stic_rows_b4", [*planes, np.zeros(16, np.int8), x, sums, TILE * K // GROUP, TILE * q, rows]


def unpack_call(bits: int) -> Call:
    planes = [codes(TILE * K // 8) for _ in range(bits)] + [codes(8)] * (8 - bits)
    return f"stic_unpack_b{bits}", [*planes, np.zeros(1 << bits, np.int8), codes(TILE * K), TILE * K // GROUP]


def quantize_call() -> Call:
    return "stic_quantize", [floats(K, TILE), np.zeros((K, TILE), np.int8), floats(TILE), np.zeros(TILE, np.int32), K]


def attention_call() -> Call:
    """The scratch is that of schedules/cpu/attention.py."""
    tiles, width = KEYS // TILE, SHAPE.head_dim
    qkv, out = [floats(tiles, width, TILE) for _ in range(3)], floats(QUERIES, width, TILE)
    numbers = floats(KEYS * TILE + KEYS + 2 * width)
    panels = np.zeros(2 * KEYS * width + KEYS * TILE + TILE * width, np.int8)
    return "stic_attention", [*qkv, out, numbers, panels, width, width, KEYS, QUERIES]


def add_norm_call() -> Call:
    hidden = SHAPE.hidden
    return "stic_add_norm", [floats(hidden, TILE), floats(hidden, TILE), floats(hidden), floats(hidden)]


def measured(q: int) -> dict[str, tuple[KernelShape, Call, int, str]]:
    """Kernel -> the shape of the model, the call, how many units of work it does, the unit."""
    return {
        **{f"dot, {n} tokens": (GELU, dot_call(n // TILE), TILE * K * n, "MAC") for n in (16, 128)},
        "rows_b4, 1 token": (GELU, rows_call(1, q), TILE * K, "MAC"),
        "rows_b4, 8 tokens": (GELU, rows_call(8, q), TILE * K * 8, "MAC"),
        **{f"unpack_b{b}": (GELU, unpack_call(b), TILE * K // GROUP, "64 weights") for b in range(2, 9)},
        "quantize": (GELU, quantize_call(), K * TILE, "element"),
        "attention": (SHAPE, attention_call(), 2 * KEYS * SHAPE.head_dim * QUERIES * TILE, "MAC"),
        "add_norm": (SHAPE, add_norm_call(), SHAPE.hidden * TILE, "element"),
        "gelu": (GELU, ("stic_activation", [floats(VECTORS, TILE), VECTORS]), VECTORS * TILE, "element"),
        "gelu_tanh": (TANH, ("stic_activation", [floats(VECTORS, TILE), VECTORS]), VECTORS * TILE, "element"),
    }


def counts(machine: Any, encoder: Any) -> dict[str, dict[str, Any]]:
    """What every measured kernel executes; products of codes depend on no shape, and are compiled for one."""
    cases = measured(interleave(machine.target))
    result: dict[str, dict[str, Any]] = {}
    for shape, library in ((SHAPE, encoder), (GELU, machine), (TANH, encoder)):
        names = [name for name, case in cases.items() if case[0] == shape]
        for name, count in zip(names, library.count([cases[name][1] for name in names], shape), strict=True):
            _, _, units, unit = cases[name]
            result[name] = {"instructions": count, "units": units, "unit": unit, "per_unit": round(count / units, 4)}
    return result


def macs_of(instruction: str) -> int:
    macs = MACS.get(instruction.split()[0], 0)
    return macs if isinstance(macs, int) else next(n for register, n in macs.items() if register in instruction)


def class_of(instruction: str) -> str:
    """dot, broadcast, load, shuffle or other."""
    for name, starts in CLASSES:
        if instruction.startswith(starts):
            return name
    return "load" if re.match(r"vmov\S+ +[^,]*\(", instruction) else "other"


def form_of(instruction: str) -> str:
    """A mnemonic, with what its cost on Arm's cores depends on: the register written, registers of a table."""
    mnemonic, operands = instruction.split(maxsplit=1)
    if re.match(r"b(\.|$)|cbn?z|tbn?z|j", mnemonic):
        return "branch"
    if mnemonic in ("tbl", "tbx"):
        first, dash, last = operands[operands.index("{") + 1 : operands.index("}")].partition("-")
        numbers = [int(re.findall(r"v(\d+)", text)[0]) for text in (first, last) if text]
        return f"{mnemonic}{(numbers[1] - numbers[0]) % 32 + 1 if dash else 1 + first.count(',')}"
    if re.match(r"(ld|st)[rpu]+\w?$|add|sub$|mov$", mnemonic) and operands[0] in "vqdsbxw":
        return f"{mnemonic} {operands[0].replace('w', 'x')}"
    return mnemonic


def inner_loop(machine: Any, symbol: str) -> dict[str, Any]:
    """The loop without a loop inside that multiplies: of stic_dot the widest, of stic_rows the first, for one token."""
    code = [(address, text.removeprefix("{vex} ")) for address, text in machine.disassembly(GELU, symbol)]
    place = {address: i for i, (address, _) in enumerate(code)}
    loops = []
    for i, (_, text) in enumerate(code):
        jump = re.match(r"(?:j\w+|b|b\.\w+|cbn?z|tbn?z)\s.*?([0-9a-f]+) <", text)
        if jump and place.get(int(jump[1], 16), i + 1) <= i:
            loops.append((place[int(jump[1], 16)], i))
    inner = [loop for loop in loops if not any(loop[0] <= a and b <= loop[1] and (a, b) != loop for a, b in loops)]
    bodies = [[text for _, text in code[first : last + 1]] for first, last in inner]
    multiplying = [body for body in bodies if any(map(macs_of, body))]
    widest = max(multiplying, key=lambda body: sum(map(macs_of, body)))
    body = widest if symbol == "stic_dot" else multiplying[0]
    macs = sum(map(macs_of, body))
    return {
        "macs": macs,
        "instructions": len(body),
        "per_mac": round(len(body) / macs, 4),
        "classes": dict(sorted(Counter(map(class_of, body)).items())),
        "mnemonics": dict(sorted(Counter(map(form_of, body)).items())),
    }


@pytest.mark.parametrize("machine", COUNTED, indirect=True)
def test_counts(machine: Any, encoder: Any, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["machine"]
    found = {
        "target": machine.target.description,
        "features": list(machine.target.features),
        "executed": counts(machine, encoder),
        "inner_loops": {symbol: inner_loop(machine, symbol) for symbol in INNER_LOOPS},
    }
    compiler = {"tvm": tvm.__version__, "llvm": llvm_version_major()}
    recorded = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if os.environ.get("STIC_UPDATE"):
        targets = recorded.get("targets", {}) if recorded.get("compiler") == compiler else {}
        targets[name] = found
        ordered = {name: targets[name] for name in COUNTED if name in targets}
        kept = {key: value for key, value in recorded.items() if key not in ("compiler", "targets")}
        FILE.write_text(json.dumps({"compiler": compiler, "targets": ordered, **kept}, indent=1) + "\n")
        return
    if recorded["compiler"]["llvm"] != compiler["llvm"]:
        pytest.skip(f"counts are of LLVM {recorded['compiler']['llvm']}, this is LLVM {compiler['llvm']}")
    expected = recorded["targets"].get(name)
    if expected is None or expected["features"] != found["features"]:
        pytest.skip(f"no counts are recorded for {machine.target.description} ({', '.join(machine.target.features)})")
    grown = [
        f"{what} of {kernel} are {now[what]}, were {before[kernel][what]}"
        for part, what in (("executed", "instructions"), ("inner_loops", "per_mac"))
        for before in (expected[part],)
        for kernel, now in found[part].items()
        if now[what] > MOST * before[kernel][what]
    ]
    assert not grown, f"{name}: {'; '.join(grown)} (STIC_UPDATE=1 records the counts of now)"


def test_bounds_follow_from_the_counts() -> None:
    """Those in the file, and the table of docs/kernels.md."""
    command = [sys.executable, str(BENCHMARKS / "core_bounds.py")]
    check = [] if os.environ.get("STIC_UPDATE") else ["--check"]
    done = subprocess.run([*command, *check], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
