/* The machine's limits as loops that do nothing else: 22 accumulators that depend on nothing but themselves stay in
 * registers (a sum has 8), as in loops_x86_64.S, which says what the functions are.
 *
 * x0: rounds, or the data; x1: bytes; x2: lanes. v8..v15 belong to the caller and stay untouched. */
        .arch   armv8.2-a+dotprod+i8mm
        .text

#define EACH(I) \
  I(0); I(1); I(2); I(3); I(4); I(5); I(16); I(17); I(18); I(19); I(20); I(21); I(22); I(23); I(24); I(25); I(26); \
  I(27); I(28); I(29); I(30); I(31)
#define CLEAR(r) movi v##r.4s, 0
#define SMMLA(r) smmla v##r.4s, v6.16b, v7.16b
#define SDOT(r) sdot v##r.4s, v6.16b, v7.16b
#define FMLA(r) fmla v##r.4s, v6.4s, v7.4s

.macro begin name
        .globl  \name
        .hidden \name
        .type   \name, %function
        .balign 64
\name:
        fmov    v6.4s, 1.0
        fmov    v7.4s, 1.0
.endm

.macro again
        subs    x0, x0, 1
        b.ne    1b
        ret
.endm

begin bench_int8_i8mm
        EACH(CLEAR)
1:      EACH(SMMLA)
        again

begin bench_int8_asimddp
        EACH(CLEAR)
1:      EACH(SDOT)
        again

begin bench_f32_asimd
        EACH(CLEAR)
1:      EACH(FMLA)
        again

/* Without dot products: two products a 16-bit lane, then added in pairs to 32 bits. */
.macro widen a, b, c, d
        smull   v0.8h, v6.8b, v7.8b
        smull   v1.8h, v6.8b, v7.8b
        smull   v2.8h, v6.8b, v7.8b
        smull   v3.8h, v6.8b, v7.8b
        smlal2  v0.8h, v6.16b, v7.16b
        smlal2  v1.8h, v6.16b, v7.16b
        smlal2  v2.8h, v6.16b, v7.16b
        smlal2  v3.8h, v6.16b, v7.16b
        sadalp  \a, v0.8h
        sadalp  \b, v1.8h
        sadalp  \c, v2.8h
        sadalp  \d, v3.8h
.endm

begin bench_int8_asimd
        EACH(CLEAR)
1:      widen   v16.4s, v17.4s, v18.4s, v19.4s
        widen   v20.4s, v21.4s, v22.4s, v23.4s
        widen   v24.4s, v25.4s, v26.4s, v27.4s
        again

.macro add64 a, b, c, d
        ldp     q16, q17, [x0], 32
        ldp     q18, q19, [x0], 32
        add     \a, \a, v16.2d
        add     \b, \b, v17.2d
        add     \c, \c, v18.2d
        add     \d, \d, v19.2d
.endm

begin bench_sum_asimd
        EACH(CLEAR)
        movi    v6.4s, 0
        movi    v7.4s, 0
1:
        .rept   4
        add64   v0.2d, v1.2d, v2.2d, v3.2d
        add64   v4.2d, v5.2d, v6.2d, v7.2d
        .endr
        subs    x1, x1, 512
        b.gt    1b
        stp     q0, q1, [x2], 32
        stp     q2, q3, [x2], 32
        stp     q4, q5, [x2], 32
        stp     q6, q7, [x2], 32
        ret

        .section .note.GNU-stack, "", %progbits
