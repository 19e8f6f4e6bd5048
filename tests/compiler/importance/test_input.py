"""What importance cannot be measured with."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stic.compiler.importance.examples import open_tokenizer
from stic.compiler.importance.measure import ImportanceSettings, measure_importance, sample
from stic.compiler.quantization.quantize import QuantizedModel
from stic.runtime.errors import InputError
from tests.compiler.profiling import ONE, SETTINGS, classifier, encoder, labelled, one_thread

__all__ = ["classifier", "encoder", "one_thread"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (4, 2)}, "are not ascending bitwidths"),
        ({"bits": (2, 4, 9)}, "are not ascending bitwidths"),
        ({"bits": ()}, "are not ascending bitwidths"),
        ({"bits": (2, 4)}, "operating level of 8 bits is not among"),
        ({"tokens": 0}, "at least one token"),
        ({"plans": -1}, "no negative number of plans"),
    ],
)
def test_settings_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImportanceSettings(**options)


def test_no_tokenizer(encoder: QuantizedModel) -> None:
    sharded = encoder.sharded
    bare = replace(encoder, sharded=replace(sharded, model=replace(sharded.model, tokenizer=None)))
    with pytest.raises(InputError, match=r"has no tokenizer\.json beside it"):
        measure_importance(bare, settings=SETTINGS, workers=ONE)


def test_calibration_with_one_class(classifier: QuantizedModel) -> None:
    with pytest.raises(InputError, match="have the same class"):
        measure_importance(classifier, replace(labelled(), targets=np.ones(16)), SETTINGS, workers=ONE)


def test_a_sample_has_two_kinds_of_label(tiny_dir: Path) -> None:
    examples = replace(labelled(), targets=(np.arange(16) == 7).astype(np.float64))
    coder = open_tokenizer(tiny_dir / "tokenizer.json")
    chosen, batches = sample(examples, coder, 64, replace(SETTINGS, tokens=1))
    assert chosen.targets is not None and len(np.unique(chosen.targets)) == 2
    assert sum(len(batch.rows) for batch in batches) == len(chosen)
    plain, _ = sample(replace(examples, kind="unlabelled", targets=None), coder, 64, replace(SETTINGS, tokens=1))
    assert len(plain) == 1
