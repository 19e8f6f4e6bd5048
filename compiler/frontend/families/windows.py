"""Which layers attend to a window of tokens only."""

from __future__ import annotations

from collections.abc import Callable

from stic.compiler.frontend.families.config import Config

_KINDS = {"full_attention": False, "sliding_attention": True}


def windows(config: Config, layers: int, slides: Callable[[int], bool]) -> list[int | None]:
    """Return the window of each layer: as layer_types says, else where `slides` is true; None: it sees everything.

    Raises UnsupportedModelError for another kind of layer, and where the size of a window is not told.
    """
    said = config.listed("layer_types", layers)
    for kind in said or ():
        if kind not in _KINDS:
            raise config.refuse("layer_types", f"{', '.join(_KINDS)} are supported")
    sliding = [slides(layer) for layer in range(layers)] if said is None else [_KINDS[kind] for kind in said]
    config.raw("sliding_window", None)  # known, and of no effect where no layer slides
    return [config.whole("sliding_window") if slide else None for slide in sliding]
