"""Facts that stand beside a model's weights and change its answer: TABLE says what stic makes of each.

A key of TABLE is honoured, or refused by a sentence that names it; keys that are not in it change no answer, or belong
to the weights, which `stic.compiler.export` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import Tokenizer

from stic.compiler.frontend.reading import Reading
from stic.compiler.frontend.sentence_modules import pools, read_object, transformer_folder
from stic.compiler.frontend.similarity import Similarity
from stic.runtime.errors import InputError

Activation = Literal["identity", "sigmoid", "softmax"]
_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
_PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")
_MIXED = "Ab Cd XYZ"  # tells whether a tokenizer lowers letters by itself


@dataclass(frozen=True)
class Facts:
    """What the files beside a model say of its answers."""

    folder: Path
    architecture: str = ""
    problem: str | None = None
    activation: Activation | None = None  # of a cross-encoder; None: what its number of labels implies
    names: Mapping[int, str] = field(default_factory=dict)
    max_length: int | None = None  # tokens
    lowercase: bool = False
    prompt: str = ""
    similarity: Similarity = "cosine"
    embeds: bool = False  # modules.json pools: outputs are vectors, whatever config.json names

    def reading(self, logits: int | None) -> Reading:
        """How outputs are read; `logits`: how many there are, None where the head does not end in a plain linear map.

        Raises InputError where the files name other classes than the model has.
        """
        plain = Reading(prompt=self.prompt, similarity=self.similarity)
        said = self.architecture.endswith(_CLASSIFIERS) or self.problem is not None
        if self.embeds or logits is None or not (said or sorted(self.names) == list(range(logits))):
            return plain
        if any(number not in range(logits) for number in self.names):
            raise InputError(
                f"{self.folder / 'config.json'}: id2label names class {max(self.names)}, but the model has {logits}"
                f" outputs, 0 to {logits - 1}: mend id2label, or take it out"
            )
        names = tuple(self.names.get(number, f"LABEL_{number}") for number in range(logits))
        if self.problem == "regression" or (logits == 1 and self.activation == "identity"):
            return replace(plain, kind="values", names=names)
        if logits == 1:
            return replace(plain, kind="score", names=names)
        apart = self.problem == "multi_label_classification" or self.activation == "sigmoid"
        return replace(plain, kind="labels" if apart else "classes", names=names)

    def check_tokenizer(self, path: Path) -> None:
        """Raise InputError if texts must be lowered first and the tokenizer does not do it."""
        if not self.lowercase:
            return
        try:
            coder = Tokenizer.from_file(str(path))
        except Exception:  # the package raises plain Exception; who opens it to use it says so
            return
        if coder.encode(_MIXED).ids != coder.encode(_MIXED.lower()).ids:
            raise InputError(
                f"{self.folder / 'sentence_bert_config.json'}: do_lower_case is true, but tokenizer.json keeps"
                " capitals: add a Lowercase normalizer to it with the tokenizers package, or set do_lower_case to false"
            )


Said = Mapping[str, Any]  # what one handler found: fields of Facts
Handler = Callable[[Any, Mapping[str, Any], str], Said]  # (the key's value, its whole file, "FILE: key") -> Said


def _architecture(value: Any, _: Mapping[str, Any], where: str) -> Said:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{where} is {value!r}; expected a list with the name of a class of transformers")
    return {"architecture": value[0] if value else ""}


def _problem(value: Any, _: Mapping[str, Any], where: str) -> Said:
    if value not in _PROBLEMS:
        raise InputError(f"{where} is {value!r}; {', '.join(_PROBLEMS)} are known")
    return {"problem": value}


def _names(value: Any, file: Mapping[str, Any], where: str) -> Said:
    backwards = where.endswith("label2id")
    if backwards and file.get("id2label"):
        return {}
    try:
        pairs = [(name, number) for number, name in value.items()] if not backwards else value.items()
        found = {int(number): str(name) for name, number in pairs}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where} does not name the classes as Hugging Face does: {error}") from error
    return {"names": found}


def _cross_encoder(value: Any, _: Mapping[str, Any], where: str) -> Said:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {value!r}; expected what sentence-transformers writes there, an object")
    activation = value.get("activation_fn")
    return {} if activation is None else _activation(activation, {}, f"{where}.activation_fn")


def _activation(value: Any, _: Mapping[str, Any], where: str) -> Said:
    name = str(value).rsplit(".", 1)[-1].lower()
    if name not in get_args(Activation):
        raise InputError(f"{where} is {value!r}, which is not supported; Identity, Sigmoid and Softmax of torch are")
    return {"activation": name}


def _length(value: Any, _: Mapping[str, Any], where: str) -> Said:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{where} is {value!r}; expected a number of tokens, at least 1")
    return {"max_length": value}


def _lowercase(value: Any, _: Mapping[str, Any], where: str) -> Said:
    if not isinstance(value, bool):
        raise InputError(f"{where} is {value!r}; expected true or false")
    return {"lowercase": value}


def _transformer_task(value: Any, _: Mapping[str, Any], where: str) -> Said:
    if value not in ("feature-extraction", "sequence-classification"):
        raise InputError(f"{where} is {value!r}: only feature-extraction and sequence-classification are supported")
    return {}


def _prompt(value: Any, file: Mapping[str, Any], where: str) -> Said:
    prompts = file.get("prompts") or {}
    if not isinstance(prompts, dict) or not isinstance(prompts.get(value), str):
        raise InputError(f"{where} is {value!r}, which is none of the file's prompts: add it there, or set it to null")
    return {"prompt": prompts[value]}


def _similarity(value: Any, _: Mapping[str, Any], where: str) -> Said:
    if value not in get_args(Similarity):
        raise InputError(f"{where} is {value!r}; {', '.join(get_args(Similarity))} are known")
    return {"similarity": value}


def _refused(value: Any, _: Mapping[str, Any], where: str) -> Said:
    raise InputError(f"{where} is {value!r}, which stic does not support: take it out if the model works without it")


# File -> key -> (what reads it, what stic does, as docs/models.md lists it). Values that are null say nothing.
TABLE: dict[str, dict[str, tuple[Handler, str]]] = {
    "config.json": {
        "architectures": (_architecture, "...ForSequenceClassification and ...ForTokenClassification have classes"),
        "problem_type": (_problem, "softmax over classes, a sigmoid for each label, or values as they are"),
        "id2label": (_names, "names the outputs in their order; LABEL_i where one has no name"),
        "label2id": (_names, "the same, where there is no id2label"),
        "sentence_transformers": (_cross_encoder, "its activation_fn: Identity, Sigmoid, Softmax; others are refused"),
        "sbert_ce_default_activation_function": (_activation, "the same, as older cross-encoders spell it"),
    },
    "sentence_bert_config.json": {
        "max_seq_length": (_length, "the longest input, unless --max-length says otherwise"),
        "do_lower_case": (_lowercase, "refused unless tokenizer.json lowers letters, as it should"),
        "transformer_task": (_transformer_task, "feature-extraction, sequence-classification; others are refused"),
    },
    "config_sentence_transformers.json": {
        "default_prompt_name": (_prompt, "that prompt goes before every text that stands alone"),
        "similarity_fn_name": (_similarity, "what run prints of several sentences and eval ranks pairs by"),
        "activation_fn": (_activation, "as activation_fn in config.json"),
        "truncate_dim": (_refused, "refused: vectors keep all their numbers"),
    },
}
# sentence-transformers once named the second file after the model's family.
_ALIASES = {
    "sentence_bert_config.json": tuple(
        f"sentence_{family}_config.json" for family in ("roberta", "distilbert", "xlm-roberta", "camembert")
    )
}


def facts_files(folder: Path) -> list[Path]:
    """Return the files of TABLE that a directory has, but config.json."""
    return [path for name in TABLE if name != "config.json" and (path := _file(folder, name)) is not None]


def _file(folder: Path, name: str) -> Path | None:
    here = folder if name == "config_sentence_transformers.json" else transformer_folder(folder)
    return next((here / one for one in (name, *_ALIASES.get(name, ())) if (here / one).is_file()), None)


def read_facts(folder: Path) -> Facts:
    """Read the files of TABLE in `folder`, which may keep the first two in the folder that its modules.json names.

    Raises InputError for a file that is damaged, and for a fact that can be neither honoured nor ignored.
    """
    facts = Facts(transformer_folder(folder), embeds=pools(folder))
    for name, keys in TABLE.items():
        found = _file(folder, name)
        file = {} if found is None else read_object(found)
        for key, (handler, _) in keys.items():
            if file.get(key) is not None:
                facts = replace(facts, **handler(file[key], file, f"{found}: {key}"))
    return facts
