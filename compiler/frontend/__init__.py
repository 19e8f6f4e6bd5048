"""ONNX to `Model`, by data flow and never by node names."""
