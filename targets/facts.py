"""Facts of target files: values with their sources, and the checks that every table of such a file passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stic.runtime.errors import TargetError


@dataclass(frozen=True)
class Fact:
    """A number about a device and where it comes from."""

    value: float
    source: str
    estimated: bool = False


def check_keys(
    label: str, where: str, table: Mapping[str, Any], required: tuple[str, ...], allowed: tuple[str, ...]
) -> None:
    """Raise TargetError if a table of target `label` lacks a required key or has an unknown one."""
    missing = [key for key in required if key not in table]
    unknown = [key for key in table if key not in allowed]
    if missing:
        raise TargetError(f"target {label}: {where} lacks {', '.join(missing)}")
    if unknown:
        raise TargetError(f"target {label}: {where} has unknown {', '.join(unknown)}; known: {', '.join(allowed)}")


def sourced(label: str, where: str, data: Any) -> tuple[Any, str, bool]:
    """(value, source, estimated) of one entry; the value is not looked at."""
    if not isinstance(data, dict):
        raise TargetError(f"target {label}: {where} must be a table with `value` and `source`")
    check_keys(label, where, data, ("value", "source"), ("value", "source", "estimated"))
    source, estimated = data["source"], data.get("estimated", False)
    if not isinstance(source, str) or not source.strip() or not isinstance(estimated, bool):
        raise TargetError(f"target {label}: {where} needs a source in words, and `estimated` true or false")
    return data["value"], source, estimated


def number(label: str, where: str, data: Any) -> Fact:
    """One entry whose value is a positive number."""
    value, source, estimated = sourced(label, where, data)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise TargetError(f"target {label}: {where}.value must be a positive number")
    return Fact(value, source, estimated)
