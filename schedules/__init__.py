"""TIR kernels and their schedules, one folder a processor family."""
