"""What the kernels ask about a target's instruction set."""

from __future__ import annotations

from stic.targets.target import Target


def has(target: Target, *features: str) -> bool:
    """Tell whether the target has every one of the instruction set extensions."""
    return all(feature in target.features for feature in features)


def vnni_lanes(target: Target) -> int:
    """Width of vpdpbusd in int32 lanes: 16 (AVX-512 VNNI) or 0 (absent)."""
    return 16 if has(target, "avx512bw", "avx512_vnni") else 0


def panel_zero(target: Target) -> int:
    """The panel byte that stands for weight 0: vpdpbusd wants unsigned weights, so there it is 128."""
    return 128 if vnni_lanes(target) else 0


def float_rows(target: Target) -> int:
    """Rows of a float tile of 16 tokens whose accumulators fit in the registers: 16 zmm, or 4 rows of 2 ymm / 4 q."""
    return 16 if has(target, "avx512f") else 4
