"""Devices: what they are, what they can do, and how to measure them."""
