"""Perplexity by bytes, against the float32 model and llama.cpp's formats; multiple choice against the float32 model.

Everyone predicts the same tokens: windows of the test text, no token before the first. Packages are at work in the
engine, so activations and cache are rounded as there. Mixed packages are planned by the ILP for so
many bits a weight. A task's package is uniform.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoders import packages, source
from benchmarks.decoders.llama import Llama, quantized
from benchmarks.decoders.place import Place
from stic.compiler.cache.closure import code_of
from stic.compiler.language.perplexity import perplexity
from stic.compiler.language.questions import Question, likeliest_choice, read_questions
from stic.compiler.language.scorers import ForwardScorer, SessionScorer
from stic.compiler.language.scoring import Ids, Scorer
from stic.runtime.session import Session

Row = dict[str, Any]


def measure(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """Rows of perplexity, then rows of tasks."""
    rows = [_of_reference(place, settings), *_of_packages(place, settings), *_of_llama(place, settings)]
    tasks = [_task(place, settings, name) for name in settings["tasks"]]
    return {"model": source.decoder().name, "rows": rows, "tasks": tasks}


def _ids(settings: dict[str, Any]) -> Ids:
    count = settings["windows"] * settings["window"]
    return source.coder().encode(source.data(source.TEST).read_text(encoding="utf-8"))[:count]


def _score(scorer: Scorer, settings: dict[str, Any]) -> Row:
    found = perplexity(scorer, _ids(settings), settings["window"])
    return {"perplexity": found.value, "tokens": found.n}


def _key(settings: dict[str, Any], *others: Any) -> Any:
    return (settings["windows"], settings["window"], *others)


def _of_reference(place: Place, settings: dict[str, Any]) -> Row:
    key = _key(settings, code_of("stic.compiler.language.scorers"))
    found = place.once("perplexity", key, lambda: _score(ForwardScorer(source.decoder()), settings))
    place.say(f"perplexity of the model in float32: {found['perplexity']:.3f}")
    return {"kind": "reference", "name": "float32"} | found


def _of_packages(place: Place, settings: dict[str, Any]) -> list[Row]:
    context, folder = settings["window"], place.packages
    made: dict[str, Callable[[], Path]] = {}
    for bits in settings["bits"]:
        made[f"{bits} bits"] = partial(packages.uniform, folder, bits, context)
    like = packages.sizes(packages.uniform(folder, settings["task_bits"], context))
    for bits in settings["mixed_bits"]:
        made[f"ilp, at most {bits:g} bits"] = partial(packages.mixed, folder, bits, context, like)
    rows = []
    for name, make in made.items():
        path = make()
        found = place.once("perplexity", _key(settings, _index(path)), partial(_in_engine, path, settings))
        sizes = packages.sizes(path)
        rows.append(
            {"kind": "stic", "name": name, "file_bytes": sizes.file_bytes, "layer_bits": sizes.layer_bits} | found
        )
        place.say(
            f"perplexity of {name}: {found['perplexity']:.3f}, {sizes.layer_bits:.3f} bits, {sizes.file_bytes:,} B"
        )
    return rows


def _index(package: Path) -> bytes:
    """What tells packages apart: sizes and checksums of all files."""
    return (package / "index.bin").read_bytes()


def _in_engine(path: Path, settings: dict[str, Any]) -> Row:
    with Session(path) as session:
        return _score(SessionScorer(session), settings)


def _of_llama(place: Place, settings: dict[str, Any]) -> list[Row]:
    rows = []
    for form in settings["llama"]:
        path = quantized(source.gguf(), form, place.folder / "llama", settings["threads"])
        size = path.stat().st_size
        found = place.once("perplexity", _key(settings, form, size), partial(_in_llama, path, settings))
        rows.append({"kind": "llama.cpp", "name": form, "file_bytes": size} | found)
        place.say(f"perplexity of llama.cpp's {form}: {found['perplexity']:.3f}, {size:,} B")
    return rows


def _in_llama(path: Path, settings: dict[str, Any]) -> Row:
    model = Llama(path, settings["window"], settings["threads"])
    try:
        return _score(model, settings)
    finally:
        model.close()


def _task(place: Place, settings: dict[str, Any], name: str) -> Row:
    """Accuracy of the package and of the model on the same items, and their paired difference in points."""
    items = read_questions(source.data(f"{name}/validation.tsv"))[: settings["items"]]
    path = packages.uniform(place.packages, settings["task_bits"], settings["window"])
    model = _picks(place, (code_of("stic.compiler.language.scorers"),), items, lambda: ForwardScorer(source.decoder()))
    with Session(path) as session:
        package = _picks(place, _index(path), items, lambda: SessionScorer(session))
    answers = np.array([item.answer for item in items])
    right, wanted = ((np.array(picks) == answers).astype(float) for picks in (package, model))
    points = 100 * (right - wanted)
    half = 1.959964 * float(points.std(ddof=1)) / math.sqrt(len(points))
    row = {
        "task": name, "items": len(items), "package": 100 * float(right.mean()), "model": 100 * float(wanted.mean()),
        "points": float(points.mean()), "half_interval": half, "same_picks": float(np.mean(np.equal(package, model))),
    }  # fmt: skip
    place.say(f"{name}: {row}")
    return row


def _picks(place: Place, key: Any, items: list[Question], open_scorer: Callable[[], Scorer]) -> list[int]:
    """The choice of each item, by whoever scores; each is kept."""
    encode, scorers = source.coder().prompt, list[Scorer]()

    def pick(item: Question) -> int:
        if not scorers:
            scorers.append(open_scorer())
        return likeliest_choice(scorers[0], encode, item)

    asked = code_of("stic.compiler.language.questions", alone=("stic.compiler.language.questions",))
    return [place.once("choice", (key, asked, item), partial(pick, item)) for item in items]
