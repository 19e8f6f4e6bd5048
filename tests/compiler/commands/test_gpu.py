"""`--gpu` and `--place` end to end: packages with layers on a GPU, and what is refused. Needs apache-tvm."""

import json

import pytest

from stic.runtime.package import Package
from tests.runtime.conftest import gpu_package, make_gpu_package, make_package, opencl

pytest.importorskip("tvm", reason="needs apache-tvm")

__all__ = ["gpu_package", "make_gpu_package", "make_package", "opencl"]

SIZES = {"hidden": 64, "heads_per_slice": 1, "head_dim": 16, "neurons_per_slice": 32, "slices": 4, "rows": 32}
CPU = {"layer_us": 50.0, "slice_us": {"2": 40.0, "16": 90.0}, "embed_us": 5.0, "head_us": 5.0, "submit_us": 5.0}
IO = {"direct": True, "lanes": 2, "request_us": 50.0, "bytes_per_s": 5e8, "row_us": 20.0}
HOST = ["--target", "host", "--gpu", "mali-g52", "--max-length", "32", "--memory", "16MiB"]


def scaled(shape, factor):
    slices = {bits: factor * us for bits, us in shape["slice_us"].items()}
    return {**shape, **{name: factor * shape[name] for name in ("layer_us", "embed_us")}, "slice_us": slices}


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    """Device profiles by what they hold: no GPU, one that is faster than the CPU, one that is slower."""
    folder, found = tmp_path_factory.mktemp("profiles"), {}
    for name, factor in (("none", None), ("fast", 0.1), ("slow", 3.0)):
        data = {"format": 1, "device": "a board", "io": IO, "compute": {"threads": 2, "shapes": [{**SIZES, **CPU}]}}
        if factor is not None:
            shapes = [{**SIZES, **scaled(CPU, factor)}]
            what = {"device": "a GPU", "driver": "1.0", "arithmetic": "int8", "hand_over_us": 10.0, "shapes": shapes}
            data["gpu"] = what
        found[name] = folder / f"{name}.json"
        found[name].write_text(json.dumps(data))
    return found


def compiled(stic, tiny_dir, profile, output, *options):
    threads = ["--threads", "2", "--lanes", "2", "--device-profile", profile, "-o", output, "--json"]
    status, out, err = stic("compile", tiny_dir, *HOST, *threads, *options)
    assert status == 0, err
    return json.loads(out), Package.open(output)


def test_a_faster_gpu_gets_the_layers(stic, tiny_dir, profiles, tmp_path):
    facts, package = compiled(stic, tiny_dir, profiles["fast"], tmp_path / "m.stic", "--latency", "1s")
    package.verify()
    assert package.places == ("gpu", "gpu") and [s["place"] for s in facts["shards"]] == ["gpu", "gpu"]
    gpu = package.gpu
    assert gpu is not None and gpu.fallback and gpu.storage == "float16" and len(gpu.launches) > 10
    assert b"stic_gemm_b4" in package.read("kernels.cl") and package.plan["gpu"].startswith("Mali-G52")
    places = {event["layer"]: event["place"] for event in package.plan["timeline"] if event["kind"] == "compute"}
    assert places == {-1: "gpu", 0: "gpu", 1: "gpu", -2: "cpu"}


def test_a_plan_that_only_the_gpu_meets_has_no_fallback(stic, tiny_dir, profiles, tmp_path):
    budget = ["--latency", "1ms", "--preload", "1MiB"]
    _, package = compiled(stic, tiny_dir, profiles["fast"], tmp_path / "m.stic", *budget)
    assert package.gpu is not None and not package.gpu.fallback


def test_a_slower_gpu_gets_none_and_a_plain_package_comes_out(stic, tiny_dir, profiles, tmp_path):
    facts, package = compiled(stic, tiny_dir, profiles["slow"], tmp_path / "m.stic", "--latency", "1s")
    assert package.gpu is None and "kernels.cl" not in package.files
    assert any("nothing is faster there" in note for note in facts["notes"])


def test_places_can_be_forced(stic, tiny_dir, profiles, tmp_path):
    forced = ["--place", "gpu", "--gpu-precision", "fp32"]
    _, there = compiled(stic, tiny_dir, profiles["slow"], tmp_path / "gpu", *forced)
    assert set(there.places) == {"gpu"} and there.gpu is not None and there.gpu.storage == "float32"
    _, here = compiled(stic, tiny_dir, profiles["fast"], tmp_path / "cpu", "--place", "cpu")
    assert set(here.places) == {"cpu"}
    _, alone = compiled(stic, tiny_dir, profiles["fast"], tmp_path / "none", "--gpu", "none")
    assert set(alone.places) == {"cpu"}


