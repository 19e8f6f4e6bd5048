"""Kernels for CPUs: x86-64 (AVX2, AVX-512 VNNI) and aarch64 (NEON)."""
