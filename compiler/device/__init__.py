"""Measuring devices, and packages at work on them."""
