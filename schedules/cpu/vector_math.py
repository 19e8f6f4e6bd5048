"""Elementary functions on vectors of 16 float32, in plain arithmetic: no libm, the same bits on every CPU.

A multiplication and an addition that round once are written `fma`, and no product is ever added otherwise, so that no
compiler has a choice to make; `stic.runtime.arithmetic` repeats every operation in numpy. Instructions a native vector,
without load and store (on AVX-512; NEON copies the constant of every fma, and so takes 5 more for an exponential):

    exp2_16    limit 1, round 2, fraction 1, polynomial 5 fma + 1 copy, exponent 2                     12
    exp16      limit 1, round 1 fma + 1 copy + 1, fraction 2 fma, polynomial and exponent 8            14
    gelu       square 1 fma + 1 copy, limits 3, polynomial 13 fma + 6 copies + 1, 0.5 + .. 1 fma, x .. 1     27
    gelu_tanh  cubic 3, exp2 with two limits 13, 1 + .. 1, division 1                                  18
    silu       limit 1, negation 1, exp 14, 1 + .. 1, division 1                                       18
    softcap    product 1, exp2 with two limits 13, 1 + .. 1, division 1, c - .. 1                      17

All are bound by the two multiply-add pipes once several vectors are in flight. Limits compare floats as integers, which
other pipes do: positive floats are in the order of their bits, negative ones in reverse.

Coefficients are minimax: a linear program over 900 Chebyshev nodes minimises the largest weighted error in float64;
then they are rounded to float32 one after the other from the constant on, the rest fitted again each time. Errors were
found by evaluating every float32 of the range against float64.
"""

from __future__ import annotations

from stic.schedules.cpu.int8 import ROUND
from stic.schedules.tir import LANES, Expr, bind, bits, f32, i32, intrinsic, pick

_VECTOR, _INTEGERS = f"float32x{LANES}", f"int32x{LANES}"
_LOG2_E, _LOG2_E_LOW = 1.44269504088896341, 1.9259629e-8  # the second is what float32 loses of the first
_TANH_SCALE = -1.5957691216057308 * _LOG2_E  # -2 sqrt(2 / pi) log2(e)
# 2**r for |r| <= 0.5, lowest power first; the constant is 1, so that integers give powers of two exactly.
_EXP2 = (1.0, 6.93147e-01, 2.4022247e-01, 5.550711e-02, 9.671291e-03, 1.3269521e-03)
# erf(x / sqrt(2)) / (2 x) for x**2 <= 27.75 as a polynomial in x**2 - 13.875, lowest power first. Its product with x
# reaches 0.5 where x**2 is 27.75.
_ERF_MIDDLE = 13.875
_ERF = (
    *(1.34205e-01, -4.822241e-03, 2.5716444e-04, -1.4867405e-05, 8.656524e-07, -4.870135e-08, 2.587026e-09),
    *(-1.3391302e-10, 6.7407542e-12, -2.6264862e-13, 7.095295e-15, -4.2072833e-16, 3.022418e-17, -7.6527023e-19),
)


def maximum(a: Expr, b: Expr) -> Expr:
    """Return the greater lane by lane; b where a is not a number."""
    return pick(a > b, a, b)


def fma(a: Expr, b: Expr, c: Expr, lanes: int = LANES) -> Expr:
    """Return a * b + c, rounded once."""
    suffix, dtype = ("f32", "float32") if lanes == 1 else (f"v{lanes}f32", f"float32x{lanes}")
    return bind(intrinsic(f"llvm.fma.{suffix}", dtype, a, b, c))


def negative(x: Expr) -> Expr:
    """Return -x; a difference from -0, which LLVM folds into an fma."""
    return bind(f32(-0.0) - x)


def square_root(x: Expr) -> Expr:
    """Return the correctly rounded square root."""
    return intrinsic(f"llvm.sqrt.v{LANES}f32", _VECTOR, x)


def _at_least(x: Expr, low: float) -> Expr:
    """The greater of x and `low`, which is negative."""
    raw, limit = bind(bits(x, f"uint32x{LANES}")), bits(f32(low), f"uint32x{LANES}")
    return bind(bits(pick(raw < limit, raw, limit), _VECTOR))


