"""How a model's outputs are read: what a package records beside its plan, and `stic run` and `stic eval` go by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.similarity import Similarity
from stic.runtime.errors import PackageError
from stic.runtime.package import Package

Kind = Literal["vector", "classes", "labels", "score", "values"]


@dataclass(frozen=True)
class Reading:
    """What the numbers of an output are. Without pooling it holds for the numbers of each token.

    vector: an embedding. classes: logits, one of which is the answer (softmax). labels: logits, each of which is a
    question of its own (sigmoid). score: one logit that ranks (sigmoid). values: numbers as they are (regression).
    """

    kind: Kind = "vector"
    names: tuple[str, ...] = ()  # of the numbers; empty for a vector
    prompt: str = ""  # put before every text that stands alone
    similarity: Similarity = "cosine"  # of two vectors

    @property
    def ranks(self) -> bool:
        """Whether an output is one number, by which inputs can be put in order."""
        return self.kind in ("score", "values") and len(self.names) == 1

    def to_json(self) -> dict[str, Any]:
        """Plain data; the names stand beside it in plan.json, as the model's labels."""
        return {name: value for name, value in asdict(self).items() if name != "names"}


VECTOR = Reading()


def recorded(package: Package) -> Reading:
    """The reading that a package holds; those that are older than readings hold labels at most.

    Raises PackageError for words that this stic does not know.
    """
    model = package.plan.get("model", {})
    names = tuple(model.get("labels") or ())
    found = model.get("reading")
    if found is None:
        return Reading("vector" if not names else "classes" if len(names) > 1 else "score", names)
    try:
        reading = Reading(names=names, **found)
    except TypeError as error:
        raise PackageError(
            f"{package.path / 'plan.json'} says how outputs are read in words that this stic does not know ({error}):"
            " update stic, or compile the package again"
        ) from error
    if reading.kind not in get_args(Kind) or reading.similarity not in get_args(Similarity):
        raise PackageError(
            f"{package.path / 'plan.json'} reads outputs as '{reading.kind}', compared by '{reading.similarity}', which"
            " this stic does not know: update stic, or compile the package again"
        )
    return reading


def shares(kind: Kind, logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return what logits (..., features) say: softmax for classes, a sigmoid for labels and scores, else themselves."""
    values = logits.astype(np.float64)
    if kind == "classes":
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        found: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
        return found
    return (1 + np.tanh(values / 2)) / 2 if kind in ("labels", "score") else values
