"""Storage that is slower than the one there is, as a package's engine emulates it."""

from __future__ import annotations

from dataclasses import dataclass

from stic.runtime.errors import InputError

MOST_BYTES_PER_S, MOST_REQUESTS_PER_S = 1 << 40, 10**9  # as stic_run takes them; no storage is faster


@dataclass(frozen=True)
class EmulatedStorage:
    """At most so many bytes a second, and so many requests (None: as many as there are); either limit binds.

    Raises InputError for a limit below 1, and for one beyond any storage.
    """

    bytes_per_s: int
    requests_per_s: int | None = None

    def __post_init__(self) -> None:
        limits = {"bytes": (self.bytes_per_s, MOST_BYTES_PER_S), "requests": (self.requests_per_s, MOST_REQUESTS_PER_S)}
        for name, (value, most) in limits.items():
            if value is not None and value < 1:
                raise InputError(f"storage of {value} {name} a second reads nothing: at least 1 is needed")
            if value is not None and value > most:
                raise InputError(f"no storage has {value} {name} a second, so none is emulated: at most {most}")

    @property
    def least_request_us(self) -> float:
        """Microseconds that a request takes however small it is."""
        return 0.0 if self.requests_per_s is None else 1e6 / self.requests_per_s

    def reading_us(self, size: float, requests: int = 1) -> float:
        """Microseconds to read so many bytes in so many requests of one size."""
        return max(size * 1e6 / self.bytes_per_s, requests * self.least_request_us)

    def __str__(self) -> str:
        requests = "" if self.requests_per_s is None else f", {self.requests_per_s} requests a second"
        return f"{self.bytes_per_s / 1e6:g} MB/s{requests}"
