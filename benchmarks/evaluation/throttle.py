"""Slow storage and little memory for one process: control groups (version 1), where this machine allows them.

The kernel's limiter counts a tenth of a second's bytes at a time, so that alone it times reads of half a second and
more only; shorter ones are paced by the engine, and the limiter, set a little higher, makes sure of it from outside.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stic.runtime.errors import EngineError

CGROUPS = Path("/sys/fs/cgroup")
BESIDE_PACING = 1.05  # the kernel's limit by the engine's, so that the engine's is the one that counts
LEAVING_S = 2.0  # how long a group may take to notice that its last process has ended
_NAME = "stic-evaluation"
_numbers = itertools.count()


@dataclass(frozen=True)
class Place:
    """A folder's storage, and what can be limited there."""

    folder: Path
    device: str | None  # MAJOR:MINOR of the whole disk whose reads can be limited
    memory: bool  # whether a process's memory can be limited, and its peak be read
    reasons: tuple[str, ...]  # why something cannot

    def throttle(self, paced: bool) -> str | None:
        """What holds reads to a bandwidth, in a word for the results; None: nothing does."""
        parts = ["cgroup"] * (self.device is not None) + ["paced"] * paced
        return "+".join(parts) or None


class MemoryGroup:
    """The memory of the processes in one group, as the kernel counts it, the page cache they fill included."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def used_bytes(self) -> int:
        """Now."""
        return int((self.path / "memory.usage_in_bytes").read_text())

    @property
    def peak_bytes(self) -> int:
        """Ever."""
        return int((self.path / "memory.max_usage_in_bytes").read_text())


def place_of(folder: Path) -> Place:
    """Find out what can be limited for files in a folder that exists, by trying it."""
    reasons = []
    device = _device(folder)
    if device is None:
        reasons.append(f"{folder} is not on a block device, so the kernel cannot slow down its reads")
    memory = False
    for controller in ("blkio", "memory"):
        if controller == "blkio" and device is None:
            continue
        _sweep(controller)
        try:
            with _group(controller) as group:
                if controller == "blkio":
                    (group / "blkio.throttle.read_bps_device").write_text(f"{device} 1000000000\n")
                else:
                    memory = int((group / "memory.max_usage_in_bytes").read_text()) >= 0
        except OSError as error:
            what = "reads are paced by the engine only" if controller == "blkio" else "memory is counted by VmHWM only"
            reasons.append(f"no {controller} control group can be made ({error.strerror}; root and version 1): {what}")
            device = None if controller == "blkio" else device
    return Place(folder, device, memory, tuple(reasons))


def _device(folder: Path) -> str | None:
    """MAJOR:MINOR of the disk that holds a folder; of a partition, the whole disk, which is where limits belong."""
    found = folder.stat().st_dev
    device = f"{os.major(found)}:{os.minor(found)}"
    block = Path(f"/sys/dev/block/{device}")
    if not block.exists():
        return None
    whole = block.resolve()
    return (whole.parent / "dev").read_text().strip() if (whole / "partition").exists() else device


def _own(controller: str) -> Path:
    """This process's group, so that limits around it stay around what it starts."""
    root = CGROUPS / controller
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if controller in names.split(",") and (root / path.lstrip("/")).is_dir():
                return root / path.lstrip("/")
    return root


@contextmanager
def _group(controller: str) -> Iterator[Path]:
    """A new group, removed in the end. Raises OSError where none can be made."""
    group = _own(controller) / f"{_NAME}-{os.getpid()}-{next(_numbers)}"
    group.mkdir()
    try:
        yield group
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Remove a group; one whose last process is still leaving is busy for a moment."""
    end = time.monotonic() + LEAVING_S
    while True:
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > end:
                raise EngineError(f"the control group {group} cannot be removed: {error.strerror}") from error
            time.sleep(0.005)


def _sweep(controller: str) -> None:
    """Remove groups that evaluations left behind which were killed."""
    for group in _own(controller).glob(f"{_NAME}-*-*"):
        if not Path(f"/proc/{group.name.split('-')[-2]}").exists():
            with suppress(OSError):
                group.rmdir()


@contextmanager
def slow_reads(place: Place, bytes_per_s: float | None) -> Iterator[Path | None]:
    """A group whose reads from the place's disk are held to a bandwidth; None where that cannot be, or is not asked."""
    if place.device is None or bytes_per_s is None:
        yield None
        return
    with _group("blkio") as group:
        (group / "blkio.throttle.read_bps_device").write_text(f"{place.device} {int(bytes_per_s)}\n")
        yield group


@contextmanager
def counted_memory(place: Place, limit_bytes: int | None = None) -> Iterator[MemoryGroup | None]:
    """A group whose memory is counted, and with a limit held to it; None where that cannot be.

    A process that needs more than the limit, when the page cache has given back all it can, is killed.
    """
    if not place.memory:
        yield None
        return
    with _group("memory") as group:
        if limit_bytes is not None:
            (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield MemoryGroup(group)


_ENTER = 'for group in $STIC_GROUPS; do echo $$ > "$group/cgroup.procs" || exit 125; done; unset STIC_GROUPS; exec "$@"'


@contextmanager
def started(
    command: Sequence[str], groups: Sequence[Path | None], environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A command that is in these groups from its first page on; what it prints is piped. In the end it is ended."""
    inside = [str(group) for group in groups if group is not None]
    variables = {**os.environ, **(environment or {}), "STIC_GROUPS": " ".join(inside)}
    full = ["sh", "-c", _ENTER, "sh", *command]
    pipe = subprocess.PIPE
    with subprocess.Popen(full, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=variables) as process:
        try:
            yield process
        finally:
            process.kill()


def forget(path: Path) -> None:
    """Drop a file, or the files of a folder, from the page cache, so that the next read comes from the disk."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
