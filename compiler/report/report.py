"""A plan, a package and a run, for people: facts for scripts, tables, and strips for drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from stic.compiler.forecast import Forecast
from stic.compiler.plan import LayerPlan, Plan
from stic.compiler.quantities import format_bytes, format_time, quote_bytes, quote_time
from stic.compiler.report.drawing import HAND_OVER, Kind, Span, Strip
from stic.compiler.report.sweep import Point, on_front
from stic.compiler.simulate import EMBEDDING, HEAD, Event
from stic.runtime.gpu_format import Place
from stic.runtime.layout import Shape
from stic.runtime.trace import GPU, Trace

if TYPE_CHECKING:  # the module brings the tokenizer and the process pool with it
    from stic.compiler.importance.measure import Importance

FULL_MARK = "F"  # full precision in a grid
LEFT_OUT = "."


def plan_facts(plan: Plan, predicted_us: float, peak_bytes: int, forecast: Forecast | None = None) -> dict[str, Any]:
    """What a script wants to know of a plan; times in microseconds, memory in bytes. A decoder's has a forecast."""
    proof = plan.proof
    both = {"first_token_deadline_us": plan.budget.first_token_us, "forecast": forecast and forecast.to_json()}
    return {
        "planner": plan.planner,
        "status": proof.status,
        "objective": proof.objective,
        "bound": proof.bound,
        "gap": proof.gap,
        "solve_seconds": proof.solve_seconds,
        "predicted_us": predicted_us,
        "peak_bytes": peak_bytes,
        "deadline_us": plan.budget.latency_us,
        **(both if forecast is not None else {}),
        "memory_bytes": plan.budget.memory_bytes,
        "preload_bytes": plan.budget.preload_bytes,
        "margin": plan.margin,
        "mean_bits": plan.mean_bits,
        "loss": plan.loss,
        "table_resident": plan.table_resident,
        "read_ahead": plan.read_ahead,
        "notes": list(plan.notes),
        "shards": [
            {"bits": list(layer.bits), "resident": list(layer.resident), "place": layer.place} for layer in plan.layers
        ],
    }


def grid_row(bits: Sequence[int], slices: int) -> str:
    """One character a slice: its bits, `F` for full precision, `.` for nothing."""
    marks = [FULL_MARK if b > 8 else str(b) if b else LEFT_OUT for b in bits]
    return "".join(marks).ljust(slices, LEFT_OUT)


def _decodes(shapes: Sequence[Shape]) -> bool:
    return bool(shapes) and shapes[0].kind != "layer"


def shard_table(
    layers: Sequence[LayerPlan], layer_bytes: Sequence[tuple[int, int]] | None = None, shapes: Sequence[Shape] = ()
) -> Table:
    """The grid of shards: bits and resident bits by layer, or block of a decoder, and slice.

    `layer_bytes`, where known, holds for each layer (bytes resident, bytes streamed in a run).
    """
    decodes = _decodes(shapes)
    most = max((len(layer.bits) for layer in layers), default=0)
    table = Table(box=None, pad_edge=False)
    table.add_column("block" if decodes else "layer", justify="right")
    if decodes:
        table.add_column("kind")
    table.add_column("bits of each slice")
    table.add_column("of them resident")
    table.add_column("mean bits", justify="right")
    placed = any(layer.place == "gpu" for layer in layers)
    if placed:
        table.add_column("runs on")
    if layer_bytes is not None:
        table.add_column("resident", justify="right")
        table.add_column("streamed", justify="right")
    for number, layer in enumerate(layers):
        mean = f"{sum(layer.bits) / len(layer.bits):.2f}" if layer.bits else "left out"
        slices = shapes[number].slices if decodes else most
        kind = [shapes[number].kind.replace("_", "-")] if decodes else []
        row = [str(number), *kind, grid_row(layer.bits, slices), grid_row(layer.resident, slices), mean]
        if placed:
            row.append(layer.place.upper() if layer.bits else "")
        if layer_bytes is not None:
            row += [format_bytes(size) for size in layer_bytes[number]]
        table.add_row(*row)
    return table


