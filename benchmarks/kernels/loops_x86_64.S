/* The machine's limits as loops that do nothing else: 24 (AVX2: 12) accumulators that depend on nothing but themselves
 * stay in registers, so that only the multipliers bound a round; a sum has 8 (16), so that only loads bound it. Written
 * in assembly because a compiler spills or serialises them.
 *
 *     void bench_int8_LEVEL(long rounds), void bench_f32_LEVEL(long rounds)
 *     void bench_sum_LEVEL(const void *data, long bytes, uint64_t lanes[64])   bytes: a multiple of 512
 *
 * driver.c knows how many multiply-adds a round holds. Operands are 1.0f in every lane: no denormal, no overflow. */
        .text

.macro function name
        .globl  \name
        .hidden \name
        .type   \name, @function
        .balign 64
\name:
.endm

.macro ones register
        movl    $0x3f800000, %eax
        vmovd   %eax, %xmm15
        vpbroadcastd %xmm15, \register
.endm

.macro again
        decq    %rdi
        jnz     1b
        vzeroupper
        ret
.endm

.macro loop512 name, instruction
function \name
        ones    %zmm31
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23
        vpxord  %zmm\r, %zmm\r, %zmm\r
        .endr
        .balign 64
1:
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23
        \instruction %zmm31, %zmm31, %zmm\r
        .endr
        again
.endm

.macro loop256 name, prefix, instruction
function \name
        ones    %ymm15
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
        vpxor   %ymm\r, %ymm\r, %ymm\r
        .endr
        .balign 64
1:
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
        \prefix \instruction %ymm15, %ymm15, %ymm\r
        .endr
        again
.endm

/* AVX2 has no dot product: bytes to words, words to double words, and the sum. */
.macro widen first, second, accumulator
        vpmaddubsw \first, \second, %ymm13
        vpmaddwd   %ymm13, %ymm14, %ymm13
        vpaddd     %ymm13, \accumulator, \accumulator
.endm

        loop512 bench_int8_avx512_vnni, vpdpbusd
        loop512 bench_f32_avx512, vfmadd231ps
        loop256 bench_int8_avx_vnni, {vex}, vpdpbusd
        loop256 bench_f32_avx2, , vfmadd231ps

function bench_int8_avx2
        ones    %ymm14
        vmovdqa %ymm14, %ymm15
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
        vpxor   %ymm\r, %ymm\r, %ymm\r
        .endr
        .balign 64
1:
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
        widen   %ymm15, %ymm15, %ymm\r
        .endr
        again

function bench_sum_avx512
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7
        vpxord  %zmm\r, %zmm\r, %zmm\r
        .endr
        .balign 64
1:
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7
        vpaddq  64*\r(%rdi), %zmm\r, %zmm\r
        .endr
        addq    $512, %rdi
        subq    $512, %rsi
        jg      1b
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7
        vmovdqu64 %zmm\r, 64*\r(%rdx)
        .endr
        vzeroupper
        ret

function bench_sum_avx2
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vpxor   %ymm\r, %ymm\r, %ymm\r
        .endr
        .balign 64
1:
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vpaddq  32*\r(%rdi), %ymm\r, %ymm\r
        .endr
        addq    $512, %rdi
        subq    $512, %rsi
        jg      1b
        .irp    r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovdqu %ymm\r, 32*\r(%rdx)
        .endr
        vzeroupper
        ret

        .section .note.GNU-stack, "", @progbits
