"""Figures of the results: a roofline with every kernel as a point, and the encoder's time over bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend comes first

Row = dict[str, Any]
_COLOURS = {2: "#4c78a8", 3: "#72b7b2", 4: "#f58518", 5: "#eeca3b", 6: "#54a24b", 7: "#9d755d", 8: "#b279a2"}
_INTENSITY = (0.5, 2e3)  # multiply-adds a byte


def draw(parts: dict[str, Any], stem: Path) -> list[Path]:
    """Draw what the measured parts allow; the files are named STEM-*.png."""
    found = []
    if "limits" in parts and parts.keys() & {"gemm", "gemv"}:
        found.append(_roofline(parts, stem.with_name(f"{stem.name}-roofline.png")))
    if "encoder" in parts:
        found.append(_encoder(parts["encoder"], stem.with_name(f"{stem.name}-encoder.png")))
    return found


def _limits(parts: dict[str, Any], threads: int) -> Row:
    rows = [row for row in parts["limits"]["rows"] if row["threads"] == threads]
    return {row["limit"]: row.get("gmac_s", row.get("gb_s")) for row in rows}


def _roofline(parts: dict[str, Any], path: Path) -> Path:
    counts = sorted({row["threads"] for row in parts["limits"]["rows"]})
    figure, axes = plt.subplots(1, len(counts), figsize=(7 * len(counts), 5.5), sharey=True, squeeze=False)
    intensity = np.geomspace(*_INTENSITY, 200)
    for axis, threads in zip(axes[0], counts, strict=True):
        limits = _limits(parts, threads)
        roof = np.minimum(limits["read"] * intensity, limits["int8"])
        axis.loglog(intensity, roof, color="black", lw=1.5, label=f"int8, {limits['int8']:.0f} GMAC/s")
        roof = np.minimum(limits["read"] * intensity, limits["float32"])
        axis.loglog(intensity, roof, color="grey", lw=1, ls="--", label=f"float32, {limits['float32']:.0f} GMAC/s")
        axis.plot([], [], " ", label=f"slope: {limits['read']:.1f} GB/s, a plain sum")
        for name, marker in (("gemm", "o"), ("gemv", "^")):
            for row in parts.get(name, {}).get("rows", ()):
                if row["threads"] == threads and row.get("outliers", 1) > 0:
                    rate = row["macs"] / row["us"]["median"] / 1e3
                    colour = _COLOURS[row["bits"]]
                    axis.plot(row["macs"] / row["bytes"], rate, marker, color=colour, ms=5, alpha=0.8)
        for row in parts.get("gemv", {}).get("ggml", ()):
            if row["threads"] == threads:
                axis.plot(row["macs"] / row["bytes"], row["macs"] / row["us"]["median"] / 1e3, "x", color="grey")
        for bits, colour in _COLOURS.items():
            axis.plot([], [], "s", color=colour, label=f"{bits} bits")
        axis.plot([], [], "x", color="grey", label="ggml, one token, from memory")
        axis.plot([], [], "o", color="black", mfc="none", label="GEMM, from caches")
        axis.plot([], [], "^", color="black", mfc="none", label="GEMV, 1 to 8 tokens, from memory")
        axis.set(title=f"threads: {threads}", xlabel="multiply-adds a byte of weights", ylabel="GMAC/s")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7, loc="lower right")
    return _save(figure, path)


def _encoder(part: Row, path: Path) -> Path:
    """Times at the headline length: packages as bars, peers as lines across."""
    tokens = next(row["tokens"] for row in part["rows"] if row["contender"] == "numpy")
    rows = [row for row in part["rows"] if row["tokens"] == tokens]
    counts = sorted({row["threads"] for row in rows})
    figure, axes = plt.subplots(1, len(counts), figsize=(6 * len(counts), 4.5), sharey=True, squeeze=False)
    for axis, threads in zip(axes[0], counts, strict=True):
        own = [row for row in rows if row["threads"] == threads]
        packages = [row for row in own if row["contender"].startswith("stic")]
        heights = np.array([row["us"]["median"] for row in packages]) / 1e3
        spread = np.array([(row["us"]["q1"], row["us"]["q3"]) for row in packages]).T / 1e3
        labels = [row["contender"].split()[1] for row in packages]
        axis.bar(labels, heights, yerr=np.abs(spread - heights), color="#4c78a8", capsize=3)
        peers = [row for row in own if not row["contender"].startswith(("stic", "numpy"))]
        for number, row in enumerate(peers):
            time = row["us"]["median"] / 1e3
            axis.axhline(time, color=f"C{number + 1}", label=f"{row['contender']}, {time:.1f} ms")
        bound = packages[0]["share_of_bound"] * heights[0]
        axis.axhline(bound, color="black", ls=":", label=f"all multiply-adds at the peak, {bound:.1f} ms")
        axis.set(title=f"{part['model']}, {tokens} tokens, threads: {threads}", xlabel="bits", ylabel="ms")
        axis.legend(fontsize=8)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