def _against(value: float, limit: int | None, write: Callable[[float], str], quote: Callable[[int], str]) -> str:
    if limit is None:
        return f"{write(value)} (no limit was set)"
    return f"{write(value)} of {quote(limit)} ({value / limit:.0%})"


def proof_sentence(plan: Plan) -> str:
    """How good the plan is known to be."""
    proof = plan.proof
    spent = f"{proof.solve_seconds:.1f} s"
    if proof.bound is None:
        return f"objective {proof.objective:.6g}, heuristic: no bound is known ({plan.planner}, {spent})"
    found = "proven optimal" if proof.status == "optimal" else "the time limit ended the search"
    if proof.status == "feasible" and proof.near_enough:
        found = "near enough"
    return (
        f"objective {proof.objective:.6g}, {found}: no plan exceeds {proof.bound:.6g},"
        f" gap {proof.gap or 0.0:.2%} ({plan.planner}, {spent})"
    )


def plan_table(
    plan: Plan, predicted_us: float, peak_bytes: int, shapes: Sequence[Shape] = (), forecast: Forecast | None = None
) -> Table:
    """Budgets, what the plan needs of them, and the proof; of a decoder, with the shapes of its blocks."""
    layer, latency = ("block", "next token") if _decodes(shapes) else ("layer", "latency")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    if forecast is not None:
        first = _against(forecast.first_us(forecast.prompt), plan.budget.first_token_us, format_time, quote_time)
        table.add_row("first token", f"{first}, of a prompt of {forecast.prompt} tokens")
    table.add_row(latency, _against(predicted_us, plan.budget.latency_us, format_time, quote_time))
    if forecast is not None:
        (_, start_us), *_, (end, _) = forecast.next_token
        table.add_row(
            "", f"{format_time(start_us)} at the start of the context, the above at its end ({end + 1} tokens)"
        )
    table.add_row("memory", _against(peak_bytes, plan.budget.memory_bytes, format_bytes, quote_bytes))
    table.add_row("margin", f"{plan.margin:.0%} of the latency budget is kept back for jitter")
    table.add_row("mean bits", f"{plan.mean_bits:.2f}")
    if not _decodes(shapes):  # theirs is read by row, or is the vocabulary
        table.add_row("word table", "resident" if plan.table_resident else "read by row")
    table.add_row(
        "read-ahead",
        f"{plan.read_ahead} {layer}{'s' * (plan.read_ahead != 1)}"
        if plan.overlap
        else "none: loads all, then computes",
    )
    table.add_row("proof", proof_sentence(plan))
    if plan.loss is not None:
        table.add_row("loss", f"{plan.loss:.4g} on calibration examples")
    for note in plan.notes:
        table.add_row("note", note)
    return table


def print_plan(
    console: Console,
    plan: Plan,
    predicted_us: float,
    peak_bytes: int,
    timeline: str = "",
    shapes: Sequence[Shape] = (),
    forecast: Forecast | None = None,
) -> None:
    """Print a plan: budgets, proof, grid of shards, and a drawn timeline."""
    console.print(plan_table(plan, predicted_us, peak_bytes, shapes, forecast))
    console.print()
    console.print(shard_table(plan.layers, shapes=shapes))
    if timeline:
        console.print()
        print_drawing(console, timeline)


def print_drawing(console: Console, text: str) -> None:
    """Print a drawing as it is: no markup, no wrapping."""
    console.print(text, soft_wrap=True)


def importance_facts(importance: Importance) -> dict[str, Any]:
    """What a profile found, in a few facts; `rank_correlation` is that of the additivity check."""
    gain = importance.gain[:, :, -1].sum(axis=1)
    return {
        "method": importance.method,
        "objective": importance.objective,
        "calibration": importance.calibration,
        "bits": list(importance.bits),
        "evaluations": importance.evaluations,
        "metric_at_base": importance.metric,
        "rank_correlation": importance.rho,
        "layer_factors": list(importance.layer_factor),
        "gain_by_layer": [float(value) for value in gain],
        "seconds": importance.seconds,
    }


