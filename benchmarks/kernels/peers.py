"""Encoders as contenders: stic, onnxruntime, OpenVINO and numpy, each in the process that `worker.serve` makes.

Each is made from a path, the number of threads and the token ids of every case; a case is a number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def feeds(names: list[str], ids: Ids, types: Ids | None = None) -> dict[str, Ids]:
    """Inputs of a BERT graph by name, each (1, tokens); without token types they are zeros."""
    kinds = np.zeros_like(ids) if types is None else types
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": kinds}
    return {name: values[name][None] for name in names}


class Encoder:
    """A model loaded once, and for each case a function that returns its embedding."""

    def __init__(self, path: str, threads: int, ids: dict[str, list[int]]) -> None:
        self.load(path, threads)
        self._calls = {case: self.prepare(np.asarray(values, np.int64)) for case, values in ids.items()}

    def load(self, path: str, threads: int) -> None:
        """Open the model."""
        raise NotImplementedError

    def prepare(self, ids: Ids) -> Callable[[], Any]:
        """Return what runs these ids."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """The embedding of every case."""
        return {case: np.asarray(call()).reshape(-1).tolist() for case, call in self._calls.items()}

    def call(self, case: str) -> Callable[[], Any]:
        """What runs a case."""
        return self._calls[case]


class Stic(Encoder):
    """A package, run by the engine."""

    def load(self, path: str, threads: int) -> None:
        from stic.runtime.session import Session

        self.session = Session(path, threads=threads)

    def prepare(self, ids: Ids) -> Callable[[], Any]:
        tokens = ids.astype(np.int32)
        return lambda: self.session.run(tokens)


class OnnxRuntime(Encoder):
    """An ONNX graph; one pool of `threads` threads."""

    def load(self, path: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def prepare(self, ids: Ids) -> Callable[[], Any]:
        given = feeds([node.name for node in self.session.get_inputs()], ids)
        return lambda: self.session.run(None, given)[0]

    def any_length(self) -> Callable[[Ids, Ids], Any]:
        """Return what runs ids and token types of whatever length."""
        names = [node.name for node in self.session.get_inputs()]
        return lambda ids, types: self.session.run(None, feeds(names, ids, types))[0]


class OpenVino(Encoder):
    """An ONNX graph or OpenVINO's own; compiled for each length, in the precision that OpenVINO picks."""

    def load(self, path: str, threads: int) -> None:
        import openvino

        self.core, self.path = openvino.Core(), path
        self.settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}

    def prepare(self, ids: Ids) -> Callable[[], Any]:
        model = self.core.read_model(self.path)
        names = [port.any_name for port in model.inputs]
        model.reshape({name: [1, len(ids)] for name in names})
        request = self.core.compile_model(model, "CPU", self.settings).create_infer_request()
        given = feeds(names, ids)
        return lambda: request.infer(given)[0]

    def any_length(self) -> Callable[[Ids, Ids], Any]:
        """Return what runs ids and token types of whatever length."""
        model = self.core.read_model(self.path)
        names = [port.any_name for port in model.inputs]
        request = self.core.compile_model(model, "CPU", self.settings).create_infer_request()
        return lambda ids, types: request.infer(feeds(names, ids, types))[0]


class Numpy(Encoder):
    """The compiler's forward pass in float32; BLAS takes its threads from the environment."""

    def load(self, path: str, threads: int) -> None:
        from pathlib import Path

        from stic.compiler.frontend.onnx import load_model

        self.model = load_model(Path(path))

    def prepare(self, ids: Ids) -> Callable[[], Any]:
        from stic.compiler.forward import outputs

        return lambda: outputs(self.model, ids[None])[0]
