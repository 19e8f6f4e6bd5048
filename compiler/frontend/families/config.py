"""A model's configuration, read key by key: what nobody read is refused by name, unless it changes no answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stic.runtime.errors import UnsupportedModelError

# What a configuration may say beside its family's keys without a change of the logits: training, output, provenance,
# generation (as old versions of transformers wrote it into every file), and how others run the model.
HARMLESS = frozenset(
    "_attn_implementation _attn_implementation_autoset _commit_hash _from_model_config _name_or_path _num_labels"
    " activation_dropout attention_dropout attn_implementation attn_pdrop auto_map bad_words_ids"
    " begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout"
    " cls_token_id custom_pipelines decoder_start_token_id diversity_penalty do_sample dropout dtype"
    " early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty"
    " finetuning_task forced_bos_token_id forced_eos_token_id hidden_dropout id2label init_std initializer_range"
    " is_decoder is_llama_config label2id language layerdrop length_penalty license max_length max_sequence_length"
    " min_length model_type name no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences"
    " output_attentions output_hidden_states output_past output_scores pad_token pad_token_id prefix"
    " pretraining_tp problem_type remove_invalid_values repetition_penalty resid_pdrop return_dict"
    " return_dict_in_generate router_aux_loss_coef sep_token_id summary_activation summary_first_dropout"
    " summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params temperature"
    " tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript"
    " transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache"
    " word_embed_initializer".split()
)
_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # classes that end in a vocabulary
_MISSING = object()


def sensible(value: object) -> bool:
    """Whether something is a number above 0 that can be computed with: not tiny, huge, or none at all."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-15 <= value <= 1e15


class Config:
    """The keys of a configuration, and which of them were read.

    `defaults` are what transformers takes for a key that is absent; null is not absent, and says that there is none.
    Every method raises UnsupportedModelError, which names the key, for what cannot be.
    """

    def __init__(self, keys: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        """Take the keys of `where`, which messages name."""
        self.where = where
        self._keys, self._defaults = keys, dict(defaults or {})
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether it is there and not null."""
        return self._keys.get(key) is not None

    def with_defaults(self, defaults: Mapping[str, Any]) -> Config:
        """The same keys, none of them read, with a family's defaults."""
        return Config(self._keys, self.where, defaults)

    def raw(self, key: str, default: Any = _MISSING) -> Any:
        """What a key says, or where it is absent the family's default; `default` where that is null."""
        self._read.add(key)
        found = self._keys.get(key, self._defaults.get(key))
        found = default if found is None else found
        if found is _MISSING:
            raise UnsupportedModelError(
                f"{self.where} does not say '{key}', which its family has no default for: add it"
            )
        return found

    def refuse(self, key: str, why: str) -> UnsupportedModelError:
        """An error that names a key and its value."""
        return UnsupportedModelError(f"{self.where}: {key} is {self._keys.get(key)!r}; {why}")

    def whole(self, key: str, default: Any = _MISSING, least: int = 1) -> int:
        """A whole number, at least `least`."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
            raise self.refuse(key, f"expected a whole number, at least {least}")
        return value

    def number(self, key: str, default: Any = _MISSING) -> float:
        """A positive number."""
        value = self.raw(key, default)
        if not sensible(value):
            raise self.refuse(key, "expected a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false where nothing is said."""
        value = self.raw(key, False)
        if not isinstance(value, bool):
            raise self.refuse(key, "expected true or false")
        return value

    def choice(self, key: str, options: Mapping[str, Any], default: Any = _MISSING) -> Any:
        """What `options` has for the word that a key says."""
        value = self.raw(key, default)
        if not isinstance(value, str) or value not in options:
            raise self.refuse(key, f"{', '.join(options)} are supported")
        return options[value]

    def only(self, key: str, *values: Any) -> None:
        """Refuse a key that is there with another value than these."""
        self._read.add(key)
        if key in self and self._keys[key] not in values:
            expected = f"only {' or '.join(map(repr, values))} is supported" if values else "that is not supported"
            raise self.refuse(key, expected)

    def listed(self, key: str, count: int) -> list[Any] | None:
        """A list with `count` items; None if absent."""
        value = self.raw(key, None)
        if value is not None and (not isinstance(value, list) or len(value) != count):
            raise self.refuse(key, f"expected a list with an item for each of {count} layers")
        return value

    def settle(self, ignored: Iterable[str] = ()) -> None:
        """Refuse what has not been read, unless it changes no answer: `ignored` by this family, or by any.

        A flag that is off and an empty list say that something is not there, and so nothing.
        """
        self.only("is_causal", True)
        names = self.raw("architectures", None) or []
        if names and not (isinstance(names, list) and str(names[0]).endswith(_HEADS)):
            raise self.refuse("architectures", "expected a class that ends in a vocabulary, such as ...ForCausalLM")
        known = self._read | HARMLESS | set(ignored)
        for key, value in self._keys.items():
            if key not in known and value:
                raise UnsupportedModelError(
                    f"{self.where}: it says '{key}', which is not known for model_type"
                    f" {self._keys.get('model_type')!r} and may change the computation: take the key out if the model"
                    " works without it"
                )
