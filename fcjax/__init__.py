"""FashionComposer in JAX: text, garments, a face and a body in, one fashion photograph out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcjax.album import Page, make_album
    from fcjax.assets import Asset
    from fcjax.body import Body
    from fcjax.composer import Composer
    from fcjax.person import Person

__version__ = "0.1.0"
__all__ = ["Asset", "Body", "Composer", "Page", "Person", "__version__", "make_album"]

_HOMES = {
    "Asset": "fcjax.assets",
    "Body": "fcjax.body",
    "Composer": "fcjax.composer",
    "Page": "fcjax.album",
    "Person": "fcjax.person",
    "make_album": "fcjax.album",
}


def __getattr__(name: str):
    # Imported on first use, so that the NumPy-only rooms load without JAX.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fcjax' has no attribute {name!r}")
