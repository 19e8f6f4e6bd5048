"""Folders as people have them: read as transformers reads them, or refused with a sentence that can be followed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stic.compiler.export.huggingface import export_model
from stic.compiler.forward import outputs
from stic.compiler.inputs import read_model, reading_of
from stic.runtime.errors import InputError, UnsupportedModelError

IDS = np.array([[2, 5, 9, 8, 3]])
SHARD = "model-{:05}-of-00002.safetensors"

QUICK = ("--target", "odroid-n2plus", "--planner", "preload", "--bits", "4")  # measures no importance


def same(one, other):
    return np.array_equal(outputs(one, IDS), outputs(other, IDS))


def optimum(source, folder, place="model.onnx"):
    """As optimum or the hub lay it out: ONNX, with config and tokenizer in the folder, and no safetensors."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    bare = shutil.copytree(source, folder.parent / "bare", ignore=shutil.ignore_patterns("modules.json"))
    export_model(bare, folder.parent / "work" / "m.onnx")
    (folder / place).parent.mkdir(exist_ok=True)
    shutil.copy(folder.parent / "work" / "m.onnx", folder / place)
    return folder


def sharded(source, folder, **changes):
    """Weights in two files and an index; `changes` go into the index."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(source / "model.safetensors")
    listed = {name: SHARD.format(1 + number % 2) for number, name in enumerate(tensors)}
    for file in set(listed.values()):
        save_file({name: tensors[name] for name in tensors if listed[name] == file}, folder / file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": listed} | changes
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx", "encoder.onnx", "onnx/encoder.onnx"])
def test_onnx_with_its_config_and_tokenizer(tiny_classifier_dir, tmp_path, place):
    folder = optimum(tiny_classifier_dir, tmp_path / "hub", place)
    whole = read_model(tiny_classifier_dir)
    for path in (folder, folder / place):
        model = read_model(path)
        assert same(model, whole) and model.tokenizer == folder / "tokenizer.json"
        assert reading_of(model).names == ("negative", "positive")
        assert model.name == ("encoder" if path.name == "encoder.onnx" else "hub")


def test_the_folder_above_is_found_from_within(tiny_classifier_dir, tmp_path, monkeypatch):
    folder = optimum(tiny_classifier_dir, tmp_path / "hub", "onnx/model.onnx")
    monkeypatch.chdir(folder / "onnx")
    for given in ("model.onnx", "../onnx/model.onnx", ".."):
        model = read_model(Path(given))
        assert model.name == "hub" and model.tokenizer.resolve() == folder / "tokenizer.json"
        assert reading_of(model).names == ("negative", "positive")


def test_files_that_are_links_into_a_cache(tiny_dir, tiny_classifier_dir, tmp_path):
    """As the hub's cache keeps them: snapshots of links, to files that are named by their digest."""
    folders = [sharded(tiny_dir, tmp_path / "shards")]
    folders.append(optimum(tiny_classifier_dir, tmp_path / "hub", "onnx/model.onnx"))
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        blob = path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(blob)
    for folder, source in zip(folders, (tiny_dir, tiny_classifier_dir), strict=True):
        model = read_model(folder)
        assert same(model, read_model(source)) and model.name == folder.name and model.tokenizer is not None
    assert read_model(folders[1] / "onnx" / "model.onnx").name == "hub"


def test_a_folder_onnx_has_its_own_files_first(tiny_dir, tmp_path):
    folder = optimum(tiny_dir, tmp_path / "hub", "onnx/model.onnx")
    shutil.copy(folder / "tokenizer.json", folder / "onnx" / "tokenizer.json")
    assert read_model(folder / "onnx" / "model.onnx").tokenizer == folder / "onnx" / "tokenizer.json"
    (folder / "onnx").rename(folder / "other")  # not the hub's: what lies above is another model's, as like as not
    (folder / "other" / "tokenizer.json").unlink()
    assert read_model(folder / "other" / "model.onnx").tokenizer is None


