"""Where bytes lie: the placement of extents and buffers, and its check."""
