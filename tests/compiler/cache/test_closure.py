"""What a stage's code is: every file that it imports counts, wherever it lies, and no other."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evaluation import keys, plans
from benchmarks.planner_study import __main__ as study
from stic.compiler import stage_cache
from stic.compiler.cache import closure as closure_module
from stic.compiler.cache.closure import closure, code_of
from stic.compiler.device import measure, measure_gpu
from stic.compiler.device.synthetic import synthetic
from stic.compiler.importance.examples import built_in_examples
from stic.compiler.importance.measure import measurement_key
from stic.compiler.package import kernels
from stic.compiler.quantization.quantize import QuantizedModel
from stic.compiler.sharding import Geometry, shard
from stic.schedules.shape import KernelShape
from stic.targets.target import load

FOLDERS = ("runtime", "targets", "schedules", "compiler", "benchmarks")


def kept_under(monkeypatch: pytest.MonkeyPatch, ask: Callable[[], Any]) -> str:
    """The key that a stage asks its cache for."""
    keys_asked: list[str] = []
    monkeypatch.setattr(stage_cache, "remember", lambda folder, key, *_: keys_asked.append(key) or QUANTIZED)
    ask()
    return keys_asked[0]


MODEL = synthetic(Geometry(1, 32, 4, 8, 64, 2), "gelu", 16).sharded.model
SHARDED = shard(MODEL, 2)
QUANTIZED = QuantizedModel(SHARDED, "nested", ())
SHAPE = KernelShape(32, 8, "gelu", 1e-12, 1e-12)
Patch = pytest.MonkeyPatch


def order_key(patch: Patch, tmp: Path) -> str:
    return kept_under(patch, lambda: stage_cache.ordered_units(MODEL, (), tmp, print))


def quantize_key(patch: Patch, tmp: Path) -> str:
    return kept_under(patch, lambda: stage_cache.quantized_model(SHARDED, "nested", (), tmp, print, print))


def plan_key(patch: Patch, tmp: Path) -> str:
    return kept_under(patch, lambda: stage_cache.solved(None, "ilp", None, 1.0, 0.0, tmp, print))


def importance_key(patch: Patch, tmp: Path) -> str:
    return measurement_key(QUANTIZED, built_in_examples(), (), "cosine")


def profile_key(module: str) -> Callable[[Patch, Path], str]:
    def key(patch: Patch, tmp: Path) -> str:
        patch.setenv("STIC_CACHE", str(tmp))
        patch.setattr(measure, "find_library", lambda: "libstic.so")
        patch.setattr(measure, "disturbed", lambda *_: None)  # what a busy machine measured is not kept
        shutil.rmtree(tmp / "profiles", ignore_errors=True)
        measure.cached(module, (), lambda: {"a": 1}, print)
        return next((tmp / "profiles").iterdir()).name

    return key


def kernels_code(patch: Patch, tmp: Path) -> str:
    return kernels.kernels_key(SHAPE, load("x86-64-v3"))


def program(patch: Patch, tmp: Path) -> str:
    return kernels.program_key(SHAPE, "mali", "float16", 4)


# What asks a cache -> files that its code must hold, and files that it must not.
STAGES: dict[str, tuple[Callable[[Patch, Path], str], str, str]] = {
    "order": (
        order_key,
        "compiler/importance/contributions compiler/importance/evaluate compiler/sharding "
        "compiler/quantization/quantize runtime/format",
        "compiler/pipeline compiler/cli compiler/importance/measure compiler/planner/ilp runtime/session",
    ),
    "quantize": (
        quantize_key,
        "compiler/quantization/quantize compiler/quantization/gobo compiler/quantization/nested "
        "compiler/quantization/codebook compiler/quantization/moments",
        "compiler/pipeline compiler/importance/evaluate compiler/importance/examples "
        "compiler/importance/measure runtime/package",
    ),
    "plan": (
        plan_key,
        "compiler/planner/ilp compiler/planner/__init__ compiler/plan compiler/store runtime/format",
        "compiler/pipeline compiler/quantization/quantize benchmarks/planner_study/synthetic compiler/simulate",
    ),
    "importance": (
        importance_key,
        "compiler/importance/jobs compiler/importance/evaluate compiler/sharding compiler/importance/examples",
        "compiler/pipeline compiler/planner/ilp compiler/cli runtime/session",
    ),
    "profile": (
        profile_key(measure.__name__),
        "compiler/device/measure compiler/device/runner compiler/package/assembly compiler/package/writer "
        "compiler/memory/placement compiler/device/synthetic targets/storage runtime/session",
        "compiler/pipeline compiler/frontend/onnx compiler/planner/ilp compiler/package/kernels "
        "schedules/cpu/dot targets/remote_device compiler/importance/measure compiler/device/measure_gpu",
    ),
    "gpu profile": (
        profile_key(measure_gpu.__name__),
        "compiler/device/measure_gpu compiler/device/measure compiler/device/runner",
        "compiler/pipeline compiler/frontend/onnx compiler/package/kernels schedules/opencl/gemm",
    ),
    "kernels": (
        kernels_code,
        "compiler/package/kernels schedules/rule schedules/cpu/dot schedules/tir targets/toolchain",
        "schedules/opencl/gemm compiler/quantization/quantize compiler/pipeline",
    ),
    "program": (
        program,
        "compiler/package/kernels schedules/opencl/rule schedules/opencl/gemm schedules/opencl/source",
        "targets/toolchain compiler/quantization/quantize compiler/pipeline",
    ),
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: Patch) -> Iterator[Path]:
    """A copy of stic's own files, which keys are taken from."""
    root = tmp_path / "tree"
    for folder in FOLDERS:
        skip = shutil.ignore_patterns("__pycache__", "results", "*.png")
        shutil.copytree(closure_module.ROOT / folder, root / folder, ignore=skip)
    monkeypatch.setattr(closure_module, "ROOT", root)
    closure_module._code_of.cache_clear()
    yield root
    closure_module._code_of.cache_clear()


