"""Programs of the field that the tests compare with, where they import torchvision without need.

torchvision would bring another torch; `make` installs clean-fid, torch-fidelity and lpips without it.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any

import pytest


def stand_in(package: str) -> bool:
    """Puts a package without its __init__, which imports torchvision, in its place; False where it is not installed.

    Its modules can then be imported, by torchmetrics too, which looks for torch-fidelity.
    """
    if package not in sys.modules:
        found = importlib.util.find_spec(package)
        if found is None or found.submodule_search_locations is None:
            return False
        bare = types.ModuleType(package)
        bare.__path__, bare.__spec__ = list(found.submodule_search_locations), found
        sys.modules[package] = bare
    return True


def module_of(package: str, name: str) -> Any:
    """A module of such a package."""
    pytest.importorskip("torch")
    if not stand_in(package):
        pytest.skip(f"{package} is not installed")
    return importlib.import_module(f"{package}.{name}")


def afresh(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this test import it anew, as its modules hold on to the torchvision that they were first given; skips the
    test where it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
