"""llama.cpp on the same file, as the Python package llama-cpp-python carries it: other formats, perplexity, speed.

Only functions of llama.h are called. Its CPU has two ways to hold 4-bit weights: as they are in the file, and repacked
for its vector instructions when they are loaded (`repack`).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from stic.compiler.language.scoring import Ids, Logits
from stic.runtime.errors import EngineError

FORMATS = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}  # enum llama_ftype


def _library() -> Any:
    """The package, silenced; ImportError where it is not installed."""
    import llama_cpp

    if not hasattr(_library, "log"):
        kind = llama_cpp.llama_log_callback
        _library.log = kind(lambda level, text, data: None)  # type: ignore[attr-defined]  # kept: C holds on to it
        llama_cpp.llama_log_set(_library.log, None)  # type: ignore[attr-defined]
        llama_cpp.llama_backend_init()
    return llama_cpp


def quantized(source: Path, form: str, folder: Path, threads: int) -> Path:
    """The model of a GGUF file in another of llama.cpp's formats. Raises EngineError where it refuses."""
    path = folder / f"{source.stem}.{form}.gguf"
    if path.is_file():
        return path
    library, part = _library(), path.with_suffix(".part")
    folder.mkdir(parents=True, exist_ok=True)
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize, parameters.nthread = FORMATS[form], True, threads
    if library.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(parameters)):
        raise EngineError(f"llama.cpp does not quantise {source} to {form}")
    part.rename(path)
    return path


class Llama:
    """A model and one text; a `Scorer`. Raises EngineError where llama.cpp refuses the file."""

    def __init__(self, path: Path, context: int, threads: int, repack: bool = True) -> None:
        self._c, self.context = _library(), context
        given = self._c.llama_model_default_params()
        given.use_extra_bufts, given.n_gpu_layers = repack, 0
        self._model = self._c.llama_model_load_from_file(str(path).encode(), given)
        if not self._model:
            raise EngineError(f"llama.cpp does not load {path}")
        asked = self._c.llama_context_default_params()
        asked.n_ctx = asked.n_batch = asked.n_ubatch = context
        asked.n_threads = asked.n_threads_batch = threads
        self._context = self._c.llama_init_from_model(self._model, asked)
        self._memory = self._c.llama_get_memory(self._context)
        self._words = self._c.llama_model_get_vocab(self._model)
        self._vocabulary = self._c.llama_vocab_n_tokens(self._words)

    def tokens(self, text: str, special: bool) -> list[int]:
        """The tokens of a text; `special` takes names of special tokens in it for the tokens."""
        data = text.encode()
        room = (self._c.llama_token * (len(data) + 1))()
        count = self._c.llama_tokenize(self._words, data, len(data), room, len(room), False, special)
        return list(room[:count])

    def rewind(self, position: int) -> None:
        """Forget the tokens from a position on."""
        self._c.llama_memory_seq_rm(self._memory, 0, position, -1)

    def extend(self, ids: Ids) -> None:
        """Compute these tokens, and the logits of the last."""
        tokens = (self._c.llama_token * len(ids))(*ids)  # held until they are computed: a batch is a pointer
        self._decode(self._c.llama_batch_get_one(tokens, len(ids)))

    def logits(self, ids: Ids, first: int = 0) -> Logits:
        """Return (len(ids) - first, vocabulary): what follows each of ids[first:], from an empty cache."""
        self.rewind(0)
        batch = self._c.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for n, token in enumerate(ids):
            batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = token, n, 1, 0
            batch.logits[n] = n >= first
        self._decode(batch)
        rows = len(ids) - first, self._vocabulary
        found: Logits = np.ctypeslib.as_array(self._c.llama_get_logits(self._context), rows).copy()
        self._c.llama_batch_free(batch)
        return found

    def _decode(self, batch: Any) -> None:
        if status := self._c.llama_decode(self._context, batch):
            raise EngineError(f"llama.cpp fails to compute tokens (status {status})")
        self._c.llama_synchronize(self._context)

    def close(self) -> None:
        """Free what it holds."""
        self._c.llama_free(self._context)
        self._c.llama_model_free(self._model)
