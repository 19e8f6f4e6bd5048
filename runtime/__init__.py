"""The runtime: reads packages, runs them, and needs numpy only."""
