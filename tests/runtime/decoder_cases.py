"""Small decoders of the kinds that families are: what differs between them, and nothing else."""

from __future__ import annotations

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

RMS, LAYER = Norm("rms", 1e-5), Norm("layer", 1e-5)
CONTEXT, ROWS = 48, 100
_INPUT, _PLAIN = Norms(input=RMS), Embedding()


def rotary(features: int, base: float = 10000.0, magnitude: float = 1.0) -> Rotary:
    frequencies = tuple(base ** (-i / (features // 2)) for i in range(features // 2))
    return Rotary(frequencies, magnitude)


def decoder(
    *blocks: Block,
    hidden: int = 64,
    rows: int = ROWS,
    last: Norms = _INPUT,
    family: str = "plain",
    embedding: Embedding = _PLAIN,
    rotaries: tuple[Rotary, ...] | None = None,
    softcap: float | None = None,
) -> Architecture:
    """A decoder of these blocks; without `rotaries` it has one table, which turns 16 features."""
    head = Vocabulary(rows, last, True, softcap)
    tables = (rotary(16),) if rotaries is None else rotaries
    return Architecture(family, hidden, rows, CONTEXT, embedding, (*blocks, head), tables)


def _llama(family: str = "plain") -> Architecture:
    norms = Norms(input=RMS)
    attention, ffn = Attention(4, 2, 16, norms, rotary=0), FeedForward(96, "silu", True, norms)
    return decoder(attention, ffn, attention, ffn, family=family)


def _capped() -> Architecture:
    """As Gemma 2 and 3: both norms around each branch, windows in turn, caps, norms of queries and keys, two tables."""
    both = Norms(input=RMS, branch=RMS)
    heads = {"head_norm": "head", "head_norm_kind": RMS, "softcap": 8.0}
    near, far = (Attention(4, 1, 16, both, rotary=r, window=w, **heads) for r, w in ((0, 7), (1, None)))
    ffn = FeedForward(80, "gelu_tanh", True, both)
    tables = (rotary(16), rotary(16, 1e6))
    return decoder(near, ffn, far, ffn, embedding=Embedding(8.0), rotaries=tables, softcap=4.0)


def _learned() -> Architecture:
    """As GPT-2: layer norms, biases, learned positions, no gate, as many key heads as heads."""
    norms = Norms(input=LAYER)
    attention, ffn = Attention(4, 4, 16, norms), FeedForward(128, "gelu", False, norms)
    embedding = Embedding(positions=CONTEXT)
    return decoder(attention, ffn, attention, ffn, last=norms, family="biases", embedding=embedding, rotaries=())


def _parallel() -> Architecture:
    """As Cohere and GPT-NeoX: the feed-forward block reads what attention read; part of a head turns; no betas."""
    norms = Norms(input=LAYER)
    attention = Attention(4, 2, 16, norms, rotary=0, head_norm="head", head_norm_kind=LAYER)
    ffn = FeedForward(96, "silu", True, norms, parallel=True)
    return decoder(attention, ffn, attention, ffn, last=norms, family="no betas", rotaries=(rotary(8),))


def _branches() -> Architecture:
    """As OLMo 2: norms of branches only, and norms of queries and keys over all heads."""
    norms = Norms(branch=RMS)
    attention = Attention(6, 3, 16, norms, rotary=0, head_norm="whole", head_norm_kind=RMS)
    return decoder(attention, FeedForward(96, "silu", True, norms), attention, FeedForward(96, "silu", True, norms))


def _post() -> Architecture:
    """As the smaller OPT: norms of sums, none before the head; a parallel block without a norm."""
    norms = Norms(post=LAYER)
    attention = Attention(4, 4, 16, norms)
    ffn, beside = FeedForward(64, "relu", False, norms), FeedForward(64, "relu", False, norms, parallel=True)
    embedding = Embedding(positions=CONTEXT)
    return decoder(attention, ffn, attention, beside, last=Norms(), embedding=embedding, rotaries=())


def _odd() -> Architecture:
    """Sizes that fill no tile, and heads that turn in part."""
    norms = Norms(input=RMS)
    attention = Attention(6, 2, 12, norms, rotary=0)
    ffn = FeedForward(70, "silu", True, norms)
    return decoder(attention, ffn, attention, ffn, hidden=72, rows=75, rotaries=(rotary(8, magnitude=1.25),))


ARCHITECTURES = {
    "llama": _llama(),
    "capped": _capped(),
    "learned": _learned(),
    "parallel": _parallel(),
    "branches": _branches(),
    "post": _post(),
    "odd": _odd(),
}
# Values that float16 does not hold.
HUGE = _llama("huge")
