"""A decoder as the compiler sees it, and its forward pass in numpy."""
