"""Measure a decoder's package: the first token of an answer, and the tokens after it, in a process of its own."""

from __future__ import annotations

import random
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from rich.table import Table

from stic.compiler.device.bench import run_engine
from stic.compiler.forecast import packaged_forecast
from stic.compiler.quantities import format_bytes, format_time
from stic.runtime.errors import InputError
from stic.runtime.package import Package
from stic.runtime.session import SessionOptions

PROMPT, NEW = 512, 64  # tokens, where the context has room for them


@dataclass(frozen=True)
class DecoderBench:
    """What an answer costs; times in microseconds, memory in bytes."""

    prompt_tokens: int
    new_tokens: int
    threads: int
    lanes: int
    first_token_us: int  # with the prompt
    next_token_us: float  # the median of all but the first
    next_token_p95_us: int
    predicted_first_token_us: float
    predicted_next_token_us: float
    plan: int  # of the package's plans, from 0
    io_bytes_per_token: int  # of the last token
    direct: bool  # reads bypassed the page cache
    peak_bytes: int  # what the engine counts
    claimed_bytes: int  # what the plan claims
    rss_bytes: int  # what the operating system counts, at the peak (VmHWM)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens of the prompt in a second, until the first token is there."""
        return self.prompt_tokens * 1e6 / max(1, self.first_token_us)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the answer in a second, after the first."""
        return 1e6 / max(1.0, self.next_token_us)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        speeds = {"prefill_tokens_per_s": self.prefill_tokens_per_s, "tokens_per_s": self.tokens_per_s}
        return {**asdict(self), **speeds}

    def table(self) -> Table:
        """The same for people."""
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column()
        given = f"{self.prompt_tokens} tokens of prompt, {self.new_tokens} of answer"
        table.add_row("run", f"{given}, {self.threads} threads, {self.lanes} lanes")
        prefill = f"{self.prefill_tokens_per_s:.1f} tokens of prompt a second"
        predicted = f"predicted {format_time(self.predicted_first_token_us)}"
        table.add_row("first token", f"{format_time(self.first_token_us)} ({predicted}): {prefill}")
        predicted = f"predicted {format_time(self.predicted_next_token_us)}"
        speed = f"{self.tokens_per_s:.1f} tokens a second"
        table.add_row("next token", f"{format_time(self.next_token_us)} ({predicted}): {speed}")
        table.add_row("95 % within", format_time(self.next_token_p95_us))
        way = "past the page cache" if self.direct else "through the page cache"
        table.add_row("read", f"{format_bytes(self.io_bytes_per_token)} a token, {way}")
        table.add_row("engine memory", f"{format_bytes(self.peak_bytes)} (claimed {format_bytes(self.claimed_bytes)})")
        table.add_row("process memory", f"{format_bytes(self.rss_bytes)} at its peak")
        return table


def measure_decoder(
    path: Path, prompt_tokens: int | None, new_tokens: int | None, **asked: Unpack[SessionOptions]
) -> DecoderBench:
    """Answer a prompt of random tokens greedily, with options as those of Session; no token ends the answer early.

    The lengths default to PROMPT and NEW tokens, or what the context has room for. Raises InputError where it has none,
    PackageError, EngineError with the engine's sentence where it refuses.
    """
    package = Package.open(path)
    context, vocabulary = package.max_length, int(package.model["vocabulary"])
    new = new_tokens or min(NEW, max(2, (context - (prompt_tokens or 0)) // 2))
    prompt = prompt_tokens or max(1, min(PROMPT, context - new))
    if prompt + new > context:
        raise InputError(
            f"{prompt} tokens of prompt and {new} of answer are more than the package's context of {context}: give less"
            " with --prompt-tokens or --new-tokens, or compile with a larger --context"
        )
    ids = random.Random(1).choices(range(vocabulary), k=prompt)
    found = run_engine(path, ids, ["--generate", str(new)], **asked)
    predicted = packaged_forecast(package.with_plan(found["plan"]))
    first, *after = found["times_us"]
    after.sort()
    return DecoderBench(
        prompt_tokens=prompt,
        new_tokens=len(found["ids"]),
        first_token_us=first,
        next_token_us=statistics.median(after),
        next_token_p95_us=after[(len(after) * 95 + 99) // 100 - 1],
        predicted_first_token_us=predicted.first_us(prompt),
        predicted_next_token_us=predicted.next_us(prompt + new / 2),
        io_bytes_per_token=found["io_bytes"],
        **{name: found[name] for name in _AS_FOUND},
    )


_AS_FOUND = ("threads", "lanes", "plan", "direct", "peak_bytes", "claimed_bytes", "rss_bytes")
