"""The format's two owners agree: runtime/src/format.h and the engine's sizes with runtime/format.py, by value.

Needs a C compiler. A program with the engine's own sources prints enumerators, fields, limits and sizes.
"""

import random
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from stic.compiler.memory.gpu import GpuState, gpu_state
from stic.compiler.memory.placement import LANE_STACK_BYTES, Sizes, regions
from stic.runtime import format as package_format
from stic.runtime import gpu_format
from stic.runtime.format import (
    ACTIVATIONS,
    ARCHITECTURES,
    FEATURES,
    FULL,
    HEADER,
    LEAST,
    LEVEL_BITS,
    LEVELS,
    LIMITS,
    MATRICES,
    POOLINGS,
    REGIONS,
    ROW_TYPES,
    Shape,
    levels_of,
    planes_in,
    record_layout,
    row_stride,
    scratch_bytes,
)
from stic.runtime.gpu_format import GPU_REGIONS, GPU_STYLES, PLACES, PRECISION_BITS
from stic.runtime.native import FLAGS, engine_sources
from stic.targets import target
from stic.targets.target import load
from stic.targets.toolchain import find_c_compiler

ROOT = Path(__file__).resolve().parents[2] / "runtime"
HEADER_TEXT = (ROOT / "src" / "format.h").read_text()
INCLUDED = {f"{name}.c" for name in ("kernels", "package", "package_memory", "package_gpu")}  # by format_header.c

# Numbers of format.h; tuples of Python whose indices are enumerators, by what these and their count are called there.
NUMBERS = {
    "MAJOR": package_format.MAJOR,
    "MINOR": package_format.MINOR,
    "BLOCK": package_format.BLOCK,
    "ALIGN": package_format.ALIGN,
    "TILE": package_format.TILE,
    "LEVELS": LEVELS,
    "FULL": FULL,
    "MATRICES": len(MATRICES),
}
ENUMERATIONS = {
    ("", None): MATRICES,
    ("", "ARCHITECTURES"): ARCHITECTURES,
    ("", "ACTIVATIONS"): ("linear", *ACTIVATIONS[1:]),  # no activation is "none" to Python
    ("", "GPU_STYLES"): GPU_STYLES,
    ("ON_", "PLACES"): PLACES,
    ("POOL_", "POOLINGS"): POOLINGS,
    ("ROW_", "ROW_TYPES"): ROW_TYPES,
    ("HAS_", "FEATURES"): FEATURES,
    ("REGION_", "REGIONS"): REGIONS,
    ("GPU_", "GPU_REGIONS"): GPU_REGIONS,
}
ENUMERATORS = {
    f"{prefix}{name.upper()}": value for (prefix, _), names in ENUMERATIONS.items() for value, name in enumerate(names)
} | {count: len(names) for (_, count), names in ENUMERATIONS.items() if count}
STRUCTURES = {
    "stic_header": HEADER,
    "stic_file": package_format.FILE,
    "stic_layer": package_format.LAYER,
    "stic_record": package_format.RECORD,
    "stic_extent": package_format.EXTENT,
    "stic_dense": package_format.DENSE,
    "stic_region": package_format.REGION,
    "stic_plan_entry": package_format.PLAN,
    "stic_gpu_part": gpu_format.GPU,
    "stic_launch": gpu_format.LAUNCH,
}


def enumerators() -> list[str]:
    """All enumerators of format.h, without what each begins with."""
    code = re.sub(r"/\*.*?\*/", "", HEADER_TEXT, flags=re.S)
    return [name for body in re.findall(r"enum \{(.*?)\}", code, re.S) for name in re.findall(r"\bSTIC_(\w+)", body)]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/runtime/format_header.c with the engine."""
    folder = tmp_path_factory.mktemp("header")
    lines = [f"NUMBER(STIC_{name})" for name in enumerators()]
    for structure, dtype in STRUCTURES.items():
        lines += [f"STRUCTURE({structure})", *(f"FIELD({structure}, {name})" for name in dtype.names)]
    (folder / "facts.inc").write_text("\n".join(lines) + "\n")
    parts = [str(path) for path in engine_sources(ROOT).library if path.name not in INCLUDED]
    source = str(Path(__file__).with_name("format_header.c"))
    includes = [f"-I{path}" for path in (ROOT / "include", ROOT / "src", folder)]
    made = folder / "format_header"
    find_c_compiler(load("host")).run([*FLAGS, "-O0", *includes, source, *parts, "-o", str(made), "-ldl"], "facts")
    return made


@pytest.fixture(scope="module")
def facts(program: Path) -> dict[str, tuple[int, ...]]:
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=True)
    return {name: tuple(map(int, rest)) for name, *rest in map(str.split, done.stdout.splitlines())}


def below(facts: dict[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    """The facts whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in facts.items() if name.startswith(prefix)}


def test_numbers_and_enumerators(facts: dict[str, tuple[int, ...]]) -> None:
    assert {name: facts[f"STIC_{name}"][0] for name in enumerators()} == NUMBERS | ENUMERATORS


