"""Kernels for GPUs, written in TIR and lowered to OpenCL C by TVM."""
