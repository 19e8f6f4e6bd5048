"""Kernels against the machine's limits and against other runtimes; `python -m benchmarks.kernels --help`."""
