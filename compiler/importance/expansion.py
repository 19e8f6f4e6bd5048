"""What shards are worth, all from one expansion of the loss: importance of large models.

Near the full model the loss is quadratic in what a shard changes in the stream. So it need not be measured shard by
shard, each time through all the layers above. Its expansion at the operating level is carried down through the layers
once, as rows of the Jacobian, and meets at every layer what each slice there changes at each bitwidth, its own
nonlinearities included. For a change d of a sequence's outputs

    loss(d) - loss(0) = gradient . d + |root d|^2 / 2,        root^T root the Gauss-Newton matrix of the objective

and d is linear in the stream. Of few output features every row of the root is carried; of many, PROBES random sums of
rows, whose squares have the right mean (Hutchinson's estimator). Second derivatives in place of evaluations are HAWQ's
way (Dong et al., arXiv 1911.03852); errors that propagate as they are, and not as random ones, are OBC's (arXiv
2208.11580).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler.forward import run_head, run_layer
from stic.compiler.importance.derivatives import StreamGradients, head_cotangents, layer_cotangents
from stic.compiler.importance.evaluate import Evaluator, slice_attention, slice_ffn
from stic.compiler.importance.objectives import Objective, log_softmax
from stic.compiler.model import Array
from stic.compiler.sharding import shard_bias

Doubles = NDArray[np.float64]

PROBES = 8  # of 70 sequences or more the mean square is then within 6 %, and errors of shards mostly cancel
_SEED = 0


@dataclass(frozen=True, eq=False)
class OutputCurvature:
    """The loss around outputs (n, features) or (n, tokens, features), of one batch: a gradient and a root.

    Both count for the mean over all rows of all batches.
    """

    gradient: Doubles
    centre: Doubles  # what `project` needs: probabilities, or unit vectors
    scale: Doubles  # (..., 1)
    kind: Objective

    def project(self, directions: Doubles) -> Doubles:
        """Return root^T times directions, (probes, *gradient.shape) both."""
        if self.kind in ("kl", "cross entropy"):
            root = np.sqrt(self.centre)
            turned = root * directions - self.centre * (root * directions).sum(axis=-1, keepdims=True)
        elif self.kind == "cosine":
            turned = directions - self.centre * (self.centre * directions).sum(axis=-1, keepdims=True)
        else:
            turned = directions
        scaled: Doubles = turned * self.scale
        return scaled


def output_curvature(
    objective: Objective, found: Array, reference: Array, rows: int, spread: float, targets: Doubles | None
) -> OutputCurvature:
    """Expand the objective at outputs `found`, where `reference` are the full model's, `rows` all outputs there are.

    `spread` is the variance of all reference outputs ("squared"), `targets` the classes ("cross entropy").
    """
    z, a = found.astype(np.float64), reference.astype(np.float64)
    if objective in ("kl", "cross entropy"):
        if z.shape[-1] == 1 and objective == "cross entropy":  # one logit against 0
            z, a = (np.concatenate((np.zeros_like(v), v), axis=-1) for v in (z, a))
        probability = np.exp(log_softmax(z))
        aim = np.exp(log_softmax(a))
        if objective == "cross entropy":
            assert targets is not None
            aim = np.eye(z.shape[-1])[targets.astype(np.intp)]
        gradient, scale = (probability - aim) / rows, np.full((*z.shape[:-1], 1), rows**-0.5)
        return OutputCurvature(gradient, probability, scale, objective)
    if objective == "squared":
        weight = 2 / (rows * z.shape[-1] * max(spread, 1e-12))
        return OutputCurvature((z - a) * weight, z, np.full((*z.shape[:-1], 1), weight**0.5), objective)
    length = np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    unit, other = z / length, a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-12)
    apart = unit - other
    gradient = (apart - unit * (unit * apart).sum(axis=-1, keepdims=True)) / (length * rows)
    return OutputCurvature(gradient, unit, rows**-0.5 / length, objective)


def expanded_losses(evaluator: Evaluator, number: int, bits: Sequence[int]) -> Doubles:
    """Return (layers, slices, len(bits)): what each shard at each bitwidth adds to the loss of the base assignment.

    Only the sequences of batch `number` count; the sum over the batches is the estimate.
    """
    setup = evaluator.setup
    g, model, layout = setup.quantized.sharded.geometry, setup.quantized.sharded.model, evaluator.layouts[number]
    states = [layout.gather(evaluator.measurement.hidden[number])]
    # Layers are put together twice, and none is held: all at once are the model once more.
    heads, activation, scale = model.heads, model.activation, model.attention_scale
    for layer in range(g.layers):
        states.append(run_layer(evaluator.base_layer(layer), heads, activation, scale, states[-1], layout))
    cotangents = _output_cotangents(evaluator, number, states.pop())
    starts = np.flatnonzero(np.diff(np.flatnonzero(setup.batches[number].mask) // layout.shape[1], prepend=-1))
    added = np.zeros((g.layers, g.slices, len(bits)))
    for layer in reversed(range(g.layers)):
        x = states.pop()
        gradients = layer_cotangents(evaluator.base_layer(layer), heads, activation, x, layout, cotangents)
        cotangents = gradients.before
        added[layer] = _added(evaluator, layer, bits, x, number, gradients, starts)
        del gradients  # before there are those of the next layer
    return added


def _output_cotangents(evaluator: Evaluator, number: int, hidden: Array) -> Array:
    """(1 + probes, rows, hidden): the gradient, then rows of the root, carried back to the last hidden states."""
    setup, layout = evaluator.setup, evaluator.layouts[number]
    head, batch = setup.quantized.sharded.model.head, setup.batches[number]
    by_token = head.pooling == "tokens"
    spread = layout.spread(hidden)
    found = run_head(head, spread, batch.mask)
    reference, targets = evaluator.measurement.reference, setup.examples.targets
    if by_token:
        start = sum(other.tokens for other in setup.batches[:number])
        whole = np.ones(found.shape, np.float32)
        whole[batch.mask] = reference[start : start + batch.tokens]
    else:
        whole = reference[batch.rows]
    classes = None if targets is None or setup.objective != "cross entropy" else targets[batch.rows]
    curvature = output_curvature(
        setup.objective, found, whole, len(reference), float(reference.var(dtype=np.float64)), classes
    )
    shape = curvature.gradient.shape
    random = by_token or shape[-1] > PROBES
    count = 1 + (PROBES if random else shape[-1])
    signs = np.random.default_rng((_SEED, number))
    result = np.empty((count, *hidden.shape), np.float32)
    for place in range(count):  # one after another: in double precision, all at once are the largest thing of a job
        if place == 0:
            carried = curvature.gradient[None]
        elif random:
            drawn = signs.integers(0, 2, (1, *shape)) * 2.0 - 1.0
            carried = curvature.project(drawn / np.sqrt(PROBES))
        else:
            carried = curvature.project(np.broadcast_to(np.eye(shape[-1])[place - 1], (1, *shape)))
        if by_token:
            carried = carried * batch.mask[..., None]
        kept: Array = carried[..., shape[-1] - found.shape[-1] :].astype(np.float32)
        result[place] = layout.gather(head_cotangents(head, spread, batch.mask, kept)[0])
    return result


def _added(
    evaluator: Evaluator,
    layer: int,
    bits: Sequence[int],
    x: Array,
    number: int,
    gradients: StreamGradients,
    starts: NDArray[np.intp],
) -> Doubles:
    """What the shards of one layer add, (slices, len(bits)), summed over the sequences that begin at rows `starts`."""
    sharded = evaluator.setup.quantized.sharded
    g, base, activation = sharded.geometry, evaluator.setup.base[layer], sharded.model.activation
    layout = evaluator.layouts[number]
    # By row, so that a product with a change is one small matrix times a vector; a view is as fast as a copy.
    attention, ffn = (part.transpose(1, 0, 2) for part in (gradients.attention, gradients.ffn))
    result = np.zeros((g.slices, len(bits)))
    for index in range(g.slices):
        biases = shard_bias(sharded, layer, index)

        def parts(
            matrices: Mapping[str, Array], index: int = index, biases: dict[str, Array] = biases
        ) -> tuple[Array, Array]:
            return (
                slice_attention(g, matrices, biases, x, layout),
                slice_ffn(g, index, matrices, biases, gradients.inner, activation),
            )

        at_base = parts(evaluator.matrices(layer, index, base[index]))
        for place, width in enumerate(bits):
            if width == base[index]:
                continue
            changed = parts(evaluator.dequantized(layer, index, width))  # used once: not worth keeping
            rows = np.matmul(attention, (changed[0] - at_base[0])[:, :, None])[:, :, 0]
            rows += np.matmul(ffn, (changed[1] - at_base[1])[:, :, None])[:, :, 0]
            sums = np.add.reduceat(rows.astype(np.float64), starts, axis=0)  # (sequences, 1 + probes)
            result[index, place] = sums[:, 0].sum() + np.square(sums[:, 1:]).sum() / 2
    return result
