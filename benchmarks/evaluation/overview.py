"""What is about to be measured, for people: a table of cases, and how long it may take."""

from __future__ import annotations

from benchmarks.evaluation.accuracy import dev_examples
from benchmarks.evaluation.phases import ACCURACY_JOBS, Evaluation

# For estimates only: seconds of a process that runs a block, of another runtime's; tokens of a usual sentence.
START_S, PEER_S, SENTENCE_TOKENS = 0.4, 8.0, 40


def table(run: Evaluation) -> str:
    """The cases in numbers and what planners make of them, a line each."""
    lines = ["task   MB/s  IO:compute  deadline ms (C)  preload, MiB  planner         predicted, ms  mean bits  shards"]
    for case in filter(run.wanted, run.cases.cases):
        found, prepared = run.answers[case], run.prepared[case.task]
        asked = found.asked
        limit = "none" if asked.deadline_us is None else f"{asked.deadline_us / 1e3:.1f} ({asked.deadline_ratio:.2f})"
        preload = "any" if case.preload_bytes is None else f"{case.preload_bytes / 2**20:.1f}"
        line = f"{case.task:5}{asked.bytes_per_s / 1e6:6.0f}{prepared.ratio(asked.bytes_per_s):12.1f}  {limit:15}"
        line += f"{preload:>14}  {case.planner:15}"
        if found.plan is None or found.timeline is None:
            lines.append(f"{line}no plan")
            continue
        shards = sum(len(layer.bits) for layer in found.plan.layers)
        lines.append(f"{line}{found.timeline.latency_us / 1e3:14.1f}{found.plan.mean_bits:11.2f}{shards:8}")
    return "\n".join(lines)


def left(run: Evaluation) -> str:
    """What is not measured yet, and about how long it will take."""
    machine, scores, groups, others = run.cases.machine, run.unscored(), run.untimed(), run.untimed_peers()
    seconds = PEER_S * len(others)
    for name, _ in scores:
        prepared = run.prepared[name]
        sentences = len(dev_examples(prepared.dev, prepared.labels, machine.dev_rows).sequences)
        seconds += sentences * prepared.compute_us / 1e6 * SENTENCE_TOKENS / machine.tokens / ACCURACY_JOBS
    plans = [answered for group in groups for answered in group]
    for answered in plans:
        assert answered.timeline is not None
        seconds += machine.runs * answered.timeline.latency_us / 1e6 + machine.runs // machine.block * START_S
    return (
        f"to measure: accuracy {len(scores)} times, latency of {len(plans)} plans and {len(others)} times of other"
        f" runtimes; about {seconds / 60:.0f} minutes"
    )
