"""How long a session on a device may take; what one does is tested with `stic deploy`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stic.runtime.emulated import EmulatedStorage
from stic.runtime.format import BLOCK
from stic.runtime.package import Package
from stic.targets.remote_session import emulated_reading_s
from tests.runtime.conftest import make_package

__all__ = ["make_package"]


def test_either_limit_of_emulated_storage_takes_its_time(make_package: Callable[..., Path]) -> None:
    package = Package.open(make_package(((8, 8, 8, 8),) * 4))
    rows, size = int(package.model["max_length"]), int(package.header["request_bytes"])
    extents = package.extents["bytes"].tolist()
    moved, requests = sum(extents) + rows * BLOCK, sum(-(-extent // size) for extent in extents) + rows
    assert emulated_reading_s(package, EmulatedStorage(1_000_000)) == pytest.approx(moved / 1e6)
    assert emulated_reading_s(package, EmulatedStorage(1 << 40, 100)) == pytest.approx(requests / 100)
