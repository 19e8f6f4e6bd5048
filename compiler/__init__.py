"""The compiler: from an ONNX graph and a budget to a package (see docs/architecture.md)."""

__version__ = "0.3.0"
