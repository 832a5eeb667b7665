"""The import arrows: fcjax imports neither train nor infer, these two never each other, models know no mesh or file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for room in ("fcjax", "train", "infer", "configs") for path in (ROOT / room).rglob("*.py"))

# room -> what must not be imported in it
FORBIDDEN = {
    "fcjax": ("train", "infer", "configs", "tests"),
    "fcjax/body": ("jax", "flax", "fcjax.models", "fcjax.wardrobe", "PIL"),
    "fcjax/wardrobe": ("jax", "flax", "fcjax.models"),
    "fcjax/models": ("fcjax.body", "fcjax.wardrobe", "fcjax.folder", "fcjax.data", "PIL", "pathlib", "os"),
    "train": ("infer",),
    "infer": ("train", "configs"),
}
HEAVY = ("torch", "diffusers", "smplx", "trimesh", "scipy", "chumpy")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_import_arrows(path: Path):
    place = path.relative_to(ROOT).as_posix()
    modules = imports(path)
    for room, forbidden in FORBIDDEN.items():
        if place.startswith(room + "/"):
            wrong = sorted(m for m in modules for package in forbidden if within(m, package))
            assert not wrong, f"{place} imports {wrong}"
    if not place.startswith("fcjax/models/") and place.startswith("fcjax/"):
        assert not any(within(m, "flax") for m in modules), f"{place} imports flax; only fcjax/models may"


@pytest.mark.parametrize("path", sorted((ROOT / "fcjax/models").glob("*.py")), ids=lambda p: p.name)
def test_models_compute_and_nothing_else(path: Path):
    """They jit nothing, open no file and print nothing."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    called = {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}
    assert not called & {"jit", "pmap", "device_put", "open", "print"}
    # As decorators, too.
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "attr", "") in ("jit", "pmap")]


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "fcjax")], ids=lambda p: p.name)
def test_the_package_needs_no_oracle(path: Path):
    """torch and its kin are extras: what imports them does so inside the function that needs them."""
    tops = {
        name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert not [name for name in tops for package in HEAVY if within(name, package)]
