"""How planners and peers look in every figure: colours that colour-blind readers tell apart (Okabe and Ito, "Color
Universal Design", 2008), and a marker each, so that figures also read in black and white."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

DPI = 130
Drawing = Callable[[Path], None]  # draws a figure to a path; its suffix says which kind


class Style(NamedTuple):
    """Colour and marker of one planner or peer."""

    colour: str
    marker: str


_STYLES = {
    "ilp": Style("#0072b2", "o"),
    "greedy": Style("#d55e00", "s"),
    "sti": Style("#e69f00", "8"),
    "load-and-exec": Style("#56b4e9", "h"),
    "onnxruntime fp32": Style("#000000", "X"),
    "onnxruntime int8": Style("#666666", "P"),
    "openvino int8": Style("#999999", "*"),
}
_FAMILIES = {"pipeline": ("#009e73", "^v<>"), "preload": ("#cc79a7", "dDpH")}  # a marker for each bitwidth
_OTHERS = Style("#f0e442", "p")


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name, the same for the same names in any figure."""
    ordered = list(dict.fromkeys(names))
    found = {}
    for name in ordered:
        family = name.rsplit("-", 1)[0]
        if family in _FAMILIES:
            colour, markers = _FAMILIES[family]
            own = sorted((n for n in ordered if n.rsplit("-", 1)[0] == family), key=lambda n: int(n.rsplit("-", 1)[1]))
            found[name] = Style(colour, markers[own.index(name) % len(markers)])
        else:
            found[name] = _STYLES.get(name) or _STYLES.get(family) or _OTHERS
    return found


def panels(count: int, columns: int, size: tuple[float, float] = (3.6, 2.9)) -> tuple[Figure, list[Any], Any]:
    """A figure of `count` panels, and one more place for the legend, beside them or, in several rows, the last."""
    single = count < columns
    width = count + 1 if single else columns
    height = -(-(count + 1) // width)
    ratios = [1.0] * (width - 1) + [0.5 if single else 1.0]
    figure = Figure(figsize=(size[0] * sum(ratios), size[1] * height), layout="constrained")
    axes = list(figure.subplots(height, width, squeeze=False, width_ratios=ratios).flat)
    for axis in axes[count:]:
        axis.axis("off")
    for axis in axes[:count]:
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3, lw=0.5)
    return figure, axes[:count], axes[-1]


def logarithmic(axis: Any, ticks: tuple[int, ...] = (1, 2, 5)) -> None:
    """Make one axis (axes.xaxis, axes.yaxis) logarithmic, with ticks at these times powers of ten, written out."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def legend(panel: Any, axes: Iterable[Any], order: Iterable[str] = ()) -> None:
    """One legend for all axes, in the panel kept free for it; names in `order` first."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    ranks = {name: number for number, name in enumerate(order)}
    names = sorted(found, key=lambda name: ranks.get(name, len(ranks)))
    panel.legend([found[name] for name in names], names, loc="center", fontsize=8, frameon=False)


def save(figure: Figure, path: Path) -> None:
    """Write the picture."""
    figure.savefig(path, dpi=DPI, format="png")
