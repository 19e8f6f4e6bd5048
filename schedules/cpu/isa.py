"""What the kernels ask about a target's instruction set."""

from __future__ import annotations

from stic.targets.target import Target


def has(target: Target, *features: str) -> bool:
    """Tell whether the target has every one of the instruction set extensions."""
    return all(feature in target.features for feature in features)


def has_vnni(target: Target) -> bool:
    """Tell whether vpdpbusd exists at 512 bits."""
    return has(target, "avx512bw", "avx512_vnni")


def panel_zero(target: Target) -> int:
    """The panel byte that stands for weight 0: vpdpbusd wants unsigned weights, so there it is 128."""
    return 128 if has_vnni(target) or has(target, "avx_vnni") else 0


def float_rows(target: Target) -> int:
    """Rows of a float tile of 16 tokens whose accumulators fit in the registers: 16 zmm, or 4 rows of 2 ymm / 4 q."""
    return 16 if has(target, "avx512f") else 4
