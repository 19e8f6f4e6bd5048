"""What a compilation starts from: the model, the target, calibration examples, and the settings they lead to."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from stic.compiler.decoder.model import Decoder
from stic.compiler.export.huggingface import exported_graph
from stic.compiler.frontend.decoder_graph import load_decoder
from stic.compiler.frontend.decoder_graph_file import is_decoder_graph
from stic.compiler.frontend.decoders import is_decoder, read_decoder
from stic.compiler.frontend.facts import Facts, read_facts
from stic.compiler.frontend.folders import beside, name_of, no_tokenizer, onnx_file
from stic.compiler.frontend.gguf import read_gguf
from stic.compiler.frontend.onnx import load_exported, load_model
from stic.compiler.frontend.reading import Reading
from stic.compiler.frontend.sentence_modules import read_modules
from stic.compiler.importance.examples import Examples, built_in_examples, check_calibration, read_examples
from stic.compiler.importance.measure import ImportanceSettings
from stic.compiler.importance.objectives import Objective, agreement_objective
from stic.compiler.importance.random_text import random_examples
from stic.compiler.model import Model
from stic.compiler.offers import BITS
from stic.compiler.options import ImportanceOptions, TargetOptions, longest_input
from stic.compiler.planner import FIXED
from stic.runtime.errors import InputError
from stic.runtime.format import LEVEL_BITS
from stic.targets.target import Target
from stic.targets.target import load as load_target

ENCODER_TOKENS = 1536  # of calibration, where no number is asked for


def read_model(path: Path, output: str | None = None) -> Model:
    """Read MODEL: an .onnx file, or a directory with one or with what transformers saves (`model_files`).

    The latter goes by way of the graph that `stic export` writes of it. A graph that gives hidden states gets the head
    of a modules.json beside it, unless `output` names what is wanted. Raises InputError, which names the directory.
    """
    onnx = onnx_of(path)
    if onnx is None:
        exported, folder = exported_graph(path)
        return load_exported(exported.structure, exported.weights, path, folder / "config.json", output)
    model = load_model(onnx, output)
    model = replace(model, name=name_of(path)) if path.is_dir() else model
    return model if output is not None else _with_modules(model, beside(onnx, "modules.json").parent)


def onnx_of(path: Path) -> Path | None:
    """The ONNX file of MODEL, itself or the one in the directory; None: the directory holds weights."""
    return onnx_file(path) if path.is_dir() else path


def decodes(path: Path) -> bool:
    """Whether a model is a decoder: a GGUF file, a directory whose configuration is of a family of decoders, or an
    .onnx file, or a directory with one, whose graph is such (`is_decoder_graph`), or has such a configuration.
    """
    if path.suffix.lower() == ".gguf":
        return True
    onnx = onnx_of(path)
    if onnx is None:
        return (path / "config.json").is_file() and is_decoder(path)
    return is_decoder_graph(onnx) or _named_decoder(beside(onnx, "config.json").parent)


def _named_decoder(folder: Path) -> bool:
    """Whether a config.json that nothing needs is there, can be read, and names a family of decoders."""
    with suppress(InputError):
        return (folder / "config.json").is_file() and is_decoder(folder)
    return False


def read_decoder_model(path: Path) -> Decoder:
    """Read a decoder; see `decodes`. Raises a kind of SticError that names what cannot be read."""
    if path.suffix.lower() == ".gguf":
        return read_gguf(path)
    onnx = onnx_of(path)
    return read_decoder(path) if onnx is None else load_decoder(onnx)


def _with_modules(model: Model, folder: Path) -> Model:
    """Put the pooling, dense layers and normalisation of modules.json on a graph that ends before them."""
    if model.head.pooling != "tokens" or model.head.dense or model.head.normalize:
        return model
    modules = read_modules(folder)
    return replace(model, head=modules.head) if modules is not None and modules.pools else model


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
    reading = reading_of(model)
    if calibration is None:
        return built_in_examples().prompted(reading.prompt), model.tokenizer
    return check_calibration(read_examples(calibration, reading=reading).prompted(reading.prompt)), model.tokenizer


def without_tokenizer(model: Model) -> str:
    """What to say where calibration rests on random tokens."""
    missing = no_tokenizer(model.source or Path(model.name))
    return f"{missing}; until then calibration rests on tokens drawn at random"


def facts_of(model: Model) -> Facts:
    """What the files beside the model say of its answers. Raises InputError for what cannot be honoured."""
    if model.source is None:
        return Facts(Path())
    folder = beside(model.source, "modules.json").parent
    facts = read_facts(beside(model.source, "config.json").parent)
    if model.tokenizer is not None:
        facts.check_tokenizer(model.tokenizer)
    modules = read_modules(folder) if facts.prompt and model.head.pooling == "mean" else None
    if modules is not None and not modules.prompt_counts:
        raise InputError(
            f"{folder / 'modules.json'}: its Pooling leaves the prompt's tokens out (include_prompt is false), which is"
            " not supported: set default_prompt_name in config_sentence_transformers.json to null"
        )
    return facts


def reading_of(model: Model) -> Reading:
    """How the model's outputs are read, by what stands beside it."""
    dense = model.head.dense
    plain = bool(dense) and dense[-1].activation == "none" and not model.head.normalize
    return facts_of(model).reading(dense[-1].linear.weight.shape[0] if plain else None)


def input_length(asked: int | None, model: Model) -> int:
    """Tokens of the longest input: as asked, else what sentence_bert_config.json says, within `longest_input`."""
    length = longest_input(asked, model.max_length)
    told = facts_of(model).max_length if asked is None else None
    return length if told is None else min(length, told)


def _agreement(model: Model) -> Objective:
    """The objective of agreement: by how the outputs are read, where files beside the model say so."""
    reading = reading_of(model)
    return agreement_objective(model, reading.kind if reading.names or facts_of(model).embeds else None)


def importance_settings(
    options: ImportanceOptions, model: Model, bits: tuple[int, ...], length: int
) -> ImportanceSettings:
    """How importance is measured: at these bits, on sequences of at most `length` tokens."""
    return ImportanceSettings(
        method=options.method,
        bits=bits,
        exact=options.exact,
        tokens=ENCODER_TOKENS if options.tokens is None else options.tokens,
        plans=options.checks,
        max_length=length,
        objective=_agreement(model) if options.objective == "agreement" else None,
    )