def test_every_structure_is_compared() -> None:
    assert set(re.findall(r"typedef struct STIC_PACKED (\w+)", HEADER_TEXT)) == set(STRUCTURES)


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(name: str, facts: dict[str, tuple[int, ...]]) -> None:
    dtype = STRUCTURES[name]
    wanted = {}
    for field in dtype.names:
        kind, at, *_ = dtype.fields[field]
        number = ord(kind.kind) if kind.kind in "uif" and kind.shape == () else 0
        wanted[field] = (at, kind.itemsize, number)
    assert below(facts, f"{name}.") == wanted and facts[name] == (dtype.itemsize,)
    assert sum(size for _, size, _ in wanted.values()) == dtype.itemsize  # packed: C has no field beside these


def test_limits(facts: dict[str, tuple[int, ...]]) -> None:
    assert below(facts, "limit.") == {name: (LEAST.get(name, 0), most) for name, most in LIMITS.items()}
    assert set(LEAST) <= set(LIMITS) <= set(HEADER.names)


def test_facts_that_no_header_of_the_format_holds(facts: dict[str, tuple[int, ...]]) -> None:
    assert below(facts, "architecture.") == {name: (i,) for i, name in enumerate(ARCHITECTURES)}
    assert below(facts, "level_bits.") == {str(level): (bits,) for level, bits in enumerate(LEVEL_BITS)}
    assert facts["lane_stack_bytes"] == (LANE_STACK_BYTES,)
    assert facts["MOST_LAUNCHES"] == (gpu_format.MOST_LAUNCHES,)
    assert facts["codes_bytes"] == (gpu_format.CODES_BYTES,)
    assert facts["stic_header.cores"][1] * 8 == target.MOST_CORES


def shapes(count: int) -> list[dict[str, int]]:
    """Random shapes, and the smallest and largest ones; sizes that are not multiples of a tile among them."""
    rng = random.Random(0)

    def one(edge: int | None) -> dict[str, int]:
        def number(most: int, least: int = 1) -> int:
            return rng.randint(least, most) if edge is None else (least, most)[edge]

        hidden = number(400)
        return {
            "hidden": hidden,
            "heads_per_slice": number(4),
            "head_dim": number(70),
            "neurons_per_slice": number(300),
            "slices": number(6),
            "max_length": number(300),
            "threads": number(8),
            "lanes": number(4),
            "row_lanes": number(8, 4),
            "row_stride": row_stride(hidden, ROW_TYPES[number(1, 0)]),
            "nested": number(1, 0),
            "full_bits": (0, 16, 32)[number(2, 0)],
            "pooling": number(2, 0),
            "output_features": number(500),
            "dense": number(1, 0) * number(500),
            "embeddings_bytes": number(1, 0) * number(50) * 4096,
            "trunk_bytes": number(9999),
            "storage_bits": (16, 32)[number(1, 0)],
        }

    return [one(0), one(1), *(one(None) for _ in range(count))]


def levels(shape: Shape, nested: bool, full_bits: int) -> list[int]:
    """What the engine's program prints of levels and of the layout of their records."""
    found = [level for bits in LEVEL_BITS for level in (levels_of(bits, nested)[0], levels_of(bits, nested)[-1])]
    for level in range(LEVELS if full_bits else FULL):
        layout = record_layout(shape, level, nested, full_bits)
        found.append(1 if level == FULL else planes_in(level, nested))
        for matrix in range(len(MATRICES)):
            found += layout.planes[matrix]
            found += [part[matrix] for part in (layout.tables, layout.blocks) if part]
        found.append(layout.size)
    return found


def arena(z: Sizes, table_bytes: int, dense: bool) -> list[int]:
    """Bytes of each region; a plan decides about those of its weights, and where there is no head it has no region."""
    placed, _ = regions(z, 0, 0, table_bytes)
    return [0 if name == "head" and not dense else placed[name][1] for name in REGIONS]


def test_sizes(program: Path) -> None:
    given = shapes(150)
    states: list[GpuState] = []
    wanted: list[list[int]] = []
    lines: list[Sequence[int]] = []
    for one in given:
        shape = Shape(one["hidden"], one["heads_per_slice"], one["head_dim"], one["neurons_per_slice"])
        vectors = one["max_length"] if POOLINGS[one["pooling"]] == "tokens" else 1
        z = Sizes(
            shape,
            one["slices"],
            one["max_length"],
            one["trunk_bytes"],
            one["row_stride"],
            max(one["dense"], one["hidden"]) if one["dense"] else 0,
            vectors * one["output_features"],
            one["threads"],
            one["lanes"],
            one["row_lanes"],
            1 << 18,
        )
        precision = {bits: name for name, bits in PRECISION_BITS.items()}[one["storage_bits"]]
        states.append(gpu_state(z, precision))
        lines.append([*one.values(), states[-1].scores_tiles])
        wanted.append(
            [scratch_bytes(z.max_length, shape.head_dim)]
            + arena(z, one["embeddings_bytes"], one["dense"] > 0)
            + levels(shape, bool(one["nested"]), one["full_bits"])
            + [states[-1].regions[name][1] for name in GPU_REGIONS]
        )
    text = "\n".join(" ".join(map(str, line)) for line in lines)
    done = subprocess.run([str(program), "shapes"], input=text, capture_output=True, text=True, timeout=60, check=True)
    found = [line.split() for line in done.stdout.splitlines()]
    for one, expected, line in zip(given, wanted, found, strict=True):
        assert line == [str(number) for number in expected], one
