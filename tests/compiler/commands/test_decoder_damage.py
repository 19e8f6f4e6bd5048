"""Damaged and contradictory files of a decoder, through the commands: one sentence, and nothing is written."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stic.compiler import cli
from tests.compiler.commands import small_decoder

COMPILED = ("--target", "host", "--planner", "preload", "--bits", "4")


def config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(folder, change):
    path = folder / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


QUERY = "model.layers.0.self_attn.q_proj.weight"


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def spoil(name, value):
    return lambda folder: weights(folder, lambda tensors: tensors[name].__setitem__((0,) * tensors[name].ndim, value))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "config.json").write_text("{"), "not readable JSON"),
        (lambda f: config(f, hidden_size=10**12), "hidden_size"),
        (lambda f: config(f, num_hidden_layers=-3), "num_hidden_layers"),
        (lambda f: config(f, num_attention_heads=0), "num_attention_heads"),
        (lambda f: config(f, model_type="mamba9"), "of decoders, which are compiled without export, llama"),
        (lambda f: config(f, rope_scaling={"rope_type": "unheard"}), "unheard"),
        (lambda f: config(f, vocab_size=10**6), "embed_tokens"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no model"),
        (cut_short, "truncated"),
        (lambda f: weights(f, lambda tensors: tensors.pop(QUERY)), f"no weight '{QUERY}'"),
        (spoil(QUERY, np.nan), QUERY),
        (spoil("model.embed_tokens.weight", np.inf), "model.embed_tokens.weight"),
        (spoil("model.norm.weight", np.nan), "model.norm.weight"),
        (lambda f: (f / "tokenizer.json").write_text('{"a":'), "tokenizer.json"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path, capfd, change, said):
    model, output = small_decoder.write(tmp_path / "model"), tmp_path / "out" / "model.stic"
    change(model)
    assert cli.main(["compile", str(model), *COMPILED, "-o", str(output)]) in (1, 2)
    out, err = capfd.readouterr()
    sentence = err.splitlines()[-1]
    assert sentence.startswith("stic: error: ") and said in sentence and "Traceback" not in err and not out
    assert not output.exists() and not list(output.parent.glob(".*"))


def test_a_damaged_template_is_noted_and_ends_a_chat(tmp_path, capfd):
    model, output = small_decoder.write(tmp_path / "model", "{% for %}"), tmp_path / "model.stic"
    assert cli.main(["compile", str(model), *COMPILED, "-o", str(output)]) == 0
    assert "its chat template is damaged" in capfd.readouterr().err
    assert cli.main(["chat", str(output)]) == 1
    assert "its chat template is damaged" in capfd.readouterr().err
    assert cli.main(["generate", str(output), "--prompt", "a", "--max-tokens", "2"]) == 0
