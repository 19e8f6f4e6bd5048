"""What each shard is worth at each bitwidth, measured on calibration examples."""