def test_several_plans_and_layers_on_a_gpu_do_not_go_together(stic, tiny_dir, profiles, tmp_path):
    arguments = ["compile", tiny_dir, *HOST, "--latency", "1s", "--also", "2s,", "--threads", "2", "--lanes", "2"]
    arguments += ["--device-profile", profiles["fast"], "-o", tmp_path / "m.stic"]
    status, out, err = stic(*arguments)
    assert status == 1 and out == "" and "holds one plan" in err and "--place cpu" in err
    assert not list(tmp_path.iterdir())
    assert stic(*arguments, "--place", "cpu", "--also", "1us,")[0] == 0
    assert Package.open(tmp_path / "m.stic").gpu is None


def test_inspect_shows_where_layers_run(stic, tiny_dir, profiles, tmp_path):
    compiled(stic, tiny_dir, profiles["fast"], tmp_path / "m.stic", "--latency", "1s")
    status, out, _ = stic("inspect", tmp_path / "m.stic")
    assert status == 0 and "runs on" in out and "2 of 2 layers run on Mali-G52" in out
    assert "activations on the GPU" in out and "\n  GPU" in out
    status, out, _ = stic("inspect", tmp_path / "m.stic", "--json")
    facts = json.loads(out)
    assert facts["gpu"]["layers"] == 2 and facts["memory"]["gpu state"] > 0


@pytest.mark.parametrize(("mode", "layers"), [("off", 0), ("required", 2)])
def test_every_command_takes_where_layers_run_and_says_it(stic, tiny_dir, profiles, tmp_path, request, mode, layers):
    if layers:
        request.getfixturevalue("opencl")
    package, data = tmp_path / "m.stic", tmp_path / "data.tsv"
    compiled(stic, tiny_dir, profiles["fast"], package, "--place", "gpu")
    on_cpu = "on the CPU, because the GPU is switched off"
    status, out, err = stic("run", package, "--ids", "2,5,3", "--gpu-use", mode)
    assert status == 0 and ("2 layers on " in out) == (layers == 2) and (on_cpu in err) == (not layers)
    facts = json.loads(stic("run", package, "--ids", "2,5,3", "--gpu-use", mode, "--json")[1])
    assert facts["gpu"]["layers"] == layers and (on_cpu in facts["gpu"]["device"]) == (not layers)
    bench = ["bench", package, "--runs", "1", "--gpu-use", mode]
    status, out, _ = stic(*bench)
    assert status == 0 and (f"its layers ran {on_cpu}" if not layers else "2 layers on ") in " ".join(out.split())
    facts = json.loads(stic(*bench, "--json")[1])
    assert facts["gpu_layers"] == layers and facts["gpu_builds"] == 0 and facts["gpu_device"]
    lines = ["score\tsentence1\tsentence2", "1\tthe cat\tthe dog", "3\ta film\ta movie", "2\tgood\tbad"]
    data.write_text("\n".join(lines) + "\n")
    status, out, err = stic("eval", package, "--data", data, "--gpu-use", mode, "--json")
    assert status == 0 and json.loads(out)["n"] == 3, err


def test_times_that_were_not_measured_are_estimated_and_said_to_be(stic, tiny_dir, profiles, tmp_path):
    facts, _ = compiled(stic, tiny_dir, profiles["none"], tmp_path / "m.stic", "--place", "gpu")
    assert any("Mali-G52" in note and "estimated" in note for note in facts["notes"])


def test_a_family_s_name_is_a_target(stic, tiny_dir):
    for name in ("mali", "adreno"):
        options = ["--target", name, "--max-length", "32", "--memory", "32MiB", "--place", "gpu", "--json"]
        status, out, err = stic("plan", tiny_dir, *options)
        assert status == 0, err
        assert {layer["place"] for layer in json.loads(out)["shards"]} == {"gpu"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "host", "--gpu", "toaster"], "unknown target 'toaster'"),
        (["--target", "host", "--gpu", "raspberry-pi-4"], "raspberry-pi-4 has no GPU; those with one are adreno-640"),
        (["--target", "raspberry-pi-4", "--place", "gpu"], "has no GPU to place layers on: name one with --gpu"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(stic, tiny_dir, options, message):
    status, _, err = stic("plan", tiny_dir, *options)
    assert status == 1 and message in " ".join(err.split())
