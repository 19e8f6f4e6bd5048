"""Evaluating an assignment of bits: what is shared between evaluations changes none of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stic.compiler.importance.evaluate import Evaluator, Setup, collect, run_model
from stic.compiler.importance.examples import Examples, encode
from stic.compiler.importance.scoring import score
from stic.compiler.inputs import read_model
from stic.compiler.quantization.quantize import dequantize, quantize
from stic.compiler.sharding import assemble, shard


def test_scores_are_in_the_order_of_the_examples(tiny_classifier_dir: Path) -> None:
    model = read_model(tiny_classifier_dir)
    assert model.tokenizer is not None
    words = "the cat sings here and a dog runs there very good movie is great".split()
    rng = np.random.default_rng(5)
    texts = tuple((" ".join(rng.choice(words, 4)), None) for _ in range(16))
    examples = Examples("classification", texts, (np.arange(16) % 2).astype(np.float64), "random words")
    whole = encode(examples, model.tokenizer, 64)
    single = encode(examples, model.tokenizer, 64, batch_tokens=1)
    many, one = (collect(model, batches, [run_model(model, b) for b in batches]) for batches in (whole, single))
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)
    assert score(many, examples).n == 16


def test_an_assignment_is_evaluated_as_the_model_that_it_makes(tiny_dir: Path) -> None:
    """Whatever an evaluator shares or leaves out: padding, layers before the first change, slices that did not."""
    encoder = quantize(shard(read_model(tiny_dir), 4))
    model, base = encoder.sharded.model, ((4,) * 4,) * 2
    assert model.tokenizer is not None
    texts = tuple((" ".join(["the dog runs"] * count), None) for count in (1, 2, 3, 3, 5, 1))
    examples = Examples("unlabelled", texts, None, "runs")
    batches = encode(examples, model.tokenizer, 64, batch_tokens=40)
    assert any(not batch.mask.all() for batch in batches)
    evaluator = Evaluator(Setup("", encoder, examples, batches, "cosine", base).measurement)
    for assignment in (
        base,
        ((4, 4, 2, 4), base[1]),
        (base[0], (4, 16, 4, 4)),
        ((4, 4, 2, 4), (2, 4, 4, 4)),
        ((3, 4, 2, 4), base[1]),
        ((4, 4, 4, 0), base[1]),
        ((0,) * 4, base[1]),
    ):

        def matrix(layer: int, index: int, name: str, bits: tuple[tuple[int, ...], ...] = assignment) -> Any:
            chosen = bits[layer][index]
            return dequantize(encoder, layer, index, name, chosen) if chosen else None

        made = assemble(encoder.sharded, matrix)
        made = replace(made, layers=tuple(made.layers[i] for i, bits in enumerate(assignment) if any(bits)))
        expected = collect(model, batches, [run_model(made, batch) for batch in batches])
        np.testing.assert_allclose(evaluator.outputs(assignment), expected, atol=1e-5)
