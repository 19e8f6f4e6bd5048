"""Another budget for the same model: neither ordered nor quantised again; the same budget: not planned again."""

from pathlib import Path

import numpy as np
import pytest

from stic.compiler import stage_cache
from stic.compiler.cache.digests import digest
from stic.compiler.inputs import read_model
from stic.compiler.offers import QUANTIZERS, Quantizer
from stic.compiler.package.assembly import Materials
from stic.compiler.plan import Budget, Plan, Problem, Proof
from stic.compiler.sharding import shard
from stic.compiler.stage_cache import quantized_model, solved
from stic.compiler.stages import Decided, Replays
from tests.compiler.planning import planned

CALLED = ("unit_order", "quantize", "solve")
EITHER = ["solve", "solve"]  # ilp's plan and greedy's, of which the better one is kept


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the stages that were computed, not read; the cache is empty."""
    monkeypatch.setenv("STIC_CACHE", str(tmp_path / "cache"))
    names: list[str] = []

    def counted(name: str) -> None:
        really = getattr(stage_cache, name)
        monkeypatch.setattr(stage_cache, name, lambda *a, **k: names.append(name) or really(*a, **k))

    for name in CALLED:
        counted(name)
    return names


def test_only_what_changes_is_computed_again(computed: list[str], tiny_dir: Path) -> None:
    first = planned(tiny_dir)
    assert computed == ["unit_order", "quantize", *EITHER] and not first.notes

    computed.clear()
    again = planned(tiny_dir)
    assert computed == [] and again[Decided].plans == first[Decided].plans
    assert again[Replays].timelines == first[Replays].timelines
    assert digest(again[Materials]) == digest(first[Materials])

    least = Budget(memory_bytes=first[Replays].timelines[0].peak_bytes - 1)
    planned(tiny_dir, budget={"main": least})
    assert computed == EITHER
    computed.clear()
    planned(tiny_dir, shards={"slices": 2})
    assert computed == ["quantize", *EITHER]
    computed.clear()
    planned(tiny_dir, importance={"tokens": 200})
    assert computed == ["unit_order", "quantize", *EITHER]


def test_a_damaged_cache_is_a_note(computed: list[str], tiny_dir: Path, tmp_path: Path) -> None:
    first = planned(tiny_dir)
    (path,) = (tmp_path / "cache" / "quantized").iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    computed.clear()
    again = planned(tiny_dir)
    assert computed == ["quantize"] and digest(again[Materials]) == digest(first[Materials])
    assert len(again.notes) == 1 and "it is damaged" in again.notes[0]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_what_is_read_is_what_was_made(quantizer: Quantizer, tiny_dir: Path, tmp_path: Path) -> None:
    sharded = shard(read_model(tiny_dir), 2)
    sequences = [np.arange(5), np.arange(3), np.arange(5)[::-1]]
    ticks: list[tuple[int, int]] = []

    def ask(ids: list[np.ndarray]) -> str:
        model = quantized_model(
            sharded, quantizer, ids, tmp_path, lambda *at: ticks.append(at), lambda text: pytest.fail(text)
        )
        return digest(model)

    made = ask(sequences)
    assert ticks == [(1, 2), (2, 2)]
    assert ask(sequences) == made and len(ticks) == 2
    # GOBO looks at weights alone, so that other calibration text is the same to it.
    assert (ask(sequences[:2]) == made) == (quantizer == "gobo")
    assert len(ticks) == (2 if quantizer == "gobo" else 4)
    assert len(list(tmp_path.iterdir())) == (1 if quantizer == "gobo" else 2)


@pytest.mark.parametrize(
    ("status", "gap_limit", "searches"), [("optimal", 0.0, 1), ("feasible", 0.05, 1), ("feasible", 0.01, 2)]
)
def test_a_search_that_ran_out_of_time_is_not_kept(
    status: str, gap_limit: float, searches: int, monkeypatch: pytest.MonkeyPatch, tiny_dir: Path, tmp_path: Path
) -> None:
    problem = planned(tiny_dir, planner={"name": "greedy"})[Problem]
    plan = Plan("ilp", (), False, 0, True, Budget(), 0.0, Proof(status, 1.0, 1.02, 0.5, gap_limit))
    asked: list[Problem] = []
    monkeypatch.setattr(stage_cache, "solve", lambda problem, *_, **__: asked.append(problem) or plan)
    for _ in range(2):
        assert solved(problem, "ilp", None, 1.0, gap_limit, tmp_path, lambda text: pytest.fail(text)) == plan
    assert asked == [problem] * searches
