"""The `stic` command. A command's stages are imported when it runs, so that `stic --help` is quick."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

import click

from stic.compiler import __version__
from stic.compiler.commands.encoding import readable_output
from stic.runtime.errors import SticError

# command -> (module, one sentence): what `stic --help` shows without importing any of them
COMMANDS = {
    "export": ("build", "Write ONNX from a Hugging Face directory, without torch."),
    "importance": ("measure", "Measure what each bitwidth of each shard is worth, on a calibration file."),
    "probe": ("measure", "Measure this device's storage and kernels."),
    "tune": ("tune", "Find the fastest variants of a target's kernels, here or behind an RPC tracker."),
    "plan": ("build", "Decide bitwidths, residence and load order for a budget; write nothing."),
    "compile": ("build", "Compile a model into a package that meets a latency and a memory budget."),
    "engine": ("engine", "Build the C engine for a target, to run packages there without Python."),
    "inspect": ("show", "Show what is in a package: shards, bytes, residence, timeline, proof."),
    "run": ("use", "Run a package on sentences; draw predicted against measured."),
    "generate": ("generate", "Continue a text with a decoder's package, as it is generated."),
    "chat": ("generate", "Talk with a decoder's package in turns."),
    "eval": ("evaluate", "Measure how well a package does on a file."),
    "bench": ("use", "Measure a package's latency and memory in a process of its own."),
    "deploy": ("deploy", "Put a package on a device behind an RPC tracker; run or measure it there."),
    "devices": ("deploy", "List the devices behind an RPC tracker."),
}

HELP = """Plan and compile transformer encoders that run from storage within a latency and a memory budget.

\b
A first tour (a Hugging Face directory or an .onnx file will do as MODEL):
  stic compile MODEL --target host --latency 60ms --memory 6MiB -o encoder.stic
  stic inspect encoder.stic
  stic run encoder.stic --text "A cat sits." --text "A dog runs." --timeline
  stic bench encoder.stic --runs 50

\b
Times are written as 200ms or 1.5s, sizes as 20MiB (2^20) or 100MB (10^6).
Every command explains itself: stic COMMAND --help.
"""


class _Commands(click.Group):
    """Imports a command's module only when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"stic.compiler.commands.{COMMANDS[name][0]}")
        command: click.Command = module.COMMANDS[name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])


@click.group(
    cls=_Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="stic")
def cli() -> None:
    """The group of all commands."""


def _complain(message: str) -> None:
    sentence = " ".join(message.split())  # one line, whatever a library put into the text
    print(f"stic: error: {sentence}", file=sys.stderr)


def _os_sentence(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}: nothing half-written was left; free some space and run again"
    return f"{error.strerror or error}{where}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `stic` with `arguments` (default: the process's own); returns the exit status, prints errors as a line.

    0 done, 1 refused with a sentence, 2 wrong usage, 130 interrupted.
    """
    readable_output()
    try:
        # Not cli.main(): it answers Ctrl-C and a closed pipe in its own way.
        with cli.make_context("stic", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as finished:  # --help, --version
        return finished.exit_code
    except SticError as error:
        _complain(str(error))
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see {error.ctx.command_path} --help)"
        _complain(error.format_message() + hint)
        return 2 if isinstance(error, click.UsageError) else error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("interrupted; finished work is kept, run again to resume", file=sys.stderr)
        # Under `python -m`, CPython ends by the signal whatever the status, once an interrupt has passed through code
        # given as a string (dataclasses are made so, while modules are imported), unless it runs such code again.
        exec("")
        return 130
    except BrokenPipeError:
        # The reader (head, a pager) went away; without this the interpreter complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _complain(_os_sentence(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
