"""Planners, baselines and other runtimes on real tasks, with storage and memory held to a limit."""