def test_the_files_come_in_order() -> None:
    files = closure("stic.compiler.quantization.moments")
    names = [path.relative_to(closure_module.ROOT).as_posix() for path in files]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert {"compiler/quantization/moments.py", "compiler/forward.py", "runtime/format.py"} <= set(names)
    assert (
        code_of("stic.compiler.quantization.moments")
        == code_of("stic.compiler.quantization.moments")
        != code_of("stic.compiler.quantization.gobo")
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_key_changes_with_every_file_of_its_closure_and_with_no_other(
    stage: str, tree: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    ask, inside, outside = STAGES[stage]
    asked: list[tuple[Path, ...]] = []
    monkeypatch.setattr(closure_module, "closure", lambda *a, **k: asked.append(closure(*a, **k)) or asked[-1])

    def key() -> str:
        closure_module._code_of.cache_clear()
        return ask(monkeypatch, tmp_path / "cache")

    before = key()
    files = asked[0]
    held = {path.relative_to(tree).with_suffix("").as_posix() for path in files}
    assert held >= set(inside.split()) and not held & set(outside.split())
    assert key() == before
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert key() != before, f"{path.name} is not in the key"
        path.write_bytes(content)
    others = {p for folder in FOLDERS for p in (tree / folder).rglob("*") if p.is_file()} - set(files)
    for path in others:
        path.write_bytes(path.read_bytes() + b"\n")
    assert key() == before


MEASURED = (keys._RUNS, keys._PEERS, keys._SCORES, keys._SWITCHES, plans._PLANS, study.MODULES)


@pytest.mark.parametrize("modules", MEASURED)
def test_the_modules_of_benchmarks_are_found(modules: tuple[str, ...]) -> None:
    assert len(closure(*modules)) > 1


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


FORMS = {
    "at the top": "from stic.runtime.b import thing",
    "as a module": "import stic.runtime.b as b",
    "from its package": "from stic.runtime import b",
    "everything": "from stic.runtime.b import *",
    "within a function": "def f():\n    from stic.runtime.b import thing",
    "within a class": "class A:\n    import stic.runtime.b",
    "in a try": "try:\n    import stic.runtime.b\nexcept ImportError:\n    pass",
    "where types are not checked": "if TYPE_CHECKING:\n    pass\nelse:\n    import stic.runtime.b",
    "by another": "import stic.compiler.between",
    "by name": 'importlib.import_module("stic.runtime.b")',
    "relatively": "from ..runtime.b import thing",
    "relatively, from its package": "from . import near",
    "in a circle": "import stic.compiler.circle",
    "parenthesised": "from stic.runtime import (\n    b,\n)",
}


@pytest.mark.parametrize("form", FORMS)
def test_an_import_counts(form: str, tmp_path: Path) -> None:
    write(tmp_path, {
        "compiler/a.py": FORMS[form],
        "compiler/between.py": "def f():\n    import stic.runtime.b",
        "compiler/near.py": "import stic.runtime.b",
        "compiler/circle.py": "import stic.compiler.a, stic.runtime.b",
        "runtime/__init__.py": "",
        "runtime/b.py": "thing = 1",
        "runtime/c.py": "",
    })  # fmt: skip
    found = {path.relative_to(tmp_path).as_posix() for path in closure("stic.compiler.a", root=tmp_path)}
    assert {"compiler/a.py", "runtime/b.py"} <= found and "runtime/c.py" not in found


@pytest.mark.parametrize("guard", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_an_import_for_annotations_does_not_count(guard: str, tmp_path: Path) -> None:
    write(tmp_path, {"compiler/a.py": f"if {guard}:\n    from stic.compiler.b import B", "compiler/b.py": ""})
    assert [path.name for path in closure("stic.compiler.a", root=tmp_path)] == ["a.py"]


def test_a_data_file_beside_a_module_counts(tmp_path: Path) -> None:
    write(tmp_path, {"compiler/a.py": 'open("words.txt")', "compiler/words.txt": "", "compiler/other.txt": ""})
    assert [path.name for path in closure("stic.compiler.a", root=tmp_path)] == ["a.py", "words.txt"]


def test_the_data_files_of_this_tree_count() -> None:
    for module, name in (
        ("stic.compiler.importance.examples", "sentences.txt"),
        ("stic.schedules.opencl.program", "preamble.cl"),
    ):
        assert name in [path.name for path in closure(module)]


def test_a_file_that_moves_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, {"compiler/a.py": "from stic.compiler.b import x", "compiler/b.py": "x = 1"})
    before = closure_module._code_of.__wrapped__(tmp_path, ("stic.compiler.a",), (), ())
    (tmp_path / "compiler" / "b.py").rename(tmp_path / "compiler" / "c.py")
    with pytest.raises(ModuleNotFoundError, match=r"stic\.compiler\.a imports stic\.compiler\.b"):
        closure("stic.compiler.a", root=tmp_path)
    (tmp_path / "compiler" / "a.py").write_text("from stic.compiler.c import x")
    assert closure_module._code_of.__wrapped__(tmp_path, ("stic.compiler.a",), (), ()) != before


@pytest.mark.parametrize("name", ["stic.compiler.nowhere", "numpy", "", "stic", "compiler.gobo"])
def test_an_unknown_module_is_an_error(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        code_of(name)


def test_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no code is named"):
        code_of()
    with pytest.raises(ValueError, match="nothing is left"):
        code_of("stic.compiler.quantization.gobo", known=("stic",))
    with pytest.raises(ModuleNotFoundError):
        code_of("stic.compiler.quantization.gobo", alone=("stic.compiler.nowhere",))
