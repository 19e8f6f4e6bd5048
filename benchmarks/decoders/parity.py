"""The same tokens everywhere: host engine, emulated engine, numpy reference; and transformers, of text and tokens.

Answers are greedy and as long as asked for, whatever token ends a turn. The reference takes prompt and answer at once:
every token of the answer must be the likeliest after those before it, which is what generating them one by one would
compare, as neither chunks nor threads change a bit of its logits. Each answer is kept, so that a run goes on.
"""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.decoders import packages, source
from benchmarks.decoders.llama import Llama
from benchmarks.decoders.oracle import Oracle, margins
from benchmarks.decoders.place import Place
from stic.compiler.cache.closure import code_of
from stic.compiler.text.packaged import template_of
from stic.runtime.package import Package
from stic.runtime.reference_decoder import ReferenceDecoder
from stic.runtime.sampling import Sampling
from stic.runtime.session import Session
from stic.targets.target import load
from stic.targets.toolchain import build_engine

Answer = list[int]


def measure(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """Compare every prompt; a row each."""
    context, tokens = settings["context"], settings["tokens"]
    host = packages.uniform(place.packages, settings["bits"], context)
    exact = packages.uniform(place.packages, settings["exact_bits"], context, "--kv", "float16")
    emulated, where = _emulated(place, settings)
    template = template_of(Package.open(host))
    texts = source.spread(source.prompts(source.PROMPTS[0]), settings["prompts"])
    asked = [
        source.coder().encode(template.render([{"role": "user", "content": text}]), special=True) for text in texts
    ]
    oracle = Oracle(source.gguf())
    rows = []
    for number, ids in enumerate(asked):
        row: dict[str, Any] = {"prompt": number, "tokens": len(ids)}
        answer = place.once("host", _key(host, ids, tokens), partial(_generated, host, ids, tokens))
        if emulated is not None:
            key = _key(emulated, ids, tokens)
            found = place.once("emulated", key, partial(_run, emulated, where, ids, tokens))
            row["emulated_same"] = found == answer
        key = (_key(host, ids, tokens), code_of("stic.runtime.reference_decoder"))
        row["reference_same"] = place.once("reference", key, partial(_reference, host, ids, answer))
        key = _key(exact, ids, tokens)
        row |= place.once("transformers", key, partial(_against, oracle, exact, ids, tokens))
        rows.append(row)
        place.say(f"parity, prompt {number + 1} of {len(asked)}: {row}")
    return {"model": source.decoder().name, "rows": rows, "text": _text(Package.open(host), oracle)}


def _key(package: Path, ids: list[int], tokens: int) -> Any:
    return ((package / "index.bin").read_bytes(), ids, tokens)


def _generated(package: Path, ids: list[int], tokens: int) -> Answer:
    with Session(package) as session:
        return [one.token for one in session.generate(ids, tokens, Sampling())]


def _emulated(place: Place, settings: dict[str, Any]) -> tuple[Path | None, list[str]]:
    """A package of the other processor, and the command that runs it; None where there is no emulator."""
    emulator = settings["emulator"]
    reason = place.lacks(emulator["command"][0], "aarch64-linux-gnu-gcc")
    if reason is not None:
        place.say(f"left out: the emulated engine ({reason})")
        return None, []
    package = packages.uniform(place.packages, settings["bits"], settings["context"], target=emulator["target"])
    runner = build_engine(load(emulator["target"]), place.folder / "engine").runner
    return package, [*emulator["command"], str(runner)]


def _run(package: Path, command: list[str], ids: list[int], tokens: int) -> Answer:
    line = [*command, str(package), "--ids", ",".join(map(str, ids)), "--generate", str(tokens), "--json"]
    found: Answer = json.loads(subprocess.run(line, check=True, capture_output=True).stdout)["ids"]
    return found


def _reference(package: Path, ids: list[int], answer: Answer) -> bool:
    logits = ReferenceDecoder(Package.open(package)).extend([*ids, *answer[:-1]])
    return bool((logits[len(ids) - 1 :].argmax(axis=1) == answer).all())


def _against(oracle: Oracle, package: Path, ids: list[int], tokens: int) -> dict[str, Any]:
    """How far the tokens of an answer are below transformers' likeliest ones."""
    answer = _generated(package, ids, tokens)
    below = margins(oracle.logits([*ids, *answer[:-1]], len(ids) - 1), answer)
    return {"transformers_differ": int((below > 0).sum()), "margin_nats": float(below.max())}


def _text(package: Package, oracle: Oracle) -> dict[str, Any]:
    """Texts and chats of all prompts whose tokens are not transformers', and which of these are not llama.cpp's either.

    transformers reads GGUF files without their name of a split (tokenizer.ggml.pre), so it parts line breaks before a
    digit otherwise than SmolLM2's own tokenizer.
    """
    template, coder = template_of(package), source.coder()
    llama = Llama(source.gguf(), 16, 1)
    every = [text for file in source.PROMPTS for text in source.prompts(file)]
    differ, alone = {"texts": 0, "chats": 0}, {"texts": 0, "chats": 0}
    for text in every:
        whole = template.render(_turn(text))
        for kind, given, own, other in (
            ("texts", text, coder.encode(text), oracle.tokens(text)),
            ("chats", whole, coder.encode(whole, special=True), oracle.chat(_turn(text))),
        ):
            if own != other:
                differ[kind] += 1
                alone[kind] += own != llama.tokens(given, kind == "chats")
    llama.close()
    return {"prompts": len(every), "differ": differ, "alone": alone}


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
