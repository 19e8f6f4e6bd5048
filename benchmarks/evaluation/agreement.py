"""What plans are chosen for: to answer as the whole model does. Whether its answers are right is another matter.

Near the whole model's accuracy, a plan whose answers differ from its own on a few examples is right on some of them and
wrong on others, by chance: labels say little of how well it was planned. Whether the answers are the same says more.
"""

from __future__ import annotations

import numpy as np

from benchmarks.evaluation.results import Json, Results, Row


def agreement(results: Results) -> Results:
    """The same rows, scored by the share of examples to which they give the whole float32 model's answer.

    Of tasks with two classes, where two wrong answers are alike; rows of others are left out.
    """
    scores = results.data.get("full_model", {})
    whole = {task: Row({"accuracy": score}) for task, score in scores.items() if score and "correct" in score}
    rows = [_scored(row, whole[row.task]) for row in results.rows if row.task in whole]
    return Results(results.data | {"rows": rows, "full_model": {}})


def _scored(row: Row, whole: Row) -> Json:
    """A row that has no score stays as it is."""
    if row.points is None or row.correct is None or whole.correct is None:
        return row.data
    same = row.correct == whole.correct
    score = {"metric": "agreement", "value": float(same.mean()), "n": len(same)}
    return row.data | {"accuracy": score | {"correct": np.packbits(same).tobytes().hex()}}
