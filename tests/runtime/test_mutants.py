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
from stic.runtime.checks import BOUNDS
from stic.runtime.errors import InputError, PackageError, ToolchainError
from stic.runtime.format import ABSENT, FULL, HEADER, MODEL, ROLES, SHAPE
from stic.runtime.layout import pad
from stic.runtime.package import Package
from stic.targets.target import load
from stic.targets.toolchain import find_c_compiler
from tests.runtime.decoder_packages import Options, write
from tests.runtime.mutants import Mutant, Mutants, Original, sealed

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
COUNT = int(os.environ.get("STIC_MUTANTS", "400"))
SEED = int(os.environ.get("STIC_MUTANTS_SEED", "0"))


COPIES = Options(nested=False, cache="int8", norm="layer", plans=1, full_bits=0, tied=True)


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
            errors="replace",
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
    sources = [path for path in (ROOT / "runtime" / "src").glob("*.c") if not path.name.startswith("stic_run")]
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
        report.plan_facts(plan, package.entry.predicted_us, package.entry.claimed_bytes)
        report.plan_table(plan, package.entry.predicted_us, package.entry.claimed_bytes)
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


@pytest.mark.parametrize("kind", ("single", "family", "gpu", "alone", "decoder", "tied decoder of copies"))
def test_readers_agree_on_mutants(
    kind: str, engine: Engine, make_package: Callable[..., Path], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    packages: dict[str, Callable[[], Any]] = {
        "single": lambda: request.getfixturevalue("package"),
        "family": lambda: request.getfixturevalue("family"),
        "gpu": lambda: request.getfixturevalue("gpu_package"),
        "decoder": lambda: write(tmp_path / "decoder.stic"),
        "tied decoder of copies": lambda: write(tmp_path / "copies.stic", COPIES),
        "alone": lambda: make_package(((8, 3), (4, 4)), ((0, 0), (4, 0)), slices=2, padding=1, table_resident=True),
    }
    folder = tmp_path / "mutant.stic"
    shutil.copytree(packages[kind](), folder, ignore=shutil.ignore_patterns("opencl-*"))
    original = Original(folder)
    told = engine(folder)  # no kernels come with a decoder: all else has been read when they are missed
    assert verdict(folder) == "ok" and (told == "ok" or ("decoder" in kind and "kernels.so cannot" in told))
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


@pytest.fixture
def good(package: Path, tmp_path: Path) -> Original:
    """A copy that a test may alter."""
    return Original(Path(shutil.copytree(package, tmp_path / "altered.stic")))


HALVES, SINGLES = (
    (b"\x00\x7c", b"\x00\xfc", b"\x01\x7e"),
    (b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\x01\x00\xc0\x7f"),
)


@pytest.mark.parametrize("number", range(3))
def test_numbers_of_the_trunk_that_are_none(number: int, good: Original, engine: Engine) -> None:
    """Infinite, minus infinite, NaN: at the start of every tensor, of layers left out as well, and at the very end."""
    model = good.package.model
    places = [(int(model[name]), HALVES) for name in ("position_at", "token_type_at")]
    places += [(int(model[name]), SINGLES) for name in ("embedding_gamma_at", "embedding_beta_at")]
    tensors = [int(block[f"{role}_at"]) for block in good.package.blocks for role in ROLES]
    places += [(at, SINGLES) for at in tensors if at != ABSENT]
    places += [(len(good.files["trunk.bin"]) - 4, SINGLES)]
    for at, words in places:
        trunk = bytearray(good.files["trunk.bin"])
        trunk[at : at + len(words[number])] = words[number]
        put(good.package.path, Mutant("", good.filed(good.index, "trunk.bin", bytes(trunk))))
        assert engine(good.package.path).startswith("refused tensor_finite"), at
        with pytest.raises(PackageError, match="NaN or infinite") as caught:
            Package.open(good.package.path).verify()
        assert caught.value.check == "tensor_finite"


@pytest.mark.parametrize("word", SINGLES)
def test_the_scale_of_a_row_that_is_none(word: bytes, good: Original, engine: Engine) -> None:
    put(good.package.path, good.embedding(5, {pad(good.package.hidden, 4): word}))
    assert engine(good.package.path).startswith("refused row_scale: the row of token 5")
    with pytest.raises(PackageError, match="row of token 5") as caught:
        Package.open(good.package.path).verify()
    assert caught.value.check == "row_scale"


@pytest.mark.parametrize("half", HALVES)
def test_weights_at_full_precision_that_are_none(half: bytes, good: Original, engine: Engine) -> None:
    size = int(good.package.records[0, FULL, 0]["bytes"])
    for at in (0, size - 2):
        put(good.package.path, good.record((0, FULL, 0), {at: half}))
        assert engine(good.package.path).startswith("refused weight_finite")
        with pytest.raises(PackageError, match="NaN or infinite") as caught:
            Package.open(good.package.path).verify()
        assert caught.value.check == "weight_finite"


BOUNDED = [
    (table, name)
    for table, structure in (("header", HEADER), ("model", MODEL), ("shapes", SHAPE))
    for name in structure.names or ()
    if name in BOUNDS
]


@pytest.mark.parametrize(("table", "name"), BOUNDED)
def test_bounds_are_the_same(table: str, name: str, good: Original, engine: Engine) -> None:
    """Both readers name the limits beyond them, and something else, or nothing, within."""
    least, most = BOUNDS[name]
    start, structure, _ = good.tables[table]
    kind, at = structure.fields[name][0], start + structure.fields[name][1]
    for value in (least - 1, least, most, most + 1):
        if value < 0:
            continue
        index = bytearray(good.index)
        index[at : at + kind.itemsize] = value.to_bytes(kind.itemsize, "little")
        put(good.package.path, Mutant("", {"index.bin": sealed(index)}))
        said = engine(good.package.path)
        assert said.startswith(f"refused limits: index.bin: {name} is ") == (not least <= value <= most), said
        try:
            Package.open(good.package.path)
        except PackageError as error:
            named = error.check == "limits" and f": {name} is " in str(error)
            assert named == (not least <= value <= most), error
        else:
            assert said.startswith("ok")
