"""How the model families spell their configs and weights."""

from __future__ import annotations

from dataclasses import dataclass

ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "relu": "relu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip


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
FAMILIES = {
    "bert": Family("bert.", *_BERT_KEYS, _BERT_NAMES),
    "distilbert": Family("distilbert.", "n_layers", "n_heads", "dim", "hidden_dim", "activation", _DISTIL_NAMES),
    "roberta": Family("roberta.", *_BERT_KEYS, _BERT_NAMES),
    "xlm-roberta": Family("roberta.", *_BERT_KEYS, _BERT_NAMES),
}
