"""How the model families spell their configs and weights, and why others are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from stic.compiler.frontend.families import known

ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "relu": "relu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip


@dataclass(frozen=True)
class Classifier:
    """The head of a ...ForSequenceClassification: first token, linear map, activation, linear map."""

    dense: str  # weight name; under the encoder's prefix for BERT's pooler only
    activation: str
    out: str
    pooler: bool = False


@dataclass(frozen=True)
class Family:
    """How a model family spells its config and its weights; {} is the layer's number."""

    prefix: str
    layers: str  # config key
    heads: str
    hidden: str
    ffn: str
    activation: str
    names: dict[str, str]  # part -> weight name without .weight / .bias
    classifier: Classifier
    types: Literal["input", "zero", "none"]  # token types: told, always 0, no table of them
    padded_positions: bool = False  # positions count from pad_token_id + 1


_BERT_NAMES = {
    "query": "encoder.layer.{}.attention.self.query", "key": "encoder.layer.{}.attention.self.key",
    "value": "encoder.layer.{}.attention.self.value", "output": "encoder.layer.{}.attention.output.dense",
    "attention_norm": "encoder.layer.{}.attention.output.LayerNorm", "up": "encoder.layer.{}.intermediate.dense",
    "down": "encoder.layer.{}.output.dense", "ffn_norm": "encoder.layer.{}.output.LayerNorm",
}  # fmt: skip
_DISTIL_NAMES = {
    "query": "transformer.layer.{}.attention.q_lin", "key": "transformer.layer.{}.attention.k_lin",
    "value": "transformer.layer.{}.attention.v_lin", "output": "transformer.layer.{}.attention.out_lin",
    "attention_norm": "transformer.layer.{}.sa_layer_norm", "up": "transformer.layer.{}.ffn.lin1",
    "down": "transformer.layer.{}.ffn.lin2", "ffn_norm": "transformer.layer.{}.output_layer_norm",
}  # fmt: skip
_BERT_KEYS = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "hidden_act")
_POOLER = Classifier("pooler.dense", "tanh", "classifier", pooler=True)
_TANH, _GELU = (Classifier("classifier.dense", activation, "classifier.out_proj") for activation in ("tanh", "gelu"))


def _bert(prefix: str, classifier: Classifier = _POOLER) -> Family:
    return Family(prefix, *_BERT_KEYS, _BERT_NAMES, classifier, "input")


def _roberta(prefix: str) -> Family:
    return Family(prefix, *_BERT_KEYS, _BERT_NAMES, _TANH, "zero", padded_positions=True)


FAMILIES = {
    "bert": _bert("bert."),
    "distilbert": Family(
        "distilbert.", "n_layers", "n_heads", "dim", "hidden_dim", "activation", _DISTIL_NAMES,
        Classifier("pre_classifier", "relu", "classifier"), "none",
    ),
    "roberta": _roberta("roberta."),
    "xlm-roberta": _roberta("roberta."),
    "camembert": _roberta("roberta."),
    "data2vec-text": _roberta("data2vec_text."),
    "electra": _bert("electra.", _GELU),
    "ernie": _bert("ernie."),
}  # fmt: skip

_DECODER = "it is a decoder: `stic compile` takes directories of the families that docs/models.md lists"
_SEQ2SEQ = "it is an encoder and a decoder in one, which is not supported"
_PRE_NORM = "its layers normalise before attention and feed-forward (pre-norm), not after them"
_RELATIVE = "its attention adds terms of relative positions"
_ROTARY = "its positions are rotations of queries and keys (rotary), and its feed-forward part is gated"
_SPARSE = "its attention is sparse, not of every token to every token"
_FACTORED = "its embeddings are narrower than its layers and pass a linear map"
_OTHER_INPUTS = "it takes more than a text's tokens"
# model_type -> what the layers of BERT cannot express.
REASONS = {
    "albert": "its layers share one set of weights, and its embeddings pass a linear map",
    "mobilebert": "its layers have bottlenecks and stacked feed-forward parts",
    "squeezebert": "its linear maps are grouped convolutions",
    "convbert": "its attention is mixed with convolutions",
    "funnel": "its layers shorten the sequence",
    "fnet": "its layers mix tokens by Fourier transforms, not by attention",
    "canine": "it reads characters, not tokens",
    "xmod": "its layers hold an adapter for each language",
    "rembert": _FACTORED,
    "xlm-roberta-xl": _PRE_NORM,
    "roberta-prelayernorm": _PRE_NORM,
    "megatron-bert": _PRE_NORM,
    "esm": _PRE_NORM,
    "deberta": _RELATIVE,
    "deberta-v2": _RELATIVE,
    "mpnet": "its attention adds a bias by relative position",
    "nezha": _RELATIVE,
    "xlnet": _RELATIVE,
    "roformer": "its positions are rotations of queries and keys (rotary)",
    "nomic_bert": _ROTARY,
    "modernbert": f"{_PRE_NORM}, and {_ROTARY}",
    "eurobert": f"{_PRE_NORM}, and {_ROTARY}",
    "gte": _ROTARY,
    "new": _ROTARY,
    "jina_embeddings_v3": "its positions are rotations of queries and keys (rotary)",
    "longformer": _SPARSE,
    "big_bird": _SPARSE,
    "nystromformer": "its attention is approximated",
    "yoso": "its attention is approximated",
    "mra": "its attention is approximated",
    "reformer": "its attention is by hashing, and its layers are reversible",
    "layoutlm": _OTHER_INPUTS,
    "layoutlmv2": _OTHER_INPUTS,
    "layoutlmv3": _OTHER_INPUTS,
    "lilt": _OTHER_INPUTS,
    "luke": _OTHER_INPUTS,
    "markuplm": _OTHER_INPUTS,
    "roc_bert": _OTHER_INPUTS,
    "tapas": _OTHER_INPUTS,
    "visual_bert": _OTHER_INPUTS,
    "clip": _OTHER_INPUTS,
    **dict.fromkeys(("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "m2m_100", "led"), _SEQ2SEQ),
    **dict.fromkeys(
        (
            "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "llama", "mistral", "mixtral", "phi",
            "phi3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "stablelm", "smollm3", "olmo2", "mamba", "mpt",
        ),
        _DECODER,
    ),
}  # fmt: skip


def refusal(config: dict[str, Any]) -> str:
    """Why a config of a family that is not in FAMILIES is refused; ends with the families that are taken."""
    kind = config.get("model_type")
    reason = REASONS.get(str(kind))
    decoders = ", ".join(name for family in known.FAMILIES for name in family.types)
    return (
        f"model_type '{kind}' is not supported{f': {reason}' if reason else ''}; {', '.join(FAMILIES)} are, and of"
        f" decoders, which are compiled without export, {decoders}"
    )
