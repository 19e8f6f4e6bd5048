"""Real models from one package for each family of GPUs: the reference's outputs, and a start that compiles nothing.

Needs OpenCL; PoCL, which runs it on the CPU, will do.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.compiler.export.huggingface import export_model
from stic.compiler.importance.examples import read_examples
from stic.compiler.options import CompileOptions, ImportanceOptions, ModelOptions, PlannerOptions, TargetOptions
from stic.compiler.pipeline import compile_model
from stic.compiler.report.texts import outputs_of, tokens_of
from stic.runtime.errors import EngineError
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.session import Session

FEW = 64  # calibration tokens: uniform plans do not depend on importance
TEXTS = ("A man is playing a guitar on the stage.", "Fine", "It " + "was not good, " * 8 + "and then it ended.")
EXAMPLES = 48


def _compile(model: Path, gpu: str, bits: int, package: Path) -> Path:
    """Everything on the GPU, streamed layer by layer; opened once, so that its kernels are compiled."""
    options = CompileOptions(
        ModelOptions(model),
        TargetOptions("host", gpu=gpu, place="gpu"),
        output=package,
        importance=ImportanceOptions(tokens=FEW),
        planner=PlannerOptions("pipeline", bits),
    )
    compile_model(options)
    try:
        Session(package, gpu="required", gpu_arithmetic="float").close()
    except EngineError as error:
        if "no OpenCL library" in str(error) or "no device" in str(error):
            pytest.skip(f"needs OpenCL (Debian: ocl-icd-libopencl1, pocl-opencl-icd): {error}")
        raise
    return package


def _check_answers(package: Path, **tolerance: Any) -> None:
    opened = Package.open(package)
    reference = Reference(opened, gpu_arithmetic="float")
    inputs = tokens_of(opened, [(text, None) for text in TEXTS], False)
    with Session(package, gpu="required", gpu_arithmetic="float") as session:
        for ids, types in inputs:
            np.testing.assert_allclose(session.run(ids, types), reference.run(ids, types), rtol=0, **tolerance)
        assert session.stats().gpu_layers == sum(opened.kept > 0)
        assert session.stats().gpu_builds == 0  # `_compile` has left a binary beside the package


# Activations are stored in half: 11 bits, rounded a dozen times a layer. Outputs are a unit vector, and two scores.
@pytest.mark.parametrize("gpu", ["mali", "adreno"])
def test_minilm(gpu: str, minilm_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "minilm.onnx"
    export_model(minilm_dir, model)
    _check_answers(_compile(model, gpu, 4, tmp_path / "minilm.stic"), atol=1e-3)


@pytest.mark.parametrize("gpu", ["mali", "adreno"])
def test_sst2(gpu: str, models_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    package = _compile(models_dir / "sst2" / "model.onnx", gpu, 6, tmp_path / "sst2.stic")
    _check_answers(package, atol=2e-2)
    examples = read_examples(data_dir / "sst2" / "dev.tsv").pick(range(EXAMPLES))
    outputs = {}
    for mode in ("required", "off"):
        with Session(package, gpu=mode) as session:
            outputs[mode] = np.array(outputs_of(session, Package.open(package), examples, lambda *_: None))
    same = outputs["required"].argmax(axis=-1) == outputs["off"].argmax(axis=-1)
    assert same.mean() >= 1 - 1 / EXAMPLES  # one sentence may stand between the labels
