"""Prefill: matrices of BERT-base times 128 rows of activations, against the peak of the dot product loop."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.kernels.driver import Driver, loops_for
from benchmarks.kernels.limits import loop_turn
from benchmarks.kernels.matrices import Shape, make
from benchmarks.kernels.place import Place
from benchmarks.kernels.turns import Turn, interleave, local
from stic.schedules.pack import interleave as interleave_of

_PEAK_US = 3000


def measure(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """Each shape at each bitwidth with each number of threads, interleaved with the peak loop."""
    drivers = {threads: Driver(place.library, threads, place.kernels) for threads in settings["threads"]}
    shapes = [Shape.of(case) for case in (*settings["shapes"], *settings["joined"])]
    return {"tokens": settings["tokens"], "rows": [row for s in shapes for row in _rows(place, settings, s, drivers)]}


def _rows(place: Place, settings: dict[str, Any], shape: Shape, drivers: dict[int, Driver]) -> list[dict[str, Any]]:
    tokens, count = settings["tokens"], settings["matrices"]
    turns: dict[str, Turn] = {}
    peaks: dict[int, int] = {}
    for threads, driver in drivers.items():
        turns[f"peak, {threads}"], peaks[threads] = loop_turn(driver, loops_for(place.target)[0], _PEAK_US)
    sets = {}
    for bits in settings["bits"]:
        q, most = interleave_of(place.target), max(drivers)
        sets[bits] = make(place.library, shape, bits, count, tokens, most, q, settings["outliers"])
        for threads, driver in drivers.items():
            driver.gemm(sets[bits].product)
            sets[bits].check(tokens)
            turns[f"{bits}, {threads}"] = local(partial(driver.gemm, sets[bits].product))
    with place.progress(f"gemm {shape.name}", settings["rounds"] * len(turns)) as tick:
        times = interleave(turns, settings, tick)
    rows = []
    for bits, matrices in sets.items():
        for threads in drivers:
            own, peak = times[f"{bits}, {threads}"], times[f"peak, {threads}"]
            macs = matrices.macs(tokens)
            row = {"shape": shape.name, "bits": bits, "threads": threads, "us": own.to_json()}
            row |= {"macs": macs, "bytes": matrices.bytes, "gmac_s": macs / own.median / 1e3}
            row["share_of_peak"] = macs / peaks[threads] / own.ratio(peak)
            row["times_one_thread"] = 1 / own.ratio(times[f"{bits}, {min(drivers)}"])
            rows.append(row)
    return rows
