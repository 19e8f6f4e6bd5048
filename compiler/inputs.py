"""What a compilation starts from: the model, the target, calibration examples, and the settings they lead to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from stic.compiler.export.huggingface import exported_graph, sentence_head
from stic.compiler.frontend.folders import beside, name_of, no_tokenizer, onnx_file
from stic.compiler.frontend.onnx import load_exported, load_model
from stic.compiler.importance.examples import Examples, built_in_examples, check_calibration, label_names, read_examples
from stic.compiler.importance.measure import ProfileSettings
from stic.compiler.importance.objectives import agreement_objective
from stic.compiler.importance.random_text import random_examples
from stic.compiler.model import Model
from stic.compiler.offers import BITS
from stic.compiler.options import ImportanceOptions, TargetOptions
from stic.compiler.planner import FIXED
from stic.runtime.errors import InputError
from stic.runtime.format import LEVEL_BITS
from stic.targets.target import Target
from stic.targets.target import load as load_target


def read_model(path: Path, output: str | None = None) -> Model:
    """Read MODEL: an .onnx file, or a directory with one or with what transformers saves (`model_files`).

    The latter goes by way of the graph that `stic export` writes of it. Raises InputError, which names the directory.
    """
    if not path.is_dir():
        return load_model(path, output)
    onnx = onnx_file(path)
    if onnx is None:
        exported, folder = exported_graph(path)
        return load_exported(exported.structure, exported.weights, path, folder / "config.json", output)
    model = replace(load_model(onnx, output), name=name_of(path))
    head = None if output is not None else sentence_head(beside(onnx, "modules.json").parent)
    bare = model.head.pooling == "tokens" and not model.head.dense and not model.head.normalize
    # The rest of a sentence encoder lies beside its ONNX.
    return replace(model, head=head) if head is not None and bare else model


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


def measures_importance(elastic: bool, planner: str, asked_for: bool, importance: ImportanceOptions) -> bool:
    """Whether gains have to be measured: none were given, and the planner uses some, or they are `asked_for`.

    Planners at a fixed bitwidth use those of an elastic model only, to choose the submodel to keep.
    """
    return importance.file is None and (elastic or asked_for or planner not in FIXED)


def calibration_examples(model: Model, calibration: Path | None) -> tuple[Examples, Path | Tokenizer]:
    """The examples that order, codes and gains rest on, and what turns them into tokens.

    Without a tokenizer they are random tokens. Raises InputError for a calibration file that cannot be used.
    """
    if model.tokenizer is None:
        if calibration is not None:
            raise InputError(
                f"{calibration} cannot be used: {no_tokenizer(model.source or Path(model.name))}, or leave out"
                " --calibration for tokens drawn at random"
            )
        return random_examples(model)
    if calibration is None:
        return built_in_examples(), model.tokenizer
    examples = read_examples(calibration, labels=class_names(model) or None)
    return check_calibration(examples), model.tokenizer


def without_tokenizer(model: Model) -> str:
    """What to say where calibration rests on random tokens."""
    missing = no_tokenizer(model.source or Path(model.name))
    return f"{missing}; until then calibration rests on tokens drawn at random"


def class_names(model: Model) -> tuple[str, ...]:
    """Names of the classes of a classifier, from config.json beside the model; else empty."""
    if model.source is None or not model.head.dense:
        return ()
    names = label_names(beside(model.source, "config.json").parent) or ()
    return names if len(names) == model.head.dense[-1].linear.weight.shape[0] else ()


def importance_settings(
    options: ImportanceOptions, model: Model, bits: tuple[int, ...], length: int
) -> ProfileSettings:
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
