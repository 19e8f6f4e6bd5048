"""What cannot be read is refused by a sentence that names the file, the key or the tensor."""

import ml_dtypes
import numpy as np
import pytest

from stic.compiler.decoder.forward import logits
from stic.compiler.frontend.decoders import read_decoder
from stic.runtime.architecture import tensors
from stic.runtime.errors import InputError, UnsupportedModelError
from tests.compiler.frontend.families.folders import LAYERS, llama_tensors, write, write_json

IDS = np.arange(12).reshape(2, 6)


def refused(folder, kind=UnsupportedModelError):
    with pytest.raises(kind) as error:
        decoder = read_decoder(folder)
        for tensor in tensors(decoder.architecture):
            decoder.weights.read(tensor.block, tensor.role)
    said = str(error.value)
    assert "\n" not in said and str(folder.name) in said
    return said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "rwkv"}, ("model_type 'rwkv'", "llama", "gemma3_text", "opt")),
        ({"model_type": ["llama"]}, ("model_type ['llama']",)),
        ({"attention_sinks": 4}, ("'attention_sinks'", "take the key out")),
        ({"quantization_config": {"quant_method": "gptq"}}, ("'quantization_config'",)),
        ({"is_causal": False}, ("is_causal",)),
        ({"add_cross_attention": True}, ("add_cross_attention",)),
        ({"hidden_act": "xielu"}, ("hidden_act", "'xielu'", "silu")),
        ({"hidden_size": "16"}, ("hidden_size", "whole number")),
        ({"num_hidden_layers": 0}, ("num_hidden_layers", "at least 1")),
        ({"num_key_value_heads": 3}, ("num_key_value_heads", "divisor of 4")),
        ({"num_attention_heads": 3, "num_key_value_heads": 1}, ("num_attention_heads", "hidden_size 16")),
        ({"head_dim": 5}, ("5 of 5 features", "pairs")),
        ({"rms_norm_eps": 0}, ("rms_norm_eps", "above 0")),
        ({"attention_bias": "yes"}, ("attention_bias", "true or false")),
        ({"tie_word_embeddings": 1}, ("tie_word_embeddings", "true or false")),
        ({"architectures": ["LlamaForSequenceClassification"]}, ("architectures", "vocabulary")),
        ({"rope_theta": 1.0}, ("rope_theta", "above 1")),
        ({"rope_scaling": "linear"}, ("rope_scaling", "object")),
        ({"rope_scaling": {"rope_type": "proportional"}}, ("'proportional'", "longrope")),
        ({"rope_scaling": {"type": "linear"}}, ("factor", "linear")),
        ({"rope_scaling": {"type": "linear", "factor": -2}}, ("factor", "-2")),
        ({"rope_scaling": {"type": "linear", "factor": 2, "mrope_section": [1]}}, ("'mrope_section'",)),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}}, ("short_factor", "2 numbers")),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
            ("low_freq_factor", "less than"),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_configuration_that_says_what_is_not_known(changes, named, tmp_path):
    said = refused(write(tmp_path / "model", **changes))
    assert all(name in said for name in ("config.json", *named)), said


@pytest.mark.parametrize(
    "changes",
    [
        {"torch_dtype": "bfloat16", "transformers_version": "4.38.0", "use_cache": True, "pretraining_tp": 1},
        {"mlp_bias": False, "rope_interleaved": False, "some_flag_that_is_off": False, "pruned_heads": {}},
        {"_name_or_path": "x", "auto_map": {"AutoConfig": "a.B"}, "task_specific_params": {"a": 1}, "max_length": 20},
        {"rope_scaling": {"type": "default"}},
    ],
    ids=lambda value: next(iter(value)),
)
def test_keys_that_change_no_answer(changes, tmp_path):
    plain, changed = (read_decoder(write(tmp_path / name, **keys)) for name, keys in (("a", {}), ("b", changes)))
    assert plain.architecture == changed.architecture


def test_a_missing_weight(tmp_path):
    held = llama_tensors()
    del held["model.layers.1.mlp.up_proj.weight"]
    assert "'model.layers.1.mlp.up_proj.weight'" in refused(write(tmp_path / "model", held))