def _at_most(x: Expr, high: float) -> Expr:
    """The smaller of x and `high`, which is positive."""
    raw, limit = bind(bits(x, _INTEGERS)), bits(f32(high), _INTEGERS)
    return bind(bits(pick(raw < limit, raw, limit), _VECTOR))


def _power_of_two(rounded: Expr, fraction: Expr) -> Expr:
    """2**(n + fraction), where n is in the low bits of `rounded` and the result is normal or infinite."""
    value = f32(_EXP2[-1])
    for coefficient in _EXP2[-2::-1]:
        value = fma(value, fraction, f32(coefficient))
    exponent = bits(rounded, _INTEGERS) << i32(23)
    return bind(bits(bits(value, _INTEGERS) + exponent, _VECTOR))


def _exp2(x: Expr) -> Expr:
    """2**x for -126 <= x <= 128; 128 gives infinity."""
    rounded = fma(x, f32(1.0), f32(ROUND))  # a sum in TIR, less ROUND again, would be simplified to x
    return _power_of_two(rounded, bind(x - bind(rounded - f32(ROUND))))


def exp2_16(x: Expr) -> Expr:
    """2**x for x <= 128 with relative error below 1.6e-7, exact for integers; x below -126 counts as -126."""
    return _exp2(_at_least(x, -126.0))


def exp16(x: Expr) -> Expr:
    """exp(x) for x <= 88 with relative error below 1.8e-7; x below -87 counts as -87."""
    x = _at_least(x, -87.0)
    rounded = fma(x, f32(_LOG2_E), f32(ROUND))
    n = bind(rounded - f32(ROUND))
    return _power_of_two(rounded, fma(x, f32(_LOG2_E_LOW), fma(x, f32(_LOG2_E), negative(n))))


def gelu(x: Expr) -> Expr:
    """x * Phi(x) = x (0.5 + x P(x**2)), where 2 x P is erf(x / sqrt(2)) within 6.0e-7 of its size.

    Error below 9.1e-7, and below 3.2e-7 of the result for positive x; exactly x or 0 where |x| is above 5.27.
    """
    x = bind(x)
    v = _at_most(fma(x, x, f32(-_ERF_MIDDLE)), _ERF_MIDDLE)
    v2 = bind(v * v)
    # Pairs of powers, because a chain of single ones costs NEON a copy for each coefficient, and is twice as deep.
    pairs = [fma(v, f32(_ERF[k + 1]), f32(_ERF[k])) for k in range(0, len(_ERF), 2)]
    value = pairs[-1]
    for pair in pairs[-2::-1]:
        value = fma(value, v2, pair)
    share = bind(bits(fma(x, value, f32(0.5)), _INTEGERS))
    return bind(x * _at_most(bits(pick(share > i32(0), share, i32(0)), _VECTOR), 1.0))


def gelu_tanh(x: Expr) -> Expr:
    """0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2/pi) (x + 0.044715 x^3) (Hendrycks, arXiv 1606.08415)."""
    x = bind(x)
    exponent = bind(x * fma(bind(x * x), f32(0.044715 * _TANH_SCALE), f32(_TANH_SCALE)))
    return bind(x / bind(_exp2(_at_most(_at_least(exponent, -126.0), 128.0)) + f32(1.0)))


def silu(x: Expr) -> Expr:
    """x / (1 + exp(-x)) (Elfwing et al., arXiv 1702.03118); x below -88 counts as -88, where it is below 1e-36."""
    x = _at_least(x, -88.0)
    return bind(x / bind(exp16(negative(x)) + f32(1.0)))


def softcap(x: Expr, cap: float) -> Expr:
    """cap * tanh(x / cap) = cap - 2 cap / (1 + exp(2 x / cap)) (Gemma 2, arXiv 2408.00118); error below 2e-7 cap."""
    exponent = bind(x * f32(2 * _LOG2_E / cap))
    power = _exp2(_at_most(_at_least(exponent, -126.0), 128.0))
    return bind(f32(cap) - bind(f32(2 * cap) / bind(power + f32(1.0))))


def relu(x: Expr) -> Expr:
    """max(x, 0)."""
    return maximum(bind(x), f32(0.0))
