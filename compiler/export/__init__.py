"""Hugging Face directories to ONNX."""
