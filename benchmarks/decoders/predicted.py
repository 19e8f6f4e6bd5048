"""First and next token, and memory, as `stic bench` measures them, against what the plan claims.

Plans: everything resident, and what the ILP makes of a share of the memory that takes. Each package is measured several
times; a row has the medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.decoders import packages
from benchmarks.decoders.place import Place
from stic.runtime.errors import EngineError

Row = dict[str, Any]


def measure(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """A row for each context and plan."""
    made = {}
    for context in settings["contexts"]:
        resident = packages.uniform(place.packages, settings["bits"], context)
        made[context, "resident"] = resident
        for share in settings["memory_shares"]:
            memory = int(share * packages.sizes(resident).claimed_bytes)
            name = f"ilp-{share:g}-{context}"
            limits = ("--memory", f"{memory}B", "--context", str(context), "--head-bits", str(settings["head_bits"]))
            made[context, f"ilp, {share:g} of the memory"] = packages.compiled(place.packages, name, *limits)
    rows: list[Row] = [{"context": context, "plan": plan, "runs": []} for context, plan in made]
    for _ in range(settings["rounds"]):
        for row, path in zip(rows, made.values(), strict=True):
            row["runs"].append(_bench(path, row["context"], settings["new"]))
    for row in rows:
        runs = row.pop("runs")
        row |= {name: statistics.median(run[name] for run in runs) for name in _MEDIANS}
        row["peak_bytes"] = max(run["peak_bytes"] for run in runs)
        row["rss_bytes"] = max(run["rss_bytes"] for run in runs)
        row["claimed_bytes"] = runs[0]["claimed_bytes"]
        row["first_error"] = row["predicted_first_token_us"] / row["first_token_us"] - 1
        row["next_error"] = row["predicted_next_token_us"] / row["next_token_us"] - 1
        row["slack"] = row["claimed_bytes"] / row["rss_bytes"] - 1
        place.say(f"predicted: {row}")
    return {"rows": rows}


_MEDIANS = ("first_token_us", "next_token_us", "predicted_first_token_us", "predicted_next_token_us")


def _bench(path: Path, context: int, new: int) -> Row:
    """`stic bench` with a prompt that fills the context but for the answer."""
    asked = ["--prompt-tokens", str(context - new), "--new-tokens", str(new), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", packages.CALL, "bench", str(path), *asked], capture_output=True, text=True
    )
    if done.returncode:
        raise EngineError(f"{path.name}: {(done.stderr.strip().splitlines() or ['the bench ended'])[-1]}")
    found: Row = json.loads(done.stdout)
    return found
