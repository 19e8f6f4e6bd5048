"""From a device profile to costs."""

import json
from dataclasses import replace

import pytest

from stic.compiler.plan import IoCost
from stic.compiler.planner.costs import costs, estimate, load, macs_of, paced_io, parse
from stic.compiler.planner.gpu_costs import with_gpu
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import InputError
from stic.runtime.layout import Shape
from stic.targets import target

SHAPE = Shape.layer(384, 12, 1, 32, 128)
PROFILE = {
    "format": 1,
    "device": "a phone",
    "io": {
        "direct": True,
        "lanes": 2,
        "points": [{"bytes": 4096, "lanes": 2, "median_us": 90.0, "spread_us": 4.0}],
        "request_us": 80.0,
        "bytes_per_s": 4e8,
        "row_us": 50.0,
    },
    "compute": {
        "threads": 2,
        "shapes": [
            {
                "hidden": 384, "heads_per_slice": 1, "head_dim": 32, "neurons_per_slice": 128, "slices": 12,
                "rows": 128, "layer_us": 100.0, "slice_us": {"2": 50.0, "4": 60.0, "16": 200.0}, "embed_us": 30.0,
                "head_us": 20.0, "submit_us": 10.0, "spread": 0.05,
            }
        ],
    },
}  # fmt: skip


GPU = {
    "device": "a GPU",
    "driver": "1.0",
    "arithmetic": "int8",
    "hand_over_us": 30.0,
    "shapes": [{**PROFILE["compute"]["shapes"][0], "layer_us": 300.0, "slice_us": {"2": 5.0, "16": 9.0}}],
}


def test_a_gpu_is_measured_beside_the_cpu():
    got = costs(parse({**PROFILE, "gpu": GPU}), SHAPE, 128, 2, bits=(2, 4, 16))
    assert got.gpu is not None and got.hand_over_us == 30.0 and got.gpu.layer.block_us == 300.0
    assert got.gpu.layer.slice_us == {2: 5.0, 4: 9.0, 16: 9.0} and got.compute.layer.slice_us[4] == 60.0
    assert got.notes == ("bits 4 were not measured; the next larger ones stand in",)
    assert costs(parse(PROFILE), SHAPE, 128, 2).gpu is None


def test_times_on_a_gpu_scale_with_the_shape_and_not_with_threads():
    profile = parse({**PROFILE, "gpu": GPU})
    one, two = (costs(profile, SHAPE, 64, threads) for threads in (1, 2))
    assert one.gpu is not None and two.gpu is not None and one.gpu.layer.slice_us == two.gpu.layer.slice_us
    assert one.gpu.layer.slice_us[2] < 5.0 and any("times on a GPU are scaled" in note for note in one.notes)


@pytest.mark.parametrize(
    "change", [{"hand_over_us": -1.0}, {"hand_over_us": float("nan")}, {"shapes": 3}, {"driver": None}]
)
def test_a_gpu_s_wrong_numbers_are_refused(change):
    data = {**GPU, **change}
    if data["driver"] is None:
        del data["driver"]
    with pytest.raises(InputError, match="stic probe"):
        parse({**PROFILE, "gpu": data})


@pytest.mark.parametrize("name", ["mali-g52", "mali-g710", "adreno-640", "adreno-740"])
def test_a_gpu_s_facts_give_an_estimate(name):
    chosen, bits = target.load(name), (2, 4, 8, 16)
    plain = estimate(chosen, SHAPE, 128, 4, 2, bits)
    got = with_gpu(plain, chosen.gpu, SHAPE, 128, bits)
    assert got.gpu is not None and not got.measured and any("estimated" in note for note in got.notes)
    assert got.gpu.layer.slice_us[2] < got.gpu.layer.slice_us[8] and got.hand_over_us > 0 and got.gpu.layer.block_us > 0
    longer = with_gpu(plain, chosen.gpu, SHAPE, 256, bits)
    assert (
        longer.gpu is not None
        and longer.gpu.layer.slice_us[4] > got.gpu.layer.slice_us[4]
        and longer.hand_over_us > got.hand_over_us
    )


def test_what_was_measured_on_a_gpu_is_not_estimated():
    measured = costs(parse({**PROFILE, "gpu": GPU}), SHAPE, 128, 2, bits=(2, 16))
    assert with_gpu(measured, target.load("mali").gpu, SHAPE, 128, (2, 16)) is measured
    assert with_gpu(measured, None, SHAPE, 128, (2, 16)).gpu is None


