"""The rooms of the package: who may import whom, and that the files of the model travel alone."""

import ast
from pathlib import Path

import pytest

import unept_hf


PACKAGE = Path(unept_hf.__file__).parent
# What each room may import beside SHARED. A room is a folder of the package, or a file at its top.
ARROWS = {
    "kernels": set(),
    "synthetic": set(),
    "model": {"kernels"},
    "inference": {"model"},
    "data": {"model", "synthetic"},
    "visualization": {"model", "inference"},
    "evaluation": {"model", "inference", "data", "visualization"},
    "export": {"model", "inference", "data"},
    "training": {"model", "inference", "data", "evaluation", "visualization", "export"},
    "cli": {"model", "inference", "data", "evaluation", "visualization", "export", "training"} | {"__init__"},
    "accelerate": {"model", "kernels"},
    "__main__": {"cli"},
}
# Files at the top that all rooms may import, and that import nothing of the package.
SHARED = {"arguments", "files", "palette", "version"}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imported_parts(module: Path) -> list[tuple[str, ...]]:
    """What a module imports of the package, as paths below it: `from ..files import x` gives ("files", "x")."""
    package = module.parent.parts
    found: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [
                tuple(alias.name.split("."))[1:] for alias in node.names if alias.name.split(".")[0] == "unept_hf"
            ]
        elif isinstance(node, ast.ImportFrom):
            name = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                base = (*package[: len(package) - node.level + 1], *name)
            elif name[:1] == ("unept_hf",):
                base = name[1:]
            else:
                continue
            found += [(*base, alias.name) for alias in node.names]
    return found


def imported_rooms(module: Path) -> set[str]:
    """The rooms that a module imports, its own left out. Names of the package itself stand for "__init__"."""
    names = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir()}
    rooms = {parts[0] if parts and parts[0] in names else "__init__" for parts in imported_parts(module)}
    return rooms - {room_of(module)}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_arrows_point_one_way(module):
    room = room_of(module)
    if room != "__init__":  # which offers the public names of all rooms
        allowed = set() if room in SHARED else ARROWS[room] | SHARED
        assert imported_rooms(module) <= allowed


def test_no_circle_between_rooms():
    imports: dict[str, set[str]] = {}
    for module in MODULES:
        imports.setdefault(room_of(module), set()).update(imported_rooms(module) - {"__init__"})
    del imports["__init__"]
    while free := [room for room, others in imports.items() if not others & imports.keys()]:
        for room in free:
            del imports[room]
    assert not imports, "these rooms import each other"


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) == "model"], ids=str)
def test_files_of_the_model_are_flat(module):
    """transformers copies a file with what it imports as `from .name import ...`, and knows no other form."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert all(node.level == 1 and node.module and "." not in node.module for node in relative)
    assert {node.module for node in relative} <= {other.stem for other in MODULES if room_of(other) == "model"}
