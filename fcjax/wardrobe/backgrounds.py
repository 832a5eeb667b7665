"""What stands behind the person: plain and gradient studio backdrops, and simple scenes. Captions name them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcjax.wardrobe import motifs
from fcjax.wardrobe.meshes import smoothstep

# Backdrop colours are pale or muted relatives of the palette, so that garments stand out.
BACKDROPS: dict[str, tuple[float, float, float]] = {
    "white": (0.95, 0.95, 0.945),
    "grey": (0.74, 0.745, 0.75),
    "beige": (0.89, 0.845, 0.77),
    "blue": (0.72, 0.82, 0.91),
    "green": (0.75, 0.86, 0.75),
    "pink": (0.945, 0.82, 0.84),
    "yellow": (0.955, 0.91, 0.70),
    "purple": (0.82, 0.77, 0.90),
    "black": (0.20, 0.20, 0.215),
}
KINDS = {"plain": 5.0, "gradient": 2.0, "room": 1.5, "park": 0.7, "beach": 0.6, "brick": 0.7, "street": 0.6}
"""Kinds of background and how often each occurs, relatively."""


@dataclass(frozen=True, eq=False)
class Background:
    kind: str
    color: str  # a name of BACKDROPS, "" for scenes that are named without one
    base: Float[ndarray, "3"]
    seed: int

    def paint(self, height: int, width: int, feet: float) -> Float[ndarray, "h w 3"]:
        """The picture behind a person whose feet stand on pixel row `feet` (a float, may lie below the picture)."""
        rng = np.random.default_rng(self.seed)
        x = (np.arange(width, dtype=np.float32) + 0.5) / height
        y = (np.arange(height, dtype=np.float32) + 0.5) / height
        image = np.empty((height, width, 3), np.float32)
        image[:] = self.base
        ground = feet / height - rng.uniform(0.055, 0.13)  # where the floor begins
        floor = y[:, None] > ground
        if self.kind == "gradient":
            target = np.clip(self.base * rng.uniform(0.55, 0.75) + rng.uniform(0, 0.05), 0, 1)
            share = y[:, None] if rng.random() < 0.6 else np.hypot(x - width / height / 2, y[:, None] - 0.45) * 1.2
            image += smoothstep(0.05, 1.0, np.broadcast_to(share, (height, width)))[..., None] * (target - image)
        elif self.kind == "plain":
            image *= (1.01 - 0.05 * y)[:, None, None]
        elif self.kind == "room":
            self._room(image, x, y, ground, rng)
        elif self.kind == "park":
            sky = np.array((0.70, 0.84, 0.95)) + (1 - y[:, None, None]) * (-0.12, -0.06, 0.0)
            image[:] = sky
            for _ in range(5):
                center, size = rng.uniform(0, width / height), rng.uniform(0.12, 0.24)
                top = ground - rng.uniform(0.22, 0.45)
                crown = np.hypot(x - center, (y[:, None] - top) * 0.9) - size
                crown = crown + 0.06 * (motifs.noise(x, y, 0.05, rng) - 0.5)
                green = np.array((0.34, 0.50, 0.27)) * rng.uniform(0.8, 1.25)
                trunk = (np.abs(x - center) < 0.012 + 0.0 * y[:, None]) & (y[:, None] > top) & ~floor
                image[trunk] = (0.40, 0.30, 0.22)
                image += np.clip(0.5 - crown * 60, 0, 1)[..., None] * (green - image)
            grass = np.array((0.52, 0.68, 0.36)) * (0.92 + 0.16 * motifs.noise(x, y, (0.05, 0.015), rng))[..., None]
            image[:] = np.where(floor[..., None], grass, image)
        elif self.kind == "beach":
            horizon = ground - rng.uniform(0.12, 0.2)
            sky = np.array((0.66, 0.83, 0.95)) + (y[:, None, None] / max(horizon, 0.1)) * (0.18, 0.10, 0.03)
            water = np.array((0.25, 0.55, 0.68)) + 0.07 * (motifs.noise(x, y, (0.10, 0.012), rng) - 0.5)[..., None]
            sand = np.array((0.90, 0.82, 0.65)) * (0.96 + 0.08 * motifs.noise(x, y, (0.03, 0.012), rng))[..., None]
            image[:] = np.where(floor[..., None], sand, np.where((y > horizon)[:, None, None], water, sky))
            image[(np.abs(y - ground) < 0.004)] = (0.96, 0.97, 0.97)
        elif self.kind == "brick":
            tall, wide = 0.045, 0.11
            row = np.floor(y / tall)
            across = x / wide + 0.5 * (row % 2)[:, None]
            tones = rng.random((64, 64))[row.astype(int)[:, None] % 64, np.floor(across).astype(int) % 64]
            brick = np.array((0.66, 0.38, 0.30)) * (0.85 + 0.25 * tones)[..., None]
            # Distances to the middle of the joints above and beside, so that they stay smooth at any size.
            above = np.abs((y / tall + 0.5) % 1 - 0.5) * tall
            beside = np.abs((across + 0.5) % 1 - 0.5) * wide
            joint = np.clip(0.5 - (np.minimum(above[:, None], beside) - 0.003) * height, 0, 1)
            brick += joint[..., None] * ((0.78, 0.74, 0.70) - brick)
            pavement = np.array((0.66, 0.65, 0.64)) * (0.97 + 0.06 * motifs.noise(x, y, (0.04, 0.02), rng))[..., None]
            image[:] = np.where(floor[..., None], pavement, brick)
        elif self.kind == "street":
            image[:] = np.array((0.80, 0.86, 0.92))
            edge = -rng.uniform(0, 0.2)
            while edge < width / height:
                wide, top = rng.uniform(0.16, 0.3), rng.uniform(0.02, 0.25)
                wall = np.array([(0.80, 0.74, 0.66), (0.70, 0.68, 0.70), (0.74, 0.62, 0.55), (0.84, 0.82, 0.78)])
                tone = wall[rng.integers(4)] * rng.uniform(0.9, 1.05)
                columns = (x > edge) & (x < edge + wide)
                inside = columns & (y[:, None] > top)
                image[inside] = tone
                across, down = ((x - edge) / wide * 3) % 1, ((y - top) / 0.11) % 1
                window = inside & (np.abs(across - 0.5) < 0.25) & (np.abs(down - 0.55) < 0.28)[:, None]
                image[window] = tone * 0.62
                edge += wide
            asphalt = np.array((0.52, 0.52, 0.53)) * (0.97 + 0.06 * motifs.noise(x, y, (0.05, 0.015), rng))[..., None]
            image[:] = np.where(floor[..., None], asphalt, image)
        return np.clip(image, 0, 1, out=image)

    def _room(self, image: ndarray, x: ndarray, y: ndarray, ground: float, rng: np.random.Generator) -> None:
        """A wall in the named colour with a skirting board, a wooden floor, a window, picture or door."""
        image *= (1.02 - 0.06 * y)[:, None, None]
        wide = x[-1]
        thing = rng.integers(4)
        left = rng.uniform(0.03, 0.12) if rng.random() < 0.5 else wide - rng.uniform(0.24, 0.3)
        right, top = left + rng.uniform(0.17, 0.22), rng.uniform(0.06, 0.16)
        bottom = (top + rng.uniform(0.2, 0.3), top + 0.22, ground, top)[thing]
        rows, columns = (y > top) & (y < bottom), (x > left) & (x < right)
        frame = rows[:, None] & columns
        inner = ((y > top + 0.012) & (y < bottom - (0.012 if thing < 2 else 0)))[:, None] & (
            (x > left + 0.012) & (x < right - 0.012)
        )
        if thing == 0:
            image[frame], image[inner] = (0.96, 0.96, 0.95), (0.78, 0.88, 0.95)
            image[inner & (np.abs(x - (left + right) / 2) < 0.005)] = (0.96, 0.96, 0.95)
        elif thing == 1:
            image[frame], image[inner] = (0.32, 0.26, 0.22), np.clip(self.base[::-1] * 0.85, 0, 1)
        elif thing == 2:
            image[frame], image[inner] = np.clip(self.base * 0.80, 0, 1), np.clip(self.base * 0.9, 0, 1)
        wood = np.array([(0.68, 0.52, 0.37), (0.56, 0.42, 0.31), (0.76, 0.66, 0.53)][rng.integers(3)])
        board = np.floor((x - wide / 2) / (0.10 * (0.4 + np.maximum(y - ground, 0) * 3))[:, None])
        planks = wood * (0.95 + 0.08 * rng.random(97)[board.astype(int) % 97])[..., None]
        floor = y > ground
        image[floor] = planks[floor]
        image[(y > ground - 0.018) & ~floor] = (0.93, 0.92, 0.90)


def draw_background(rng: np.random.Generator, kinds: tuple[str, ...] | None = None) -> Background:
    """A random background; `kinds` limits the choice."""
    names = tuple(KINDS) if kinds is None else kinds
    chances = np.array([KINDS[name] for name in names])
    kind = str(rng.choice(names, p=chances / chances.sum()))
    color = str(rng.choice(list(BACKDROPS))) if kind in ("plain", "gradient", "room") else ""
    base = np.array(BACKDROPS[color or "white"]) * rng.uniform(0.97, 1.03, 3)
    return Background(kind, color, np.clip(base, 0, 1).astype(np.float32), int(rng.integers(2**31)))
