"""A device as the compiler sees it: one TOML file each, every number with its source.

A file holds `name`, `description`, `arch`, `features`, a `[tvm]` table (the target dictionary handed to TVM) and
facts in `[cache]`, `[storage]`, `[compute]` and `[memory]`, each `key = { value = .., source = "..", estimated = .. }`.
A value is a number, except that of `compute.cores`: where a device's cores are unlike, a list of those that compute.
`host` is special: its file lists instruction set levels, best first; the machine's own facts fill the rest.

A device whose GPU may compute has a `[gpu]` table, which `stic.targets.gpu` reads. Where another file describes the
same device without its GPU, `base` names it, and all but `name`, `description` and `[gpu]` is taken from there.
"""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stic.runtime.errors import TargetError
from stic.runtime.format import FEATURES, MACHINES
from stic.targets.facts import Fact, check_keys, number, sourced
from stic.targets.gpu import Gpu, parse_gpu

# The flag that /proc/cpuinfo shows for each of FEATURES: its name, but for one.
CPU_FLAGS = {name: name for name in FEATURES} | {"avx512_vbmi": "avx512vbmi"}
SECTIONS: dict[str, tuple[str, ...]] = {
    "cache": ("l1_bytes", "l2_bytes", "l3_bytes"),
    "storage": ("read_bytes_per_s", "request_us"),
    "compute": ("threads", "clock_hz", "int8_macs_per_cycle"),
    "memory": ("ram_bytes", "bytes_per_s"),
}
ALIASES = {"mali": "mali-g52", "adreno": "adreno-640"}  # a GPU's family, for the device that stands for it
MOST_CORES = 64  # what a package's bit set of cores has room for
_FOLDER = Path(__file__).parent
_HOST = "host"
_NO_GPU = "none"


@dataclass(frozen=True)
class Cores:
    """The processors on which compute threads should run, and where their numbers come from."""

    numbers: tuple[int, ...]  # as the operating system counts, from 0
    source: str
    estimated: bool = False


@dataclass(frozen=True)
class Target:
    """A device: what code it runs and what it is made of."""

    name: str
    description: str
    arch: str  # one of MACHINES
    features: tuple[str, ...]  # of FEATURES, without which the kernels must not run
    tvm: Mapping[str, Any] = field(hash=False)  # target dictionary for TVM
    cache: Mapping[str, Fact] = field(default_factory=dict, hash=False)
    storage: Mapping[str, Fact] = field(default_factory=dict, hash=False)
    compute: Mapping[str, Fact] = field(default_factory=dict, hash=False)
    memory: Mapping[str, Fact] = field(default_factory=dict, hash=False)
    cores: Cores | None = None  # None: all alike
    gpu: Gpu | None = None  # None: the CPU computes alone

    def __post_init__(self) -> None:
        if self.arch not in MACHINES:
            raise TargetError(f"target {self.name}: arch {self.arch!r} is not one of {', '.join(MACHINES)}")
        for feature in self.features:
            if feature not in FEATURES:
                raise TargetError(f"target {self.name}: feature {feature!r} is not one of {', '.join(FEATURES)}")
        if "kind" not in self.tvm:
            raise TargetError(f'target {self.name}: the [tvm] table has no `kind` (for a CPU: kind = "llvm")')
        if self.compute.get("threads", Fact(0, "")).value < 1:
            raise TargetError(f"target {self.name}: compute.threads must be at least 1")
        if self.cores is not None and self.threads > len(self.cores.numbers):
            raise TargetError(
                f"target {self.name}: {self.threads} compute threads do not fit on {len(self.cores.numbers)} cores"
            )

    @property
    def threads(self) -> int:
        """Compute threads of a session: the fast cores."""
        return int(self.compute["threads"].value)

    @property
    def core_bits(self) -> int:
        """The cores as a bit set, bit i for processor i; 0: any."""
        return sum(1 << number for number in self.cores.numbers) if self.cores else 0

    @property
    def missing_features(self) -> tuple[str, ...]:
        """What this machine lacks to run the target's code itself; empty if it can."""
        if self.arch != platform.machine():
            return (self.arch,)
        flags = _cpu_flags()
        return tuple(feature for feature in self.features if CPU_FLAGS[feature] not in flags)