def test_a_weight_of_another_shape(tmp_path):
    said = refused(write(tmp_path / "model", llama_tensors(), intermediate_size=23))
    assert "mlp.gate_proj.weight' has shape (24, 16)" in said and "(23, 16)" in said


def test_a_weight_that_nothing_asks_for(tmp_path):
    held = llama_tensors() | {"model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.float32)}
    assert "'model.layers.0.self_attn.q_proj.bias'" in refused(write(tmp_path / "model", held))


def test_more_layers_than_told(tmp_path):
    assert "'model.layers.1." in refused(write(tmp_path / "model", num_hidden_layers=LAYERS - 1))


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"])
def test_a_weight_that_is_no_number(name, tmp_path):
    held = llama_tensors()
    held[name][3, 2] = np.nan
    said = refused(write(tmp_path / "model", held), InputError)
    assert f"'{name}'" in said and "NaN" in said


def test_rows_that_are_no_numbers(tmp_path):
    held = llama_tensors()
    held["model.embed_tokens.weight"][3, 2] = np.inf
    with pytest.raises(InputError, match="NaN or infinite"):
        logits(read_decoder(write(tmp_path / "model", held)), IDS)


@pytest.mark.parametrize("kept", [0, 4, 200, 3000])
def test_a_truncated_file(kept, tmp_path):
    folder = write(tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "truncated" in refused(folder, InputError) or kept == 200


def test_integers_for_weights(tmp_path):
    held = llama_tensors()
    held["model.norm.weight"] = held["model.norm.weight"].astype(np.int32)
    assert "type I32" in refused(write(tmp_path / "model", held), InputError)


def test_no_weights(tmp_path):
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert "holds no model" in refused(folder, InputError)


def test_a_pickle_only(tmp_path):
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = refused(folder, InputError)
    assert "a pickle, which stic does not open" in said and "LlamaForCausalLM" in said


def test_no_directory(tmp_path):
    assert "is no directory" in refused(tmp_path / "nowhere", InputError)
    (tmp_path / "file").write_text("")
    assert "is no directory" in refused(tmp_path / "file", InputError)


def test_no_config(tmp_path):
    folder = write(tmp_path / "model")
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder, InputError)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": }'])
def test_a_damaged_config(content, tmp_path):
    folder = write(tmp_path / "model")
    (folder / "config.json").write_text(content)
    refused(folder, InputError)


def test_a_shard_that_is_missing(tmp_path):
    folder = sharded(tmp_path / "model")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refused(folder, InputError)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer_config.json", "nothing"),
        ("tokenizer_config.json", '{"chat_template": 3}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        ("generation_config.json", '{"eos_token_id": "</s>"}'),
        ("generation_config.json", "["),
    ],
)
def test_damaged_text_files(name, content, tmp_path):
    folder = write(tmp_path / "model")
    (folder / name).write_text(content)
    refused(folder, InputError)


def sharded(folder, held=None):
    from safetensors.numpy import save_file

    held = held or llama_tensors()
    write(folder, held)
    (folder / "model.safetensors").unlink()
    listed = {name: f"model-{1 + number % 2:05}-of-00002.safetensors" for number, name in enumerate(held)}
    for file in set(listed.values()):
        save_file({name: held[name] for name in held if listed[name] == file}, folder / file)
    total = sum(tensor.nbytes for tensor in held.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": listed})
    return folder


def test_shards_are_one_model(tmp_path):
    whole, parts = read_decoder(write(tmp_path / "whole")), read_decoder(sharded(tmp_path / "parts"))
    assert np.array_equal(logits(whole, IDS), logits(parts, IDS))


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_exactly(kind, tmp_path):
    held = {name: tensor.astype(kind) for name, tensor in llama_tensors().items()}
    whole = {name: tensor.astype(np.float32) for name, tensor in held.items()}
    half, full = read_decoder(write(tmp_path / "half", held)), read_decoder(write(tmp_path / "full", whole))
    assert np.array_equal(logits(half, IDS), logits(full, IDS))
    assert half.weights.read(None, "embedding").dtype == np.float32
