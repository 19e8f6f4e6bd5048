"""Files beside a model that change its answer: honoured or refused by name, and all of them documented."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stic.compiler.frontend.facts import TABLE, read_facts
from stic.compiler.frontend.sentence_modules import read_modules
from stic.runtime.errors import InputError

DOCS = Path(__file__).resolve().parents[3] / "docs" / "models.md"
CLASSIFIER = {"architectures": ["BertForSequenceClassification"]}
OLD = "sentence_transformers.models"
NEW = "sentence_transformers.base.modules"


def facts(folder, file="config.json", **content):
    (folder / "config.json").write_text(json.dumps(CLASSIFIER))
    (folder / file).write_text(json.dumps((CLASSIFIER if file == "config.json" else {}) | content))
    return read_facts(folder)


def modules(folder, types, pooling=None, dense=None):
    entries = []
    for number, kind in enumerate(types):
        name = kind.rsplit(".", 1)[-1]
        path = "" if name == "Transformer" else f"{number}_{name}"
        entries.append({"idx": number, "name": str(number), "path": path, "type": kind})
        (folder / path).mkdir(exist_ok=True)
        if name == "Pooling":
            (folder / path / "config.json").write_text(json.dumps(pooling))
        if name == "Dense":
            weight = np.ones((3, 4), np.float32)
            save_file({"linear.weight": weight, "linear.bias": weight[:, 0]}, folder / path / "model.safetensors")
            (folder / path / "config.json").write_text(json.dumps(dense))
    (folder / "modules.json").write_text(json.dumps(entries))
    return read_modules(folder)


def test_the_page_lists_every_key():
    page = DOCS.read_text(encoding="utf-8")
    for file, keys in TABLE.items():
        for key, (_, what) in keys.items():
            assert f"| `{file}` | `{key}` | {what} |" in page


@pytest.mark.parametrize(
    ("content", "logits", "kind"),
    [
        ({}, 3, "classes"),
        ({}, 1, "score"),
        ({}, None, "vector"),
        ({"problem_type": "multi_label_classification"}, 3, "labels"),
        ({"problem_type": "regression"}, 1, "values"),
        ({"problem_type": "regression"}, 3, "values"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, 1, "values"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, 3, "labels"),
    ],
)
def test_outputs_are_read_as_config_says(tmp_path, content, logits, kind):
    assert facts(tmp_path, **content).reading(logits).kind == kind


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"problem_type": "clustering"}),
        ("config.json", {"id2label": ["a"]}),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}}),
        ("sentence_bert_config.json", {"max_seq_length": -1}),
        ("sentence_bert_config.json", {"do_lower_case": "yes"}),
        ("config_sentence_transformers.json", {"default_prompt_name": "query", "prompts": {}}),
        ("config_sentence_transformers.json", {"similarity_fn_name": "jaccard"}),
        ("config_sentence_transformers.json", {"truncate_dim": 8}),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path, file, content):
    with pytest.raises(InputError, match=f"{file}: {next(iter(content))}"):
        facts(tmp_path, file, **content)


def test_more_names_than_outputs_are_refused(tmp_path):
    with pytest.raises(InputError, match="id2label names class 4, but the model has 2 outputs"):
        facts(tmp_path, id2label={"0": "a", "4": "b"}).reading(2)


def test_a_default_prompt(tmp_path):
    found = facts(
        tmp_path, "config_sentence_transformers.json", default_prompt_name="q", prompts={"q": "query: ", "d": ""}
    )
    assert found.reading(None).prompt == "query: "


@pytest.mark.parametrize("package", [OLD, NEW])
@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_modules_of_every_version(tmp_path, package, pooling, expected):
    types = [f"{package}.transformer.Transformer", f"{package}.Pooling", f"{package}.Dense", f"{package}.Normalize"]
    dense = {"in_features": 4, "out_features": 3, "activation_function": "torch.nn.modules.activation.Tanh"}
    head = modules(tmp_path, types, pooling, dense).head
    assert head.pooling == expected and head.normalize and head.dense[0].activation == "tanh"


@pytest.mark.parametrize("mode", ["max", "lasttoken", "weightedmean", "mean_sqrt_len", ["mean", "cls"]])
def test_other_poolings_are_named(tmp_path, mode):
    with pytest.raises(InputError, match=mode if isinstance(mode, str) else "mean, cls"):
        modules(tmp_path, ["Transformer", "Pooling"], {"pooling_mode": mode})


def test_other_modules_are_named(tmp_path):
    with pytest.raises(InputError, match="its module 'WeightedLayerPooling' is not supported"):
        modules(tmp_path, ["Transformer", "WeightedLayerPooling"])


def test_a_cross_encoder_has_modules_that_pool_nothing(tmp_path):
    assert not modules(tmp_path, [f"{NEW}.transformer.Transformer"]).pools
