"""What a compilation starts from: the model, the target, calibration examples, and the settings they lead to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from stic.compiler.array_cache import Note
from stic.compiler.export.huggingface import exported_graph, sentence_head
from stic.compiler.frontend.folders import beside, name_of, no_tokenizer, onnx_file
from stic.compiler.frontend.onnx import load_exported, load_model
from stic.compiler.importance.examples import Examples, built_in_examples, check_calibration, label_names, read_examples
from stic.compiler.importance.measure import ProfileSettings
from stic.compiler.importance.objectives import agreement_objective
from stic.compiler.importance.random_text import random_examples
from stic.compiler.model import Model
from stic.compiler.options import CompileOptions
from stic.compiler.planner import FIXED
from stic.runtime.errors import InputError
from stic.runtime.format import LEVEL_BITS
from stic.targets.target import Target
from stic.targets.target import load as load_target

BITS = (2, 3, 4, 5, 6, 8)  # on offer; 7 is stored on the way to 8, and buys little (docs/planner.md)


def read_model(path: Path, output: str | None = None) -> Model:
    """Read MODEL: an .onnx file, or a directory with one or with what transformers saves (`model_files`).

    The latter goes by way of the graph that `stic export` writes of it. Raises InputError, which names the directory.
    """
    if not path.is_dir():
        return load_model(path, output)
    onnx = onnx_file(path)
    if onnx is None:
        exported, folder = exported_graph(path)
        return load_exported(exported, path, folder / "config.json", output)
    model = replace(load_model(onnx, output), name=name_of(path))
    head = None if output is not None else sentence_head(beside(onnx, "modules.json").parent)
    bare = model.head.pooling == "tokens" and not model.head.dense and not model.head.normalize
    # The rest of a sentence encoder lies beside its ONNX.
    return replace(model, head=head) if head is not None and bare else model


def wanted_target(options: CompileOptions) -> Target:
    """The target that was named, without its GPU where all layers are to run on the CPU."""
    target = load_target(options.target, options.gpu)
    if options.place == "gpu" and target.gpu is None:
        raise InputError(
            f"target {target.name} has no GPU to place layers on: name one with --gpu, or leave out --place gpu"
        )
    return replace(target, gpu=None) if options.place == "cpu" else target


def offered_bits(options: CompileOptions) -> tuple[int, ...]:
    """Bitwidths that a plan may choose from: few, for the planner's sake, and one that was asked for by name."""
    asked = {options.bits} & set(LEVEL_BITS)
    return tuple(sorted({*BITS, *asked})) + ((options.full_bits,) if options.full_bits else ())


def measures_importance(options: CompileOptions, model: Model) -> bool:
    """Whether a plan needs gains that no file gives: planners at a fixed bitwidth ask an elastic model's only, for the
    submodel to keep."""
    wanted = model.elastic or options.planner not in FIXED or options.until == "profile"
    return wanted and options.importance is None


def calibration_examples(options: CompileOptions, model: Model, note: Note) -> tuple[Examples, Path | Tokenizer]:
    """The examples that order, codes and gains rest on, and what turns them into tokens.

    Without a tokenizer they are random tokens, which `note` is told if anything rests on them. Raises InputError for a
    calibration file that cannot be used.
    """
    if model.tokenizer is not None:
        if options.calibration is None:
            return built_in_examples(), model.tokenizer
        examples = read_examples(options.calibration, labels=class_names(model) or None)
        return check_calibration(examples), model.tokenizer
    missing = no_tokenizer(model.source or options.model)
    if options.calibration is not None:
        raise InputError(
            f"{options.calibration} cannot be used: {missing}, or leave out --calibration for tokens drawn at random"
        )
    if options.quantizer != "gobo" or not model.elastic or measures_importance(options, model):
        note(f"{missing}; until then calibration rests on tokens drawn at random")
    return random_examples(model)


def class_names(model: Model) -> tuple[str, ...]:
    """Names of the classes of a classifier, from config.json beside the model; else empty."""
    if model.source is None or not model.head.dense:
        return ()
    names = label_names(beside(model.source, "config.json").parent) or ()
    return names if len(names) == model.head.dense[-1].linear.weight.shape[0] else ()


def profile_settings(options: CompileOptions, model: Model, bits: tuple[int, ...], length: int) -> ProfileSettings:
    """How importance is measured: at these bits, on sequences of at most `length` tokens."""
    return ProfileSettings(
        method=options.method,
        bits=bits,
        exact=options.exact,
        tokens=options.calibration_tokens,
        plans=options.checks,
        max_length=length,
        objective=agreement_objective(model) if options.objective == "agreement" else None,
    )
