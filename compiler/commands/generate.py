"""`stic generate` and `stic chat`: a decoder's package at work on text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stic.compiler.commands.groups import gathered, json_option, session_group
from stic.compiler.commands.parameters import FILE, NAME, SENTENCE
from stic.compiler.commands.running import token_numbers
from stic.compiler.commands.sampling import wish_group
from stic.compiler.commands.terminal import console
from stic.compiler.text.answering import Answer, Wish
from stic.runtime.errors import InputError, SticError
from stic.runtime.files import read_text
from stic.runtime.session import SessionOptions

if TYPE_CHECKING:
    from stic.compiler.text.conversation import Conversation
    from stic.compiler.text.tokens import Coder
    from stic.runtime.package import Package
    from stic.runtime.session import Session

CHAT_HELP = (
    "/reset begins anew, /save FILE keeps the conversation, /load FILE goes on with it, /stats says what was measured,"
    " /exit (or Ctrl-D) ends"
)


@dataclass(frozen=True)
class Prompted:
    """What a text begins with."""

    prompt: str | None
    file: Path | None
    ids: str | None
    chat: bool
    system: str | None

    def check(self) -> None:
        """Raise UsageError for options that contradict each other."""
        if (self.prompt is not None) + (self.file is not None) + (self.ids is not None) != 1:
            raise click.UsageError(
                "give a text with --prompt or a file with --prompt-file, or token numbers with --ids"
            )
        if self.ids is not None and self.chat:
            raise click.UsageError("--chat puts text into the model's template: give it with --prompt, not --ids")
        if self.system is not None and not self.chat:
            raise click.UsageError("--system belongs to --chat")

    def tokens(self, package: Package, coder: Coder) -> list[int]:
        """The tokens of the prompt. Raises InputError for an empty one, or one that fills the context."""
        from stic.compiler.text.packaged import prompt_of, template_of

        if self.ids is not None:
            ids = token_numbers(self.ids)
        else:
            text = self.prompt if self.file is None else _read(self.file)
            assert text is not None
            if self.chat:
                system = [] if self.system is None else [{"role": "system", "content": self.system}]
                whole = template_of(package).render([*system, {"role": "user", "content": text}])
                ids = coder.encode(whole, special=True)
            else:
                ids = coder.prompt(text)
        return prompt_of(package, ids)


def _read(path: Path) -> str:
    if str(path) != "-":
        return read_text(path)
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input cannot be read as text: {error}") from error


prompt_group = gathered(
    "prompted",
    Prompted,
    click.option("--prompt", type=SENTENCE, metavar="TEXT", help="What the text begins with."),
    click.option("--prompt-file", "file", type=FILE, metavar="FILE", help="The same from a file; -: standard input."),
    click.option("--ids", type=NAME, metavar="N,N,...", help="Token numbers instead of text."),
    click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template, as a person's turn."),
    click.option("--system", type=SENTENCE, metavar="TEXT", help="With --chat, what the model is told before."),
)


@click.command("generate")
@click.argument("package", type=FILE)
@prompt_group
@wish_group
@session_group
@click.option("--trace", type=FILE, metavar="run.json", help="Write the trace of the last pass; see ui.perfetto.dev.")
@json_option
def generate_command(
    package: Path, prompted: Prompted, wish: Wish, session: SessionOptions, trace: Path | None, as_json: bool
) -> None:
    """Continue a text with PACKAGE, a decoder's; the text is printed as it is generated.

    \b
    Examples:
      stic generate smollm.stic --prompt "The capital of France is"
      stic generate smollm.stic --chat --prompt "Name three rivers." --max-tokens 100
      stic generate smollm.stic --prompt-file story.txt --temperature 1 --seed 7
      stic generate smollm.stic --prompt "1, 2, 3," --greedy --stop " 10" --json
    """
    prompted.check()
    from stic.compiler.text.packaged import architecture_of, coder_of
    from stic.runtime.package import Package
    from stic.runtime.session import Session

    opened = Package.open(package)
    architecture, coder = architecture_of(opened), coder_of(opened)
    ids = prompted.tokens(opened, coder)
    with Session(package, **session) as running:
        answer = Answer(running, coder, ids, architecture.stops, wish)
        for part in answer:
            if not as_json:
                click.echo(part, nl=False)
        if trace is not None:
            running.trace().save(trace)
        stats = running.stats()
        if as_json:
            peaks = {"peak_bytes": stats.peak_bytes, "claimed_bytes": stats.claimed_bytes}
            click.echo(json.dumps({**answer.to_json(), **peaks}))
        else:
            click.echo()
            print(f"stic: {_sentence(answer)}", file=sys.stderr)
            if not answer.text and not prompted.chat and opened.template is not None:
                print("stic: the model ended at once, as one made for chats may: try --chat", file=sys.stderr)
    if answer.ending == "cancelled":
        raise KeyboardInterrupt


def _sentence(answer: Answer) -> str:
    """What an answer took, for people."""
    count = len(answer.tokens)
    parts = [f"{count} token{'' if count == 1 else 's'} after {len(answer.prompt)}"]
    if answer.first_token_us is not None:
        parts.append(f"first token {answer.first_token_us / 1000:.1f} ms")
    if answer.next_token_us is not None:
        parts.append(f"next {answer.next_token_us / 1000:.2f} ms ({1e6 / answer.next_token_us:.1f} tokens a second)")
    endings = {
        "stop": "",
        "length": "ended by --max-tokens",
        "context": "the context is full",
        "cancelled": "interrupted",
    }
    return ", ".join([*parts, *filter(None, [endings[answer.ending or "stop"]])])


@click.command("chat")
@click.argument("package", type=FILE)
@click.option("--system", type=SENTENCE, metavar="TEXT", help="What the model is told before the first turn.")
@click.option("--load", type=FILE, metavar="FILE", help="Go on with a conversation that /save kept.")
@wish_group
@session_group
def chat_command(package: Path, system: str | None, load: Path | None, wish: Wish, session: SessionOptions) -> None:
    """Talk with PACKAGE, a decoder's, in turns; a turn computes only what is new.

    A line is a turn. Ctrl-C ends an answer, not the conversation. Lines that begin with a slash: /reset, /save FILE,
    /load FILE, /stats, /exit.

    \b
    Examples:
      stic chat smollm.stic
      stic chat smollm.stic --system "You answer in one sentence." --temperature 0.3
      echo "Name three rivers." | stic chat smollm.stic --greedy
    """
    from stic.compiler.text.conversation import Conversation
    from stic.compiler.text.packaged import architecture_of, coder_of, template_of
    from stic.runtime.package import Package
    from stic.runtime.session import Session

    opened = Package.open(package)
    architecture, coder, template = architecture_of(opened), coder_of(opened), template_of(opened)
    context = int(opened.model["max_length"])
    with Session(package, **session) as running:
        talk = Conversation(running, coder, template, architecture.stops, context, system)
        if load is not None:
            talk.load(load)
        if sys.stdin.isatty():
            console.print(CHAT_HELP, soft_wrap=True)
        _turns(talk, running, wish)


def _turns(talk: Conversation, running: Session, wish: Wish) -> None:
    """Read lines and answer them until there are no more."""
    last: Answer | None = None
    while (line := _line()) is not None:
        if not line:
            continue
        if line == "/exit":
            return
        try:
            if line.startswith("/"):
                _command(line, talk, running, last)
                continue
            last = talk.ask(line, wish)
        except SticError as error:
            print(f"stic: {error}", file=sys.stderr)
            continue
        for part in last:
            click.echo(part, nl=False)
        click.echo(" [interrupted]" if last.ending == "cancelled" else "")
        talk.end(last)


def _line() -> str | None:
    """The next line without its ends; None at the end of input. Ctrl-C begins the line anew."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            print(f"\n{CHAT_HELP}", file=sys.stderr)


