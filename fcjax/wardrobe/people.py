"""Who wears the clothes: shape, skin, hair and the features that tell one face from another."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcjax.body.embedded import ShapedBody, embedded_model

HAIR_COLORS: dict[str, tuple[float, float, float]] = {
    "black": (0.09, 0.075, 0.07),
    "brown": (0.27, 0.16, 0.09),
    "blond": (0.80, 0.62, 0.34),
    "red": (0.55, 0.20, 0.08),
    "grey": (0.58, 0.58, 0.58),
    "white": (0.86, 0.85, 0.83),
}
# Style: chance for women, chance for men.
HAIR_STYLES: dict[str, tuple[float, float]] = {
    "short": (1.2, 4.0),
    "cropped": (0.2, 2.5),
    "bob": (2.2, 0.15),
    "long": (3.0, 0.3),
    "wavy": (2.0, 0.2),
    "fringe": (1.6, 0.2),
    "bun": (1.3, 0.1),
    "ponytail": (1.3, 0.15),
    "curly": (1.2, 0.8),
    "bald": (0.0, 0.7),
}
EYE_COLORS = ((0.28, 0.17, 0.09), (0.20, 0.36, 0.55), (0.25, 0.42, 0.28), (0.42, 0.30, 0.14), (0.36, 0.42, 0.46))
SKIN_TONES = (
    (0.94, 0.78, 0.69), (0.91, 0.72, 0.61), (0.87, 0.66, 0.53), (0.79, 0.57, 0.42), (0.68, 0.46, 0.32),
    (0.54, 0.35, 0.24), (0.41, 0.26, 0.18), (0.31, 0.20, 0.15),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Person:
    """A person before dressing. Colours are RGB in [0, 1]."""

    sliders: dict[str, float | tuple[float, ...]]  # arguments of EmbeddedModel.shape
    skin: Float[ndarray, "3"]
    hair_style: str
    hair_color: str  # a name of HAIR_COLORS
    hair: Float[ndarray, "3"]
    hair_seed: int
    eyes: Float[ndarray, "3"]
    lips: Float[ndarray, "3"]
    lip_strength: float
    blush: float
    brow: tuple[float, float]  # thickness and arch, 1 is average
    beard: float  # 0 none, 0.5 stubble, 1 full
    glasses: str  # "none" | "round" | "square"

    @property
    def woman(self) -> bool:
        return self.sliders["gender"] < 0.5  # type: ignore[operator]

    @property
    def noun(self) -> str:
        return "woman" if self.woman else "man"

    def shape(self) -> ShapedBody:
        return embedded_model().shape(**self.sliders)  # type: ignore[arg-type]


def draw_person(rng: np.random.Generator) -> Person:
    """A random adult."""
    woman = rng.random() < 0.55
    ethnicity = rng.dirichlet((0.5, 0.5, 0.5))
    age = float(rng.beta(1, 2.2))
    # Dark skin goes with darker hair more often than chance; every tone occurs with every shape.
    tone = float(np.clip(rng.normal(0.55 * ethnicity[0] + 0.25 * ethnicity[1] + 0.15, 0.17), 0, 1)) * (
        len(SKIN_TONES) - 1
    )
    low = min(int(tone), len(SKIN_TONES) - 2)
    tones = np.array(SKIN_TONES[low : low + 2])
    skin = tones[0] + (tones[1] - tones[0]) * (tone - low)
    skin = np.clip(skin * rng.uniform(0.97, 1.03) * rng.uniform(0.985, 1.015, 3), 0, 1)
    if age > 0.6 and rng.random() < 0.7:
        names, chances = ("grey", "white"), (0.6, 0.4)
    elif tone > 4:
        names, chances = ("black", "brown", "red", "blond"), (0.68, 0.22, 0.04, 0.06)
    else:
        names, chances = ("black", "brown", "blond", "red"), (0.25, 0.33, 0.28, 0.14)
    hair_color = str(rng.choice(names, p=chances))
    hair = np.clip(np.array(HAIR_COLORS[hair_color]) * rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3), 0, 1)
    weights = np.array([chance[0 if woman else 1] for chance in HAIR_STYLES.values()])
    style = str(rng.choice(list(HAIR_STYLES), p=weights / weights.sum()))
    makeup = woman and rng.random() < 0.45
    lips = np.array([(0.72, 0.12, 0.18), (0.78, 0.30, 0.38), (0.55, 0.13, 0.25)][rng.integers(3)])
    beard = 0.0 if woman else float(rng.choice((0.0, 0.45, 1.0), p=(0.5, 0.2, 0.3)))
    return Person(
        sliders=dict(
            gender=0.0 if woman else 1.0,
            age=0.85 * age,
            height=float(np.clip(rng.normal(0.5, 0.12), 0.25, 0.75)),
            weight=float(np.clip(rng.normal(0.47, 0.14), 0.18, 0.85)),
            muscle=float(np.clip(rng.normal(0.52, 0.12), 0.2, 0.85)),
            proportions=float(rng.uniform(0.45, 0.85)),
            cup=float(np.clip(rng.normal(0.45, 0.15), 0.1, 0.8)),
            ethnicity=tuple(float(share) for share in ethnicity),
        ),
        skin=skin,
        hair_style=style,
        hair_color=hair_color,
        hair=hair,
        hair_seed=int(rng.integers(2**31)),
        eyes=np.array(EYE_COLORS[rng.integers(len(EYE_COLORS)) if tone < 3.5 else 0]),
        lips=lips if makeup else skin * (0.86, 0.56, 0.55),
        lip_strength=0.85 if makeup else 0.7,
        blush=float(rng.uniform(0, 0.25)),
        brow=(float(rng.uniform(0.7, 1.1) if woman else rng.uniform(0.9, 1.6)), float(rng.uniform(0.4, 1.6))),
        beard=beard,
        glasses=str(rng.choice(("none", "round", "square"), p=(0.85, 0.08, 0.07))),
    )
