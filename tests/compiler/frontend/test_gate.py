"""The gate lets pass what agrees with its source, refuses what does not, and says where there is nothing to compare."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stic.compiler import cli
from stic.compiler.decoder.forward import logits
from stic.compiler.decoder.model import Decoder
from stic.compiler.frontend import gate
from stic.compiler.frontend.decoders import read_decoder
from stic.compiler.frontend.gate import MOST_DIVERGENCE, checked_once, compare, compare_with_transformers
from stic.runtime.errors import UnsupportedModelError
from tests.compiler.frontend.families.folders import llama_tensors, write


def test_what_agrees_passes(tmp_path):
    decoder = read_decoder(write(tmp_path / "model"))
    found = compare(decoder, lambda ids: logits(decoder, ids) * np.float32(1 + 1e-6))
    assert found.divergence is not None and found.divergence < 1e-9 and "32 tokens" in found.note


def test_a_constant_added_to_logits_is_no_difference(tmp_path):
    decoder = read_decoder(write(tmp_path / "model"))
    assert compare(decoder, lambda ids: logits(decoder, ids) + np.float32(3)).divergence < 1e-9


def test_another_model_is_refused(tmp_path):
    decoder, other = (read_decoder(write(tmp_path / str(seed), llama_tensors(seed))) for seed in (3, 4))
    with pytest.raises(UnsupportedModelError, match="something else than its source"):
        compare(decoder, lambda ids: logits(other, ids))


def test_one_token_that_differs_is_refused(tmp_path):
    decoder = read_decoder(write(tmp_path / "model"))

    def reference(ids):
        found = logits(decoder, ids)
        found[0, 17, 3] += 1.0
        return found

    with pytest.raises(UnsupportedModelError, match="at token 17 of 32"):
        compare(decoder, reference)


def test_no_number_is_refused(tmp_path):
    decoder = read_decoder(write(tmp_path / "model"))

    def reference(ids):
        found = logits(decoder, ids)
        found[0, 5] = np.nan
        return found

    with pytest.raises(UnsupportedModelError, match="at token 5 of 32"):
        compare(decoder, reference)


def test_another_vocabulary_is_refused(tmp_path):
    decoder = read_decoder(write(tmp_path / "model"))
    with pytest.raises(UnsupportedModelError, match="logits"):
        compare(decoder, lambda ids: logits(decoder, ids)[..., 1:])


def test_without_a_file_there_is_a_note(tmp_path):
    decoder = read_decoder(write(tmp_path / "model"))
    found = compare_with_transformers(Decoder("plain", decoder.architecture, decoder.weights))
    assert found.divergence is None and "in no file" in found.note


def test_without_torch_there_is_a_note(tmp_path, monkeypatch):
    decoder = read_decoder(write(tmp_path / "model"))
    monkeypatch.setitem(sys.modules, "torch", None)
    found = compare_with_transformers(decoder)
    assert found.divergence is None and "torch is not installed" in found.note


def test_reading_imports_neither_torch_nor_transformers(tmp_path):
    folder = write(tmp_path / "model")
    code = (
        "import sys; from pathlib import Path; from stic.compiler.frontend.decoders import read_decoder\n"
        "import stic.compiler.frontend.gate\n"
        f"read_decoder(Path({str(folder)!r})); print([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_transformers_agrees_and_tells_what_it_cannot_open(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = write(tmp_path / "model")
    found = compare_with_transformers(read_decoder(folder))
    assert found.divergence is not None and found.divergence < MOST_DIVERGENCE / 100
    decoder = read_decoder(folder)
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**keys, "rms_norm_eps": 0.5}))
    with pytest.raises(UnsupportedModelError, match="nats apart"):
        compare_with_transformers(decoder)
    (folder / "config.json").write_text("{")
    assert "transformers cannot open it" in compare_with_transformers(decoder).note


def test_files_that_stay_as_they_are_are_compared_once(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    source, asked, notes = write(tmp_path / "model"), list[Path](), list[str]()
    found = gate.transformers_reference
    monkeypatch.setattr(gate, "transformers_reference", lambda path: asked.append(path) or found(path))
    for _ in range(2):
        checked_once(read_decoder(source), tmp_path / "kept", notes.append)
    assert asked == [source] and not notes
    os.utime(source / "config.json")
    checked_once(read_decoder(source), tmp_path / "kept", notes.append)
    assert asked == [source, source]


def test_what_cannot_be_compared_is_said_each_time(tmp_path, monkeypatch):
    def refused(_):
        raise ImportError("no torch", name="torch")

    monkeypatch.setattr(gate, "transformers_reference", refused)
    source, notes = write(tmp_path / "model"), list[str]()
    for _ in range(2):
        checked_once(read_decoder(source), tmp_path / "kept", notes.append)
    assert notes == ["model was not compared with its source: torch is not installed"] * 2


def test_large_models_are_not_opened_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "MOST_BYTES", 1000)
    found = compare_with_transformers(read_decoder(write(tmp_path / "model")))
    assert found.divergence is None and "in float32" in found.note


def test_a_compilation_refuses_what_differs_from_its_source(tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "model")
    other = read_decoder(write(tmp_path / "other", llama_tensors(4)))
    monkeypatch.setattr(gate, "transformers_reference", lambda path: lambda ids: logits(other, ids))
    monkeypatch.setenv("STIC_CACHE", str(tmp_path / "cache"))
    assert cli.main(["plan", str(source), "--target", "host", "--planner", "preload", "--bits", "4"]) != 0
    assert "computes something else than its source" in capsys.readouterr().err
