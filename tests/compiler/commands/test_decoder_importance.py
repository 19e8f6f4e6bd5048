"""`stic importance` of a decoder, and its file in `stic plan`: taken, or refused with a sentence."""

import json

import numpy as np
import pytest

from stic.compiler import cli
from stic.compiler.importance.file import load
from tests.compiler.commands import small_decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_decoder.write(tmp_path_factory.mktemp("valued") / "model")


@pytest.fixture(scope="module")
def file(model):
    path = model.parent / "gains.json"
    assert cli.main(["importance", str(model), "--checks", "6", "-o", str(path)]) == 0
    return path


def plan(model, file, *more):
    return cli.main([str(one) for one in ("plan", model, "--target", "host", "--importance", file, *more)])


def test_a_file_has_gains_by_slice_and_bits(model, file):
    found = load(file)
    assert found.bits == (2, 3, 4, 5, 6, 8) and found.gain.shape[:2] == found.presence.shape
    assert found.rho is not None and found.additivity[0].plans == 6 and found.key
    assert "text that the model wrote" in found.calibration
    assert (found.gain[:, 0, -1] > 0).all() and np.isfinite(found.raw[:, 0, :2]).all()


@pytest.mark.parametrize("more", [(), ("--head-bits", "7"), ("--planner", "preload", "--bits", "5")])
def test_plans_take_it(model, file, more, capfd):
    assert plan(model, file, "--until", "importance", *more) == 0, capfd.readouterr().err


def test_gains_that_do_not_add_up_are_noted(model, file, tmp_path, capfd):
    data = json.loads(file.read_text())
    data["additivity"][0]["rho"] = 0.3
    (tmp_path / "poor.json").write_text(json.dumps(data))
    assert plan(model, tmp_path / "poor.json", "--until", "importance") == 0
    assert "with a rank correlation of 0.30 only" in capfd.readouterr().err


def _of_others(data):
    data["key"] = "0" * 32


def _without_three_bits(data):
    data["bits"].remove(3)
    for name in ("gain", "raw"):
        data[name] = [[[*curve[:1], *curve[2:]] for curve in block] for block in data[name]]


def _cut_short(data):
    del data["gain"]


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (_of_others, (), "but of another model or cut: run `stic importance` on model, with the same --slices"),
        (None, ("--slices", "1"), "but of another model or cut"),
        (_without_three_bits, (), "has 2, 4, 5, 6, 8 bits, but 2, 3, 4, 5, 6, 8 are on offer"),
        (_cut_short, (), "is not an importance file that this stic wrote"),
    ],
)
def test_others_are_refused_before_anything_takes_long(model, file, change, more, said, tmp_path, capfd):
    data = json.loads(file.read_text())
    if change is not None:
        change(data)
    (tmp_path / "other.json").write_text(json.dumps(data))
    assert plan(model, tmp_path / "other.json", *more) == 1
    err = capfd.readouterr().err
    assert said in err and "stic: quantize" not in err and "Traceback" not in err


@pytest.mark.parametrize("asked", [("--method", "sti"), ("--objective", "task")])
def test_an_encoders_methods_are_refused(model, asked, tmp_path, capfd):
    assert cli.main(["importance", str(model), *asked, "-o", str(tmp_path / "none.json")]) == 1
    assert "are an encoder's" in capfd.readouterr().err
