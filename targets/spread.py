"""Work on several devices at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from stic.runtime.errors import SticError
from stic.targets.connection import DeviceLost

Device = TypeVar("Device")
Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(
    leased: Callable[[], AbstractContextManager[Device]],
    devices: int,
    items: Sequence[Item],
    work: Callable[[Device, Item], Result],
) -> list[Result]:
    """Work on all items with up to `devices` devices at once; returns the results in the order of the items.

    `leased` gives a device; `work` is called in a thread for each. The item of a device that is lost goes to another.
    Raises what `work` raises; and once no device is left, what took the last one away.
    """
    share = _Share(leased, items, work)
    for _ in range(min(devices, len(items))):
        share.start()
    return share.wait()


class _Share(Generic[Device, Item, Result]):
    """Items that threads, each with a device, take from."""

    def __init__(
        self,
        leased: Callable[[], AbstractContextManager[Device]],
        items: Sequence[Item],
        work: Callable[[Device, Item], Result],
    ) -> None:
        self._leased, self._items, self._work = leased, items, work
        self._waiting = deque(range(len(items)))
        self._busy: set[int] = set()
        self._done: dict[int, Result] = {}
        self._threads = 0
        self._lost: SticError | None = None  # why the last thread to go had to
        self._fatal: BaseException | None = None
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begin to work with one more device."""
        self._threads += 1
        threading.Thread(target=self._serve, daemon=True).start()

    def wait(self) -> list[Result]:
        """Wait for all results. A thread that still waits for a device is not waited for."""
        try:
            with self._changed:
                while self._threads and self._fatal is None and len(self._done) < len(self._items):
                    self._changed.wait()
        finally:
            with self._changed:
                self._waiting.clear()  # on Ctrl-C, too, no thread begins another item
                self._busy.clear()
                self._changed.notify_all()
        if self._fatal is not None:
            raise self._fatal
        if len(self._done) < len(self._items) and self._lost is not None:
            raise self._lost
        return [self._done[number] for number in range(len(self._items))]

    def _serve(self) -> None:
        number: int | None = None
        try:
            with self._leased() as device:
                while (number := self._take()) is not None:
                    result = self._work(device, self._items[number])
                    with self._changed:
                        self._busy.discard(number)
                        self._done[number] = result
                        self._changed.notify_all()
        except BaseException as error:  # of any kind: `wait` raises it in the thread that asked
            with self._changed:
                if isinstance(error, DeviceLost) or (isinstance(error, SticError) and number is None):
                    self._lost = error
                else:
                    self._fatal = error
        finally:
            with self._changed:
                self._threads -= 1
                if number is not None and number in self._busy:
                    self._busy.remove(number)
                    self._waiting.appendleft(number)
                self._changed.notify_all()

    def _take(self) -> int | None:
        """The next item; None once there will be no more. One that another device works on may come back."""
        with self._changed:
            while True:
                if self._waiting:
                    number = self._waiting.popleft()
                    self._busy.add(number)
                    return number
                if not self._busy or self._fatal is not None:
                    return None
                self._changed.wait()
