"""Compile for the very device behind an RPC tracker: probe it, plan with what was measured, write the package."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from stic.compiler.decoder.model import Decoder
from stic.compiler.decoding.cut import cut_decoder
from stic.compiler.decoding.planning import offered_bits
from stic.compiler.decoding.profile import probe_decoder, probe_for
from stic.compiler.device.probing import probe, remote_runner
from stic.compiler.device.workload import Workload
from stic.compiler.model import Model
from stic.compiler.options import CompileOptions
from stic.compiler.pipeline import compile_model, load
from stic.compiler.progress import Progress
from stic.compiler.stage import Made
from stic.targets.rpc import DeviceAddress
from stic.targets.target import load as load_target


def compile_for(
    options: CompileOptions, address: DeviceAddress, directory: str | None, system: str | None, progress: Progress
) -> Made:
    """Compile a model for the device at `address`, which is probed unless the options name a device profile.

    `directory` and `system` are the device's; None: as found there. The device is given back before planning begins.
    Raises what `compile_model` and `remote_runner` raise.
    """
    if options.target.profile is not None:
        return compile_model(options, progress)
    made, asked = load(options, progress), options.target
    target = load_target(asked.name, asked.gpu)
    with remote_runner(address, target, directory, system, progress) as (runner, folder):
        tick, notes = partial(progress, f"measuring {address.key}"), list(made.notes)
        if Decoder in made:
            cut = cut_decoder(made[Decoder], options.shards.slices)
            bits = tuple(sorted(set().union(*offered_bits(options))))
            measured = probe_for(cut, target, options.decoder, asked)
            data = probe_decoder(measured, bits, folder, tick, notes.append, runner)
        else:
            limits = (options.model.max_length, options.shards, asked.threads, asked.lanes)
            workload = Workload.of(made[Model], target, *limits)
            data = probe(target, workload, folder, tick, notes.append, runner, gpu_precision=asked.gpu_precision)
    # Where no layer runs on a GPU of the very device, an estimate of one would only mislead the plan.
    placing = "cpu" if asked.place == "auto" and "gpu" not in data else asked.place
    with tempfile.TemporaryDirectory(prefix="stic-") as here:
        profile = Path(here) / "device.json"
        profile.write_text(json.dumps(data), encoding="utf-8")
        planned = replace(options, target=replace(asked, profile=profile, place=placing))
        return compile_model(planned, progress, replace(made, notes=tuple(notes)))
