"""Tables of what running plans costs: time and memory against prediction and claim, peers, the store, switches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from benchmarks.evaluation.acceptance import PEER
from benchmarks.evaluation.comparisons import exceeded, quantile, slack, timed
from benchmarks.evaluation.markdown import NONE, mib, ms, percent, table
from benchmarks.evaluation.results import MOTIVATING_PRELOAD, Results, Row


def prediction(results: Results) -> str:
    """Predicted against measured time by bandwidth and what held storage to it; deadlines missed."""
    found: dict[tuple[float, str], list[Row]] = {}
    for row in timed(results):
        found.setdefault((row.bytes_per_s or 0, row.throttle), []).append(row)
    rows = []
    for (rate, throttle), group in sorted(found.items()):
        rows.append((f"{rate / 1e6:.0f} MB/s" if rate else "any", throttle, *_predicted(group)))
    if len(rows) > 1:
        rows.append(("all", "", *_predicted([row for group in found.values() for row in group])))
    errors = ("median error", "95 % within", "bias")
    paces = ("pace of compute", "of row reads")
    at_pace = [f"{name}, at pace" for name in errors]
    header = ("storage", "held by", "plans", "runs", "stolen", *errors, *paces, *at_pace)
    return table(header, rows, left=2) + "\n\n" + _missed(results) if rows else ""


def _predicted(rows: list[Row]) -> tuple[object, ...]:
    paces = [_middle([row.pace[name] for row in rows if name in row.pace]) for name in ("compute", "rows")]
    corrected = [error for row in rows if (error := row.error_at_pace) is not None]
    runs = sum(len(row.times_us) for row in rows)
    stolen = [share for row in rows for share in row.stolen]
    taken = percent(statistics.fmean(stolen)) if stolen else NONE
    return len(rows), runs, taken, *_errors([row.error for row in rows]), *paces, *_errors(corrected)


def _middle(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else NONE


def _errors(errors: list[float]) -> tuple[str, str, str]:
    if not errors:
        return NONE, NONE, NONE
    sizes = [abs(error) for error in errors]
    bias = f"{100 * statistics.median(errors):+.1f} %"
    return percent(statistics.median(sizes)), percent(quantile(sizes, 0.95)), bias


def _missed(results: Results) -> str:
    """Only rows that were planned for a deadline."""
    rows = []
    for name in results.planners:
        group = [r for r in results.planned if r.ran and r.planner == name and r.deadline_us < math.inf]
        if group:
            runs = sum(len(row.times_us) for row in group)
            missed = sum(row.missed(row.deadline_us) for row in group)
            late = sum(row.median_us > row.deadline_us for row in group)
            aside = [time > row.deadline_us for row in group for time in row.set_aside_us]
            disturbed = (len(aside), sum(aside))
            rows.append((name, len(group), runs, missed, percent(missed / runs), late, *disturbed))
    header = ("planner", "plans", "runs", "runs too late", "share", "medians too late", "runs set aside", "too late")
    return table(header, rows) if rows else ""


def memory(results: Results) -> str:
    """Claimed against measured memory, by planner."""
    rows = []
    for name in results.planners:
        group = [row for row in results.planned if row.ran and row.planner == name]
        if not group:
            continue
        unused = [share for row in group if (share := slack(row)) is not None]
        slacks = (percent(statistics.median(unused)), percent(max(unused))) if unused else (NONE, NONE)
        peaks = [row.group_bytes for row in group if row.group_bytes is not None]
        claimed, resident = _range(row.claimed_bytes for row in group), _range(row.rss_bytes for row in group)
        rows.append((name, len(group), claimed, _range(peaks), *slacks, sum(map(exceeded, group)), resident))
    header = ("planner", "rows", "claimed, MiB", "peak in the cgroup, MiB", "never used, median", "worst")
    return table((*header, "above the claim", "VmHWM, MiB"), rows) if rows else ""


def _range(sizes: Iterable[int]) -> str:
    found = sorted(sizes)
    if not found:
        return NONE
    low, high = mib(found[0]), mib(found[-1])
    return low if low == high else f"{low} to {high}"


def peers(results: Results, brief: bool = False) -> str:
    """Other runtimes, resident and cold, and beside each what stic takes; brief: cold at the paper's ratio only."""
    paper = {cell.bytes_per_s for cell in results.cells if results.at_paper(cell)}
    rows = []
    for task in results.tasks:
        own = [row for row in results.peers if row.task == task]
        rates = sorted({row.bytes_per_s or 0 for row in own if row.mode == "cold"})
        for rate in (None, *(rate for rate in rates if not brief or not paper or rate in paper)):
            state = "resident" if rate is None else f"cold, {rate / 1e6:.0f} MB/s"
            found = [row for row in own if (row.mode, row.bytes_per_s) == ("cold" if rate else "resident", rate)]
            yardstick = next((row for row in found if row.planner == PEER), None)
            rows += [(task, state, r.planner, *_costs(r, yardstick)) for r in found + _ours(results, task, rate)]
    header = ("task", "weights", "runtime or planner", "median, ms", "VmHWM, MiB", "less imports", "points")
    return table((*header, f"time, of {PEER}'s", "memory"), rows, left=3) if rows else ""


