"""What a stage's result depends on in stic's own code: the files that its module imports, found by reading them.

A key that names its files by hand misses some, and goes stale where a file moves. Here a stage names the module that
computes it, and the rest follows: every module of this tree that one of them imports, at the top of a file or within a
function, and the data files that one of them names, in its own folder or one above it. Imports for annotations only
(`if TYPE_CHECKING:`) compute nothing and do not count.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Names of modules begin so; `stic` is a namespace whose folders lie in ROOT, `benchmarks` a folder there.
_PREFIX = "stic."
_TOP = ("stic", "benchmarks")
_LONGEST_NAME = 255  # of a file or module; a longer string is text

Imports = tuple[tuple[str, tuple[str, ...]], ...]  # (module, names taken from it)


def code_of(*modules: str, known: tuple[str, ...] = (), alone: tuple[str, ...] = ()) -> str:
    """Return a digest of the code that `modules` run: what changes a key with the code. Read once a process.

    `known`, `alone` as `closure` has them. Raises ModuleNotFoundError for a name that is no module of this tree.
    """
    return _code_of(ROOT, modules, known, alone)


@cache
def _code_of(root: Path, modules: tuple[str, ...], known: tuple[str, ...], alone: tuple[str, ...]) -> str:
    state = hashlib.sha256()
    for path in closure(*modules, known=known, alone=alone, root=root):
        content = path.read_bytes()
        state.update(f"{path.relative_to(root).as_posix()}:{len(content)}:".encode() + content)
    return state.hexdigest()


def closure(
    *modules: str, known: tuple[str, ...] = (), alone: tuple[str, ...] = (), root: Path | None = None
) -> tuple[Path, ...]:
    """Return the files of `modules`, of all that they import in turn, and data files that these name, in order.

    What lies in a module or package of `known` is left out: its part in the result is in the key by another road.
    Modules of `alone` count without what they import. Raises ModuleNotFoundError for a name that is no module of the
    tree at `root`, ValueError where nothing is named, or all that is named is left out.
    """
    root = root or ROOT
    found: dict[str, tuple[Path, ...]] = {}
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        if name in found or _within(name, known):
            continue
        path = _file(root, name)
        imports, texts = _reads(path.read_bytes(), name, path.name == "__init__.py")
        above = [folder for folder in path.parents if root in folder.parents]
        data = (folder / text for text in texts if _names_a_file(text) for folder in above)
        found[name] = (path, *(file for file in data if file.is_file()))
        waiting += _imported(root, name, imports)
        # A module that is started or imported by its name (`importlib`, `python -m`) stands in a string.
        waiting += [text for text in texts if _is_module(root, text)]
    for name in alone:
        found.setdefault(name, (_file(root, name),))
    if not found:
        raise ValueError(f"no code is named: of {', '.join(modules) or 'no module'} nothing is left")
    return tuple(sorted({path for files in found.values() for path in files}))


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _candidates(root: Path, name: str) -> tuple[Path, Path]:
    folder = root.joinpath(*name.removeprefix(_PREFIX).split("."))
    return folder.with_suffix(".py"), folder / "__init__.py"


def _is_module(root: Path, name: str) -> bool:
    return name.split(".")[0] in _TOP and any(path.is_file() for path in _candidates(root, name))


def _file(root: Path, name: str) -> Path:
    for path in _candidates(root, name) if name.split(".")[0] in _TOP else ():
        if path.is_file():
            return path
    raise ModuleNotFoundError(f"{name} is no module in {root}, so what it computes cannot be told from its code")


def _names_a_file(text: str) -> bool:
    """Whether a string may be the name of a data file."""
    return "/" not in text and "." in text[1:] and not text.endswith(".py")


def _imported(root: Path, name: str, imports: Imports) -> list[str]:
    """Modules of this tree that `name` imports. Raises ModuleNotFoundError for one that the tree lacks."""
    found = []
    for module, names in imports:
        if module.split(".")[0] not in _TOP:
            continue
        here = [module] if _is_module(root, module) else []
        below = [f"{module}.{each}" for each in names if _is_module(root, f"{module}.{each}")]
        if not here and (not names or len(below) < len(names)):
            raise ModuleNotFoundError(f"{name} imports {module}, which is no module in {root}")
        found += [*here, *below]
    return found


@lru_cache(maxsize=1024)  # parsing is what takes time, and closures share most of their files
def _reads(source: bytes, name: str, package: bool) -> tuple[Imports, tuple[str, ...]]:
    """(imports of a module, the strings in it)."""
    imports: list[tuple[str, tuple[str, ...]]] = []
    texts: set[str] = set()
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports += [(each.name, ()) for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            base = parts[: len(parts) - node.level + package] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            imports.append((module, tuple(each.name for each in node.names)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) <= _LONGEST_NAME:
            texts.add(node.value)
    return tuple(imports), tuple(sorted(texts))


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    if isinstance(tree, ast.If) and _is_type_checking(tree.test):
        for node in tree.orelse:
            yield from _nodes(node)
        return
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from _nodes(child)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"
