"""A decoder of given sizes with random weights, as a package and as a GGUF file of Q4_0: for speed, which does not
depend on their values.

Both have the layers at 4 bits and the head, which is a matrix of its own, at 6 (Q6_K), as either compiler makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

from stic.compiler.decoding.cut import cut_decoder
from stic.compiler.decoding.materials import collect_decoder
from stic.compiler.decoding.synthetic import RandomDecoder, random_decoder
from stic.compiler.device.measure import write_probe
from stic.compiler.device.workload import DEFAULT_LANES
from stic.compiler.options import LEAST_HEAD, DecoderOptions
from stic.compiler.package.kernels import generate
from stic.compiler.plan import LayerPlan
from stic.runtime.architecture import (
    Architecture,
    Attention,
    Block,
    Embedding,
    FeedForward,
    Norm,
    Norms,
    Rotary,
    Vocabulary,
)
from stic.targets.target import load

BITS = 4
_EPSILON, _THETA = 1e-5, 10000.0
_Q4_0, _Q6_K = GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q6_K
_SCALE = 2**-10  # of a block of weights: activations stay as small as those of models


@dataclass(frozen=True)
class Sizes:
    """What the shape is, as configurations name it."""

    name: str
    hidden: int
    layers: int
    heads: int
    key_heads: int
    neurons: int
    vocabulary: int
    context: int

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.hidden // self.heads

    @property
    def architecture(self) -> Architecture:
        """A model of the LLaMA family."""
        norm = Norms(input=Norm("rms", _EPSILON))
        attention = Attention(self.heads, self.key_heads, self.head_dim, norm, rotary=0)
        layer: tuple[Block, ...] = (attention, FeedForward(self.neurons, "silu", True, norm))
        pairs = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        rotary = Rotary(tuple(float(f) for f in np.float32(_THETA) ** -pairs))
        blocks = (*layer * self.layers, Vocabulary(self.vocabulary, norm, tied=False))
        return Architecture("llama", self.hidden, self.vocabulary, self.context, Embedding(), blocks, (rotary,))


def package(sizes: Sizes, threads: int, folder: Path) -> Path:
    """The shape as a package, everything resident; written where it is not there yet."""
    path, target = folder / f"{sizes.name}.stic", load("host")
    if path.is_dir():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    cut = cut_decoder(random_decoder(sizes.architecture, sizes.name))
    options = DecoderOptions(context=sizes.context)
    materials = collect_decoder(RandomDecoder(cut), 0, options, threads, DEFAULT_LANES, "int8")
    bits = [BITS] * (len(cut.shapes) - 1) + [LEAST_HEAD]
    layers = tuple(LayerPlan((b,) * n, (b,) * n) for b, n in zip(bits, materials.store.slices, strict=True))
    kernels = folder / f"{sizes.name}.so"
    generate(materials.kernel_shape, target, kernels)
    write_probe(materials, target, kernels, path, layers, True)
    return path


def gguf(sizes: Sizes, folder: Path) -> Path:
    """The shape as a GGUF file without a tokenizer; written where it is not there yet."""
    path = folder / f"{sizes.name}.gguf"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    writer = GGUFWriter(part, "llama")
    writer.add_context_length(sizes.context)
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.neurons)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.key_heads)
    writer.add_layer_norm_rms_eps(_EPSILON)
    writer.add_rope_freq_base(_THETA)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_vocab_size(sizes.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    narrow, hidden = sizes.key_heads * sizes.head_dim, sizes.hidden
    matrices = {"attn_q": (hidden, hidden), "attn_k": (narrow, hidden), "attn_v": (narrow, hidden)}
    matrices |= {"attn_output": (hidden, hidden), "ffn_gate": (sizes.neurons, hidden)}
    matrices |= {"ffn_up": (sizes.neurons, hidden), "ffn_down": (hidden, sizes.neurons)}
    _add(writer, "token_embd", (sizes.vocabulary, hidden), _Q4_0)
    for number in range(sizes.layers):
        for name, shape in matrices.items():
            _add(writer, f"blk.{number}.{name}", shape, _Q4_0)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{number}.{name}.weight", np.ones(hidden, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    _add(writer, "output", (sizes.vocabulary, hidden), _Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
    return path


def _add(writer: GGUFWriter, name: str, shape: tuple[int, int], kind: GGMLQuantizationType) -> None:
    """A matrix of random blocks, whose scale is a float16, in front (Q4_0) or at the end."""
    weights, size = GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(len(name)).integers(0, 256, (shape[0], shape[1] // weights, size), np.uint8)
    scale = np.frombuffer(np.float16(_SCALE).tobytes(), np.uint8)
    blocks[..., slice(0, 2) if kind == _Q4_0 else slice(size - 2, size)] = scale
    writer.add_tensor(f"{name}.weight", blocks.reshape(shape[0], -1), raw_dtype=kind)
