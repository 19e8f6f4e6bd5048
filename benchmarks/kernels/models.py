"""What the encoders' contenders load: packages of stic, quantised models of the peers."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels.peers import feeds
from benchmarks.kernels.place import Place
from stic.compiler.importance.examples import Examples, built_in_examples, open_tokenizer
from stic.compiler.importance.tokens import Pair

NUMPY = "numpy"
Paths = dict[str, tuple[str, Path]]  # contender: class in peers.py, what it loads


def packages(place: Place, settings: dict[str, Any]) -> Paths:
    """Compile a package for each bitwidth, everything in memory."""
    found: Paths = {}
    with place.progress("compile packages", len(settings["bits"])) as tick:
        for bits in settings["bits"]:
            tick()
            name, path = f"stic {bits} bits", place.folder / f"resident-{bits}.stic"
            command = [sys.executable, "-m", "stic.compiler.cli", "compile", str(place.model), "-o", str(path)]
            command += ["--target", place.target.name, "--max-length", str(max(settings["tokens"]))]
            command += ["--planner", "preload", "--bits", str(bits)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr.strip())
            found[name] = "Stic", path
    return found


def peers(place: Place, absent: dict[str, str]) -> Paths:
    """Make the models of the other runtimes; those that are not installed go to `absent`."""
    assert place.model is not None
    found: Paths = {}
    with place.progress("quantise for the peers", 2) as tick:
        if importlib.util.find_spec("onnxruntime"):
            found["onnxruntime fp32"] = "OnnxRuntime", place.model
            found["onnxruntime int8"] = "OnnxRuntime", dynamic(place.model, place.folder / "dynamic.onnx")
        else:
            absent["onnxruntime"] = "not installed: pip install -e '.[bench]'"
        tick()
        if importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf"):
            found["OpenVINO"] = "OpenVino", place.model
            quantized = post_training(place.model, place.folder / "nncf.xml", built_in_examples())
            found["OpenVINO int8"] = "OpenVino", quantized
        else:
            absent["OpenVINO"] = "openvino or nncf is not installed: pip install -e '.[bench]'"
        tick()
    found[NUMPY] = "Numpy", place.model
    return found


def dynamic(model: Path, out: Path) -> Path:
    """onnxruntime's dynamic quantization: int8 weights per channel, activations as they come."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(model, out, per_channel=True)
    return out


def post_training(model: Path, out: Path, examples: Examples) -> Path:
    """NNCF's post-training quantization for transformers, calibrated on the examples."""
    os.environ.setdefault("NNCF_CI", "1")  # without it nncf reports its use over the network
    import nncf
    import openvino

    tokenizer = open_tokenizer(model.parent / "tokenizer.json")
    tokenizer.no_padding()
    graph = openvino.Core().read_model(model)
    names = [port.any_name for port in graph.inputs]

    def inputs(text: Pair) -> dict[str, Any]:
        coded = tokenizer.encode(*text)
        return feeds(names, np.array(coded.ids, np.int64), np.array(coded.type_ids, np.int64))

    texts = list(examples.texts)
    dataset = nncf.Dataset(texts, inputs)
    kind = nncf.ModelType.TRANSFORMER
    with contextlib.redirect_stdout(sys.stderr):  # its progress
        openvino.save_model(nncf.quantize(graph, dataset, model_type=kind, subset_size=len(texts)), out)
    return out