def test_a_measured_shape_is_used_as_measured(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(PROFILE))
    got = costs(load(path), SHAPE, 128, 2, bits=(2, 4, 16))
    assert got.measured and got.notes == ()
    assert got.compute.layer.slice_us == {2: 50.0, 4: 60.0, 16: 200.0}
    assert (got.compute.layer.block_us, got.compute.embed_us, got.compute.head_us, got.compute.submit_us) == (
        100,
        30,
        20,
        10,
    )
    assert got.io.bytes_per_s == pytest.approx(4e8 * 0.95) and got.io.row_us == 50.0


def test_other_shapes_are_scaled_and_say_so():
    profile = parse(PROFILE)
    wide = Shape.layer(768, 12, 1, 64, 256)
    got = costs(profile, wide, 64, 4, bits=(2, 3, 32))
    assert not got.measured and len(got.notes) == 3
    ratio = macs_of(wide, 64) / macs_of(SHAPE, 128) / 2
    assert got.compute.layer.slice_us[2] == pytest.approx(50 * ratio)
    assert got.compute.layer.slice_us[3] == got.compute.layer.slice_us[4]  # the next larger one measured
    assert got.compute.layer.slice_us[32] == got.compute.layer.slice_us[16]
    assert got.compute.layer.block_us == pytest.approx(100 * 2 * 0.5 / 2)


def test_the_nearest_shape_is_scaled():
    data = json.loads(json.dumps(PROFILE))
    far = {**data["compute"]["shapes"][0], "hidden": 1024, "slice_us": {"2": 9999.0}}
    data["compute"]["shapes"].insert(0, far)
    assert costs(parse(data), SHAPE, 120, 2).compute.layer.slice_us[2] < 50


def test_more_tokens_cost_more():
    profile = parse(PROFILE)
    times = [costs(profile, SHAPE, rows, 2).compute.layer.slice_us[4] for rows in (16, 64, 128, 256)]
    assert times == sorted(times) and times[2] == 60.0


def test_cached_io_is_noted():
    profile = replace(parse(PROFILE), direct=False)
    assert "page cache" in costs(profile, SHAPE, 128, 2).notes[0]


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"io": {}}, {"compute": {"threads": 2, "shapes": [{}]}}, {"compute": {"threads": 0, "shapes": []}}],
)
def test_wrong_profiles_are_refused(change):
    with pytest.raises(InputError, match="stic probe"):
        parse({**PROFILE, **change})


def test_negative_times_and_missing_shapes_are_refused(tmp_path):
    data = json.loads(json.dumps(PROFILE))
    data["io"]["row_us"] = -1
    with pytest.raises(InputError, match="negative"):
        parse(data)
    with pytest.raises(InputError, match="no compute times"):
        costs(replace(parse(PROFILE), shapes=()), SHAPE, 128, 2)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json"):
        load(tmp_path / "broken.json")


def test_estimates_say_that_they_are():
    got = estimate(target.load("odroid-n2plus"), SHAPE, 128, 4, 2, (2, 4, 8, 16))
    assert not got.measured and "estimated" in got.notes[0]
    times = [got.compute.layer.slice_us[b] for b in (2, 4, 8, 16)]
    assert times == sorted(times) and times[0] > 0
    bare = replace(target.load("odroid-n2plus"), storage={})
    with pytest.raises(InputError, match="read_bytes_per_s"):
        estimate(bare, SHAPE, 128, 4, 2, (2,))


def test_paced_storage_takes_its_own_time_or_that_of_the_bandwidth():
    own = IoCost(request_us=50.0, bytes_per_s=1e9, request_bytes=1 << 18, row_us=20.0)
    whole = own.extent_us(1 << 18)
    for rate in (20_000_000, 100_000_000, 800_000_000, 950_000_000):
        io = paced_io(own, EmulatedStorage(rate))
        assert io.extent_us(1 << 18) == pytest.approx(max(whole, (1 << 18) * 1e6 / rate))
        assert io.row_us == max(20.0, 4096e6 / rate)
    assert paced_io(own, EmulatedStorage(2_000_000_000)) == own


def test_paced_storage_serves_so_many_requests():
    own = IoCost(request_us=50.0, bytes_per_s=1e9, request_bytes=1 << 18, row_us=20.0)
    assert paced_io(own, EmulatedStorage(2_000_000_000, 25_000)) == replace(own, row_us=40.0)
    assert paced_io(own, EmulatedStorage(50_000_000, 25_000)).row_us == 4096 / 50
    slow = paced_io(own, EmulatedStorage(2_000_000_000, 1_000))
    assert slow.extent_us(1 << 18) == pytest.approx(1000.0) and slow.row_us == 1000.0
