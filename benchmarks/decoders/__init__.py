"""Decoders: the same tokens everywhere, quality against bytes, speed against llama.cpp, predictions against runs."""
