"""Decoders between frontend and package: cut into blocks of slices, their trunk, and what their bits are worth."""
