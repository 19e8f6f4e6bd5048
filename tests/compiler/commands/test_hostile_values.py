"""Whatever stands behind an option: a result, or one sentence. Every option of every command, as click knows them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from stic.compiler import cli

BYTES = b"\xff\xfe".decode("utf-8", "surrogateescape")  # as Python hands on what is no UTF-8
HOSTILE = (
    "", " ", "-1", "0", "0.5", "nan", "inf", "-inf", "1e400", "1e400MB", "9" * 400, "99999999999", str(2**63),
    "9" * 30 + "MB", "0ms", "0B", ".000001us", "3000000s", "4611686018427387903us", "9000000GiB", "-5ms", "5 ms MB",
    BYTES, f"a{BYTES}b", "\ud800", "zero\0byte", "\0", "[bold]", "{0}", "%s", "٣", "½", "-", "--", ",", ",,", "1,",
    "a,b", "[::1", "http://[", "x:99999", ":", "/", "/dev/null", "/proc/self/mem", "x" * 5000, "../" * 2000,
    "\n", "\r\n",
)  # fmt: skip
# Enough to be parsed, and to end before anything is measured or built.
BASE = {
    "export": ["nowhere", "-o", "out.onnx"],
    "importance": ["nowhere.onnx", "-o", "out.json"],
    "probe": ["nowhere.onnx"],
    "tune": ["--target", "nothing"],
    "plan": ["nowhere.onnx", "--target", "host"],
    "compile": ["nowhere.onnx", "--target", "host", "-o", "out.stic"],
    "engine": ["--target", "nothing", "-o", "out"],
    "inspect": ["nowhere.stic"],
    "run": ["nowhere.stic", "--text", "a"],
    "generate": ["nowhere.stic", "--prompt", "a"],
    "chat": ["nowhere.stic"],
    "eval": ["nowhere.stic", "--data", "nowhere.tsv"],
    "bench": ["nowhere.stic"],
    "deploy": ["nowhere.stic", "--tracker", "127.0.0.1:1"],
    "devices": ["--tracker", "127.0.0.1:1"],
}
PROFILE = {  # of a device that was never measured
    "format": 1,
    "device": "a device of this test",
    "io": {"direct": True, "lanes": 2, "request_us": 20.0, "bytes_per_s": 1e9, "row_us": 10.0},
    "compute": {
        "threads": 2,
        "shapes": [
            {
                "hidden": 64, "heads_per_slice": 1, "head_dim": 16, "neurons_per_slice": 32, "slices": 4, "rows": 32,
                "layer_us": 5.0, "embed_us": 5.0, "head_us": 5.0, "submit_us": 5.0, "spread": 0.01,
                "slice_us": {str(bits): 10.0 for bits in (2, 3, 4, 5, 6, 7, 8, 16)},
            }
        ],
    },
}  # fmt: skip


def command(name: str) -> click.Command:
    with click.Context(cli.cli) as context:
        found = cli.cli.get_command(context, name)
    assert found is not None
    return found


def options(name: str) -> list[click.Parameter]:
    return [p for p in command(name).params if not getattr(p, "is_flag", False) or p.type.name == "picture"]


PARAMETERS = [(name, parameter.name) for name in cli.COMMANDS for parameter in options(name)]


def arguments(name: str, parameter: click.Parameter, value: str, base: list[str]) -> list[str]:
    """The command with `value` for one parameter, instead of what `base` has there."""
    if isinstance(parameter, click.Argument):
        return [name, *base[1:], "--", value] if name != "tune" else [name, *base]
    flag = parameter.opts[-1]
    rest = list(base)
    for spelled in parameter.opts:
        if spelled in rest:
            at = rest.index(spelled)
            del rest[at : at + 2]
    return [name, *rest, f"{flag}={value}" if flag.startswith("--") else f"{flag}{value}"]


def judged(capsys: pytest.CaptureFixture[str], given: list[str]) -> int:
    """Run `stic`, and see that it either did what was asked or said in one sentence why not."""
    capsys.readouterr()
    status = cli.main(given)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("stic: error: ")]
    assert status in (0, 1, 2), (given, status)
    assert len(lines) == (status != 0), (given, status, err)
    assert all(line.startswith("stic: ") for line in err.splitlines()), (given, err)
    assert "Traceback" not in out + err
    return status


@pytest.mark.parametrize(("name", "option"), PARAMETERS)
def test_hostile_values_end_in_one_sentence(capsys, tmp_path, monkeypatch, name, option):
    monkeypatch.chdir(tmp_path)
    parameter = next(p for p in options(name) if p.name == option)
    for value in HOSTILE:
        judged(capsys, arguments(name, parameter, value, BASE[name]))


def test_no_option_takes_whatever_comes():
    """A plain string or number goes unchecked into code that was not written for it."""
    plain = [
        f"{name} {p.opts[-1]}"
        for name in cli.COMMANDS
        for p in options(name)
        if p.type in (click.STRING, click.INT, click.UNPROCESSED) or type(p.type) is click.Path
    ]
    assert plain == []


@pytest.fixture(scope="module")
def package(tiny_classifier_dir, tmp_path_factory) -> tuple[Path, Path, Path]:
    """The model, a device profile and a package of it."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "device.json").write_text(json.dumps(PROFILE))
    (folder / "data.tsv").write_text("sentence\tlabel\na good film\tpositive\nan awful film\tnegative\n")
    asked = ["compile", tiny_classifier_dir, "--target", "host", "--max-length", "32", "--planner", "preload"]
    asked += ["--bits", "6", "--memory", "16MiB", "--device-profile", folder / "device.json", "-o", folder / "p.stic"]
    assert cli.main([str(part) for part in asked]) == 0
    return tiny_classifier_dir, folder / "device.json", folder / "p.stic"


