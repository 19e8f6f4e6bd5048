"""Packages of several plans, and packages that share their files."""

import errno
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from stic.compiler.package.assembly import Planned, assemble_package
from stic.compiler.package.index import Parts
from stic.compiler.package.trunk import build_embeddings
from stic.compiler.package.writer import write_package
from stic.compiler.plan import from_json
from stic.compiler.simulate import Event
from stic.runtime.errors import InputError, PackageError
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.targets.target import load
from tests.compiler.packaging import BITS, RESIDENT, contents, materials_for, other, parts, plan_of

__all__ = ["other", "parts"]


def family_of(plans: int) -> tuple[Planned, ...]:
    """Further plans, for the least memory first."""
    bits = ((5, 4, 2), (4, 4))
    held = [((0, 0, 0), (0, 0)), ((2, 2, 0), (2, 0)), ((5, 4, 2), (4, 4))]
    timelines = [(asdict(Event("compute", i, -1, 0.0, 1.0, 0)),) for i in range(plans)]
    return tuple(Planned(plan_of(bits, held[i % 3]), 1000 + i, timelines[i]) for i in range(plans))


def test_a_family_is_described(parts: Parts, tmp_path: Path) -> None:
    materials, plan = materials_for("nested"), plan_of(BITS, RESIDENT)
    several = assemble_package(materials, (Planned(plan, 900), *family_of(3)), load("host"), parts.kernels)
    write_package(several, tmp_path / "m")
    package = Package.open(tmp_path / "m")
    package.verify()
    described = package.plan["family"]
    assert [one["predicted_us"] for one in described] == [900, 1000, 1001, 1002]
    assert [one["claimed_bytes"] for one in described] == [entry.claimed_bytes for entry in package.plans]
    assert described[0] == {name: package.plan[name] for name in described[0]}
    assert package.with_plan(2).plan["timeline"] == [asdict(Event("compute", 1, -1, 0.0, 1.0, 0))]
    assert [from_json(one["plan"]) for one in described] == [plan, *(one.plan for one in family_of(3))]
    fixed = materials.fixed_bytes(4)
    assert materials.fixed_bytes() <= fixed < materials.fixed_bytes(64)
    for one, entry in zip(several.plans, package.plans, strict=True):
        weights = one.placement.preload_bytes + one.placement.working_bytes
        assert entry.claimed_bytes == one.claimed_bytes == fixed + weights


def test_families_that_no_package_can_hold(parts: Parts) -> None:
    materials, plan = materials_for("nested"), plan_of(BITS, RESIDENT)
    rest = (load("host"), parts.kernels)
    with pytest.raises(InputError, match="66 plans are more than a package holds"):
        assemble_package(materials, (Planned(plan), *family_of(65)), *rest)
    on_gpu = replace(plan, layers=tuple(replace(layer, place="gpu") for layer in plan.layers))
    with pytest.raises(InputError, match="holds one plan"):
        assemble_package(materials, (Planned(on_gpu), *family_of(1)), *rest)
    with pytest.raises(ValueError, match="whether the embedding table is resident"):
        assemble_package(materials, (Planned(replace(plan, table_resident=True)), *family_of(1)), *rest)
    boundless = replace(plan, proof=replace(plan.proof, objective=float("inf")))
    with pytest.raises(ValueError, match="no finite quality"):
        assemble_package(materials, (Planned(boundless), *family_of(1)), *rest)


LENT = ("shards.bin", "trunk.bin", "embeddings.bin", "kernels.so")


def test_a_twin_lends_its_files(parts: Parts, tmp_path: Path) -> None:
    write_package(parts, tmp_path / "twin")
    materials, target = materials_for("nested"), load("host")
    streamed, coarse = plan_of(BITS, ((0,) * 4, (0,) * 3)), plan_of(((4, 2), (3,)), ((4, 0), (0,)))
    for number, plan in enumerate((streamed, coarse)):
        other = assemble_package(materials, (Planned(plan),), target, parts.kernels, keep_planes=True)
        write_package(other, tmp_path / f"linked{number}", twin=tmp_path / "twin")
        linked = Package.open(tmp_path / f"linked{number}")
        linked.verify()
        for name in LENT:
            assert (linked.path / name).stat().st_ino == (tmp_path / "twin" / name).stat().st_ino
        assert from_json(linked.plan["plan"]) == plan
        write_package(other, tmp_path / f"alone{number}")
    assert contents(tmp_path / "linked0") == contents(tmp_path / "alone0")
    # Full precision comes along, so that one twin serves all plans.
    assert int(Package.open(tmp_path / "linked1").header["full_bits"]) == 16
    assert int(Package.open(tmp_path / "alone1").header["full_bits"]) == 0
    want = Reference(Package.open(tmp_path / "alone1")).run([1, 2, 3])
    np.testing.assert_array_equal(Reference(Package.open(tmp_path / "linked1")).run([1, 2, 3]), want)


def test_a_twin_on_another_file_system_is_copied(
    parts: Parts, other: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    write_package(parts, tmp_path / "twin")
    monkeypatch.setattr(os, "link", refuse)
    write_package(other, tmp_path / "copied", twin=tmp_path / "twin")
    Package.open(tmp_path / "copied").verify()
    for name in LENT:
        assert (tmp_path / "copied" / name).read_bytes() == (tmp_path / "twin" / name).read_bytes()
        assert (tmp_path / "copied" / name).stat().st_ino != (tmp_path / "twin" / name).stat().st_ino


def test_a_package_may_replace_its_twin(parts: Parts, other: Parts, tmp_path: Path) -> None:
    write_package(parts, tmp_path / "m")
    write_package(other, tmp_path / "m", twin=tmp_path / "m")
    package = Package.open(tmp_path / "m")
    package.verify()
    assert package.entry.predicted_us == 123
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_package_of_something_else_is_no_twin(parts: Parts, tmp_path: Path) -> None:
    materials, plan, target = materials_for("nested"), plan_of(BITS, RESIDENT), load("host")
    other_kernels = tmp_path / "kernels.so"
    other_kernels.write_bytes(b"other code")
    coarse = plan_of(((4, 2), (3,)), ((4, 0), (0,)))
    model = materials.encoder.sharded.model
    word = replace(model.embeddings, word=model.embeddings.word[::-1].copy())
    embeddings = build_embeddings(word.word)
    assert embeddings != materials.embeddings
    twins = {
        "no full precision": (
            assemble_package(materials, (Planned(coarse),), target, parts.kernels, keep_planes=True),
            "shards.bin",
        ),
        "not all planes": (assemble_package(materials, (Planned(plan),), target, parts.kernels), "shards.bin"),
        "other quantizer": (
            assemble_package(materials_for("gobo"), (Planned(plan),), target, parts.kernels),
            "shards.bin",
        ),
        "other seed": (replace(parts, trunk=replace(parts.trunk, data=bytes(len(parts.trunk.data)))), "trunk.bin"),
        "other words": (replace(parts, embeddings=embeddings), "embeddings.bin"),
        "other kernels": (replace(parts, kernels=other_kernels), "kernels.so"),
    }
    for name, (twin, file) in twins.items():
        write_package(twin, tmp_path / name)
        with pytest.raises(InputError, match=f"is not a package of the same model .* its {file} differs"):
            write_package(parts, tmp_path / "m", twin=tmp_path / name)
    with pytest.raises(PackageError, match="not a stic package"):
        write_package(parts, tmp_path / "m", twin=tmp_path / "nothing")
    assert not (tmp_path / "m").exists()
