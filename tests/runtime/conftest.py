"""Packages of small random models, built by the compiler's own writer, for the runtime's tests."""

import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from stic.runtime.format import HEADER, MODEL, offset_of

MAX_LENGTH = 40
SANITIZERS = ("-g", "-O1", "-std=c11", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="session")
def make_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_package(bits, resident=..., target=..., ...)` writes a package and returns its directory.

    bits: bitwidths per layer; resident: the same shape, default 0 everywhere. Geometry and options by keyword.
    compiled=False leaves the kernels out: such a package can be read, but not run. gpu="mali-g52" puts that target's
    GPU beside the CPU of `target`; then all layers run there, or as `places` ("cpu" or "gpu" for each) says. also:
    (bits, resident) of further plans. Plan i is of quality i and predicted to take i + 1 ms, the budget to ask for it.
    padding: the token id that positions skip. keep_planes: store those that no plan reads, too.
    row_type: of the embeddings.
    """
    from stic.compiler.device.synthetic import synthetic
    from stic.compiler.package.assembly import Planned, assemble_package, collect
    from stic.compiler.package.kernels import GpuProgram, generate, generate_program
    from stic.compiler.package.writer import write_package
    from stic.compiler.plan import Budget, LayerPlan, Plan, Proof
    from stic.compiler.quantization.quantize import quantize
    from stic.compiler.sharding import Geometry
    from stic.runtime.gpu_format import LAUNCH
    from stic.schedules.pack import interleave
    from stic.targets.target import load

    def make(
        bits: tuple[tuple[int, ...], ...],
        resident: tuple[tuple[int, ...], ...] | None = None,
        target: str = "host",
        hidden: int = 64,
        heads: int = 4,
        head_dim: int = 16,
        ffn: int = 128,
        slices: int = 4,
        full_bits: int = 16,
        table_resident: bool = False,
        read_ahead: int = 1,
        activation: str = "gelu",
        threads: int = 2,
        lanes: int = 2,
        seed: int = 0,
        compiled: bool = True,
        gpu: str | None = None,
        gpu_precision: str = "float16",
        places: tuple[str, ...] | None = None,
        fallback: bool = True,
        also: tuple[tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]], ...] = (),
        overlap: bool = True,
        padding: int | None = None,
        quantizer: str = "nested",
        keep_planes: bool = False,
        row_type: str = "int8",
    ) -> Path:
        folder = tmp_path_factory.mktemp("package")
        geometry = Geometry(len(bits), hidden, heads, head_dim, ffn, slices)
        chosen = load(target, gpu)
        quantized = synthetic(geometry, activation, MAX_LENGTH, seed)
        if quantizer != "nested":
            quantized = quantize(quantized.sharded, quantizer)
        if padding is not None:  # its position row is the one before those of other tokens
            model = quantized.sharded.model
            rows = np.concatenate([np.full((1, hidden), 0.7, np.float32), model.embeddings.position])
            tables = replace(model.embeddings, position=rows, position_offset=1, padding=padding)
            quantized = replace(quantized, sharded=replace(quantized.sharded, model=replace(model, embeddings=tables)))
        materials = collect(quantized, full_bits, MAX_LENGTH, threads, lanes, row_type)
        held = resident or tuple(tuple(0 for _ in layer) for layer in bits)
        where = places or tuple("gpu" if gpu and b else "cpu" for b in bits)
        layers = tuple(LayerPlan(b, r, p) for b, r, p in zip(bits, held, where, strict=True))

        def planned(layers: tuple[LayerPlan, ...], quality: int = 0) -> Plan:
            proof = Proof("heuristic", float(quality), None, 0.0)
            return Plan("test", layers, table_resident, read_ahead, overlap, Budget(), 0.0, proof)

        plan = planned(layers)
        further = [tuple(LayerPlan(b, r) for b, r in zip(*one, strict=True)) for one in also]
        kernels, text = folder / "kernels.so", folder / "kernels.cl"
        program = None
        if compiled:
            generate(materials.kernel_shape, chosen, kernels)
        else:
            kernels.write_bytes(b"no code")
        if plan.on_gpu and compiled:
            program = generate_program(
                materials.kernel_shape, chosen.gpu.style, gpu_precision, interleave(chosen), text
            )
        elif plan.on_gpu:
            text.write_bytes(b"no code")
            program = GpuProgram(text, chosen.gpu.style, gpu_precision, np.zeros(0, LAUNCH))
        output = folder / "model.stic"
        family = tuple(Planned(planned(other, i), 1000 * (i + 1), ()) for i, other in enumerate(further, 1))
        planned_all = (Planned(plan, 1000), *family)
        parts = assemble_package(materials, planned_all, chosen, kernels, program, fallback, keep_planes=keep_planes)
        write_package(parts, output)
        return output

    return make


@pytest.fixture(scope="session")
def with_header() -> Callable[..., bytes]:
    """`with_header(index, field=value, ...)`: the index with fields of its header or its model changed, its checksum
    right again."""

    def change(index: bytes, **values: int) -> bytes:
        data = bytearray(index)
        for name, value in values.items():
            structure = HEADER if name in (HEADER.names or ()) else MODEL
            start = 0 if structure is HEADER else int(np.frombuffer(index, HEADER, 1)[0]["model_at"])
            kind, at = structure[name], start + offset_of(structure, name)
            data[at : at + kind.itemsize] = value.to_bytes(kind.itemsize, "little")
        at = offset_of(HEADER, "index_crc")
        data[at : at + 4] = bytes(4)
        data[at : at + 4] = struct.pack("<I", zlib.crc32(data))
        return bytes(data)

    return change


# Plans of one model: mixed with full precision and a layer left out; all streamed; one bitwidth, resident; finer, and
# partly at full precision, resident; narrow, and half of it resident; with a middle that another one keeps apart.
FAMILY = (
    (((16, 8, 5, 2), (6, 4, 3), (), (4, 4, 2, 2)), ((0, 4, 2, 2), (6, 3, 0), (), (0, 0, 0, 0))),
    (((4, 4, 4, 4), (4, 4, 4, 4), (4, 4, 2), (4, 4, 2, 2)), ((0,) * 4, (0,) * 4, (0,) * 3, (0,) * 4)),
    (((4, 4, 4, 4), (4, 4, 4, 4), (4, 4, 2), (4, 4, 2, 2)),) * 2,
    (((5, 4, 4, 4), (16, 5, 4, 4), (5, 4, 2), (5, 5, 5, 2)),) * 2,
    (((2, 2), (2, 2), (), (2,)), ((2, 2), (2, 0), (), (0,))),
    (((16, 4, 4), (16, 16, 2), (3, 3, 3, 3), ()), ((0, 4, 4), (16, 16, 2), (3, 3, 3, 3), ())),
)


@pytest.fixture(scope="session")
def family(make_package: Callable[..., Path]) -> Path:
    """A package with the plans of FAMILY."""
    return make_package(*FAMILY[0], also=FAMILY[1:])


@pytest.fixture(scope="session")
def package(make_package: Callable[..., Path]) -> Path:
    """A package with every kind of shard: resident, streamed, mixed bits, full precision, and a layer left out."""
    bits = ((16, 8, 5, 2), (6, 4, 3), (), (4, 4, 2, 2))
    resident = ((0, 4, 2, 2), (6, 3, 0), (), (0, 0, 0, 0))
    return make_package(bits, resident)


# For a GPU: three widths, since a driver compiles kernels for each; heads that do not fill a tile; a layer left out.
GPU_BITS = ((16, 4, 2), (4, 2, 2), (), (4, 4))
GPU_RESIDENT = ((16, 2, 0), (0, 0, 0), (), (4, 4))


@pytest.fixture(scope="session")
def make_gpu_package(make_package: Callable[..., Path]) -> Callable[..., Path]:
    """`make_gpu_package(gpu="mali-g52", ...)`: a package with layers on a GPU; options as make_package's."""

    def make(gpu: str = "mali-g52", **options: object) -> Path:
        shape = {"hidden": 48, "heads": 3, "head_dim": 12, "ffn": 96, "slices": 3, "gpu": gpu}
        return make_package(GPU_BITS, GPU_RESIDENT, **shape | options)

    return make


@pytest.fixture(scope="session")
def gpu_package(make_gpu_package: Callable[..., Path]) -> Path:
    """A package with all layers on a GPU, activations in half precision."""
    return make_gpu_package()


@pytest.fixture
def gpu_copy(gpu_package: Path, tmp_path: Path) -> Path:
    """A copy of it without compiled programs, that a test may damage."""
    ignored = shutil.ignore_patterns("opencl-*")
    return Path(shutil.copytree(gpu_package, tmp_path / "copy.stic", ignore=ignored))


@pytest.fixture(scope="session")
def opencl(gpu_package: Path) -> None:
    """Skip where no OpenCL device can be had; one that refuses the package is a failure."""
    from stic.runtime.errors import EngineError
    from stic.runtime.session import Session

    try:
        Session(gpu_package, gpu="required").close()
    except EngineError as error:
        if "no OpenCL library" in str(error) or "no device" in str(error):
            pytest.skip(f"needs OpenCL (Debian: ocl-icd-libopencl1, pocl-opencl-icd): {error}")
        raise


@pytest.fixture(scope="session")
def make_decoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_decoder(name, made, target=...)` writes a package of one of decoder_cases.ARCHITECTURES, each once."""
    from stic.targets.target import load
    from tests.runtime.decoder_cases import ARCHITECTURES, HUGE
    from tests.runtime.decoder_layout import Made
    from tests.runtime.random_decoders import write_decoder

    @cache
    def make(name: str, made: Made, target: str = "host") -> Path:
        folder = tmp_path_factory.mktemp("decoder") / "model.stic"
        folder.mkdir()
        return write_decoder((ARCHITECTURES | {"huge": HUGE})[name], made, load(target), folder)

    return make


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a program of this folder with the engine, both under ASan and UBSan, once."""

    @cache
    def build(name: str) -> Path:
        compiler = shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            pytest.skip("needs gcc or clang")
        program = tmp_path_factory.mktemp("sanitized") / Path(name).stem
        runtime = Path(__file__).resolve().parents[2] / "runtime"
        sources = [path for path in (runtime / "src").glob("*.c") if not path.name.startswith("stic_run")]
        files = [str(Path(__file__).with_name(name)), *map(str, sources)]
        includes = [f"-I{runtime / part}" for part in ("include", "src")]
        line = [compiler, *SANITIZERS, *includes, *files, "-o", str(program), "-ldl"]
        built = subprocess.run(line, capture_output=True, text=True, timeout=300)
        if built.returncode and ("asan" in built.stderr or "ubsan" in built.stderr):
            pytest.skip(f"needs the sanitizers' libraries: {built.stderr[-200:]}")
        assert built.returncode == 0, built.stderr
        return program

    return build
