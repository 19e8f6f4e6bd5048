"""What was promised about kernels (`accepted` in cases.json), and whether the measured parts keep it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One promise: the worst of what was measured against its limit."""

    claim: str
    measured: float
    limit: float
    at_most: bool  # whether the limit is an upper one
    worst: str  # where the worst was measured

    @property
    def passed(self) -> bool:
        """Whether the promise is kept."""
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    def to_json(self) -> Row:
        """Plain data."""
        return asdict(self) | {"passed": self.passed}


def judge(parts: dict[str, Any], cases: dict[str, Any]) -> list[Verdict]:
    """One verdict a promise, for the parts that were measured."""
    rules = {"encoder": _encoder, "gemm": _gemm, "gemv": _gemv}
    return [verdict for name, rule in rules.items() if name in parts for verdict in rule(parts[name], cases)]


def _worst(claim: str, limit: float, at_most: bool, found: Iterable[tuple[float, str]]) -> Iterator[Verdict]:
    """The verdict on all (value, where) of a promise; none where nothing was measured for it."""
    values = list(found)
    if values:
        value, where = (max if at_most else min)(values)
        yield Verdict(claim, value, limit, at_most, where)


def _encoder(part: Row, cases: Row) -> Iterator[Verdict]:
    accepted, tokens = cases["accepted"], cases["encoder"]["headline_tokens"]
    rows = [row for row in part["rows"] if row["tokens"] == tokens and "over" in row]
    for threads in sorted({row["threads"] for row in rows}):
        own = [row for row in rows if row["threads"] == threads]
        where = f"{tokens} tokens, threads: {threads}"
        if limit := accepted["encoder_over_onnxruntime_int8"].get(str(threads)):
            found = _over(own, "onnxruntime int8")
            yield from _worst(f"encoder, time by onnxruntime int8's, {where}", limit, True, found)
        if limit := accepted["encoder_over_best_openvino"].get(str(threads)):
            yield from _worst(f"encoder, time by the faster OpenVINO's, {where}", limit, True, _over(own, "OpenVINO"))
        limit, found = accepted["encoder_fewer_bits_over_8"], _over(own, "stic 8 bits")
        yield from _worst(f"encoder, time of fewer bits by that of 8, {where}", limit, True, found)
        shares = [(row["share_of_bound"], row["contender"]) for row in own]
        limit = accepted["encoder_share_of_bound"]
        yield from _worst(f"encoder, share of the bound by multiply-adds, {where}", limit, False, shares)


def _over(rows: Iterable[Row], prefix: str) -> list[tuple[float, str]]:
    """(time by that of the fastest contender of this name, package) of every row that was measured against one."""
    found = []
    for row in rows:
        ratios = [ratio for name, ratio in row["over"].items() if name.startswith(prefix)]
        found += [(max(ratios), row["contender"])] if ratios else []
    return found


def _gemm(part: Row, cases: Row) -> Iterator[Verdict]:
    accepted, bits = cases["accepted"], cases["gemm"]["headline_bits"]
    names = [shape["name"] for shape in cases["gemm"]["shapes"]]
    rows = [row for row in part["rows"] if row["bits"] == bits and row["shape"] in names]
    one = ((row["share_of_peak"], row["shape"]) for row in rows if row["threads"] == 1)
    yield from _worst(f"gemm, {bits} bits, share of peak on one core", accepted["gemm_share_of_peak"], False, one)
    two = ((row["times_one_thread"], row["shape"]) for row in rows if row["threads"] == 2)
    yield from _worst(f"gemm, {bits} bits, speed-up of two threads", accepted["gemm_two_threads"], False, two)


def _gemv(part: Row, cases: Row) -> Iterator[Verdict]:
    accepted, rate = cases["accepted"], max(cases["gemv"]["outliers"])
    rows = [row for row in part["rows"] if row["rows"] == 1 and row["outliers"] == rate]
    for threads in sorted({row["threads"] for row in rows}):
        own = {row["bits"]: row for row in rows if row["threads"] == threads}
        shares = ((own[b]["share_of_sum"], f"{b} bits") for b in accepted["gemv_share_bits"] if b in own)
        limit = accepted["gemv_share_of_sum"]
        yield from _worst(f"gemv, share of a plain sum's bandwidth, threads: {threads}", limit, False, shares)
        fewer = ((own[2]["over_4_bits"], "2 bits") for _ in range(2 in own and 4 in own))
        limit = accepted["gemv_2_over_4_bits"]
        yield from _worst(f"gemv, time at 2 bits by that at 4, threads: {threads}", limit, True, fewer)
        over = own[4]["over_ggml"].items() if 4 in own else ()
        found = ((ratio, case) for case, ratio in over if case.startswith("q4_0"))
        limit = accepted["gemv_4_bits_over_q4_0"]
        yield from _worst(f"gemv, time at 4 bits by ggml's Q4_0, threads: {threads}", limit, True, found)
