"""Plans of small models, as the tests of stages ask for them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from stic.compiler.options import CompileOptions, ImportanceOptions, ModelOptions, TargetOptions
from stic.compiler.pipeline import plan_model
from stic.compiler.stage import Made


def options(model: Path, **groups: dict[str, Any]) -> CompileOptions:
    """Options for a quick plan; `groups` change fields of the groups that they name: `shards={"slices": 2}`."""
    chosen = CompileOptions(
        ModelOptions(model, max_length=16),
        TargetOptions("odroid-n2plus"),
        importance=ImportanceOptions(tokens=40, jobs=1),
    )
    return replace(chosen, **{name: replace(getattr(chosen, name), **fields) for name, fields in groups.items()})


def planned(model: Path, **groups: dict[str, Any]) -> Made:
    """What the stages up to the checked plan make."""
    return plan_model(options(model, **groups))