def test_a_directory_with_a_folder_onnx_only(stic, tiny_classifier_dir, tmp_path):
    folder = optimum(tiny_classifier_dir, tmp_path / "made", "onnx/model.onnx")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).rename(folder / "onnx" / name)
    model = read_model(folder)
    assert model.tokenizer == folder / "onnx" / "tokenizer.json" and reading_of(model).names == ("negative", "positive")
    (folder / "onnx" / "tokenizer.json").rename(folder / "vocab.txt")
    status, _, err = stic("plan", folder, *QUICK)
    assert status == 0 and f"make one of {folder / 'vocab.txt'}" in err


def test_the_folder_onnx_itself(tiny_dir, tmp_path):
    folder = optimum(tiny_dir, tmp_path / "hub", "onnx/model.onnx")
    model = read_model(folder / "onnx")
    assert same(model, read_model(tiny_dir)) and model.name == "hub"
    assert model.tokenizer == folder / "tokenizer.json"


def test_elastic_is_read_one_folder_up(tiny_dir, tmp_path):
    folder = optimum(tiny_dir, tmp_path / "hub", "onnx/model.onnx")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"elastic": True}))
    assert read_model(folder).elastic and read_model(folder / "onnx" / "model.onnx").elastic


def test_pooling_beside_the_onnx_of_a_sentence_encoder(tiny_dir, tmp_path):
    folder = optimum(tiny_dir, tmp_path / "hub", "onnx/model.onnx")
    assert same(read_model(folder), read_model(tiny_dir))
    assert read_model(folder / "onnx" / "model.onnx").head.pooling == "mean"  # as the directory
    assert read_model(folder, "last_hidden_state").head.pooling == "tokens"


def test_several_onnx_files(tiny_classifier_dir, tmp_path):
    folder = optimum(tiny_classifier_dir, tmp_path / "hub", "onnx/model.onnx")
    for name in ("model_quantized.onnx", "model_fp16.onnx"):
        (folder / "onnx" / name).write_bytes(b"not read")
    assert len(read_model(folder).layers) == 2
    (folder / "onnx" / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"ONNX files: onnx/model_fp16\.onnx, onnx/model_quantized\.onnx; give"):
        read_model(folder)


def test_safetensors_are_preferred(tiny_classifier_dir, tmp_path):
    folder = optimum(tiny_classifier_dir, tmp_path / "hub")
    shutil.copy(tiny_classifier_dir / "model.safetensors", folder)
    (folder / "model.onnx").write_bytes(b"not read")
    assert len(read_model(folder).layers) == 2
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"model\.onnx is not an ONNX file"):
        read_model(folder)


def test_export_of_what_is_onnx_already(stic, tiny_classifier_dir, tmp_path):
    folder = optimum(tiny_classifier_dir, tmp_path / "hub", "onnx/model.onnx")
    status, _, err = stic("export", folder, "-o", tmp_path / "m.onnx")
    assert status == 1 and "onnx/model.onnx is ONNX already: give it" in err


def test_shards(tiny_dir, tiny_classifier_dir, tmp_path):
    for number, source in enumerate((tiny_dir, tiny_classifier_dir)):
        assert same(read_model(sharded(source, tmp_path / str(number))), read_model(source))


def _double(folder):
    name, tensor = next(iter(load_file(folder / SHARD.format(1)).items()))
    save_file({**load_file(folder / SHARD.format(2)), name: tensor}, folder / SHARD.format(2))


