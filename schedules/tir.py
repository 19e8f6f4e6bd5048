"""Write a kernel with ordinary Python control flow, and lower it to a plain C function.

A Python `for` is a full unroll and any Python value may choose an instruction; loops that must exist at run time
are `loop`. All buffers are flat. Kernels are lowered without TVM's calling convention: `void f(pointers, ints)`,
no undefined symbol, local buffers on the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.script import tirx as script
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as B

# tvm carries no types, so these say what is meant and are checked by tvm alone.
Expr = Any  # an expression, scalar or vector; a Python number stands for its constant
Buffer = Any
PrimFunc = Any
T = script  # what TVM calls it: the operators that kernels are written with

LANES = 16  # tokens in a tile: the width of every vector outside the micro-kernels
_UNBOUNDED = 1 << 30  # flat buffers carry no extent; the C caller owns them


def kernel(
    name: str, arguments: Sequence[tuple[str, str]], body: Callable[..., None], aliased: bool = False
) -> PrimFunc:
    """Build one function. An argument is (name, dtype), a pointer, or (name, "scalar"), an int32.

    Where `aliased`, a caller may pass one buffer twice.
    """
    with IRBuilder() as builder:
        with B.prim_func(s_tir=True):
            B.func_name(name)
            handles = [B.arg(label, B.int32() if dtype == "scalar" else B.handle(dtype)) for label, dtype in arguments]
            B.func_attr({"global_symbol": name, "tirx.noalias": not aliased})
            values = []
            for (_, dtype), handle in zip(arguments, handles, strict=True):
                if dtype == "scalar":
                    values.append(handle)
                else:
                    frame = B.decl_buffer((_UNBOUNDED,), dtype, data=handle)
                    values.append(frame.__enter__() if hasattr(frame, "__enter__") else frame)
            body(*values)
    return builder.get()


def loop(extent: Expr) -> Any:
    """Iterate at run time from 0 to `extent` - 1 (`with loop(n) as i`)."""
    return B.serial(0, extent)


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """Run the statements inside only if `condition` holds."""
    with B.If(condition), B.Then():
        yield


@contextmanager
def local(*sizes: tuple[int, str]) -> Iterator[list[Buffer]]:
    """Buffers (elements, dtype) on the stack; at constant offsets LLVM keeps them in registers."""
    with B.sblock("tile"):
        B.reads([])  # given, or TVM spends seconds on finding them
        B.writes([])
        yield [B.sblock_alloc_buffer((elements,), dtype, scope="local") for elements, dtype in sizes]


def bind(value: Expr) -> Expr:
    """Name a value that is used more than once, so that its expression is not written out again."""
    return B.bind(value)


def load(buffer: Buffer, index: Expr, lanes: int = LANES) -> Expr:
    """Read `lanes` consecutive elements from `index` on."""
    return buffer[index] if lanes == 1 else buffer.vload([index], f"{buffer.dtype}x{lanes}")


def store(buffer: Buffer, index: Expr, value: Expr, lanes: int = LANES) -> None:
    """Write `lanes` consecutive elements from `index` on."""
    B.buffer_store(buffer, value, [index if lanes == 1 else T.ramp(index, 1, lanes)])


def splat(value: Expr, lanes: int = LANES) -> Expr:
    """Repeat a scalar in every lane."""
    return T.broadcast(value, lanes)


def f32(value: float, lanes: int = LANES) -> Expr:
    """Repeat a float32 constant in every lane."""
    return T.broadcast(T.float32(value), lanes)


def i32(value: int, lanes: int = LANES) -> Expr:
    """Repeat an int32 constant in every lane."""
    return T.broadcast(T.int32(value), lanes)


def bits(value: Expr, dtype: str) -> Expr:
    """Reinterpret the bits of a value."""
    return T.reinterpret(value, dtype=dtype)


def cast(value: Expr, dtype: str) -> Expr:
    """Convert a value."""
    return T.cast(value, dtype)


def pick(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Choose lane by lane; both sides are evaluated."""
    return T.Select(condition, yes, no)


def shuffle(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """Pick lanes of the concatenated vectors; no more lanes than they have together."""
    return tirx.Shuffle(list(vectors), [_lane(lane) for lane in lanes])


@cache
def _lane(number: int) -> Expr:
    return tirx.const(number, "int32")  # made once: a shuffle of bytes has 64 of them


def intrinsic(name: str, dtype: str, *arguments: Expr) -> Expr:
    """Call one pure LLVM intrinsic; the name carries the overload suffix, e.g. llvm.sqrt.v16f32."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *arguments, dtype=dtype)


def prefetch(buffer: Buffer, index: Expr) -> None:
    """Ask for the cache line of an element; it need not exist."""
    line = tirx.address_of(buffer[index])
    B.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", line, T.int32(0), T.int32(3), T.int32(1)))


def transpose16(block: Buffer, spare: Buffer) -> None:
    """Transpose `block` (16, 16) in 4 rounds of 16 two-input interleaves; `spare` is as large.

    The rounds go through local buffers, which LLVM turns into registers: one expression of all rounds takes TVM's
    simplifier minutes.
    """
    low = [lane for pair in range(LANES // 2) for lane in (pair, LANES + pair)]
    high = [lane + LANES // 2 for lane in low]
    for source, destination in ((block, spare), (spare, block)) * 2:
        for i in range(LANES // 2):  # interleaving rows i and i + 8 moves one bit of (row, lane) across
            pair = [load(source, i * LANES), load(source, (i + LANES // 2) * LANES)]
            for half, order in enumerate((low, high)):
                store(destination, (2 * i + half) * LANES, shuffle(pair, order))


def build(functions: Sequence[PrimFunc], target: dict[str, Any]) -> Any:
    """Lower to an LLVM module whose functions are plain C symbols.

    The pass list is TVM's default for CPUs without SplitHostDevice, MakePackedAPI and LowerTVMBuiltin, and without
    CompactBufferAllocation, the first StmtSimplify and RemoveNoOp, which change no code and take most of the time.
    """
    llvm = tvm.target.Target(target)
    llvm = llvm.with_host(llvm)
    x, s = tirx.transform, s_tir.transform
    passes = tvm.ir.transform.Sequential(
        [
            s.CanonicalizeLoop(),
            s.PlanAndUpdateBufferAllocationLocation(),
            s.ConvertBlocksToOpaque(),
            s.LowerMatchBuffer(),
            s.LowerOpaqueBlock(),
            x.FlattenBuffer(),
            x.NarrowDataType(32),
            s.LoopPartition(),
            x.VectorizeLoop(True),
            x.StorageRewrite(),
            x.UnrollLoop(),
            x.StmtSimplify(),
            x.CommonSubexprElim(),
            x.LowerIntrin(),
        ]
    )
    module = tvm.IRModule({function.attrs["global_symbol"]: function for function in functions})
    return tvm.get_global_func("target.build.llvm")(passes(x.BindTarget(llvm)(module)), llvm)
