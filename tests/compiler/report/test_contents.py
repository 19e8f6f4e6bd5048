from dataclasses import replace

import numpy as np
import pytest

from stic.compiler.device.synthetic import synthetic
from stic.compiler.frontend.reading import VECTOR, Reading, recorded
from stic.compiler.package.assembly import Planned, assemble_package, collect
from stic.compiler.package.kernels import GpuProgram
from stic.compiler.package.writer import write_package
from stic.compiler.plan import Budget, LayerPlan, Plan, Proof
from stic.compiler.report import contents
from stic.compiler.sharding import Geometry
from stic.runtime.errors import PackageError, TargetError
from stic.runtime.format import FULL
from stic.runtime.gpu_format import LAUNCH
from stic.runtime.package import Package
from stic.targets.target import load

BITS = ((16, 8, 5, 2), (6, 4, 3), (), (4, 4, 2, 2))
RESIDENT = ((0, 4, 2, 2), (6, 3, 0), (), (0, 0, 0, 0))
EVENT = {"kind": "compute", "layer": -1, "level": -1, "start_us": 0.0, "end_us": 5.0, "bytes": 0}


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes a package of a random model; its kernels are never loaded here."""
    folder = tmp_path_factory.mktemp("contents")
    (folder / "kernels.so").write_bytes(b"no code")
    quantized = synthetic(Geometry(4, 64, 4, 16, 128, 4), "gelu", 40)
    proof = Proof("heuristic", 1.0, None, 0.0)
    layers = tuple(LayerPlan(b, r) for b, r in zip(BITS, RESIDENT, strict=True))
    plan = Plan("test", layers, False, 1, True, Budget(60_000, 8 << 20), 0.05, proof)
    (folder / "kernels.cl").write_bytes(b"no code")
    none = np.zeros(0, LAUNCH)

    def make(name, gpu=(), launches=none, reading=VECTOR, also=(), timeline=(EVENT,), fallback=True):
        placed = tuple(replace(layer, place="gpu" if k in gpu else "cpu") for k, layer in enumerate(layers))
        program = GpuProgram(folder / "kernels.cl", "mali", "float16", launches)
        target = load("host", "mali-g52" if gpu else None)
        planned = (Planned(replace(plan, layers=placed), 57_000, timeline), *also)
        materials = collect(quantized, 16, 40, 2, 2, reading=reading)
        parts = assemble_package(materials, planned, target, folder / "kernels.so", program if gpu else None, fallback)
        write_package(parts, folder / name)
        return Package.open(folder / name)

    return make


@pytest.fixture(scope="module")
def package(write):
    return write("model.stic", reading=Reading("classes", ("no", "yes")))


@pytest.fixture(scope="module")
def family(write):
    """Two plans, the second one at 2 bits, with nothing resident and without a deadline."""
    layers = tuple(LayerPlan((2,) * len(b), (0,) * len(b)) for b in BITS)
    plan = Plan("test", layers, False, 1, True, Budget(None, 6 << 20), 0.05, Proof("heuristic", 0.25, None, 0.0))
    also = (Planned(plan, 71_000, ({**EVENT, "end_us": 7.0},)),)
    return write("family.stic", also=also)


def test_plans_of_a_family_are_told_apart(package, family):
    assert contents.family_facts(package) == [] and contents.budget_words(package) == ""
    first, second = contents.family_facts(family)
    assert (first["number"], first["default"], first["deadline_us"]) == (0, True, 60_000)
    assert (second["number"], second["default"], second["deadline_us"]) == (1, False, None)
    assert first["mean_bits"] == pytest.approx(np.mean([b for layer in BITS for b in layer]))
    assert second["mean_bits"] == 2
    assert (first["quality"], second["quality"]) == (1.0, 0.25)
    assert first["preload_bytes"] > 0 == second["preload_bytes"]
    assert contents.budget_words(family).startswith("plan 0 of 2: for 60ms, predicted 57ms, holds ")
    assert contents.budget_words(family.with_plan(1)).startswith("plan 1 of 2: predicted 71ms, holds ")


def test_what_depends_on_the_plan_is_that_of_the_plan(family):
    assert family.plans[0].claimed_bytes > family.plans[1].claimed_bytes
    for number, (bits, end_us) in enumerate([(BITS[0], 5.0), ((2, 2, 2, 2), 7.0)]):
        shown = family.with_plan(number)
        assert contents.plan_of(shown).layers[0].bits == bits
        strip = contents.predicted_strip(shown)
        assert (strip.title, strip.end_us) == (f"plan {number}, predicted for 40 tokens", end_us)
        assert sum(contents.memory_bytes(shown).values()) == family.plans[number].claimed_bytes
        assert f"this is plan {number}" in contents.describe(shown)[-1]
    assert contents.kind_bytes(family) == contents.kind_bytes(family.with_plan(1))
    assert [held for held, _ in contents.layer_bytes(family.with_plan(1))] == [0, 0, 0, 0]


def test_sizes_add_up_to_what_is_on_disk(package):
    assert sum(contents.kind_bytes(package).values()) == (package.path / "shards.bin").stat().st_size
    assert contents.file_bytes(package) == {path.name: path.stat().st_size for path in package.path.iterdir()}


def test_memory_adds_up_to_the_claim(package):
    claimed = package.entry.claimed_bytes
    assert sum(contents.memory_bytes(package).values()) == claimed
    assert sum(contents.memory_groups(package).values()) == claimed


@pytest.mark.parametrize("fallback", [True, False])
def test_layers_on_a_gpu_are_described_and_counted(write, package, fallback):
    placed = write(f"gpu-{fallback}.stic", gpu=(0, 3), fallback=fallback)
    assert contents.gpu_facts(package) is None
    facts = contents.identity(placed)["gpu"]
    assert facts == {
        "name": load("mali").gpu.name, "style": "mali", "storage": "float16", "layers": 2, "fallback": fallback
    }  # fmt: skip
    line = contents.describe(placed)[-1]
    assert line.startswith("2 of 4 layers run on Mali-G52") and ("on the CPU instead" in line) == fallback
    claimed = placed.entry.claimed_bytes
    assert sum(contents.memory_bytes(placed).values()) == sum(contents.memory_groups(placed).values()) == claimed
    assert contents.memory_groups(placed)["activations on the GPU"] == placed.gpu.state_bytes


def test_what_a_gpu_cannot_allocate_is_refused(monkeypatch, write):
    from stic.targets.gpu import Gpu

    monkeypatch.setattr(Gpu, "max_alloc_bytes", 1 << 12)
    with pytest.raises(TargetError, match=r"weights of this plan are one buffer of .* allows 0 MiB.*--place cpu"):
        write("large.stic", gpu=(0,))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("local", (1024, 2, 1), "takes 2048 work-items in a group"), ("local_bytes", 1 << 20, "bytes of local memory")],
)
def test_kernels_that_a_gpu_cannot_start_are_refused(write, field, value, message):
    launches = np.zeros(1, LAUNCH)
    launches[0] = ("stic_add_norm", (64, 1, 1), (1, 1, 1), 2048, 0)
    launches[0][field] = value
    with pytest.raises(TargetError, match=rf"kernel stic_add_norm .*{message}.* allows .*--place cpu"):
        write("wide.stic", gpu=(0,), launches=launches)


def test_full_precision_is_counted_apart(package):
    full = int(package.records["bytes"][:, FULL].sum())
    assert contents.kind_bytes(package)["full precision"] == full > 0


def test_layers_say_what_is_resident_and_what_is_read(package):
    sizes = contents.layer_bytes(package)
    assert sizes[2] == (0, 0)
    assert sizes[3][0] == 0 and sizes[3][1] > 0
    assert all(held > 0 and read > 0 for held, read in sizes[:2])


def test_plan_and_timeline_read_back(package):
    assert contents.plan_of(package).layers[0].bits == BITS[0]
    strip = contents.predicted_strip(package)
    assert strip.title == "predicted for 40 tokens" and strip.end_us == 5.0 and strip.deadline_us == 60_000
    assert recorded(package).names == ("no", "yes")
    assert contents.identity(package)["architecture"] == load("host").arch


def test_a_timeline_that_is_none_is_refused(write):
    package = write("odd.stic", timeline=({"kind": "compute"},))
    with pytest.raises(PackageError, match=r"plan\.json: timeline\[0\] has no layer: copy or compile"):
        contents.predicted_strip(package)
