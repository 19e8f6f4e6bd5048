"""Run a package from Python, with numpy and the runtime only.

python examples/run.py minilm.stic 101 7592 102
"""

from __future__ import annotations

import sys

from stic.runtime import Session
from stic.runtime.errors import SticError
from stic.runtime.package import Package


def main(path: str, ids: list[int]) -> None:
    """Print what the package is, run it on the token ids, and print what that gave and cost."""
    package = Package.open(path)
    for number, layer in enumerate(package.bits):
        print(f"layer {number}: bits of its slices {layer.tolist()}")
    with Session(path) as session:
        output = session.run(ids)
        print(f"{output.size} numbers:", *(f"{value:.6g}" for value in output.reshape(-1)[:6]))
        stats = session.stats()
        print(f"{stats.run_us} us, of it {stats.stall_us} us waiting for storage")
        print(f"{stats.peak_bytes} bytes held at the peak, {stats.claimed_bytes} claimed")


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all(word.isdecimal() for word in sys.argv[2:]):
        raise SystemExit("usage: run.py PACKAGE TOKEN...")
    try:
        main(sys.argv[1], [int(word) for word in sys.argv[2:]])
    except SticError as error:
        raise SystemExit(f"run.py: {error}") from error
