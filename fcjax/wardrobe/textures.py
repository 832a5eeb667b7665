"""Fabrics drawn by code: a pattern, its colours and its weave, as functions of flat coordinates in metres.

A fabric has no resolution: `Fabric.paint` evaluates it on any grid, so that a garment's flat picture, the worn
garment and a swatch are windows on the same cloth.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcjax.wardrobe import motifs
from fcjax.wardrobe.palette import COLORS, partners, shade

Mask = Float[ndarray, "h w"]

PATTERNS: dict[str, tuple[str, ...]] = {
    "solid": ("plain", "heather", "melange"),
    "stripes": ("even", "wide", "thin", "uneven"),
    "vertical": ("even", "wide", "thin", "uneven"),
    "diagonal": ("even", "wide", "thin"),
    "checks": ("gingham", "chess", "window"),
    "plaid": ("two", "three", "offset"),
    "dots": ("grid", "brick", "large", "ring"),
    "gradient": ("down", "up"),
    "floral": ("daisy", "rose", "leafy"),
    "camouflage": ("blobs", "streaks"),
    "shapes": ("star", "heart", "diamond", "triangle", "cross", "moon"),
    "zigzag": ("wide", "thin"),
    "letters": ("NOVA", "42", "SUN", "ARC", "LOVE", "7", "HELLO", "99"),
    "logo": ("star", "heart", "circle", "sun", "moon", "flower", "diamond", "triangle"),
    "denim": ("raw", "washed"),
    "knit": ("rib", "cable"),
    "lace": ("flower", "net"),
}
"""Pattern families and, of each, its variants."""

HELD_OUT_VARIANTS = frozenset(
    {
        ("stripes", "uneven"), ("vertical", "uneven"), ("diagonal", "wide"), ("checks", "window"), ("plaid", "offset"),
        ("dots", "brick"), ("floral", "rose"), ("camouflage", "streaks"), ("shapes", "heart"), ("shapes", "moon"),
        ("letters", "HELLO"), ("letters", "99"), ("logo", "flower"), ("logo", "triangle"), ("zigzag", "thin"),
    }
)  # fmt: skip
"""Variants that no training fabric shows. Families without one differ between splits by their colours alone."""

COMMON = {
    "solid": 5.0, "stripes": 4.0, "vertical": 2.0, "diagonal": 1.2, "checks": 2.5, "plaid": 2.0, "dots": 3.0,
    "gradient": 1.2, "floral": 2.0, "camouflage": 1.2, "shapes": 1.5, "zigzag": 1.0, "letters": 1.5, "logo": 1.8,
    "denim": 1.2, "knit": 0.8, "lace": 0.5,
}  # fmt: skip
"""How often each family is drawn, relatively."""

SINGLE = frozenset({"solid", "denim", "knit", "lace"})
"""Families that show one colour."""


def soften(distance: ndarray, density: float) -> ndarray:
    """Coverage of the inside (negative distances, metres) with an edge about a pixel wide."""
    return np.clip(0.5 - distance * density, 0, 1)


def bands(coordinate: ndarray, repeat: float, share: float, density: float) -> ndarray:
    """Coverage of stripes that fill `share` of every `repeat` metres."""
    distance = np.abs((coordinate / repeat) % 1 - 0.5) * repeat - share * repeat / 2
    return soften(distance, density)


@dataclass(frozen=True)
class Grid:
    """Where a fabric is evaluated."""

    x: Float[ndarray, "w"]  # metres, to the right as one looks at the garment
    y: Float[ndarray, "h"]  # metres, upwards
    density: float  # pixels per metre

    @property
    def plane(self) -> tuple[ndarray, ndarray]:
        x, y = np.broadcast_arrays(self.x[None], self.y[:, None])
        return x, y


def cells(grid: Grid, repeat: float, rng: np.random.Generator, brick: bool = False, jitter: float = 0.0):
    """The plane cut into squares: coordinates from each square's (jittered) centre, and three random numbers a
    square."""
    row = np.floor(grid.y / repeat)
    shift = 0.5 * (row % 2) if brick else np.zeros_like(row)
    column = np.floor(grid.x[None] / repeat + shift[:, None])
    table = rng.random((101, 101, 5), dtype=np.float32)
    values = table[row.astype(int)[:, None] % 101, column.astype(int) % 101]
    x = grid.x[None] - (column + 0.5 - shift[:, None]) * repeat
    y = np.broadcast_to((grid.y - (row + 0.5) * repeat)[:, None], x.shape)
    if jitter:
        x = x - (values[..., 3] - 0.5) * jitter * repeat
        y = y - (values[..., 4] - 0.5) * jitter * repeat
    return x, y, values


def turn(x: ndarray, y: ndarray, angle: ndarray | float) -> tuple[ndarray, ndarray]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return x * cosine + y * sine, y * cosine - x * sine


# Each pattern returns coverages of the second and the third colour over the ground (third may be None).
Drawing = tuple[ndarray | None, ndarray | None]


def _stripes(coordinate: ndarray, variant: str, scale: float, density: float) -> ndarray:
    if variant == "uneven":  # a wide band beside a narrow one
        repeat = scale * 2.2
        return np.maximum(
            bands(coordinate, repeat, 0.42, density), bands(coordinate + repeat * 0.5, repeat, 0.12, density)
        )
    repeat, share = {"even": (1.0, 0.5), "wide": (1.7, 0.5), "thin": (0.95, 0.27)}[variant]
    return bands(coordinate, repeat * scale, share, density)


def _stripes_across(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    return np.broadcast_to(_stripes(grid.y, variant, scale, grid.density)[:, None], (len(grid.y), len(grid.x))), None


def _stripes_along(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    return np.broadcast_to(
        _stripes(grid.x, variant, scale * 0.85, grid.density)[None], (len(grid.y), len(grid.x))
    ), None


def _stripes_diagonal(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    x, y = grid.plane
    slope = rng.choice((-1.0, 1.0))
    return _stripes((x * slope + y) * np.float32(0.7071), variant, scale, grid.density), None


def _checks(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    across, along = (bands(axis, scale, 0.5, grid.density) for axis in (grid.x, grid.y))
    if variant == "window":
        lines = [bands(axis, scale * 1.2, 0.2, grid.density) for axis in (grid.x, grid.y)]
        return np.maximum(lines[0][None], lines[1][:, None]), None
    if variant == "chess":
        return across[None] + along[:, None] - 2 * across[None] * along[:, None], None
    return 0.5 * across[None] + 0.5 * along[:, None], None


def _plaid(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    repeat = scale * 2
    shift = repeat * 0.3 if variant == "offset" else 0.0
    wide = [bands(axis, repeat, 0.42, grid.density) for axis in (grid.x, grid.y)]
    second = 0.55 * wide[0][None] + 0.55 * wide[1][:, None] - 0.1 * wide[0][None] * wide[1][:, None]
    thin = [bands(axis + repeat / 2 - shift, repeat, 0.11, grid.density) for axis in (grid.x, grid.y)]
    third = np.maximum(thin[0][None], thin[1][:, None]) * 0.8
    if variant == "two":
        third = third * 0.6
    return second, third


def _dots(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    repeat = scale * {"grid": 0.95, "brick": 1.0, "large": 1.4, "ring": 1.3}[variant]
    x, y, _ = cells(grid, repeat, rng, brick=variant in ("brick", "large"))
    radius = repeat * {"grid": 0.28, "brick": 0.29, "large": 0.31, "ring": 0.36}[variant]
    distance = np.hypot(x, y) - radius
    return soften(np.abs(distance + radius * 0.3) - radius * 0.3 if variant == "ring" else distance, grid.density), None


def _gradient(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    # Over the height of a garment about the hips or chest, wherever it hangs.
    share = np.clip((grid.y - grid.y.min()) / np.ptp(grid.y), 0, 1)
    share = share * share * (3 - 2 * share)
    return np.broadcast_to((share if variant == "up" else 1 - share)[:, None], (len(grid.y), len(grid.x))), None


def _floral(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    repeat = scale * 1.25
    x, y, values = cells(grid, repeat, rng, brick=True, jitter=0.24)
    radius = repeat * (0.30 + 0.12 * values[..., 0])
    u, v = turn(x / radius, y / radius, values[..., 1] * 2 * np.pi)
    if variant == "rose":
        spiral = np.abs(((np.hypot(u, v) * 2.2 - np.arctan2(v, u) / (2 * np.pi)) % 1) - 0.5) - 0.33
        petals = np.maximum(np.hypot(u, v) - 0.85, spiral * 0.4)
        third = soften((np.hypot(u, v) - 0.22) * radius, grid.density)
    elif variant == "leafy":
        petals = np.minimum(motifs.leaf(u, v), motifs.leaf(v, u))
        third = soften((np.hypot(u, v) - 0.3) * radius, grid.density)
    else:
        petals = motifs.flower(u, v)
        third = soften((np.hypot(u, v) - 0.28) * radius, grid.density)
    return soften(petals * radius, grid.density), third


def _camouflage(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    stretch = (scale * 0.95, scale * 0.75) if variant == "blobs" else (scale * 1.9, scale * 0.5)
    coverages = []
    for level in (0.55, 0.62):
        field = motifs.noise(grid.x, grid.y, stretch, rng) + 0.45 * (
            motifs.noise(grid.x, grid.y, (stretch[0] / 2, stretch[1] / 2), rng) - 0.5
        )
        coverages.append(np.clip((field - level) * 14 + 0.5, 0, 1))
    return coverages[0], coverages[1]


def _shapes(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    repeat = scale * 1.15
    x, y, _ = cells(grid, repeat, rng, brick=True)
    radius = repeat * 0.36
    distance = motifs.SHAPES[variant](x / radius, y / radius) * radius
    return soften(distance, grid.density), None


def _zigzag(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    repeat = scale * (1.3 if variant == "wide" else 0.9)
    x, y = grid.plane
    wave = np.abs((x / (repeat * 1.2)) % 1 - 0.5) * repeat * 1.2
    return bands(y + wave, repeat, 0.5, grid.density * 0.8), None


def _lace(grid: Grid, variant: str, scale: float, rng) -> Drawing:
    repeat = scale * 0.6
    x, y, _ = cells(grid, repeat, rng, brick=True)
    if variant == "net":
        return 0.35 * soften(repeat * 0.3 - np.hypot(x, y), grid.density), None
    return 0.4 * soften(motifs.flower(x / repeat * 2.3, y / repeat * 2.3, 6) * repeat * 0.4, grid.density), None


DRAWINGS: dict[str, Callable[[Grid, str, float, np.random.Generator], Drawing]] = {
    "stripes": _stripes_across,
    "vertical": _stripes_along,
    "diagonal": _stripes_diagonal,
    "checks": _checks,
    "plaid": _plaid,
    "dots": _dots,
    "gradient": _gradient,
    "floral": _floral,
    "camouflage": _camouflage,
    "shapes": _shapes,
    "zigzag": _zigzag,
    "lace": _lace,
}


@dataclass(frozen=True, eq=False)
class Fabric:
    """A cloth: pattern family and variant, palette names of its colours, their exact shades, scale and weave."""

    pattern: str
    variant: str
    colors: tuple[str, ...]  # palette names, the ground first; one name where the pattern shows one colour
    shades: Float[ndarray, "3 3"]  # RGB of ground, second and third colour
    scale: float  # metres of a stripes' repeat
    seed: int

    def paint(
        self, grid: Grid, emblem: tuple[float, float] | None = None, detail: float = 1.0
    ) -> Float[ndarray, "h w 3"]:
        """The cloth on a grid, float32 RGB in [0, 1].

        `emblem` places what the patterns "letters" and "logo" print, its centre in metres; None leaves it away.
        `detail` scales the weave's fine noise.
        """
        rng = np.random.default_rng(self.seed)
        ground, second, third = self.shades
        image = np.empty((len(grid.y), len(grid.x), 3), np.float32)
        image[:] = ground
        if self.pattern in DRAWINGS:
            drawing = DRAWINGS[self.pattern](grid, self.variant, self.scale, rng)
            for coverage, color in zip(drawing, (second, third), strict=True):
                if coverage is not None:
                    image += coverage[..., None].astype(np.float32) * (color - image)
        elif self.pattern in ("letters", "logo") and emblem is not None:
            self._print_emblem(image, grid, emblem, second)
        self._weave(image, grid, rng, detail)
        return np.clip(image, 0, 1, out=image)

    def _print_emblem(self, image: ndarray, grid: Grid, center: tuple[float, float], color: ndarray) -> None:
        x, y = grid.x - center[0], grid.y - center[1]
        if self.pattern == "logo":
            radius = 1.15 * self.scale
            columns, rows = np.flatnonzero(np.abs(x) < 1.2 * radius), np.flatnonzero(np.abs(y) < 1.2 * radius)
            if not len(columns) or not len(rows):
                return
            window = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            u, v = np.meshgrid(x[columns] / radius, y[rows] / radius)
            window += soften(motifs.SHAPES[self.variant](u, v) * radius, grid.density)[..., None] * (color - window)
            return
        # Letters read from the left as one looks at the garment; a long word is smaller.
        tall = self.scale * {1: 2.0, 2: 1.7, 3: 1.35, 4: 1.1}.get(len(self.variant), 0.95)
        ink = motifs.lettering(self.variant, max(round(tall * grid.density), 4))
        left = round((center[0] - grid.x[0]) * grid.density - ink.shape[1] / 2)
        top = round((grid.y[0] - center[1]) * grid.density - ink.shape[0] / 2)
        rows, columns = slice(max(top, 0), top + ink.shape[0]), slice(max(left, 0), left + ink.shape[1])
        window = image[rows, columns]
        ink = ink[rows.start - top :, columns.start - left :][: window.shape[0], : window.shape[1]]
        window += ink[..., None] * (color - window)

    def _weave(self, image: ndarray, grid: Grid, rng: np.random.Generator, detail: float) -> None:
        """Multiplies in what the yarn shows: twill of denim, ribs of knitwear, flecks of heather."""
        x, y = grid.x, grid.y
        light = np.float32(1.0)
        if self.pattern == "denim":
            fade = motifs.noise(x, y, (0.10, 0.30), rng) - 0.5
            twill = motifs.noise(x, y, (0.008, 0.016), rng) - 0.5
            light = 1 + detail * (0.30 * twill + (0.35 if self.variant == "washed" else 0.12) * fade)
        elif self.pattern == "knit":
            repeat = 0.024
            ribs = np.sin(x * (2 * np.pi / repeat)) * 0.11
            if self.variant == "rib":
                light = 1 + detail * (ribs[None] + 0.05 * np.sin(y * (2 * np.pi / 0.02))[:, None])
            else:
                wave = np.sin(x[None] * (2 * np.pi / 0.07) + 1.6 * np.sin(y * (2 * np.pi / 0.09))[:, None])
                light = 1 + detail * (0.16 * wave + 0.4 * ribs[None])
        elif self.pattern == "solid" and self.variant != "plain":
            cell = (0.012, 0.012) if self.variant == "heather" else (0.030, 0.010)
            light = 1 + detail * 0.16 * (motifs.noise(x, y, cell, rng) - 0.5)
        else:
            light = 1 + detail * 0.05 * (motifs.noise(x, y, (0.012, 0.012), rng) - 0.5)
        image *= np.asarray(light, np.float32)[..., None]


def variants(pattern: str, split: str) -> tuple[str, ...]:
    """The variants of a family that a split may show: training never shows the held-out ones, and where a family has
    some the held-out split shows only those."""
    held_out = tuple(name for name in PATTERNS[pattern] if (pattern, name) in HELD_OUT_VARIANTS)
    if split == "heldout":
        return held_out or PATTERNS[pattern]
    return tuple(name for name in PATTERNS[pattern] if name not in held_out)


def draw_fabric(
    rng: np.random.Generator,
    split: str,
    patterns: tuple[str, ...] | None = None,
    ground: str | None = None,
    scale: float | None = None,
) -> Fabric:
    """A random fabric of the split; `patterns` limits its families, `ground` fixes the name of its first colour."""
    families = tuple(COMMON) if patterns is None else patterns
    chances = np.array([COMMON[name] for name in families])
    pattern = str(rng.choice(families, p=chances / chances.sum()))
    variant = str(rng.choice(variants(pattern, split)))
    if ground is None:
        ground = str(rng.choice(COLORS))
    if pattern == "denim" and ground not in ("blue", "navy", "black", "grey"):
        pattern, variant = "solid", str(rng.choice(variants("solid", split)))
    base = shade(ground, rng)
    if pattern == "denim":  # indigo is duller than other blues
        base = base + np.float32(0.38) * (base.mean() - base)
    if pattern in SINGLE:
        names: tuple[str, ...] = (ground,)
        second = base * (0.78 if base.mean() > 0.5 else 0.7) if pattern == "lace" else base
        third = base
    else:
        other = str(rng.choice(partners(ground, split)))
        names = (ground, other)
        second = shade(other, rng)
        third = _third(pattern, base, second, rng)
    return Fabric(
        pattern=pattern,
        variant=variant,
        colors=names,
        shades=np.stack([base, second, third]).astype(np.float32),
        scale=float(scale if scale is not None else rng.uniform(0.078, 0.125)),
        seed=int(rng.integers(2**31)),
    )


def _third(pattern: str, base: ndarray, second: ndarray, rng: np.random.Generator) -> ndarray:
    """A colour that captions leave out: flower hearts, the thin lines of a plaid, the third patch of a camouflage."""
    if pattern == "floral":
        return (
            np.array((0.96, 0.83, 0.35)) if second.min() > 0.55 or rng.random() < 0.5 else np.array((0.97, 0.95, 0.9))
        )
    if pattern == "plaid":
        return np.array((0.95, 0.94, 0.9)) if base.mean() + second.mean() < 1.1 else np.array((0.12, 0.12, 0.15))
    return (base + second) * (0.35 if rng.random() < 0.5 else 0.6)