def facts_table(facts: Mapping[str, Any]) -> Table:
    """Names and values, one a line; lists hold numbers."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if isinstance(value, float):
            text = f"{value:.6g}"
        elif isinstance(value, Sequence) and not isinstance(value, str):
            text = ", ".join(f"{item:.4g}" for item in value)
        else:
            text = "not measured" if value is None else str(value)
        table.add_row(name.replace("_", " "), text)
    return table


def print_device(console: Console, data: Mapping[str, Any]) -> None:
    """Print what `stic probe` measured; `data` is the file that it writes (see `stic.compiler.planner.costs`)."""
    io, compute = data["io"], data["compute"]
    console.print(str(data["device"]))
    way = "past the page cache" if io["direct"] else "through the page cache, dropped before each pass"
    console.print(f"reads {way}; {io['lanes']} lanes: {io['bytes_per_s'] / 1e6:.0f} MB/s")
    console.print(f"{format_time(io['request_us'])} a request, {format_time(io['row_us'])} an embedding row")
    table = Table(box=None, pad_edge=False)
    for title in ("read of", "lanes", "median", "spread", "MB/s"):
        table.add_column(title, justify="right")
    for point in io["points"]:
        speed = point["bytes"] / point["median_us"]
        times = (format_time(point["median_us"]), format_time(point["spread_us"]))
        table.add_row(format_bytes(point["bytes"]), str(point["lanes"]), *times, f"{speed:.0f}")
    console.print(table)
    for shape in compute["shapes"]:
        _print_shape(console, shape, f"{compute['threads']} threads")
    for decoder in data.get("decoders", ()):
        _print_decoder(console, decoder)
    if (gpu := data.get("gpu")) is not None:
        console.print(
            f"{gpu['device']}, driver {gpu['driver']}, {gpu['arithmetic']} arithmetic;"
            f" {format_time(gpu['hand_over_us'])} to hand activations over"
        )
        for shape in gpu["shapes"]:
            _print_shape(console, shape, "on the GPU")


def _print_decoder(console: Console, decoder: Mapping[str, Any]) -> None:
    """Print the times of a decoder's passes: of a block of each kind, one token at the end of the context first."""
    console.print(
        f"passes of a decoder, context {decoder['context']}, {decoder['cache']} cache, {decoder['threads']} threads;"
        " a block of each kind at the end of the context"
    )
    late = decoder["times"]["late"]
    bits = list(next(iter(late.values())))
    table = Table(box=None, pad_edge=False)
    for title in ("tokens", "block", *(f"{b} bits" for b in bits)):
        table.add_column(title, justify="right")
    for tokens, by_bits in late.items():
        for kind in by_bits[bits[0]]:
            times = (format_time(by_bits[b][kind]) if kind in by_bits[b] else "" for b in bits)
            table.add_row(tokens, kind.replace("_", "-"), *times)
    console.print(table)


def _print_shape(console: Console, shape: Mapping[str, Any], where: str) -> None:
    """Print the times of one shape of a profile."""
    console.print(
        f"layer of {shape['slices']} slices, hidden {shape['hidden']}, {shape['heads_per_slice']} x"
        f" {shape['head_dim']} heads and {shape['neurons_per_slice']} neurons a slice, {shape['rows']} tokens,"
        f" {where}: {format_time(shape['layer_us'])} a layer and for each slice"
    )
    table = Table(box=None, pad_edge=False)
    for bits in shape["slice_us"]:
        table.add_column(f"{bits} bits", justify="right")
    table.add_row(*(format_time(us) for us in shape["slice_us"].values()))
    console.print(table)


def layer_label(layer: int) -> str:
    """What a drawing writes into a piece of compute."""
    return {EMBEDDING: "E", HEAD: "H"}.get(layer, str(layer))


def _lane(io: bool, place: Place) -> str:
    return "IO" if io else "GPU" if place == "gpu" else "compute"


def predicted(events: Iterable[Event], length: int, deadline_us: float | None) -> Strip:
    """A replayed plan, for drawing; `length` is the input it was planned for, in tokens."""
    kinds: dict[str, Kind] = {"io": "read", "compute": "compute", "stall": "stall"}
    spans = (
        Span(_lane(e.kind == "io", e.place), kinds[e.kind], e.start_us, e.end_us, layer_label(e.layer)) for e in events
    )
    return Strip(f"predicted for {length} token{'s' * (length != 1)}", tuple(spans), deadline_us)


