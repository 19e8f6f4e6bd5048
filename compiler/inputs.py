"""What a compilation starts from: the model, the target, calibration examples, and the settings they lead to."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from stic.compiler.export.huggingface import export_model, sentence_head
from stic.compiler.frontend.folders import beside, name_of, no_tokenizer, onnx_file
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
    """Read MODEL: an .onnx file, or a directory with one or with what transformers saves (`model_files`).

    The latter is exported to a temporary file first. Raises InputError, which names the directory.
    """
    if not path.is_dir():
        return load_model(path, output)
    onnx = onnx_file(path)
    if onnx is None:
        tokenizer = beside(path, "tokenizer.json")
        model = _exported(path, output)
        return replace(model, name=name_of(path), tokenizer=tokenizer if tokenizer.exists() else None, source=path)
    model = replace(load_model(onnx, output), name=name_of(path))
    head = None if output is not None else sentence_head(beside(onnx, "modules.json").parent)
    bare = model.head.pooling == "tokens" and not model.head.dense and not model.head.normalize
    # The rest of a sentence encoder lies beside its ONNX.
    return replace(model, head=head) if head is not None and bare else model


def _exported(path: Path, output: str | None) -> Model:
    with tempfile.TemporaryDirectory(prefix="stic-") as folder:
        onnx = Path(folder) / "model.onnx"
        try:
            export_model(path, onnx)
            return load_model(onnx, output)
        except InputError as error:  # the temporary file says nothing to people
            raise type(error)(str(error).replace(str(onnx), f"the export of {path}")) from error


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
        raise InputError(no_tokenizer(model.source or Path(model.name)))
    if calibration is None:
        return built_in_examples()
    return check_calibration(read_examples(calibration, labels=class_names(model) or None))


def class_names(model: Model) -> tuple[str, ...]:
    """Names of the classes of a classifier, from config.json beside the model; else empty."""
    if model.source is None or not model.head.dense:
        return ()
    names = label_names(beside(model.source, "config.json").parent) or ()
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