def _command(line: str, talk: Conversation, running: Session, last: Answer | None) -> None:
    """Do what a line with a slash says. Raises InputError for one that is not known."""
    word, _, rest = line.partition(" ")
    commands: dict[str, Callable[[], None]] = {
        "/reset": talk.reset,
        "/save": lambda: _save(rest.strip(), talk),
        "/load": lambda: _load(rest.strip(), talk),
        "/stats": lambda: console.print(_stats(running, last), soft_wrap=True),
    }
    if word not in commands:
        raise InputError(f"there is no {word}: {CHAT_HELP}")
    commands[word]()


def _save(name: str, talk: Conversation) -> None:
    if not name:
        raise InputError("/save needs the name of a file: /save talk.state")
    talk.save(Path(name))
    console.print(f"wrote {name}", soft_wrap=True)


def _load(name: str, talk: Conversation) -> None:
    if not name:
        raise InputError("/load needs the name of a file that /save wrote: /load talk.state")
    talk.load(Path(name))
    console.print(f"goes on after turn {sum(m['role'] == 'user' for m in talk.messages)}", soft_wrap=True)


def _stats(running: Session, last: Answer | None) -> str:
    """Position and memory of the session, and what the last answer took."""
    stats, info = running.stats(), running.info
    held = f"{running.position} of {info.max_length} tokens, {stats.peak_bytes / 2**20:.1f} MiB"
    claimed = f"{held} of the {stats.claimed_bytes / 2**20:.1f} MiB claimed"
    return claimed if last is None else f"{claimed}; the last answer: {_sentence(last)}"


COMMANDS = {"generate": generate_command, "chat": chat_command}