def _measured_lane(track: int) -> str:
    return "GPU" if track == GPU else "compute"


def measured(trace: Trace, tokens: int) -> Strip:
    """A traced run, for drawing."""
    spans, of_weights = [], {e.track for e in trace if e.name == "read"}
    for e in trace:
        start, end = e.begin_ns / 1e3, e.end_ns / 1e3
        if e.track >= 0:
            lane = f"IO {e.track}" if e.track in of_weights else "IO rows"
            spans.append(Span(lane, "read", start, end, str(e.layer) if e.layer >= 0 else "E"))
        elif e.name == "stall":
            spans.append(Span(_measured_lane(e.track), "stall", start, end))
        else:
            label = {"embed": "E", "head": "H", "hand-over": HAND_OVER}.get(e.name, str(e.layer))
            spans.append(Span(_measured_lane(e.track), "compute", start, end, label))
    return Strip(f"measured with {tokens} tokens", _joined(spans))


def _joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Neighbouring pieces of one lane's work on one layer as one span."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.lane, s.start_us)):
        last = joined[-1] if joined else None
        same = last is not None and (last.lane, last.kind, last.label) == (span.lane, span.kind, span.label)
        if last is not None and same and span.kind == "compute":
            joined[-1] = replace(last, end_us=max(last.end_us, span.end_us))
        else:
            joined.append(span)
    return tuple(joined)


def sweep_table(points: Sequence[Point]) -> Table:
    """Objective and mean bits by latency and memory; a star marks what no other point beats."""
    front = on_front(points)
    memories = sorted({point.memory_bytes for point in points})
    table = Table(box=None, pad_edge=False)
    table.add_column("latency", justify="right")
    for memory in memories:
        table.add_column(quote_bytes(memory), justify="right")
    cells = {(point.latency_us, point.memory_bytes): point for point in points}
    for latency in sorted({point.latency_us for point in points}):
        row = []
        for memory in memories:
            point = cells[latency, memory]
            if point.plan is None:
                row.append("-")
            else:
                star = "*" if point in front else " "
                row.append(f"{point.objective:.5g} ({point.plan.mean_bits:.1f} b){star}")
        table.add_row(quote_time(latency), *row)
    table.caption = "objective (mean bits); * nothing beats it with less; - no plan fits"
    table.caption_justify = "left"
    return table


def size_table(title: str, sizes: Mapping[str, int]) -> Table:
    """Bytes by name, with their share and a total."""
    table = Table(box=None, pad_edge=False)
    table.add_column(title)
    table.add_column("bytes", justify="right")
    table.add_column("", justify="right")
    table.add_column("share", justify="right")
    total = sum(sizes.values())
    for name, size in sizes.items():
        table.add_row(name, f"{size:,}", format_bytes(size), f"{size / max(total, 1):.1%}")
    table.add_row("total", f"{total:,}", format_bytes(total), "", style="bold")
    return table


def family_table(family: Sequence[Mapping[str, Any]]) -> Table:
    """Plans of a package as `stic.compiler.report.contents.family_facts` has them; a star marks the default."""
    table = Table(box=None, pad_edge=False)
    for title in ("plan", "deadline", "predicted", "memory", "preload", "mean bits", "quality"):
        table.add_column(title, justify="right")
    for facts in family:
        table.add_row(
            f"{facts['number']}{'*' if facts['default'] else ' '}",
            "-" if facts["deadline_us"] is None else quote_time(facts["deadline_us"]),
            format_time(facts["predicted_us"]),
            format_bytes(facts["peak_bytes"]),
            format_bytes(facts["preload_bytes"]),
            f"{facts['mean_bits']:.2f}",
            f"{facts['quality']:.4g}",
        )
    table.caption = "quality: minus the loss on calibration examples, or the objective where untried; * the default"
    table.caption_justify = "left"
    return table


def similarity_table(texts: Sequence[str], values: Iterable[Iterable[str]], room: int = 60) -> Table:
    """How alike every pair of sentences is, which have `room` columns at most."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("sentence", overflow="ellipsis", no_wrap=True, max_width=min(room, 60))
    for number in range(len(texts)):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, (text, row) in enumerate(zip(texts, values, strict=True)):
        table.add_row(str(number), text, *row)
    return table
