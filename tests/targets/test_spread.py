"""Sharing work among devices: order, lost devices, errors."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stic.runtime.errors import InputError, TargetError
from stic.targets.connection import DeviceLost
from stic.targets.spread import spread


class Devices:
    """Numbered devices, of which some are never to be had."""

    def __init__(self, refused: int = 0) -> None:
        self.refused, self.leased, self.released = refused, 0, 0
        self._lock = threading.Lock()

    @contextmanager
    def lease(self) -> Iterator[int]:
        with self._lock:
            self.leased += 1
            number = self.leased
        if number <= self.refused:
            raise TargetError(f"no device {number}")
        try:
            yield number
        finally:
            with self._lock:
                self.released += 1


@pytest.mark.parametrize("count", [1, 3, 20])
def test_results_are_in_the_order_of_the_items(count: int) -> None:
    devices = Devices()
    assert spread(devices.lease, count, range(10), lambda _, item: item * item) == [n * n for n in range(10)]
    assert 1 <= devices.leased <= min(count, 10)


def test_devices_work_at_once() -> None:
    both = threading.Barrier(2, timeout=20)
    assert spread(Devices().lease, 2, range(2), lambda _, item: both.wait() >= 0 and item) == [0, 1]


def test_nothing_to_do() -> None:
    devices = Devices()
    assert spread(devices.lease, 3, [], lambda _, item: item) == [] and devices.leased == 0


def test_another_device_takes_over_from_a_lost_one() -> None:
    taken = threading.Event()

    def work(device: int, item: int) -> int:
        if device == 1:
            taken.set()
            raise DeviceLost("device 1 went away")
        taken.wait(20)
        return item

    devices = Devices()
    assert spread(devices.lease, 2, range(5), work) == list(range(5))


def test_devices_that_are_not_to_be_had_do_not_matter() -> None:
    assert spread(Devices(refused=2).lease, 3, range(5), lambda _, item: item) == list(range(5))


def test_with_no_device_left_the_last_reason_is_given() -> None:
    def lose(device: int, item: int) -> int:
        raise DeviceLost(f"device {device} went away")

    with pytest.raises(DeviceLost, match="went away"):
        spread(Devices().lease, 2, range(5), lose)
    with pytest.raises(TargetError, match="no device"):
        spread(Devices(refused=2).lease, 2, range(5), lambda _, item: item)


@pytest.mark.parametrize("error", [InputError("too long"), KeyError("a defect")])
def test_an_error_that_is_no_device_s_ends_all(error: Exception) -> None:
    def fail(device: int, item: int) -> int:
        raise error

    devices = Devices()
    with pytest.raises(type(error)):
        spread(devices.lease, 1, range(5), fail)
    assert devices.leased == 1
