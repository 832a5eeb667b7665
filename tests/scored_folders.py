"""Small folders of predictions and truth, and what stands for the networks that score them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.metrics.protocols import PROTOCOLS
from infer.predictions import FolderFlags
from infer.scoring import Networks

NAMES = [f"{number:05d}_00" for number in range(6)]


def picture(seed: int, height: int = 32, width: int = 24) -> np.ndarray:
    return (
        np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_folders(path: Path) -> tuple[Path, Path]:
    """Six predictions, each a little worse than the one before, and their truth as JPEGs of twice the size."""
    for number, name in enumerate(NAMES):
        truth = picture(number)
        noise = np.random.default_rng(9).normal(size=truth.shape) * (4 + 8 * number)
        save(path / f"made/{name}.png", (truth + noise).clip(0, 255).astype(np.uint8))
        save(path / f"true/{name}.jpg", truth.repeat(2, 0).repeat(2, 1))
    return path / "made", path / "true"


def mean_features(pictures: np.ndarray) -> np.ndarray:
    """Stands for Inception: the four corners' mean colours."""
    half = pictures.shape[1] // 2
    return np.concatenate([pictures[:, :half].mean((1, 2)), pictures[:, half:].mean((1, 2))], axis=1)


def mean_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Stands for LPIPS."""
    return np.abs(first.astype(float) - second).mean((1, 2, 3)) / 255


NETWORKS = Networks(mean_difference, mean_features, {"lpips": "mean difference", "inception": "halves"})


def flags_of(folders: tuple[Path, Path], **changes) -> FolderFlags:
    return dataclasses.replace(FolderFlags(*folders, protocol="ladi-512", batch=4), **changes)


def shrink_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocols at a sixteenth of their size."""
    for name, protocol in PROTOCOLS.items():
        sizes = {field: getattr(protocol, field) for field in ("height", "width")}
        small = {field: size and 32 * size // 512 for field, size in sizes.items()}
        monkeypatch.setitem(PROTOCOLS, name, dataclasses.replace(protocol, **small))
