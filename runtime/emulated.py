"""Storage that is slower than the one there is, as a package's engine emulates it."""

from __future__ import annotations

from dataclasses import dataclass

from stic.runtime.errors import InputError


@dataclass(frozen=True)
class EmulatedStorage:
    """At most so many bytes a second, and so many requests (None: as many as there are); either limit binds.

    Raises InputError for a limit below 1.
    """

    bytes_per_s: int
    requests_per_s: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("bytes", self.bytes_per_s), ("requests", self.requests_per_s)):
            if value is not None and value < 1:
                raise InputError(f"storage of {value} {name} a second reads nothing: at least 1 is needed")

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
