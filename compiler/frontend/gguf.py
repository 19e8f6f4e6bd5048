"""A GGUF file, as llama.cpp has models, to `Decoder`: weights, tokenizer and chat template in one.

Only what stands before the weights is read here; a tensor is mapped, and dequantised when it is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stic.compiler.decoder.model import Decoder, Text
from stic.compiler.frontend.families.family import Made, Names, Stem, recipes
from stic.compiler.frontend.folders import name_of
from stic.compiler.frontend.gguf_config import EMBEDDING, FACTORS, ROTARY_DIVISORS, Said, read_config
from stic.compiler.frontend.gguf_file import GgufFile
from stic.compiler.frontend.gguf_metadata import Metadata
from stic.compiler.frontend.gguf_tokenizer import GgufTokenizer, read_tokenizer
from stic.compiler.frontend.recipes import RecipeWeights, weights
from stic.compiler.text.ending import turn_end
from stic.runtime.architecture import Architecture, Attention, FeedForward
from stic.runtime.errors import UnsupportedModelError

_LAYER = "blk.{}."
_STOPS = ("eos", "eot", "eom")  # ends of a text, of a turn, and of a message, each of which a file may name
_TEMPLATE = "tokenizer.chat_template"


def read_gguf(path: Path) -> Decoder:
    """Open a file.

    Raises UnsupportedModelError for a model that stic cannot compute, by the key or the tensor that says so, and
    InputError for a file that is damaged.
    """
    file = GgufFile(path)
    said = read_config(file)
    names = _names(file, said)
    held = weights(said.made.architecture, file, recipes(said.made, names), str(path))
    _all_used(file, held)
    tokenizer = read_tokenizer(file)
    rows = file.shape(EMBEDDING)[0]
    if tokenizer.tokens and len(tokenizer.tokens) != rows:
        raise UnsupportedModelError(
            f"{path}: its tokenizer has {len(tokenizer.tokens)} tokens, but '{EMBEDDING}' has {rows} rows: one of the"
            " two is of another model"
        )
    architecture, text = _text(file, said.made, tokenizer)
    return Decoder(name_of(path), architecture, held, text, path)


def _names(file: GgufFile, said: Said) -> Names:
    """Where tensors are: llama.cpp has the same names in all architectures; biases are where the file has them."""
    architecture = said.made.architecture
    attention, feed_forward = architecture.blocks[0], architecture.blocks[1]
    assert isinstance(attention, Attention) and isinstance(feed_forward, FeedForward)

    def stem(name: str, rows: tuple[int, int] | None = None, interleaved: int = 0) -> Stem:
        return Stem(name, f"{name.format(0)}.bias" in file, rows, interleaved=interleaved)

    heads, key_heads = (attention.heads, attention.key_heads) if said.arch.interleaved else (0, 0)
    wide, narrow = attention.heads * attention.head_dim, attention.key_heads * attention.head_dim
    fused = f"{_LAYER}attn_qkv"
    if f"{fused.format(0)}.weight" in file:
        query, key = stem(fused, (0, wide), heads), stem(fused, (wide, narrow), key_heads)
        value = stem(fused, (wide + narrow, narrow))
    else:
        query, key = stem(f"{_LAYER}attn_q", None, heads), stem(f"{_LAYER}attn_k", None, key_heads)
        value = stem(f"{_LAYER}attn_v")
    gate, up = stem(f"{_LAYER}ffn_gate"), stem(f"{_LAYER}ffn_up")
    if feed_forward.gated and f"{gate.name.format(0)}.weight" not in file:  # Phi 3 has both in one
        gate, up = stem(up.name, (0, feed_forward.neurons)), stem(up.name, (feed_forward.neurons, feed_forward.neurons))
    first = stem(f"{_LAYER}attn_norm")
    return Names(
        {
            "input": first,
            "query": query,
            "key": key,
            "value": value,
            "query_norm": stem(f"{_LAYER}attn_q_norm"),
            "key_norm": stem(f"{_LAYER}attn_k_norm"),
            "output": stem(f"{_LAYER}attn_output"),
            "branch": stem(f"{_LAYER}post_attention_norm"),
        },
        {
            "input": first if feed_forward.parallel else stem(f"{_LAYER}ffn_norm"),
            "gate": gate,
            "up": up,
            "down": stem(f"{_LAYER}ffn_down"),
            "branch": stem(f"{_LAYER}post_ffw_norm"),
        },
        {
            "embedding": stem("token_embd"),
            "position": stem("position_embd"),
            "input": stem("output_norm"),
            "head": stem("output"),
        },
    )


def _all_used(file: GgufFile, held: RecipeWeights) -> None:
    """Raise UnsupportedModelError for a tensor that the model has no place for, such as a bias or a scale."""
    used = {ROTARY_DIVISORS, *FACTORS.values()}
    for recipe in held.recipes.values():
        used.update(recipe.names)
    for name in file.tensors:
        if name not in used:
            raise UnsupportedModelError(
                f"{file.path}: it holds '{name}', which its architecture has no place for, so that it may compute"
                " something else"
            )


def _text(file: GgufFile, made: Made, tokenizer: GgufTokenizer) -> tuple[Architecture, Text]:
    """The tokens that begin and end text, and the text files."""
    metadata, count = Metadata(file), len(tokenizer.tokens)
    if not count:
        return made.architecture, Text()
    bos = metadata.token("tokenizer.ggml.bos_token_id", count)
    ends = [metadata.token(f"tokenizer.ggml.{kind}_token_id", count) for kind in _STOPS]
    text = Text(
        tokenizer.json,
        metadata.text(_TEMPLATE) if _TEMPLATE in metadata else None,
        _named(tokenizer, bos),
        _named(tokenizer, ends[0]),
        tokenizer.add_bos and bos is not None,
    )
    last = turn_end(text, tokenizer.special)
    stops = {end for end in (*ends, tokenizer.special.get(last or "")) if end is not None}
    return replace(made.architecture, bos=bos, stops=tuple(sorted(stops))), text


def _named(tokenizer: GgufTokenizer, token: int | None) -> str | None:
    return None if token is None else tokenizer.tokens[token]
