"""The process that compiles kernels: `python -m stic.compiler.package.kernels_process`, for `kernels` beside it.

TVM and LLVM keep hundreds of megabytes once they have worked. A compilation holds a model's weights at the same time,
so they work here, and go with this process.

One request comes on standard input, one answer goes to standard output, both pickled. A request is a function's name
and its arguments; an answer ("done", result), ("refused", SticError), or ("failed", traceback) for a defect.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from dataclasses import asdict
from typing import Any

from stic.runtime.errors import SticError
from stic.runtime.gpu_format import GpuPrecision, Style
from stic.schedules.shape import DecoderShape, KernelShape
from stic.targets.target import Target


def library(shape: KernelShape | DecoderShape, target: Target, out: str) -> None:
    """Compile every kernel of a model for a CPU into the object file `out`."""
    from stic.schedules.rule import kernels_for
    from stic.schedules.tir import build

    build(kernels_for(target, shape), dict(target.tvm)).write_to_file(out)


def program(shape: KernelShape, style: Style, storage: GpuPrecision, q: int) -> dict[str, Any]:
    """Return {"text": OpenCL C, "launches": how its kernels are started}: a model's kernels for a GPU."""
    from stic.schedules.opencl.rule import program_for

    made = program_for(style, shape, storage, q)
    return {"text": made.text, "launches": [asdict(launch) for launch in made.launches]}


_FUNCTIONS = {each.__name__: each for each in (library, program)}


def _answer(name: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "done", _FUNCTIONS[name](*arguments)
    except SticError as error:
        return "refused", error
    except Exception:
        return "failed", traceback.format_exc()


def main() -> None:
    """Answer one request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer: it kills this process
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # TVM's FFI imports it if it can: seconds, unused
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a library prints is no part of the answer
        name, *arguments = pickle.load(sys.stdin.buffer)
        pickle.dump(_answer(name, tuple(arguments)), answers)


if __name__ == "__main__":
    main()
