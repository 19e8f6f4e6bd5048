"""The command itself: help, usage, and how errors reach the user. What commands do is in test_cli_commands.py."""

import errno
import subprocess
import sys

import click
import pytest

from stic.compiler import cli
from stic.compiler.commands import show
from stic.runtime.errors import EngineError, InfeasibleError, InputError, ToolchainError


def command_that_raises(monkeypatch, error):
    @click.command("inspect")
    def broken():
        raise error

    monkeypatch.setitem(show.COMMANDS, "inspect", broken)


def test_help_names_every_command(stic):
    status, out, err = stic("--help")
    assert status == 0 and err == ""
    for name in ("compile", "export", "importance", "probe", "plan", "inspect", "run", "eval", "bench"):
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself_with_an_example(stic, name):
    status, out, _ = stic(name, "--help")
    assert status == 0
    assert f"    stic {name} " in out and "Example" in out
    assert all(len(line) <= 110 for line in out.splitlines())


def test_no_argument_prints_help(stic):
    status, out, _ = stic()
    assert status == 2 and "Commands:" in out


@pytest.mark.parametrize("arguments", [["--help"], ["compile", "--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys\n"
        "from stic.compiler.cli import main\n"
        f"assert main({arguments!r}) == 0\n"
        "heavy = {'onnx', 'ortools', 'tvm', 'networkx', 'matplotlib', 'tokenizers', 'torch', 'scipy', 'joblib'}\n"
        "found = heavy & {name.partition('.')[0] for name in sys.modules}\n"
        "sys.exit(f'imported {sorted(found)}' if found else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compil"], "No such command 'compil'"),
        (["compile", "m.onnx", "-o", "p"], "Missing option '--target'"),
        (["compile", "m.onnx", "--target", "host", "-o", "p", "--latency", "60"], "has no unit"),
        (["compile", "m.onnx", "--target", "host", "-o", "p", "--memory", "5parsecs"], "unknown unit 'parsecs'"),
        (["compile", "m.onnx", "--target", "host", "-o", "p", "--planner", "magic"], "'magic' is not one of"),
        (["plan", "m.onnx", "--target", "host", "--latencies", "5ms,6ms"], "belong to --sweep"),
        (["plan", "m.onnx", "--target", "host", "--trial-tokens", "-1"], "'--trial-tokens': -1 is not in the range"),
        (["compile", "m.onnx", "--target", "host", "-o", "p", "--also", "40ms"], "'40ms' is not a budget"),
        (["compile", "m.onnx", "--target", "host", "-o", "p", "--also", ","], "',' is not a budget"),
        (["compile", "m.onnx", "--target", "host", "-o", "p", "--also", "40,4MiB"], "'40' has no unit"),
        (["inspect", "p", "--plan", "-1"], "--plan"),
        (["run", "p"], "give sentences with --text"),
        (["run", "p", "--text", "a", "--ids", "1"], "give sentences with --text"),
        (["run", "p", "--text", "a", "--pair", "b", "--pair", "c"], "1 --text but 2 --pair"),
        (["run", "p", "--text", "a", "--timeline", "q"], "'q' is not the name of a picture"),
        (["bench", "p", "--runs", "0"], "--runs"),
        (["eval", "p"], "Missing option '--data'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(stic, arguments, message):
    status, out, err = stic(*arguments)
    assert status == 2 and out == ""
    assert err.startswith("stic: error: ") and err.count("\n") == 1
    assert message in err and "--help" in err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (InputError("the file is wrong"), 1, "stic: error: the file is wrong\n"),
        (InputError("two\nlines"), 1, "stic: error: two lines\n"),
        (InfeasibleError("no plan fits 1MiB"), 1, "stic: error: no plan fits 1MiB\n"),
        (ToolchainError("no compiler for aarch64 was found"), 1, "stic: error: no compiler for aarch64 was found\n"),
        (EngineError("token 9 is out of range", 12), 1, "stic: error: token 9 is out of range\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.onnx"), 1, "such file or directory (x.onnx)"),
        (OSError(errno.ENOSPC, "No space left on device", "p/shards.bin"), 1, "the disk is full (p/shards.bin)"),
        (KeyboardInterrupt(), 130, "interrupted; finished work is kept, run again to resume\n"),
    ],
)
def test_errors_become_a_sentence_and_a_status(stic, monkeypatch, error, status, text):
    command_that_raises(monkeypatch, error)
    found, out, err = stic("inspect")
    assert found == status and out == ""
    assert text in err and err.count("\n") == 1


def test_a_defect_keeps_its_traceback(stic, monkeypatch):
    command_that_raises(monkeypatch, ZeroDivisionError("a bug in stic"))
    with pytest.raises(ZeroDivisionError):
        stic("inspect")


def test_a_reader_that_goes_away_is_no_error():
    script = "import sys; from stic.compiler.cli import main; sys.exit(main(['--help']))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == b""


def test_an_interrupt_among_imports_leaves_with_its_status(tmp_path):
    (tmp_path / "interrupted.py").write_text(
        "import sys\n"
        "from stic.compiler import cli\n"
        "cli.cli.invoke = lambda context: exec('raise KeyboardInterrupt')\n"
        "sys.exit(cli.main(['inspect']))\n"
    )
    done = subprocess.run([sys.executable, "-m", "interrupted"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 130 and done.stderr.count("\n") == 1, done.stderr
