#include "scalar.h"

#include <stdint.h>
#include <string.h>

double stic_exponential(double x) {
  if (x > 700) x = 700;
  if (x < -700) return 0;
  const int64_t k = (int64_t)(x * 1.4426950408889634 + (x < 0 ? -0.5 : 0.5));
  const double r = x - (double)k * 0.6931471805599453; /* |r| <= 0.35 */
  double term = 1, sum = 1;
  for (int i = 1; i <= 14; i++) sum += term *= r / i;
  const uint64_t bits = (uint64_t)(k + 1023) << 52; /* 2^k */
  double scale;
  memcpy(&scale, &bits, sizeof scale);
  return sum * scale;
}

double stic_square_root(double x) {
  if (!(x > 0)) return 0;
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits = (bits >> 1) + ((uint64_t)1023 << 51); /* halves the exponent: within 7 % */
  double root;
  memcpy(&root, &bits, sizeof root);
  for (int i = 0; i < 5; i++) root = 0.5 * (root + x / root);
  return root;
}

double stic_hyperbolic_tangent(double x) {
  if (x > 20) return 1;
  if (x < -20) return -1;
  const double square = x * x;
  if (square < 1e-4) return x * (1 - square / 3); /* where the quotient would cancel */
  const double e = stic_exponential(2 * x);
  return (e - 1) / (e + 1);
}

double stic_error_function(double x) {
  if (x > 6) return 1;
  if (x < -6) return -1;
  /* erf(x) = 2/sqrt(pi) exp(-x^2) sum 2^n x^(2n+1) / (2n+1)!!: no term cancels another */
  double term = x, sum = x;
  for (int n = 1; n < 200 && term * term > 1e-34 * sum * sum; n++) sum += term *= 2 * x * x / (2 * n + 1);
  return 1.1283791670955126 * stic_exponential(-x * x) * sum;
}
