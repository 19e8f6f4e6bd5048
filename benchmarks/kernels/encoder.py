"""A whole encoder, everything resident: packages of every bitwidth against onnxruntime, OpenVINO and numpy."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels.driver import Driver, loops_for
from benchmarks.kernels.limits import loop_turn
from benchmarks.kernels.models import NUMPY, Paths, packages, peers
from benchmarks.kernels.place import Place
from benchmarks.kernels.turns import Times, Turn, interleave
from benchmarks.kernels.worker import AbsentError, Worker
from stic.compiler.frontend.onnx import load_model
from stic.compiler.importance.examples import built_in_examples, open_tokenizer
from stic.compiler.model import Model

_PEAK_US = 3000


def measure(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """Every contender at every length and number of threads; all contenders of one such case are interleaved."""
    if place.model is None:
        raise SystemExit("the encoder part needs --model FILE.onnx, with tokenizer.json beside it (stic export)")
    model = load_model(place.model)
    ids = {str(tokens): _ids(place.model, tokens) for tokens in settings["tokens"]}
    absent: dict[str, str] = {}
    paths = packages(place, settings) | peers(place, absent)
    rows: list[dict[str, Any]] = []
    for threads in settings["threads"]:
        peak, peak_macs = loop_turn(Driver(place.library, threads), loops_for(place.target)[0], _PEAK_US)
        with contextlib.ExitStack() as stack:
            workers = _start(stack, paths, threads, ids, absent)
            for tokens in settings["tokens"]:
                turns: dict[str, Turn] = {name: worker.turn(str(tokens)) for name, worker in workers.items()}
                if tokens != settings["headline_tokens"]:
                    turns.pop(NUMPY, None)  # slow, and no rival
                turns["peak"] = peak
                title = f"encoder, tokens: {tokens}, threads: {threads}"
                with place.progress(title, settings["rounds"] * len(turns)) as tick:
                    times = interleave(turns, settings, tick)
                facts = {name: np.array(worker.facts[str(tokens)]) for name, worker in workers.items()}
                macs = macs_of(model, tokens)
                bound = macs / peak_macs  # of the time that the peak loop took
                for name in turns.keys() - {"peak"}:
                    row = {"contender": name, "tokens": tokens, "threads": threads, "us": times[name].to_json()}
                    row |= {"share_of_bound": bound / times[name].ratio(times["peak"]), "macs": macs}
                    row["cosine"] = _cosine(facts[name], facts[NUMPY])
                    rows.append(row | _ratios(name, times))
    order = list(paths)
    rows.sort(key=lambda row: (row["threads"], row["tokens"], order.index(row["contender"])))
    return {"model": place.model.name, "rows": rows, "absent": absent}


def macs_of(model: Model, tokens: int) -> int:
    """Multiply-adds of all matrix products: the weights of every layer, and queries by keys by values."""
    count = 0
    for layer in model.layers:
        linears = (layer.query, layer.key, layer.value, layer.output, layer.ffn_in, layer.ffn_out)
        count += tokens * sum(linear.weight.size for linear in linears)
        count += 2 * tokens * tokens * layer.query.weight.shape[0]
    return count


def _ratios(name: str, times: dict[str, Times]) -> dict[str, Any]:
    """For a package, its time by that of every other contender."""
    if not name.startswith("stic"):
        return {}
    return {"over": {other: times[name].ratio(times[other]) for other in times if other not in (name, "peak")}}


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _ids(model: Path, tokens: int) -> list[int]:
    """The built-in sentences as one text, cut to so many tokens."""
    tokenizer = open_tokenizer(model.parent / "tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens)
    ids = tokenizer.encode(" ".join(text for text, _ in built_in_examples().texts)).ids
    if len(ids) < tokens:
        raise SystemExit(f"the built-in sentences have no {tokens} tokens")
    return ids


def _start(
    stack: contextlib.ExitStack, paths: Paths, threads: int, ids: dict[str, list[int]], absent: dict[str, str]
) -> dict[str, Worker]:
    """A worker for each contender; those that cannot run go to `absent`, a package that cannot run ends it all."""
    workers = {}
    for name, (kind, path) in paths.items():
        try:
            worker = Worker("benchmarks.kernels.peers", kind, threads, path=str(path), ids=ids)
        except AbsentError as error:
            if kind == "Stic":
                raise SystemExit(f"{name}: {error}") from error
            absent[name] = str(error)
        else:
            workers[name] = stack.enter_context(worker)
    return workers
