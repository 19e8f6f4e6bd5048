"""`--embedding-bits` and `--keep-planes`: what a plan counts for the rows, what a package then holds and answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.planner_study.synthetic import DEVICES, Geometry, problem_of
from stic.compiler.options import ShardOptions
from stic.compiler.plan import BlockCost, Budget, ComputeCost, IoCost, LayerPlan, Plan, Problem, Proof
from stic.compiler.planner.closed_form import claim_of
from stic.compiler.planner.costs import Costs, with_rows
from stic.compiler.simulate import check, simulate
from stic.runtime.errors import InputError
from stic.runtime.format import BLOCK
from stic.runtime.layout import Shape
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.session import Session
from tests.compiler.conftest import Stic

SIZES = {"hidden": 64, "heads_per_slice": 1, "head_dim": 16, "neurons_per_slice": 32, "slices": 4, "rows": 32}
TIMES = {"layer_us": 50.0, "slice_us": {"2": 40.0, "32": 90.0}, "embed_us": 5.0, "head_us": 5.0, "submit_us": 5.0}
IO = {"direct": True, "lanes": 2, "request_us": 50.0, "bytes_per_s": 5e8, "row_us": 20.0}
HOST = ["--target", "host", "--max-length", "32", "--threads", "2", "--lanes", "2"]
UNIFORM = ["--planner", "preload", "--bits", "32", "--full-bits", "32"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "device.json"
    data = {"format": 1, "device": "a board", "io": IO, "compute": {"threads": 2, "shapes": [{**SIZES, **TIMES}]}}
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def compiled(stic: Stic, profile: Path, tmp_path: Path) -> Any:
    def run(model: Path, *options: str) -> tuple[dict[str, Any], Package]:
        arguments = ["compile", model, *HOST, "--device-profile", profile, *options, "-o", tmp_path / "m.stic"]
        status, out, err = stic(*arguments, "--json")
        assert status == 0, err
        return json.loads(out), Package.open(tmp_path / "m.stic")

    return run


@pytest.mark.parametrize(
    ("bits", "asked", "row_type"),
    [
        (None, None, "int8"),
        (8, None, "int8"),
        (2, 16, "float16"),
        (None, 16, "float16"),
        (16, None, "float16"),
        (32, None, "float16"),
        (32, 8, "int8"),
        (16, 16, "float16"),
    ],
)
def test_what_rows_a_compilation_gets(bits: int | None, asked: int | None, row_type: str) -> None:
    assert ShardOptions(embedding_bits=asked).row_type(bits) == row_type


@pytest.mark.parametrize("asked", [0, 4, 32])
def test_widths_that_are_none(asked: int) -> None:
    with pytest.raises(InputError, match=f"--embedding-bits is {asked}"):
        ShardOptions(embedding_bits=asked)


@pytest.mark.parametrize(("hidden", "narrow"), [(64, 0), (2046, 0), (2047, 1), (4088, 1), (4089, 0)])
def test_rows_of_more_blocks_take_longer(hidden: int, narrow: int) -> None:
    compute = ComputeCost((BlockCost(1.0, {4: 1.0}),), 7.0, 1.0)
    costs = Costs(
        IoCost(50.0, 4096e6, 1 << 18, 20.0), compute, True, gpu=replace(compute, embed_us=2.0), hand_over_us=3.0
    )
    same = with_rows(costs, hidden, "int8")
    assert (same.io, same.compute, same.gpu) == (costs.io, costs.compute, costs.gpu)
    wide = with_rows(costs, hidden, "float16")
    assert wide.io == replace(costs.io, row_us=20.0 + narrow)
    assert wide.compute == compute and wide.gpu is not None and wide.gpu.embed_us == 7.0 + 3.0
    assert with_rows(replace(costs, gpu=None), hidden, "float16").gpu is None


@pytest.mark.parametrize("hidden", [64, 3072])
@pytest.mark.parametrize("resident", [False, True])
def test_replay_equals_the_claim(hidden: int, resident: bool) -> None:
    geometry = Geometry("small", Shape.layer(hidden, 4, 1, 16, 32), 2, 500)
    problem: Problem = replace(problem_of(geometry, DEVICES[0], 1, Budget(), length=32), row_type="float16")
    assert problem.row_read_bytes == (BLOCK if hidden == 64 else 2 * BLOCK)
    layers = (LayerPlan((4,) * 4, (4, 4, 0, 0)), LayerPlan((3,) * 4, (0,) * 4))
    plan = Plan("test", layers, resident, 1, True, Budget(), 0.0, Proof("heuristic", 0.0, None, 0.0))
    timeline = check(plan, problem, claim_of(plan, problem))
    narrow = simulate(plan, replace(problem, row_type="int8"))
    more = 0 if resident or hidden == 64 else 32 * BLOCK
    assert timeline.io_bytes - narrow.io_bytes == more


def exact_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """What the engine computes in int8, at full precision: all (head_dim, tokens)."""
    powers = np.exp(key.T @ query - (key.T @ query).max(axis=0))
    return value @ (powers / powers.sum(axis=0))


def relative_error(package: Package, model: Path) -> float:
    """Of the reference with exact attention, against onnxruntime: the largest over a few inputs."""
    onnxruntime = pytest.importorskip("onnxruntime")
    oracle = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    reference, rng, worst = Reference(package), np.random.default_rng(4), 0.0
    reference.cpu.attention = exact_attention  # type: ignore[method-assign]
    for length in (1, 5, 17, 32):
        ids = rng.integers(0, int(package.model["vocabulary"]), length)
        values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        names = [node.name for node in oracle.get_inputs()]
        want = oracle.run(None, {name: values[name][None] for name in names})[0][0]
        worst = max(worst, float(np.linalg.norm(reference.run(ids) - want) / np.linalg.norm(want)))
    return worst


@pytest.mark.parametrize("kind", ["tiny_dir", "tiny_classifier_dir"])
def test_full_precision_is_that_of_the_table_too(
    kind: str, compiled: Any, stic: Stic, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = tmp_path / "model.onnx"
    assert stic("export", request.getfixturevalue(kind), "-o", model)[0] == 0
    facts, package = compiled(model, *UNIFORM)
    assert package.row_type == "float16" and facts["peak_bytes"] == package.entry.claimed_bytes
    error = relative_error(package, model)
    assert error < 2e-3
    with Session(package.path) as session:
        ids = [2, 5, 3, 7]
        np.testing.assert_allclose(session.run(ids), Reference(package).run(ids), rtol=1e-5, atol=2e-6)
    narrow_facts, narrow = compiled(model, *UNIFORM, "--embedding-bits", "8")
    assert narrow.row_type == "int8" and relative_error(narrow, model) > 2 * error
    table = int(package.files["embeddings.bin"]["bytes"]), int(narrow.files["embeddings.bin"]["bytes"])
    more = table[0] - table[1] if package.header["table_resident"] else 0
    assert facts["peak_bytes"] - narrow_facts["peak_bytes"] >= more >= 0


def test_inspect_tells_them(compiled: Any, stic: Stic, tiny_dir: Path) -> None:
    options = ["--planner", "preload", "--bits", "4"]
    _, package = compiled(tiny_dir, *options, "--embedding-bits", "16", "--keep-planes")
    status, out, _ = stic("inspect", package.path)
    words = " ".join(out.split())
    assert status == 0 and "holds all planes" in words and "the word table is float16" in words
    facts = json.loads(stic("inspect", package.path, "--json")[1])
    assert facts["row_type"] == "float16" and facts["all_planes"] is True
    every = (package.path / "shards.bin").stat().st_size
    _, package = compiled(tiny_dir, *options)
    words = " ".join(stic("inspect", package.path)[1].split())
    assert "what its plans read, and no other planes" in words and "the word table is int8" in words
    assert (package.path / "shards.bin").stat().st_size < 0.7 * every


def test_a_width_that_is_none(stic: Stic, tiny_dir: Path, tmp_path: Path) -> None:
    status, _, err = stic("compile", tiny_dir, *HOST, "--embedding-bits", "12", "-o", tmp_path / "m.stic")
    assert status == 2 and "'12' is not one of '8', '16'" in err
