import xml.etree.ElementTree as ElementTree

import pytest

from stic.compiler.report.drawing import Span, Strip, picture, terminal

STRIP = Strip(
    "predicted",
    (
        Span("IO", "read", 0, 400, "0"),
        Span("IO", "read", 400, 800, "1"),
        Span("compute", "compute", 0, 100, "E"),
        Span("compute", "stall", 100, 400),
        Span("compute", "compute", 400, 600, "0"),
        Span("compute", "stall", 600, 800),
        Span("compute", "compute", 800, 950, "1"),
        Span("compute", "compute", 950, 1000, "H"),
    ),
    deadline_us=1200,
)


def test_terminal_shows_lanes_to_scale():
    lines = terminal([STRIP], width=70).splitlines()
    assert lines[0] == "predicted: 1ms, of it 500us stalled, deadline 1.2ms"
    io, compute = (line[12 - 2 :] for line in lines[1:3])
    assert lines[1].startswith("  IO ") and lines[2].startswith("  compute ")
    cells = 70 - len("compute") - 3 - 10
    assert io.rstrip() == "█" * round(0.8 * cells)
    assert len(compute) == cells
    assert compute.count("·") == pytest.approx(0.5 * cells, abs=2)
    assert [mark for mark in "E01H" if mark in compute] == list("E01H")
    assert all(len(line) <= 110 for line in lines)


def test_strips_share_one_scale():
    short = Strip("measured", (Span("compute", "compute", 0, 500, "0"),))
    lines = terminal([STRIP, short], width=70).splitlines()
    row = lines[lines.index("measured: 500us, of it 0us stalled") + 1]
    assert row.count("0") == pytest.approx(25, abs=1)


def test_a_busy_moment_is_never_invisible():
    strip = Strip("x", (Span("IO", "read", 0, 1), Span("compute", "compute", 0, 100_000, "0")))
    assert "▁" in terminal([strip], width=60).splitlines()[1]


def test_nothing_to_draw():
    assert terminal([Strip("empty", ())]) == "nothing was recorded"


@pytest.mark.parametrize("strips", [[STRIP], [STRIP, Strip("measured", STRIP.spans)]])
def test_picture_is_svg(tmp_path, strips):
    path = tmp_path / "timeline.svg"
    picture(strips, path)
    assert ElementTree.parse(path).getroot().tag.endswith("svg")
