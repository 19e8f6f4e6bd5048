/* CRC-32 (polynomial 0x04C11DB7 reflected) at the speed of memory where the CPU helps, so that checking a shard does
 * not slow its loading: carry-less multiplication on x86 (Gopal et al., "Fast CRC Computation for Generic
 * Polynomials Using PCLMULQDQ", Intel 2009), CRC instructions on ARMv8, tables of eight elsewhere. */
#include "crc.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

static uint32_t table[8][256];
static bool assisted;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void prepare(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
    table[0][i] = c;
  }
  for (int t = 1; t < 8; t++)
    for (uint32_t i = 0; i < 256; i++) table[t][i] = (table[t - 1][i] >> 8) ^ table[0][table[t - 1][i] & 255];
#if defined(__x86_64__)
  assisted = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
#elif defined(__aarch64__) && defined(__linux__)
  assisted = (getauxval(AT_HWCAP) >> 7) & 1; /* HWCAP_CRC32 */
#endif
}

static uint32_t by_tables(uint32_t c, const uint8_t *p, size_t size) {
  for (; size >= 8; p += 8, size -= 8) {
    uint32_t low, high;
    memcpy(&low, p, 4);
    memcpy(&high, p + 4, 4);
    low ^= c;
    c = table[7][low & 255] ^ table[6][(low >> 8) & 255] ^ table[5][(low >> 16) & 255] ^ table[4][low >> 24] ^
        table[3][high & 255] ^ table[2][(high >> 8) & 255] ^ table[1][(high >> 16) & 255] ^ table[0][high >> 24];
  }
  while (size--) c = (c >> 8) ^ table[0][(c ^ *p++) & 255];
  return c;
}

#if defined(__x86_64__)
#define FOLD(x, k, next) \
  _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)), next)

/* size: a multiple of 16, at least 64 */
__attribute__((target("pclmul,sse4.1"))) static uint32_t by_instruction(uint32_t c, const uint8_t *p, size_t size) {
  const __m128i by_512 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4);
  const __m128i by_128 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
  const __m128i by_64 = _mm_set_epi64x(0, 0x0163cd6124);
  const __m128i barrett = _mm_set_epi64x(0x01f7011641, 0x01db710641);
  const __m128i low_words = _mm_setr_epi32(-1, 0, -1, 0);
  const __m128i *v = (const __m128i *)(const void *)p;
  __m128i a[4];
  for (int i = 0; i < 4; i++) a[i] = _mm_loadu_si128(v + i);
  a[0] = _mm_xor_si128(a[0], _mm_cvtsi32_si128((int)c));
  for (v += 4, size -= 64; size >= 64; v += 4, size -= 64)
    for (int i = 0; i < 4; i++) a[i] = FOLD(a[i], by_512, _mm_loadu_si128(v + i));
  for (int i = 1; i < 4; i++) a[0] = FOLD(a[0], by_128, a[i]);
  for (; size >= 16; v++, size -= 16) a[0] = FOLD(a[0], by_128, _mm_loadu_si128(v));
  __m128i x = _mm_xor_si128(_mm_srli_si128(a[0], 8), _mm_clmulepi64_si128(a[0], by_128, 0x10));
  x = _mm_xor_si128(_mm_srli_si128(x, 4), _mm_clmulepi64_si128(_mm_and_si128(x, low_words), by_64, 0x00));
  __m128i y = _mm_clmulepi64_si128(_mm_and_si128(x, low_words), barrett, 0x10);
  y = _mm_clmulepi64_si128(_mm_and_si128(y, low_words), barrett, 0x00);
  return (uint32_t)_mm_extract_epi32(_mm_xor_si128(x, y), 1);
}
#elif defined(__aarch64__) && defined(__linux__)
/* Not the intrinsic of arm_acle.h: gcc and clang spell its target attribute differently, and clang 14 hides it. */
static uint32_t by_instruction(uint32_t c, const uint8_t *p, size_t size) {
  for (; size >= 8; p += 8, size -= 8) {
    uint64_t word;
    memcpy(&word, p, 8);
    __asm__(".arch_extension crc\n\tcrc32x %w0, %w0, %1" : "+r"(c) : "r"(word));
  }
  return c;
}
#else
static uint32_t by_instruction(uint32_t c, const uint8_t *p, size_t size) { return by_tables(c, p, size); }
#endif

uint32_t stic_crc32(uint32_t crc, const void *data, size_t size) {
  pthread_once(&once, prepare);
  const uint8_t *p = data;
  uint32_t c = ~crc;
  if (assisted && size >= 64) {
    const size_t whole = size & ~(size_t)15;
    c = by_instruction(c, p, whole);
    p += whole;
    size -= whole;
  }
  return ~by_tables(c, p, size);
}