def _ours(results: Results, task: str, rate: int | None) -> list[Row]:
    """Beside resident peers everything resident; beside cold ones the plan for the longest deadline."""
    if rate is None:
        resident = [r for r in results.planned if r.ran and r.task == task and r.planner.startswith("preload-")]
        return [max(resident, key=lambda r: (r.deadline_us, -r.claimed_bytes))] if resident else []
    cells = [c for c in results.cells if (c.task, c.bytes_per_s, c.preload_bytes) == (task, rate, MOTIVATING_PRELOAD)]
    found = [row for cell in cells if (row := results.answer(cell, "ilp")) is not None and row.ran]
    return found[-1:]


def _costs(row: Row, yardstick: Row | None) -> tuple[str, ...]:
    points = NONE if row.points is None else f"{row.points:.1f}"
    figures = (ms(row.median_us), mib(row.rss_bytes), mib(row.own_bytes), points)
    if yardstick is None:
        return *figures, NONE, NONE
    return *figures, f"{row.median_us / yardstick.median_us:.2f}", percent(row.own_bytes / yardstick.own_bytes)


def store(results: Results) -> str:
    """Bytes of the nested store, and what refining resident shards reads."""
    found = results.data.get("store", {})
    sizes = []
    for task, own in found.items():
        nested, copies = own["nested_bytes"], own["six_copies_bytes"]
        quantized = copies - own["of_them_float32_bytes"]
        shares = (percent(own["ratio"]), percent(nested / quantized))
        sizes.append((task, mib(nested), mib(copies), mib(quantized), *shares))
    steps = [
        (task, f"{step['from']} to {step['to']}", f"{step['bytes_read']:,}", f"{step['plane_bytes']:,}")
        for task, own in found.items()
        for step in own.get("upgrade", ())
    ]
    header = ("task", "nested, up to 8 bits, MiB", "six copies, MiB", "of them not float32, MiB")
    parts = [
        table((*header, "nested, of six copies", "of those without float32"), sizes) if sizes else "",
        table(("task", "resident bits", "bytes read", "bytes of the new plane"), steps, left=2) if steps else "",
    ]
    return "\n\n".join(filter(None, parts))


def switch(results: Results) -> str:
    """Switching between plans of one package."""
    rows = []
    for row in results.data.get("switch", ()):
        which = (row["task"], f"{row['bytes_per_s'] / 1e6:.0f} MB/s", f"{row['from']} to {row['to']}")
        times = (f"{row['switch_us']:.0f}", ms(row["run_us"]), percent(row["share_of_run"], 2))
        rows.append((*which, *times, f"{row['missing_bytes']:,}", f"{row['bytes_read']:,}"))
    header = ("task", "storage", "preload", "switch, us", "median run, ms", "share", "bytes missing")
    return table((*header, "bytes read for them"), rows, left=3) if rows else ""


def failures(results: Results) -> str:
    """Cases that did not run to the end."""
    rows = [(r.task, r.planner, r.data.get("message", "")) for r in results.rows if r.data["status"] == "failed"]
    return table(("task", "planner", "why"), rows, left=3) if rows else ""
