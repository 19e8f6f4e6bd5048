/* The few functions of mathematics that the head needs, so that the engine depends on libc alone. All are accurate to
 * float32; the model's own activation is a kernel. */
#ifndef STIC_SCALAR_H
#define STIC_SCALAR_H

double stic_exponential(double x);
double stic_square_root(double x);
double stic_hyperbolic_tangent(double x);
double stic_error_function(double x);

#endif
