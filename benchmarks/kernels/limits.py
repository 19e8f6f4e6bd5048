"""What this machine can do at most: multiply-adds of the best int8 and float32 loops, bytes of a plain sum."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.kernels.driver import Driver, Memory, loops_for
from benchmarks.kernels.place import Place
from benchmarks.kernels.turns import Turn, interleave, local

_FIRST_ROUNDS = 8000


def loop_turn(driver: Driver, name: str, loop_us: float) -> tuple[Turn, int]:
    """A turn that runs a loop for about `loop_us`, and its multiply-adds."""
    least = min(driver.loop(name, _FIRST_ROUNDS)[0] for _ in range(5))
    rounds = round(_FIRST_ROUNDS * loop_us / least)
    return local(lambda: driver.loop(name, rounds)[0]), driver.loop(name, rounds)[1]


def measure(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """All limits with each number of threads, interleaved."""
    int8, f32, total = loops_for(place.target)
    memory = Memory(place.library, settings["sum_bytes"])
    memory.put(np.random.default_rng(0).integers(0, 256, settings["sum_bytes"], np.uint8))
    turns: dict[str, Turn] = {}
    amounts: dict[str, tuple[int, str, float]] = {}
    for threads in settings["threads"]:
        driver = Driver(place.library, threads)
        for label, name in (("int8", int8), ("float32", f32)):
            key = f"{label}, {threads}"
            turns[key], macs = loop_turn(driver, name, settings["loop_us"])
            amounts[key] = (threads, label, macs)
        key = f"read, {threads}"
        turns[key] = local(partial(driver.sum, total, memory))
        amounts[key] = (threads, "read", memory.used_bytes)
    with place.progress("limits", settings["rounds"] * len(turns)) as tick:
        times = interleave(turns, settings, tick)
    rows = []
    for key, (threads, label, amount) in amounts.items():
        unit = "gb_s" if label == "read" else "gmac_s"
        rows.append({"limit": label, "threads": threads, "us": times[key].to_json()})
        rows[-1][unit] = amount / times[key].median / 1e3
    return {"loops": {"int8": int8, "float32": f32, "read": total}, "rows": rows}
