"""A list of names has one owner: what it says is imported from there, never written again."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("runtime", "targets", "schedules", "compiler")


def lists_of_names(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """Sequences of names that a module fixes: those assigned to a constant, in a Literal, or on offer as a Choice."""
    for node in ast.walk(tree):
        found: ast.expr | None = None
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            found = node.slice
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "click.Choice" and node.args:
            found = node.args[0]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id.isupper():
                found = node.value
        if isinstance(found, ast.Tuple | ast.List) and len(found.elts) > 1:
            parts = [part.value for part in found.elts if isinstance(part, ast.Constant)]
            names = tuple(part for part in parts if isinstance(part, str))
            if len(names) == len(found.elts):
                yield names


def test_no_list_of_names_is_written_twice() -> None:
    places: dict[frozenset[str], list[str]] = defaultdict(list)
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for names in lists_of_names(ast.parse(path.read_text())):
            places[frozenset(names)].append(str(path.relative_to(ROOT)))
    assert len(places) > 10
    assert {names: paths for names, paths in places.items() if len(paths) > 1} == {}