@pytest.mark.parametrize(
    ("name", "option"), [pair for pair in PARAMETERS if pair[0] in ("inspect", "run", "eval") and pair[1] != "package"]
)
def test_hostile_values_beside_a_real_package(capsys, tmp_path, monkeypatch, package, name, option):
    monkeypatch.chdir(tmp_path)
    parameter = next(p for p in options(name) if p.name == option)
    folder = package[2].parent
    base = {
        "inspect": [str(package[2])],
        "run": [str(package[2]), *([] if option in ("texts", "id_lists") else ["--text", "a good film"])],
        "eval": [str(package[2]), "--data", str(folder / "data.tsv")],
    }
    for value in HOSTILE:
        if option == "tracker" and ":" in value:
            continue  # names of machines are another matter
        judged(capsys, arguments(name, parameter, value, base[name]))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--gap", "nan"), ("--gap", "inf"), ("--gap", "0"), ("--margin", "nan"), ("--margin", "-inf"),
        ("--margin", "0.999999"), ("--latency", "60min"), ("--latency", "61min"), ("--latency", "1us"),
        ("--memory", "1024GiB"), ("--memory", "1025GiB"), ("--memory", "1B"), ("--preload", "1024GiB"),
        ("--preload", "0"), ("--threads", "64"), ("--threads", "65"), ("--lanes", "16"), ("--lanes", "17"),
        ("--slices", "256"), ("--slices", "3"), ("--max-length", "99999999999999999999"), ("--max-length", "1"),
        ("--trial-tokens", str(10**30)), ("--calibration-tokens", str(10**30)), ("--bits", "7"), ("--bits", "32"),
        ("--time-limit", "0"), ("--time-limit", "10000min"), ("--storage", "1B"), ("--storage", "1B,1"),
        ("--jobs", "1024"), ("--jobs", "1025"), ("--calibration", "/"), ("--importance", "/"),
        ("--device-profile", "/"),
        ("-o", "/"), ("-o", "."), ("--figure", "/x.svg/y.svg"), ("--gpu", "[bold]"), ("--model-output", "[bold]"),
    ],
)  # fmt: skip
def test_numbers_at_the_ends_of_their_ranges_plan_or_end_in_one_sentence(
    capsys, tmp_path, monkeypatch, package, option, value
):
    monkeypatch.chdir(tmp_path)
    model, device, _ = package
    base = [str(model), "--target", "host", "--max-length", "16", "--memory", "16MiB", "--device-profile", str(device)]
    judged(capsys, ["plan", *base, "--planner", "greedy", "--trial-tokens", "0", option, value])


@pytest.mark.parametrize(
    "ids", ["99999999999", str(2**63), "9" * 5000, "-1", "2,-3", "2.5", "", ",", "1 2 x", "4194305"]
)
def test_tokens_beyond_any_vocabulary_are_one_sentence(capsys, package, ids):
    assert judged(capsys, ["run", str(package[2]), f"--ids={ids}"]) in (1, 2)


@pytest.mark.parametrize("option", ["--text", "--pair"])
def test_bytes_that_are_no_text_are_refused_as_such(stic, package, option):
    more = ["--text", "a"] if option == "--pair" else []
    status, out, err = stic("run", package[2], *more, option, BYTES)
    assert status == 2 and out == "" and "write it in UTF-8" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_output_in_ascii_keeps_its_drawings(package, environment, tmp_path):
    named = tmp_path / os.fsdecode("naïve-\xff.json".encode("latin-1"))
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}; import tests.conftest\n"
        "from stic.compiler.cli import main; sys.exit(main())"
    )
    asked = ["run", str(package[2]), "--text", "café → naïve …", "--timeline", "--trace", str(named)]
    done = subprocess.run(
        [sys.executable, "-c", script, *asked], capture_output=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr.decode("ascii", "replace")
    text = done.stdout.decode("ascii")
    assert "predicted for 32 tokens" in text and "|0us" in text and "\\u" not in text.partition("predicted")[2]
    refused = subprocess.run(
        [sys.executable, "-c", script, "inspect", "naïve…"], capture_output=True, env={**os.environ, **environment},
        check=False,
    )  # fmt: skip
    assert refused.returncode == 1 and refused.stderr.decode("ascii").startswith("stic: error: ")
