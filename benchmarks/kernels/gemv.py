"""Decoding: one to eight rows times 4096 x 4096 matrices that no cache holds, against a plain sum over the same bytes
and against ggml."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

from benchmarks.kernels.driver import Driver, loops_for
from benchmarks.kernels.matrices import Set, Shape, make
from benchmarks.kernels.place import Place
from benchmarks.kernels.turns import Times, Turn, interleave, local
from benchmarks.kernels.worker import AbsentError, Worker
from stic.runtime.format import TILE
from stic.schedules.pack import interleave as interleave_of

_Case = tuple[int, float]  # bits, share of outliers


def measure(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """Every bitwidth, number of rows and threads; for each number of threads all in one interleaving."""
    shape = Shape(f"{settings['n']}x{settings['k']}", settings["n"], settings["k"], 1)
    q, most = interleave_of(place.target), max(settings["threads"])
    sets = {}
    for bits in settings["bits"]:
        count = -(-settings["least_bytes"] // (shape.n * shape.k // 8 * bits))
        for rate in settings["outliers"]:
            sets[bits, rate] = make(place.library, shape, bits, count, TILE, most, q, rate)
    rows: list[dict[str, Any]] = []
    peers: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    for threads in settings["threads"]:
        driver = Driver(place.library, threads, place.kernels)
        with contextlib.ExitStack() as stack:
            facts, turns = _ggml(stack, settings, threads, absent)
            turns |= _turns(place, settings, sets, driver)
            title = f"gemv {shape.name}, threads: {threads}"
            with place.progress(title, settings["rounds"] * len(turns)) as tick:
                times = interleave(turns, settings, tick)
        for key in sets:
            for tokens in settings["rows"]:
                row = _row(sets, times, key, tokens, threads)
                rows.append(row | _over(sets, times, key, tokens, facts))
        peers += [_peer(facts[case], times[case], case, threads, shape) for case in facts]
    return {"shape": shape.name, "rows": rows, "ggml": peers, "absent": absent}


def _ggml(
    stack: contextlib.ExitStack, settings: dict[str, Any], threads: int, absent: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Turn]]:
    """What ggml offers, by case; nothing, and the reason in `absent`, where it cannot run."""
    sizes = {name: settings[name] for name in ("n", "k", "least_bytes")}
    try:
        worker = stack.enter_context(
            Worker("benchmarks.kernels.ggml", "Ggml", threads, formats=settings["ggml"], **sizes)
        )
    except AbsentError as error:
        absent["ggml"] = str(error)
        return {}, {}
    return worker.facts, {case: worker.turn(case) for case in worker.facts}


def _turns(place: Place, settings: dict[str, Any], sets: dict[_Case, Set], driver: Driver) -> dict[str, Turn]:
    total = loops_for(place.target)[2]
    turns = {}
    for (bits, rate), matrices in sets.items():
        turns[f"sum, {bits}, {rate}"] = local(partial(driver.sum, total, matrices.weights))
        for rows in settings["rows"]:
            product = matrices.with_tokens(rows)
            driver.gemv(product)
            matrices.check(rows)
            turns[f"{bits}, {rate}, {rows}"] = local(partial(driver.gemv, product))
    return turns


def _row(sets: dict[_Case, Set], times: dict[str, Times], key: _Case, rows: int, threads: int) -> dict[str, Any]:
    (bits, rate), matrices = key, sets[key]
    own, plain = times[f"{bits}, {rate}, {rows}"], times[f"sum, {bits}, {rate}"]
    row: dict[str, Any] = {"bits": bits, "outliers": rate, "rows": rows, "threads": threads}
    row |= {"matrices": matrices.count, "bytes": matrices.bytes, "macs": matrices.macs(rows), "us": own.to_json()}
    row["us_each"] = own.median / matrices.count
    row["gb_s"], row["sum_gb_s"] = (matrices.bytes / each.median / 1e3 for each in (own, plain))
    row["share_of_sum"] = 1 / own.ratio(plain)
    return row


def _over(
    sets: dict[_Case, Set], times: dict[str, Times], key: _Case, rows: int, facts: dict[str, Any]
) -> dict[str, Any]:
    """Time of a matrix by that of 4 bits, and, for one row, by that of each of ggml's."""
    (bits, rate), count = key, sets[key].count
    own = times[f"{bits}, {rate}, {rows}"]
    row: dict[str, Any] = {}
    if (4, rate) in sets:
        row["over_4_bits"] = own.ratio(times[f"4, {rate}, {rows}"]) * sets[4, rate].count / count
    if rows == 1:
        row["over_ggml"] = {case: own.ratio(times[case]) * fact["matrices"] / count for case, fact in facts.items()}
    return row


def _peer(facts: dict[str, Any], times: Times, case: str, threads: int, shape: Shape) -> dict[str, Any]:
    label, layout = case.split("/")
    row = {"format": label, "layout": layout, "threads": threads, "us": times.to_json()} | facts
    row |= {"us_each": times.median / facts["matrices"], "macs": facts["matrices"] * shape.n * shape.k}
    return row | {"gb_s": facts["bytes"] / times.median / 1e3}
