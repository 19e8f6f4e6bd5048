"""What a compilation starts from: the model, the target, calibration examples, and the settings they lead to."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from stic.compiler.export.huggingface import export_model
from stic.compiler.frontend.onnx import load_model
from stic.compiler.importance.examples import Examples, built_in_examples, check_calibration, label_names, read_examples
from stic.compiler.importance.measure import ProfileSettings
from stic.compiler.importance.objectives import agreement_objective
from stic.compiler.model import Model
from stic.compiler.options import ImportanceOptions, TargetOptions
from stic.runtime.errors import InputError
from stic.runtime.format import LEVEL_BITS
from stic.targets.target import Target
from stic.targets.target import load as load_target

BITS = (2, 3, 4, 5, 6, 8)  # on offer; 7 is stored on the way to 8, and buys little (docs/planner.md)


def read_model(path: Path, output: str | None = None) -> Model:
    """Read MODEL: an .onnx file, or a Hugging Face directory, which is exported to a temporary file first."""
    if not path.is_dir():
        return load_model(path, output)
    with tempfile.TemporaryDirectory(prefix="stic-") as folder:
        onnx = Path(folder) / f"{path.resolve().name}.onnx"
        export_model(path, onnx)
        model = load_model(onnx, output)
    tokenizer = path / "tokenizer.json"
    return replace(model, tokenizer=tokenizer if tokenizer.exists() else None, source=path)


def wanted_target(options: TargetOptions) -> Target:
    """The target that was named, without its GPU where all layers are to run on the CPU."""
    target = load_target(options.name, options.gpu)
    if options.place == "gpu" and target.gpu is None:
        raise InputError(
            f"target {target.name} has no GPU to place layers on: name one with --gpu, or leave out --place gpu"
        )
    return replace(target, gpu=None) if options.place == "cpu" else target


def offered_bits(full_bits: int, asked: int | None) -> tuple[int, ...]:
    """Bitwidths that a plan may choose from: few, for the planner's sake, and one that was asked for by name."""
    nested = {*BITS, *(bits for bits in LEVEL_BITS if bits == asked)}
    return (*sorted(nested), *((full_bits,) if full_bits else ()))


def calibration_examples(model: Model, calibration: Path | None) -> Examples:
    """The examples that importance is measured on."""
    if model.tokenizer is None:
        raise InputError(
            f"there is no tokenizer.json beside {model.source}, so calibration texts cannot be turned into tokens:"
            " put the model's there (a Hugging Face directory has one)"
        )
    if calibration is None:
        return built_in_examples()
    return check_calibration(read_examples(calibration, labels=class_names(model) or None))


def class_names(model: Model) -> tuple[str, ...]:
    """Names of the classes of a classifier, from config.json beside the model; else empty."""
    if model.source is None or not model.head.dense:
        return ()
    folder = model.source if model.source.is_dir() else model.source.parent
    names = label_names(folder) or ()
    return names if len(names) == model.head.dense[-1].linear.weight.shape[0] else ()


def profile_settings(options: ImportanceOptions, model: Model, bits: tuple[int, ...], length: int) -> ProfileSettings:
    """How importance is measured: at these bits, on sequences of at most `length` tokens."""
    return ProfileSettings(
        method=options.method,
        bits=bits,
        exact=options.exact,
        tokens=options.tokens,
        plans=options.checks,
        max_length=length,
        objective=agreement_objective(model) if options.objective == "agreement" else None,
    )
