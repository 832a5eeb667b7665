"""Sets that ask for binding: garments of like look, which colours that their phrases name tell apart."""

import dataclasses

import numpy as np

from fcjax.wardrobe.outfits import Wear
from fcjax.wardrobe.palette import COLORS, partners
from fcjax.wardrobe.samples import Outfit, Sample, Wardrobe
from fcjax.wardrobe.textures import Fabric, draw_fabric

PATTERNS = ("solid", "dots", "shapes")
"""Of these the ground shows most, so that fabrics with exchanged colours differ in palette."""
TOGETHER = 2
"""So many samples in a row are one person in one pose: figures of them are no independent ones."""
_TRIES = 64


class Alike(Wardrobe):
    """Wardrobe's people in garments of one pattern, whose colours all phrases name.

    Samples 2k and 2k + 1 are one person in one pose; in the second the colours of top and bottom are exchanged. A
    jacket has a colour of its own, in both.
    """

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            raise IndexError(f"index is {index}; samples count from 0 without end")
        pair, exchanged = divmod(index, TOGETHER)
        return self._photograph(self._dressed_alike(pair, bool(exchanged)), self._rng(pair, 3))

    def _dressed_alike(self, number: int, exchanged: bool) -> Outfit:
        for turn in range(_TRIES):
            outfit = self.outfit(_TRIES * number + turn)
            mains = [place for place, wear in enumerate(outfit.wears) if wear.main]
            if len(mains) > 1:
                break
        else:
            raise RuntimeError(f"none of {_TRIES} outfits has two garments")
        bottom, top, *jackets = mains
        first, second, third = self._fabrics(self._rng(number, 2))
        if exchanged:
            first, second = second, first
        fabrics = {top: first, bottom: second, **dict.fromkeys(jackets, third)}
        wears = tuple(_made_of(wear, fabrics.get(place, wear.fabric)) for place, wear in enumerate(outfit.wears))
        return dataclasses.replace(outfit, wears=wears)

    def _fabrics(self, rng: np.random.Generator) -> tuple[Fabric, Fabric, Fabric]:
        """Three of one pattern: the second in the first's colours the other way round, the third on another ground."""
        one = draw_fabric(rng, self.split, PATTERNS, ground=str(rng.choice(COLORS)))
        others = [str(name) for name in rng.permutation(partners(one.colors[0], self.split))]
        if len(one.colors) == 1:
            two = draw_fabric(rng, self.split, (one.pattern,), ground=others[0])
        else:
            shades = one.shades.copy()
            shades[:2] = one.shades[1::-1]
            two = dataclasses.replace(one, colors=one.colors[::-1], shades=shades)
        ground = next((name for name in others if name not in two.colors), others[0])
        return one, two, draw_fabric(rng, self.split, (one.pattern,), ground=ground)

    def _wording(self, rng: np.random.Generator) -> tuple[bool, str]:
        return False, "colors"


def _made_of(wear: Wear, fabric: Fabric) -> Wear:
    return dataclasses.replace(wear, fabric=fabric, described=dataclasses.replace(wear.described, fabric=fabric))