def processor() -> str:
    """What /proc/cpuinfo calls this machine's processor; on Arm, the numbers that name its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    pairs = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]
    model = [value for key, value in pairs if key == "model name"]
    parts = sorted({value for key, value in pairs if key == "CPU part"})
    return " ".join(model[:1] or parts)


def names() -> tuple[str, ...]:
    """Names of all targets that `load` knows."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load(name: str, gpu: str | None = None) -> Target:
    """Read a target by name, or by one of ALIASES.

    `gpu` names the target whose GPU is put beside this one's CPU in place of its own; "none" leaves the CPU alone.
    Raises TargetError for an unknown name, a target without the GPU that is asked for, or a file with wrong fields.
    """
    name = ALIASES.get(name, name)
    if name not in names():
        raise TargetError(f"unknown target {name!r}; the targets are {', '.join((*names(), *ALIASES))}")
    data = tomllib.loads((_FOLDER / f"{name}.toml").read_text())
    target = _host(data) if name == _HOST else parse(data)
    if gpu is None:
        return target
    if gpu == _NO_GPU:
        return replace(target, gpu=None)
    other = load(gpu)
    if other.gpu is None:
        equipped = ", ".join(n for n in names() if load(n).gpu is not None)
        raise TargetError(f"target {other.name} has no GPU; those with one are {equipped}")
    return replace(target, gpu=other.gpu)


def parse(data: Mapping[str, Any]) -> Target:
    """Build a Target from the content of its file; unknown, missing or ill-typed fields are refused."""
    label = data.get("name", "without a name")
    if "base" in data:
        return _with_gpu(label, data)
    required = ("name", "description", "arch", "features", "tvm", "compute")
    check_keys(label, "the file", data, required, (*required, *SECTIONS, "gpu"))
    for key in ("name", "description", "arch"):
        if not isinstance(data[key], str):
            raise TargetError(f"target {label}: {key} must be a string")
    if not isinstance(data["features"], list) or not isinstance(data["tvm"], dict):
        raise TargetError(f"target {label}: features must be a list and tvm a table")
    tables = {section: dict(data.get(section, {})) for section in SECTIONS}
    cores = tables["compute"].pop("cores", None)
    for section, table in tables.items():
        check_keys(label, f"[{section}]", table, (), SECTIONS[section])
    return Target(
        data["name"],
        data["description"],
        data["arch"],
        tuple(data["features"]),
        dict(data["tvm"]),
        **{
            section: {key: number(label, f"{section}.{key}", value) for key, value in table.items()}
            for section, table in tables.items()
        },
        cores=None if cores is None else _cores(label, cores),
        gpu=parse_gpu(label, data["gpu"]) if "gpu" in data else None,
    )


def _with_gpu(label: str, data: Mapping[str, Any]) -> Target:
    """The target that `base` names, under another name and with a GPU."""
    required = ("name", "description", "base", "gpu")
    check_keys(label, "the file", data, required, required)
    for key in required[:-1]:
        if not isinstance(data[key], str):
            raise TargetError(f"target {label}: {key} must be a string")
    gpu = parse_gpu(label, data["gpu"])
    return replace(load(data["base"]), name=data["name"], description=data["description"], gpu=gpu)


def _cores(label: str, data: Any) -> Cores:
    numbers, source, estimated = sourced(label, "compute.cores", data)
    whole = isinstance(numbers, list) and all(type(n) is int and 0 <= n < MOST_CORES for n in numbers)
    if not whole or not numbers or len(set(numbers)) != len(numbers):
        raise TargetError(f"target {label}: compute.cores.value must list different processors, below {MOST_CORES}")
    return Cores(tuple(numbers), source, estimated)


def _host(data: Mapping[str, Any]) -> Target:
    """The best level of host.toml that this machine has, with what the operating system says about it."""
    flags = _cpu_flags()
    for level in data["level"]:
        runs = level["arch"] == platform.machine()
        if runs and all(CPU_FLAGS[feature] in flags for feature in level["features"]):
            return Target(
                data["name"],
                f"{data['description']}: {level['title']}",
                level["arch"],
                tuple(level["features"]),
                dict(level["tvm"]),
                cache=_host_caches(),
                compute={"threads": Fact(len(os.sched_getaffinity(0)), "sched_getaffinity")},
                memory=_host_memory(),
            )
    titles = ", ".join(level["title"] for level in data["level"])
    raise TargetError(f"this {platform.machine()} machine has none of the levels of target host: {titles}")


def _cpu_flags() -> frozenset[str]:
    """Flags of the first processor in /proc/cpuinfo (x86: "flags", Arm: "Features")."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _host_caches() -> dict[str, Fact]:
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((folder / item).read_text().strip() for item in ("type", "level", "size"))
        except OSError:
            continue
        key = f"l{level}_bytes"
        if kind != "Instruction" and key in SECTIONS["cache"] and size.endswith("K"):
            found[key] = Fact(int(size[:-1]) * 1024, str(folder))
    return found


def _host_memory() -> dict[str, Fact]:
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {"ram_bytes": Fact(pages * page_bytes, "sysconf(_SC_PHYS_PAGES)")}
