"""The planner ilp against greedy on random instances; `python -m benchmarks.planner_study --help`."""
