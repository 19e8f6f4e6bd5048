"""The model as transformers reads it from the same file: tokens, templates and logits that are not stic's.

Needs torch, transformers and gguf. transformers dequantises the file by itself; it would want another package to place
the tensors on devices, so they are put into the model here.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stic.compiler.language.scoring import Ids, Logits


class Oracle:
    """A GGUF file in transformers; usable as a `Scorer`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        with _silence():
            return AutoTokenizer.from_pretrained(self._path.parent, gguf_file=self._path.name)

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        with _silence():
            config = AutoConfig.from_pretrained(self._path.parent, gguf_file=self._path.name)
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
            made = load_gguf_checkpoint(str(self._path), return_tensors=True, model_to_load=model)
        missing = model.load_state_dict(made["tensors"], strict=False)
        if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
            raise RuntimeError(f"transformers reads {self._path.name} otherwise than it builds the model: {missing}")
        model.tie_weights()
        return model.eval()

    @property
    def context(self) -> int:
        """The most tokens that it takes."""
        return int(self._model.config.max_position_embeddings)

    def logits(self, ids: Ids, first: int = 0) -> Logits:
        """Return (len(ids) - first, vocabulary): what follows each of ids[first:]."""
        import torch

        with torch.no_grad():
            found: Logits = self._model(torch.tensor([list(ids)])).logits[0, first:].numpy()
        return found

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, special ones not among them."""
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a chat, the turn that is to be answered opened."""
        given = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(given, add_special_tokens=False).input_ids)


def margins(logits: Logits, following: Ids) -> np.ndarray:
    """How far each token is below the likeliest, in nats; 0: it is the likeliest."""
    rows = logits.astype(np.float64)
    found: np.ndarray = rows.max(axis=1) - rows[np.arange(len(rows)), np.asarray(following)]
    return found


def _silence() -> contextlib.redirect_stderr[io.StringIO]:
    """Progress bars and advice of the library go nowhere."""
    return contextlib.redirect_stderr(io.StringIO())
