"""The format's two owners agree: runtime/src/format.h and the engine's sizes with runtime/format.py, by value.

Needs a C compiler. A program with the engine's own sources prints enumerators, fields, limits and sizes.
"""

import random
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from stic.compiler.memory.gpu import gpu_state
from stic.compiler.memory.placement import LANE_STACK_BYTES, DecoderSizes, Sizes, regions
from stic.runtime import format as package_format
from stic.runtime import gpu_format
from stic.runtime.format import (
    ACTIVATIONS,
    CACHES,
    FEATURES,
    FULL,
    HEADER,
    KINDS,
    LEVEL_BITS,
    LEVELS,
    MACHINES,
    MATRICES,
    MODEL,
    NORMS,
    POOLINGS,
    REGIONS,
    ROLES,
    ROW_TYPES,
    SHAPE,
)
from stic.runtime.gpu_format import GPU_REGIONS, GPU_STYLES, PLACES, PRECISION_BITS
from stic.runtime.layout import Shape, levels_of, planes_in, record_layout, row_stride, scratch_bytes
from stic.runtime.limits import LEAST, LIMITS
from stic.runtime.native import FLAGS, engine_sources
from stic.targets import target
from stic.targets.target import load
from stic.targets.toolchain import find_c_compiler

ROOT = Path(__file__).resolve().parents[2] / "runtime"
HEADER_TEXT = (ROOT / "src" / "format.h").read_text()
INCLUDED = {f"{name}.c" for name in ("kernels", "package", "package_memory", "package_model", "package_gpu")}