def _edit(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def _move(folder, file):
    _edit(folder, lambda index: index["weight_map"].update(dict.fromkeys(index["weight_map"], file)))


def _without_total(folder):
    _double(folder)
    _edit(folder, lambda index: index.pop("metadata"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / SHARD.format(2)).unlink(), r"its shard model-00002-of-00002\.safetensors is missing"),
        (lambda f: (f / SHARD.format(1)).write_bytes(b"\x05"), r"model-00001-of-00002\.safetensors is not a safet"),
        (_without_total, r"is in model-00001-of-00002\.safetensors and in model-00002"),
        (lambda f: _move(f, SHARD.format(1)), "its shards hold"),
        (lambda f: _edit(f, lambda i: i.update(metadata={}, weight_map={**i["weight_map"], "x": SHARD.format(1)})),
         "weight 'x' is in model-00001-of-00002.safetensors, which does not hold it"),
        (lambda f: _move(f, "../other/model.safetensors"), "no .safetensors file of its own folder; refused"),
        (lambda f: _move(f, "/etc/passwd"), "'/etc/passwd', which is no .safetensors file of its own folder"),
        (lambda f: _move(f, "..\\\\model.safetensors"), "of its own folder; refused"),
        (lambda f: _move(f, "pytorch_model.bin"), "'pytorch_model.bin', which is no .safetensors"),
        (lambda f: _move(f, ""), "'', which is no .safetensors"),
        (lambda f: _move(f, 3), "gives no file name for each weight"),
        (lambda f: _edit(f, lambda i: i.update(weight_map={})), "gives no file name for each weight"),
        (lambda f: _edit(f, lambda i: i.pop("weight_map")), "it has no weight_map"),
        (lambda f: _edit(f, lambda i: i.update(metadata=[1])), "its metadata gives no number of bytes"),
        (lambda f: _edit(f, lambda i: i["metadata"].update(total_size="much")), "gives no number of bytes"),
        (lambda f: _edit(f, lambda i: i["metadata"].update(total_size=10)), "promises 10 bytes of weights, its shards"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[1]"), "index.json is damaged"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "index.json is damaged"),
        (lambda f: (f / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}'), "'a' is in it twice"),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "but neither model.safetensors nor"),
    ],
)  # fmt: skip
def test_shards_that_contradict_their_index(tiny_dir, tmp_path, spoil, message):
    folder = sharded(tiny_dir, tmp_path / "hf")
    spoil(folder)
    with pytest.raises(InputError, match=message):
        read_model(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pytorch_model.bin"], "a pickle, .* import BertForSequenceClassification as M; M"),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"], "a pickle, which stic does not open"),
        (["model.pt"], "has its weights in model.pt, which stic does not read; give config.json with"),
        (["tf_model.h5"], "has its weights in tf_model.h5, which stic does not read"),
        (["m.gguf"], "m.gguf, which stic does not read; give config.json with model.safetensors, or model.onnx"),
        (["adapter_model.safetensors"], "holds an adapter only: merge it"),
        (["model-00001-of-00002.safetensors"], "neither model.safetensors nor model.safetensors.index.json"),
        (["index.bin", "shards.bin"], "is a package that stic compiled"),
        ([], "holds no model: expected config.json with model.safetensors, or model.onnx"),
    ],
)
def test_folders_without_weights_to_read(stic, tiny_classifier_dir, tmp_path, files, message):
    folder = shutil.copytree(tiny_classifier_dir, tmp_path / "hf", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in files:
        (folder / name).write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(InputError, match=message):
        read_model(folder)
    status, _, err = stic("export", folder, "-o", tmp_path / "m.onnx")
    assert status == 1 and str(folder) in err


@pytest.mark.parametrize("name", ["vocab.txt", "vocab.json", "sentencepiece.bpe.model"])
def test_a_vocabulary_without_tokenizer(stic, tiny_dir, tmp_path, name):
    folder = shutil.copytree(tiny_dir, tmp_path / "hf")
    (folder / "tokenizer.json").rename(folder / name)
    status, _, err = stic("plan", folder, *QUICK)
    assert status == 0 and f"make one of {folder / name}" in err and "AutoTokenizer" in err
    (folder / name).unlink()
    assert "put the model's there" in stic("plan", folder, *QUICK)[2]


def test_the_advice_makes_a_tokenizer(tiny_dir, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = shutil.copytree(tiny_dir, tmp_path / "hf")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]))
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert read_model(folder).tokenizer == folder / "tokenizer.json"


def test_messages_name_the_directory_and_no_temporary_file(tiny_dir, monkeypatch):
    with pytest.raises(InputError, match=f"{tiny_dir}: it has no output 'x'") as caught:
        read_model(tiny_dir, "x")
    assert "stic-" not in str(caught.value)
    monkeypatch.setattr("stic.compiler.frontend.precision.Precision.output", -1.0)
    with pytest.raises(UnsupportedModelError, match=f"{tiny_dir}: it was read as an encoder of 2"):
        read_model(tiny_dir)
