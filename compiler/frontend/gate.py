"""Whether a decoder computes what its source computes: the same few tokens, compared as distributions.

A conversion may be perfect in structure and wrong in numbers, and its text may look right for a while. So logits are
compared with an arithmetic that is not stic's. Where torch is installed that is transformers, eager and in float32,
which needs memory for the whole model; it is imported only when it is asked for. Graphs are compared with onnxruntime
when they are read (`decoder_graph_check`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.cache.closure import code_of
from stic.compiler.cache.digests import digest
from stic.compiler.decoder.forward import Ids, logits
from stic.compiler.decoder.model import Array, Decoder
from stic.runtime.architecture import tensors
from stic.runtime.errors import UnsupportedModelError
from stic.runtime.files import write_text

TOKENS = 64
MOST_BYTES = 3 << 30  # of float32 weights, which transformers holds beside what stic reads
MOST_DIVERGENCE = 1e-4  # nats; float32 sums in another order stay below 1e-8
Reference = Callable[[Ids], Array]  # token ids (1, tokens) -> logits (1, tokens, vocabulary)


@dataclass(frozen=True)
class Agreement:
    """What a comparison found."""

    divergence: float | None  # the largest of all tokens, KL(source || stic) in nats; None: nothing to compare with
    note: str


def compare(decoder: Decoder, reference: Reference) -> Agreement:
    """Compare on random tokens. Raises UnsupportedModelError where a distribution differs, or holds no numbers."""
    count = min(TOKENS, decoder.architecture.context)
    ids = np.random.default_rng(0).integers(0, decoder.architecture.vocabulary, (1, count))
    wanted, found = _log_shares(reference(ids)), _log_shares(logits(decoder, ids))
    if wanted.shape != found.shape:
        raise UnsupportedModelError(f"{decoder.name}: its source has logits {wanted.shape}, stic {found.shape}")
    divergence = (np.exp(wanted) * (wanted - found)).sum(axis=-1)
    worst = float(divergence.max())
    if not worst <= MOST_DIVERGENCE:
        at = int(np.argmax(np.where(np.isnan(divergence[0]), np.inf, divergence[0])))
        raise UnsupportedModelError(
            f"{decoder.name}: stic computes something else than its source: at token {at} of {count} the distributions"
            f" are {worst:.2g} nats apart, where {MOST_DIVERGENCE:g} is allowed; report the model's config.json"
        )
    return Agreement(worst, f"compared with its source on {count} tokens: {worst:.1g} nats apart at most")


def checked_once(decoder: Decoder, folder: Path, note: Callable[[str], None]) -> None:
    """`compare_with_transformers`, once for files that stay as they are; `note` is told why nothing was compared.

    What agreed is kept in `folder`. Raises UnsupportedModelError where the decoder is not what its source computes.
    """
    if decoder.source is None or decoder.source.suffix == ".onnx":
        return
    files = [decoder.source] if decoder.source.is_file() else sorted(decoder.source.iterdir())
    known = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    kept = folder / f"{digest(code_of(__name__), str(decoder.source.absolute()), known)}.txt"
    if kept.is_file():
        return
    found = compare_with_transformers(decoder)
    if found.divergence is None:
        note(f"{decoder.name} was {found.note}")
    else:
        write_text(kept, f"{found.note}\n")


def compare_with_transformers(decoder: Decoder) -> Agreement:
    """`compare` with transformers; a note where there is nothing that it opens, or nothing to open it with."""
    if decoder.source is None:
        return Agreement(None, "not compared with its source, which is in no file")
    size = sum(4 * int(np.prod(tensor.shape)) for tensor in tensors(decoder.architecture))
    if size > MOST_BYTES:
        return Agreement(None, f"not compared with its source, whose weights take {size >> 30} GiB in float32")
    try:
        reference = transformers_reference(decoder.source)
    except ImportError as error:
        return Agreement(None, f"not compared with its source: {error.name or error} is not installed")
    except Exception as error:  # whatever keeps this version of transformers from opening it
        reason = str(error).strip().partition("\n")[0]
        return Agreement(None, f"not compared with its source: transformers cannot open it ({reason})")
    return compare(decoder, reference)


def transformers_reference(source: Path) -> Reference:
    """The model of a directory or a GGUF file as transformers computes it.

    Raises ImportError where torch or transformers is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    said: Any = logging  # what it says of its own ways is of no use here
    said.set_verbosity_error()
    said.disable_progress_bar()
    folder, file = (source, None) if source.is_dir() else (source.parent, source.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, torch_dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    model.eval()

    def run(ids: Ids) -> Array:
        with torch.no_grad():
            found: Array = model(torch.from_numpy(np.asarray(ids, np.int64))).logits.numpy()
        return found

    return run


def _log_shares(logits: Array) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values = values - values.max(axis=-1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(axis=-1, keepdims=True)))