# Numbers of format.h; tuples of Python whose indices are enumerators, by what these and their count are called there.
NUMBERS = {
    "MAJOR": package_format.MAJOR,
    "MINOR": package_format.MINOR,
    "BLOCK": package_format.BLOCK,
    "ALIGN": package_format.ALIGN,
    "TILE": package_format.TILE,
    "LEVELS": LEVELS,
    "FULL": FULL,
    "GROUP": package_format.GROUPS[-1],
    "ROLES": len(ROLES),
    "LAYER_MATRICES": len(MATRICES["layer"]),
    "FLAGS": (1 << len(package_format.FLAGS)) - 1,
    **{name.upper(): 1 << bit for bit, name in enumerate(package_format.FLAGS)},
}
EVERY_MATRIX = tuple(dict.fromkeys(name for names in MATRICES.values() for name in names))
ENUMERATIONS = {
    ("", "MATRICES"): EVERY_MATRIX,
    ("", "KINDS"): KINDS,
    ("", "MACHINES"): MACHINES,
    ("", "CACHES"): ("no_cache", *(f"cache_{name}" for name in CACHES[1:])),
    ("", "NORMS"): tuple(f"{name}_norm" for name in NORMS),
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
} | {count: len(names) for (_, count), names in ENUMERATIONS.items()}
STRUCTURES = {
    "stic_header": HEADER,
    "stic_file": package_format.FILE,
    "stic_model": MODEL,
    "stic_shape": SHAPE,
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
    beside = {"stic_block", "stic_linear", "stic_norm"}  # see `test_the_structure_of_a_block`
    assert set(re.findall(r"typedef struct STIC_PACKED (\w+)", HEADER_TEXT)) == set(STRUCTURES) | beside


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


def test_the_structure_of_a_block() -> None:
    """In C maps and norms have structures of their own, in the order of ROLES."""
    code = re.sub(r"/\*.*?\*/", "", HEADER_TEXT, flags=re.S)
    body = re.search(r"typedef struct STIC_PACKED stic_block \{(.*?)\}", code, re.S)
    assert body is not None
    names = re.findall(r"(\w+)(?:\[STIC_MATRICES\])?[,;]", body[1])
    parts = {"matrix": [f"{m}_{part}_at" for m in EVERY_MATRIX for part in ("scale", "bias")]}
    parts |= {name: [f"{name}_{part}_at" for part in ("gamma", "beta")] for name in names[names.index("matrix") + 1 :]}
    assert [field for name in names for field in parts.get(name, [name])] == list(package_format.BLOCK_ENTRY.names)


@pytest.mark.parametrize(("name", "dtype"), [("header", HEADER), ("model", MODEL), ("shape", SHAPE)])
def test_limits(name: str, dtype: np.dtype, facts: dict[str, tuple[int, ...]]) -> None:
    bounds = {field: (LEAST.get(field, 0), LIMITS[field]) for field in dtype.names if field in LIMITS}
    assert below(facts, f"limit.{name}.") == bounds
    assert set(LEAST) <= set(LIMITS)


def test_facts_that_no_header_of_the_format_holds(facts: dict[str, tuple[int, ...]]) -> None:
    assert below(facts, "machine.") == {name: (i,) for i, name in enumerate(MACHINES)}
    assert below(facts, "level_bits.") == {str(level): (bits,) for level, bits in enumerate(LEVEL_BITS)}
    assert facts["lane_stack_bytes"] == (LANE_STACK_BYTES,)
    assert facts["MOST_LAUNCHES"] == (gpu_format.MOST_LAUNCHES,)
    assert facts["codes_bytes"] == (gpu_format.CODES_BYTES,)
    assert facts["stic_header.cores"][1] * 8 == target.MOST_CORES


@dataclass(frozen=True)
class Given:
    """A model, as the engine's program is told of it."""

    numbers: dict[str, int]
    shapes: tuple[Shape, ...]
    storage_bits: int

    @property
    def sizes(self) -> Sizes:
        n = self.numbers
        decoder = None
        if n["causal"]:
            decoder = DecoderSizes(n["chunk"], package_format.GROUPS[-1], CACHES[1 + n["pooling"]], 1, 8)
        vectors = n["max_length"] if POOLINGS[n["pooling"]] == "tokens" else 1
        head = max(n["dense"], n["hidden"]) if n["dense"] else 0
        output = 0 if n["causal"] else vectors * n["output_features"]
        lanes = (n["threads"], n["lanes"], n["row_lanes"], 1 << 18)
        return Sizes(self.shapes, n["max_length"], n["trunk_bytes"], n["row_stride"], head, output, *lanes, decoder)


def given(count: int) -> list[Given]:
    """Random models, and the smallest and largest ones; sizes that are not multiples of a tile among them."""
    rng = random.Random(0)

    def one(edge: int | None, causal: int) -> Given:
        def number(most: int, least: int = 1) -> int:
            return rng.randint(least, most) if edge is None else (least, most)[edge]

        hidden, length = number(400), number(300)
        numbers = {
            "hidden": hidden,
            "max_length": length,
            "chunk": number(length) if causal else length,
            "causal": causal,
            "pooling": number(2 - causal, 0),
            "output_features": number(500),
            "threads": number(8),
            "lanes": number(4),
            "row_lanes": number(8, 4),
            "row_stride": row_stride(hidden, ROW_TYPES[number(1 + causal, 0)], packed=bool(causal)),
            "nested": number(1, 0),
            "full_bits": (0, 16, 32)[number(2, 0)],
            "dense": (1 - causal) * number(1, 0) * number(500),
            "embeddings_bytes": number(1, 0) * number(50) * 4096,
            "trunk_bytes": number(9999),
        }
        layer = Shape.layer(hidden, number(6), number(4), number(70), number(300))
        keys, dim = number(3), number(70)
        cuts: tuple[Shape, ...] = (
            Shape("attention", hidden, number(6), keys * number(3), keys, dim),
            Shape("feed_forward", hidden, number(6), neurons_per_slice=number(300), gated=bool(number(1, 0))),
            Shape("attention", hidden, number(6), keys, keys, dim),
            Shape("vocabulary", hidden, number(6), rows_per_slice=number(300)),
        )
        return Given(numbers, cuts if causal else (layer,), (16, 32)[number(1, 0)])

    edges = [one(edge, causal) for edge in (0, 1) for causal in (0, 1)]
    return [*edges, *(one(None, causal) for _ in range(count) for causal in (0, 1))]


def levels(nested: bool) -> list[int]:
    """What the engine's program prints of levels."""
    return [level for bits in LEVEL_BITS for level in (levels_of(bits, nested)[0], levels_of(bits, nested)[-1])]


def layouts(shape: Shape, nested: bool, full_bits: int, group: int) -> list[int]:
    """What it prints of the layout of records."""
    found = []
    for level in range(LEVELS if full_bits else FULL):
        layout = record_layout(shape, level, nested, full_bits, group=group)
        found.append(1 if level == FULL else planes_in(level, nested))
        for number, name in enumerate(shape.matrices):
            found += [*shape.matrix(name), *layout.planes[number]]
            found += [part[number] for part in (layout.tables, layout.blocks, layout.ratios) if part]
        found.append(layout.size)
    return found


def arena(z: Sizes, table_bytes: int, dense: bool) -> list[int]:
    """Bytes of each region; a plan decides about those of its weights, and where there is no head it has no region."""
    placed, _ = regions(z, 0, 0, table_bytes)
    return [0 if name == "head" and not dense else placed[name][1] for name in REGIONS]


def test_sizes(program: Path) -> None:
    models = given(80)
    wanted: list[list[int]] = []
    lines: list[list[int]] = []
    for one in models:
        n, z = one.numbers, one.sizes
        causal, nested, full_bits = bool(n["causal"]), bool(n["nested"]), n["full_bits"]
        precision = {bits: name for name, bits in PRECISION_BITS.items()}[one.storage_bits]
        state = None if causal else gpu_state(z, precision)
        cuts = [(KINDS.index(x.kind), *(int(getattr(x, name)) for name in SHAPE.names[1:])) for x in z.shapes]
        tiles = 0 if state is None else state.scores_tiles
        lines.append([len(cuts), one.storage_bits, tiles, *n.values(), *(value for cut in cuts for value in cut)])
        head_dim = max(x.head_dim for x in z.shapes)
        group = package_format.GROUPS[-1] if causal else 0
        wanted.append(
            [scratch_bytes(z.max_length, head_dim, causal)]
            + arena(z, n["embeddings_bytes"], n["dense"] > 0)
            + levels(nested)
            + [number for x in z.shapes for number in layouts(x, nested, full_bits, group)]
            + ([] if state is None else [state.regions[name][1] for name in GPU_REGIONS])
        )
    text = "\n".join(" ".join(map(str, line)) for line in lines)
    done = subprocess.run([str(program), "shapes"], input=text, capture_output=True, text=True, timeout=60, check=True)
    found = [line.split() for line in done.stdout.splitlines()]
    for one, expected, line in zip(models, wanted, found, strict=True):
        assert line == [str(number) for number in expected], one
