"""What docs/ says of the code must be so."""

import ast
import os
import re
from pathlib import Path

import numpy as np
import pytest

from stic.runtime import format as package_format
from stic.runtime import gpu_format

ROOT = Path(__file__).resolve().parents[1]
STRUCTURES = {
    package_format: tuple("HEADER MODEL FILE SHAPE BLOCK_ENTRY RECORD EXTENT DENSE REGION PLAN".split()),
    gpu_format: ("GPU", "LAUNCH"),
}
FORMAT_PAGE = ROOT / "docs" / "package-format.md"
BEGIN, END = "<!-- tables: generated from runtime/format.py and runtime/gpu_format.py -->\n", "<!-- end of tables -->\n"


def _kind(dtype: np.dtype) -> str:
    if dtype == package_format.REGION:
        return "REGION"
    base, shape = dtype.subdtype if dtype.subdtype else (dtype, ())
    return base.str.lstrip("<|") + "".join(f"[{size}]" for size in shape)


def _tables() -> str:
    lines = []
    for module, name in ((module, name) for module, names in STRUCTURES.items() for name in names):
        dtype = getattr(module, name)
        lines += [f"\n**{name}**, {dtype.itemsize} bytes\n", "| at | type | field |", "|---|---|---|"]
        fields = [(dtype.fields[field][1], _kind(dtype.fields[field][0]), field) for field in dtype.names]
        lines += [f"| {at} | {kind} | {field} |" for at, kind, field in fields]
    lines += ["\n**Regions**, in this order: " + ", ".join(package_format.REGIONS) + ".\n"]
    lines += ["**GPU regions**, in this order: " + ", ".join(gpu_format.GPU_REGIONS) + ".\n"]
    return "\n".join(lines)


def test_the_format_page_lists_every_field():
    text = FORMAT_PAGE.read_text()
    before, rest = text.split(BEGIN)
    found, after = rest.split(END)
    if os.environ.get("STIC_UPDATE"):
        FORMAT_PAGE.write_text(before + BEGIN + _tables() + "\n" + END + after)
        return
    assert found == _tables() + "\n", "docs/package-format.md is out of date: run pytest with STIC_UPDATE=1"


PAGES = [path for folder in (ROOT, ROOT / "docs", ROOT / "examples") for path in sorted(folder.glob("*.md"))]


def _anchors(page):
    """Names of a page's headings, as links spell them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in _anchors(linked), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(page):
    """In code spans, paths from the repository's root."""
    folders = "runtime|targets|schedules|compiler|tests|benchmarks|examples|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*\w/?)`", page.read_text()):
        if "NAME" not in name:
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_architecture_page_names_files_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("**compiler/**") : text.index("## Rules")]
    names = set(re.findall(r"`([a-z_]+(?:\.py|/))`", table)) - {"compiler/"}
    assert {name for name in names if not (ROOT / "compiler" / name).exists()} == set()
    rooms = {f"{path.parent.name}/" for path in (ROOT / "compiler").glob("*/__init__.py")}
    assert {name for name in names if name.endswith("/")} == rooms


def test_the_architecture_page_lists_the_stages_in_their_order():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| `(?:\w+)` \| (yes|) ?\|$", text, re.MULTILINE)
    pipeline, planning = (ROOT / "compiler" / name for name in ("pipeline.py", "decoding/planning.py"))
    lists = [(pipeline, "_planning"), (planning, "decoder_planning"), (pipeline, "_deciding")]
    lists += [(planning, "decoder_refining"), (pipeline, "_packaging")]
    calls = []
    for path, name in lists:
        body = ast.parse(path.read_text()).body
        function = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)
        found = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        calls += sorted((node for node in found if ast.unparse(node.func) == "Stage"), key=lambda node: node.lineno)
    assert rows == [(ast.literal_eval(node.args[0]), "yes" if len(node.args) > 4 else "") for node in calls]


def test_the_command_list_is_the_readme_s():
    from stic.compiler.cli import COMMANDS

    shown = set(re.findall(r"^    stic (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert shown <= set(COMMANDS)


VARIABLE = r"STIC_[A-Z_]+"
READ = (rf"getenv\(\"({VARIABLE})\"\)", rf"environ(?:\.get\(|\[)\"({VARIABLE})\"", rf"\"({VARIABLE})\" in os\.environ")
GIVEN = rf"\"({VARIABLE})\":"  # in the environment of a process


def _variables() -> set[str]:
    """Names of environment variables that the project's own code reads, or hands to a process of its own."""
    folders = ("runtime", "targets", "schedules", "compiler", "tests", "benchmarks", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".c", ".h")]
    return {name for path in files for one in (*READ, GIVEN) for name in re.findall(one, path.read_text())}


def test_the_environment_page_lists_every_variable():
    table = [line for line in (ROOT / "docs" / "environment.md").read_text().splitlines() if line.startswith("| `")]
    listed = [re.match(rf"\| `({VARIABLE})` \|", line)[1] for line in table]
    assert sorted(listed) == sorted(_variables())
