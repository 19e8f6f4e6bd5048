"""What was computed before: arrays on disk, and the digests of code and values that name them."""
