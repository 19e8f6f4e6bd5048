"""Real models end to end: what quantisation costs them, and what the engine holds, against the plan's claim."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")

from stic.compiler.device.bench import measure  # noqa: E402
from stic.compiler.export.huggingface import export_model  # noqa: E402
from stic.compiler.importance.examples import Examples, encode, read_examples  # noqa: E402
from stic.compiler.importance.scoring import Metric, score  # noqa: E402
from stic.compiler.options import (  # noqa: E402
    BudgetOptions,
    CompileOptions,
    ImportanceOptions,
    ModelOptions,
    PlannerOptions,
    TargetOptions,
)
from stic.compiler.pipeline import compile_model  # noqa: E402
from stic.compiler.plan import Budget  # noqa: E402
from stic.compiler.report.texts import outputs_of  # noqa: E402
from stic.runtime.package import Package  # noqa: E402
from stic.runtime.session import Session  # noqa: E402

MIB = 1 << 20
FEW = 64  # calibration tokens: uniform plans do not depend on importance


def _by_onnxruntime(model: Path, examples: Examples) -> Metric:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    batches = encode(examples, model.parent / "tokenizer.json", 128)
    found: Any = None
    for batch in batches:
        values = {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": batch.types}
        out = session.run(None, {name: values[name].astype(np.int64) for name in names})[0]
        found = np.zeros((len(examples.sequences), out.shape[-1]), np.float32) if found is None else found
        found[batch.rows] = out
    return score(found, examples)


def _by_stic(package: Path, examples: Examples) -> Metric:
    with Session(package) as session:
        return score(outputs_of(session, Package.open(package), examples, lambda *_: None), examples)


def uniform(model: Path, package: Path, planner: str, budget: Budget | None = None) -> CompileOptions:
    """Options for a package at 6 bits."""
    return CompileOptions(
        ModelOptions(model),
        TargetOptions("host"),
        BudgetOptions(budget or Budget()),
        package,
        importance=ImportanceOptions(tokens=FEW),
        planner=PlannerOptions(planner, 6),
    )


def test_sst2_at_6_bits_is_as_accurate_as_in_float(models_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    model, package = models_dir / "sst2" / "model.onnx", tmp_path / "sst2.stic"
    compile_model(uniform(model, package, "preload"))
    examples = read_examples(data_dir / "sst2" / "dev.tsv")
    exact, found = _by_onnxruntime(model, examples), _by_stic(package, examples)
    assert found.n == exact.n == 872
    assert found.value >= exact.value - 0.005


@pytest.fixture(scope="module")
def minilm(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 as ONNX."""
    path = tmp_path_factory.mktemp("minilm") / "minilm.onnx"
    export_model(minilm_dir, path)
    return path


@pytest.fixture(scope="module")
def streamed(minilm: Path) -> Path:
    """MiniLM at 6 bits, streamed layer by layer."""
    package = minilm.with_name("minilm.stic")
    compile_model(uniform(minilm, package, "pipeline", Budget(preload_bytes=MIB)))
    return package


def test_minilm_at_6_bits_ranks_sentences_as_in_float(minilm: Path, streamed: Path, data_dir: Path) -> None:
    examples = read_examples(data_dir / "stsb" / "dev.tsv")
    exact, found = _by_onnxruntime(minilm, examples), _by_stic(streamed, examples)
    assert found.n == exact.n == 1500
    assert found.value >= exact.value - 0.005


def test_the_engine_holds_no_more_than_the_plan_claims(streamed: Path) -> None:
    found = measure(streamed, 3, None, False)
    assert found.peak_bytes <= found.claimed_bytes
    assert found.rss_bytes <= found.claimed_bytes + 2 * MIB
