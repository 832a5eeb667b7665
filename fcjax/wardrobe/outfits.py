"""What to wear: garments with their cuts, names and fabrics, in combinations that make sense."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcjax.body.embedded import ShapedBody
from fcjax.wardrobe.accessories import HATS, make_bag, make_hat
from fcjax.wardrobe.captions import Described
from fcjax.wardrobe.garments import Cut, Garment, tailor
from fcjax.wardrobe.meshes import Landmarks
from fcjax.wardrobe.palette import COLORS, partners
from fcjax.wardrobe.shading import Texture
from fcjax.wardrobe.textures import Fabric, Grid, draw_fabric, variants

TROUSER_PATTERNS = (
    "solid", "stripes", "vertical", "diagonal", "checks", "plaid", "dots", "floral", "camouflage", "zigzag", "shapes",
    "gradient",
)  # fmt: skip
TOP_PATTERNS = (*TROUSER_PATTERNS, "letters", "logo")
SIMILAR_SHARE = 0.3  # of outfits, whose main garments share their pattern family or their colours


@dataclass(frozen=True, eq=False)
class Wear:
    """One garment of an outfit: how it is named, cut and made."""

    described: Described
    cut: Cut
    fabric: Fabric
    garment: Garment

    @property
    def main(self) -> bool:
        """Whether this is clothing proper rather than shoes, a hat or a bag."""
        return self.cut.kind not in ("shoes", "hat", "bag")

    def texture(self, density: float) -> Texture:
        """Front and back painted over the flat extent, `density` pixels per metre."""
        left, right, bottom, top = self.garment.extent
        left, right, bottom, top = left - 0.01, right + 0.01, bottom - 0.01, top + 0.01
        width, height = int((right - left) * density) + 1, int((top - bottom) * density) + 1
        grid = Grid(
            (left + (np.arange(width) + 0.5) / density).astype(np.float32),
            (top - (np.arange(height) + 0.5) / density).astype(np.float32),
            density,
        )
        printed = self.fabric.pattern in ("letters", "logo")
        back = self.fabric.paint(grid)
        # Prints sit on the chest of tops, at the middle of everything else.
        chest = top - 0.24 if self.cut.kind in ("top", "dress", "jacket") else (top + bottom) / 2
        front = self.fabric.paint(grid, (0.0, chest)) if printed else back
        if self.cut.trims:
            front = _trim(front.copy(), grid, self.cut.trims)
        return Texture(front, back, left, top, density)

    def swatch(self, pixels: int) -> Float[ndarray, "h w 3"]:
        """A square of 0.42 m of the fabric."""
        side = 0.42
        line = ((np.arange(pixels) + 0.5) / pixels - 0.5) * side
        grid = Grid(line.astype(np.float32), (-line).astype(np.float32), pixels / side)
        return self.fabric.paint(grid, (0.0, 0.0))


def _trim(image: ndarray, grid: Grid, trims: tuple[str, ...]) -> ndarray:
    """What is sewn on in front: a button placket, a trouser fly and pockets, a zip. Lines are at least a pixel wide."""
    thin = max(0.004, 0.8 / grid.density)
    top, x, y = grid.y.max(), grid.x, grid.y

    def paint(chosen: ndarray, color: ndarray | float, share: float) -> None:
        image[chosen] += share * (np.asarray(color, np.float32) - image[chosen])

    light = 0.15 if image.mean() > 0.35 else 0.85
    if "placket" in trims:
        paint((np.abs(np.abs(x) - 0.016) < thin / 2)[None] & (y < top - 0.05)[:, None], light, 0.45)
        for button in np.arange(top - 0.09, y.min() + 0.03, -0.085):
            paint(np.hypot(x, (y - button)[:, None]) < max(0.0065, thin), light, 0.8)
    if "zip" in trims:
        paint((np.abs(x) < thin)[None] & (y < top)[:, None], light, 0.5)
    if "fly" in trims:
        waist = top - 0.052
        paint((np.abs(y - waist) < thin / 2)[:, None] & (np.abs(x) < 9)[None], light, 0.35)
        paint((np.abs(x) < thin / 2)[None] & ((y < waist) & (y > top - 0.19))[:, None], light, 0.35)
        pocket = np.abs(np.hypot(np.abs(x) - 0.17, (y - waist)[:, None]) - 0.075)
        paint((pocket < thin / 2) & (y < waist)[:, None], light, 0.3)
    if "kangaroo" in trims:
        low = y.min() + 0.05
        box = np.maximum(np.abs(x) - 0.11, np.abs(y - low - 0.07)[:, None] - 0.07)
        paint(np.abs(box) < thin / 2, light, 0.35)
    return image


def _sleeve_word(sleeve: float) -> str:
    return "sleeveless" if sleeve < 0.15 else "short-sleeved" if sleeve < 1.1 else "long-sleeved"


def _draw_top(rng: np.random.Generator, marks: Landmarks, woman: bool) -> tuple[str, Cut, tuple[str, ...]]:
    names = ("t-shirt", "tank top", "top", "shirt", "sweater", "sweatshirt")
    name = str(
        rng.choice(names, p=(0.34, 0.08, 0.24, 0.14, 0.12, 0.08) if woman else (0.42, 0.06, 0.02, 0.2, 0.16, 0.14))
    )
    sleeve = {
        "t-shirt": rng.uniform(0.5, 0.85) if rng.random() < 0.8 else 1.9,
        "tank top": 0.0,
        "top": float(rng.choice((0.06, 0.6, 1.45, 1.9))),
        "shirt": rng.uniform(0.65, 0.8) if rng.random() < 0.4 else 1.92,
        "sweater": 1.93,
        "sweatshirt": 1.93,
    }[name]
    loose = name in ("sweater", "sweatshirt", "shirt") or (name == "t-shirt" and rng.random() < 0.6)
    vee = None
    if name in ("top", "sweater", "t-shirt") and rng.random() < (0.35 if name == "top" else 0.15):
        vee = (float(rng.uniform(0.09, 0.13)), float(rng.uniform(1.3, 1.8)))
    neck = (0.086, 0.062, 0.03)
    if name == "tank top" or (name == "top" and sleeve < 0.2):
        neck = (0.098, float(rng.uniform(0.085, 0.11)), 0.055)
    elif name == "top":
        neck = (0.092, float(rng.uniform(0.06, 0.10)), 0.035)
    elif name == "shirt":
        neck, vee = (0.070, 0.040, 0.018), (0.055, 2.2)
    trims = {"shirt": ("placket",), "sweatshirt": ("kangaroo",)}.get(name, ())
    cut = Cut(
        kind="top",
        hem=marks.hip - rng.uniform(0.02, 0.055) - (0.02 if loose else 0.0),
        sleeve=float(sleeve),
        neck=neck,
        vee=vee,
        offset=float(rng.uniform(0.012, 0.016) if loose else rng.uniform(0.008, 0.011)),
        smoothing=4,
        drape=float(rng.uniform(0.85, 1.0) if loose or not woman else rng.uniform(0.3, 0.8)),
        flare=float(rng.uniform(0.008, 0.018) if sleeve < 1.1 else rng.uniform(0.0, 0.006)),
        wrinkles=float(rng.uniform(0.4, 0.75)) * (0.5 if name == "sweater" else 1.0),
        fold_count=int(rng.integers(8, 14)),
        trims=trims,
    )
    patterns = (*TOP_PATTERNS, "lace") if name == "top" else TOP_PATTERNS
    if name == "sweater":
        patterns = ("knit", "knit", "stripes", "solid", "zigzag", "checks", "dots", "logo")
    elif name == "shirt":
        patterns = (
            "solid",
            "vertical",
            "checks",
            "plaid",
            "dots",
            "floral",
            "stripes",
            "camouflage",
            "shapes",
            "denim",
        )
    return name, cut, patterns


def _draw_bottom(
    rng: np.random.Generator, marks: Landmarks, woman: bool, skirts: bool
) -> tuple[str, Cut, tuple[str, ...], str]:
    names = ("trousers", "jeans", "shorts", "leggings", "skirt")
    chances = np.array((0.4, 0.14, 0.16, 0.07, 0.23 if skirts else 0.0) if woman else (0.56, 0.22, 0.22, 0.0, 0.0))
    name = str(rng.choice(names, p=chances / chances.sum()))
    folds = int(rng.integers(8, 14))
    wrinkles = float(rng.uniform(0.4, 0.7))
    if name == "skirt":
        length = str(rng.choice(("long", "", "short"), p=(0.3, 0.45, 0.25)))
        reach = {"long": 0.86, "": rng.uniform(0.42, 0.52), "short": rng.uniform(0.32, 0.37)}[length]
        hem = marks.waist - reach * (marks.waist - marks.floor) / 1.0
        cut = Cut(
            kind="skirt", hem=hem, waist=marks.waist + 0.005, offset=0.011, spread=float(rng.uniform(0.12, 0.42)),
            folds=float(rng.uniform(0.02, 0.07)), fold_count=folds, fold_phase=float(rng.uniform(0, 6)),
            wrinkles=wrinkles,
        )  # fmt: skip
        return name, cut, (*TROUSER_PATTERNS, "denim", "lace"), length
    hem, legs, offset, word = marks.ankle + rng.uniform(0.005, 0.03), (0.064, 0.064), 0.007, ""
    if name == "shorts":
        hem, legs, offset = marks.knee + rng.uniform(0.03, 0.12), (0.10, 0.10), 0.010
    elif name == "leggings":
        legs, offset = (0.0, 0.0), 0.004
    else:
        word = str(rng.choice(("slim", "", "wide"), p=(0.3, 0.45, 0.25)))
        legs = {"slim": (0.054, 0.050), "": (0.066, 0.066), "wide": (0.078, 0.098)}[word]
    cut = Cut(
        kind="trousers", hem=float(hem), waist=marks.waist - 0.03, offset=offset, legs=legs, wrinkles=wrinkles,
        fold_count=folds, trims=() if name == "leggings" else ("fly",),
    )  # fmt: skip
    patterns = ("denim",) if name == "jeans" else TROUSER_PATTERNS
    return name, cut, patterns, word


def _draw_dress(rng: np.random.Generator, marks: Landmarks) -> tuple[str, Cut, tuple[str, ...], str]:
    length = str(rng.choice(("long", "", "short"), p=(0.3, 0.45, 0.25)))
    reach = {"long": 0.88, "": rng.uniform(0.50, 0.60), "short": rng.uniform(0.32, 0.40)}[length]
    sleeve = float(rng.choice((0.04, 0.55, 0.75, 1.9), p=(0.35, 0.25, 0.2, 0.2)))
    vee = (float(rng.uniform(0.09, 0.14)), 1.5) if rng.random() < 0.3 else None
    cut = Cut(
        kind="dress",
        hem=float(marks.waist - reach * (marks.waist - marks.floor)),
        waist=marks.waist - 0.08,
        sleeve=sleeve,
        neck=(0.094, float(rng.uniform(0.06, 0.105)), float(rng.uniform(0.03, 0.06))),
        vee=vee,
        offset=float(rng.uniform(0.006, 0.010)),
        drape=float(rng.uniform(0.1, 0.35)),
        flare=0.010,
        spread=float(rng.uniform(0.2, 0.5)),
        folds=float(rng.uniform(0.03, 0.07)),
        fold_count=int(rng.integers(8, 14)),
        fold_phase=float(rng.uniform(0, 6)),
        wrinkles=float(rng.uniform(0.35, 0.6)),
    )
    return "dress", cut, (*TROUSER_PATTERNS, "lace"), length


def _draw_jacket(rng: np.random.Generator, marks: Landmarks) -> tuple[str, Cut, tuple[str, ...]]:
    name = str(rng.choice(("jacket", "cardigan", "coat"), p=(0.5, 0.3, 0.2)))
    cut = Cut(
        kind="jacket",
        hem=marks.hip - (rng.uniform(0.0, 0.05) if name != "coat" else rng.uniform(0.12, 0.2)),
        sleeve=1.95,
        neck=(0.098, 0.06, 0.014),
        opening=float(rng.uniform(0.035, 0.06)),
        offset=0.019,
        smoothing=5,
        drape=0.96,
        flare=0.004,
        wrinkles=float(rng.uniform(0.4, 0.7)) * (0.6 if name == "cardigan" else 1.0),
        fold_count=int(rng.integers(8, 14)),
    )
    patterns = {
        "jacket": ("solid", "denim", "checks", "plaid", "camouflage", "vertical"),
        "cardigan": ("knit", "solid", "stripes", "zigzag"),
        "coat": ("solid", "checks", "plaid"),
    }[name]
    return name, cut, patterns


def _related_fabric(
    rng: np.random.Generator, split: str, patterns: tuple[str, ...], other: Fabric, grounds: tuple[str, ...]
) -> Fabric:
    """A fabric of one of these grounds to be worn with `other`; sometimes deliberately like it."""
    draw = rng.random()
    if draw < SIMILAR_SHARE / 2 and other.pattern in patterns:
        patterns = (other.pattern,)  # the same family in other colours
    elif draw < SIMILAR_SHARE and len(other.colors) == 2 and other.colors[1] in grounds:
        # The same two colours in another pattern.
        others = tuple(name for name in patterns if name not in (other.pattern, "solid", "denim", "knit", "lace"))
        if others:
            like = draw_fabric(rng, split, others, ground=other.colors[1])
            shades = like.shades.copy()
            shades[:2] = other.shades[1::-1]
            if like.pattern not in ("solid",):
                return Fabric(like.pattern, like.variant, other.colors[::-1], shades, like.scale, like.seed)
    ground = str(rng.choice(grounds))
    if patterns == ("denim",):
        blues = [name for name in grounds if name in ("blue", "navy", "black", "grey")]
        if not blues:
            return draw_fabric(rng, split, ("solid",), ground=ground)
        ground = str(rng.choice(blues))
    return draw_fabric(rng, split, patterns, ground=ground)


def _denim_color(rng: np.random.Generator) -> str:
    return str(rng.choice(("blue", "navy", "black", "grey"), p=(0.55, 0.2, 0.15, 0.1)))


def draw_outfit(
    rng: np.random.Generator,
    split: str,
    shaped: ShapedBody,
    marks: Landmarks,
    woman: bool,
    skirts: bool,
    hat_fits: bool,
) -> tuple[Wear, ...]:
    """Garments from the innermost to the outermost. `skirts` False leaves out what looks wrong on seated people,
    `hat_fits` False what does not go over the hair."""
    chosen: list[tuple[Described, Cut, Fabric]] = []
    if woman and skirts and rng.random() < 0.26:
        name, cut, patterns, length = _draw_dress(rng, marks)
        fabric = draw_fabric(rng, split, patterns, ground=str(rng.choice(COLORS)))
        chosen.append((Described(name, fabric, _sleeve_word(cut.sleeve), length), cut, fabric))
        outer, under = fabric, None
    else:
        name, cut, patterns, length = _draw_bottom(rng, marks, woman, skirts)
        ground = _denim_color(rng) if name == "jeans" else str(rng.choice(COLORS))
        fabric = draw_fabric(rng, split, patterns, ground=ground)
        chosen.append((Described(name, fabric, "", length), cut, fabric))
        top, top_cut, top_patterns = _draw_top(rng, marks, woman)
        under = fabric.colors[0]
        outer = _related_fabric(rng, split, top_patterns, fabric, partners(under, split))
        chosen.append((Described(top, outer, _sleeve_word(top_cut.sleeve)), top_cut, outer))
    if rng.random() < 0.14:
        name, cut, patterns = _draw_jacket(rng, marks)
        # In the held-out split few colours suit both what is under it and the bottom, and sometimes none.
        if grounds := partners(outer.colors[0], split, under):
            fabric = _related_fabric(rng, split, patterns, outer, grounds)
            chosen.append((Described(name, fabric), cut, fabric))
    if rng.random() < 0.93:
        name = str(rng.choice(("shoes", "sneakers", "boots"), p=(0.45, 0.35, 0.2)))
        rise = {"shoes": -0.012, "sneakers": 0.012, "boots": 0.09}[name]
        cut = Cut(kind="shoes", hem=marks.ankle + rise, offset=0.009, smoothing=2, wrinkles=0.15, trims=(name,))
        fabric = draw_fabric(rng, split, ("solid",), ground=str(rng.choice(("black", "white", "brown", *COLORS))))
        # Under everything: trousers fall over shoes.
        chosen.insert(0, (Described(name, fabric), cut, fabric))
    if hat_fits and rng.random() < 0.16:
        name = str(rng.choice(tuple(HATS)))
        cut = Cut(kind="hat", hem=0.0, wrinkles=0.12)
        fabric = draw_fabric(
            rng, split, ("knit", "stripes", "solid") if name == "beanie" else ("solid", "dots", "checks")
        )
        chosen.append((Described(name, fabric), cut, fabric))
    if rng.random() < 0.14:
        cut = Cut(kind="bag", hem=0.0, wrinkles=0.15)
        fabric = draw_fabric(rng, split, ("solid", "solid", "stripes", "dots", "floral", "checks", "shapes"))
        chosen.append((Described("bag", fabric), cut, fabric))
    wears: list[Wear] = []
    inner = None
    for described, cut, fabric in chosen:
        if cut.kind == "hat":
            garment = make_hat(cut, described.name, shaped, marks)
        elif cut.kind == "bag":
            size = (float(rng.uniform(0.22, 0.32)), float(rng.uniform(0.18, 0.30)), float(rng.uniform(0.07, 0.11)))
            garment = make_bag(cut, shaped, marks, size)
        else:
            garment = tailor(cut, shaped, marks, inner)
        if garment.tights is not None and cut.kind != "shoes":
            inner = garment.tights
        wears.append(Wear(described, cut, fabric, garment))
    return tuple(wears)


__all__ = ["Wear", "draw_outfit", "variants"]
