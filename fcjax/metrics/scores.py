"""The figures of composed pictures where the truth is known: what one picture gives, set by set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int8, UInt8
from numpy import ndarray

from fcjax.metrics.palette import Palette, nearest_palette, palette_distance, region_palette
from fcjax.metrics.pictures import check_bytes, psnr, texture_correlation
from fcjax.metrics.silhouette import iou, silhouette
from fcjax.metrics.ssim import ssim_outside
from fcjax.metrics.texels import psnr_outside, texel_psnr, texel_ssim

FIGURES = {
    "binding_accuracy": "binding accuracy",
    "told_binding_accuracy": "binding accuracy where the truth tells",
    "swap_test": "swap test",
    "palette_distance": "palette distance to the own asset",
    "other_palette_distance": "palette distance to the nearest other asset",
    "texture_correlation": "texture correlation",
    "face_distance": "face: palette distance to the own face",
    "wrong_face_distance": "face: palette distance to a wrong face",
    "face_recognised": "face: own nearer than a wrong one",
    "silhouette_iou": "silhouette IoU",
    "psnr": "PSNR against the truth (dB)",
    "texel_psnr": "PSNR on the body's charts (dB)",
    "texel_ssim": "SSIM on the body's charts",
    "ssim_outside": "outside the mask: SSIM to the person",
    "kept_outside": "outside the mask: share of pixels that are the person's exactly",
    "raw_ssim_outside": "outside the mask, before the person is put back: SSIM to the person",
    "raw_psnr_outside": "outside the mask, before the person is put back: PSNR to the person (dB)",
}
"""Every figure with the words that a table has for it."""
FACE = "face"
TELLING = 0.8
"""The truth tells whose a garment is if its own asset is nearer than this share of the nearest other one's distance."""


@dataclass(frozen=True, eq=False)
class Target:
    """What a picture is held against. The tuples run over the assets.

    A region is where the true picture shows an asset; a composed picture has the same pose, so its garments are there
    too, but for their outlines.

    person, mask: of a try-on, the picture that garments are put on, and True where it is repainted.
    """

    kinds: tuple[str, ...]
    palettes: tuple[Palette, ...]  # of the assets themselves
    regions: Int8[ndarray, "h w"]  # 0 none, i + 1 the pixels of asset i
    patterns: tuple[str, ...] = ()  # names of the assets' patterns, to sort textures by
    truth: UInt8[ndarray, "h w 3"] | None = None
    foreground: Bool[ndarray, "h w"] | None = None  # None where the background does not allow to measure it
    iuv: UInt8[ndarray, "h w 3"] | None = None  # the body that truth and picture share
    person: UInt8[ndarray, "h w 3"] | None = None
    mask: Bool[ndarray, "h w"] | None = None

    @cached_property
    def telling(self) -> tuple[bool, ...]:
        """Per asset whether the true picture's palette tells it from the others, by a margin.

        It does not where two garments are of one fabric, or where a hat shows its dark underside alone.
        """
        if self.truth is None:
            return (False,) * len(self.kinds)
        return tuple(self._tells(self.truth, index) for index in range(len(self.kinds)))

    def _tells(self, truth: UInt8[ndarray, "h w 3"], index: int) -> bool:
        palette = region_palette(truth, self.regions == index + 1)
        if palette is None or len(self.palettes) < 2:
            return False
        _, distances = nearest_palette(palette, list(self.palettes))
        return bool(distances[index] <= TELLING * np.delete(distances, index).min())


@dataclass(frozen=True, eq=False)
class Scores:
    """Lists of values under the names of FIGURES, one value a garment or one a picture."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    textures: dict[str, list[float]] = field(default_factory=dict)  # texture correlation by pattern
    face: Palette | None = None  # of the face's region


def score(picture: UInt8[ndarray, "h w 3"], target: Target, raw: UInt8[ndarray, "h w 3"] | None = None) -> Scores:
    """All that one picture tells by itself.

    Binding accuracy: 1 where a garment's region is nearest in palette to its own asset among all assets of the set,
    the face included; not counted where there is one asset alone. The second accuracy leaves out what the true picture
    would not pass by a margin (`Target.telling`), so that its ceiling is 1. Texture and PSNR need a truth, IoU a
    foreground, what lies outside the mask a person.

    raw: of a try-on, the model's own picture, before the person was put back outside the mask; by default the picture.
    """
    if picture.shape[:2] != target.regions.shape:
        raise ValueError(f"a picture of {picture.shape[:2]} cannot be scored by regions of {target.regions.shape}")
    check_bytes("a score", picture)
    scores = Scores()

    def note(name: str, value: float) -> None:
        scores.figures.setdefault(name, []).append(float(value))

    def noted(name: str, value: float | None) -> None:
        """What there is, and what has a mean: pictures that are equal have an infinite PSNR."""
        if value is not None and np.isfinite(value):
            note(name, value)

    face = None
    for index, kind in enumerate(target.kinds):
        region = target.regions == index + 1
        palette = region_palette(picture, region)
        if kind == FACE:
            face = palette
            continue
        if palette is not None:
            nearest, distances = nearest_palette(palette, list(target.palettes))
            note("palette_distance", distances[index])
            if len(distances) > 1:
                note("binding_accuracy", nearest == index)
                if target.telling[index]:
                    note("told_binding_accuracy", nearest == index)
                note("other_palette_distance", np.delete(distances, index).min())
        if target.truth is not None:
            correlation = texture_correlation(picture, target.truth, region)
            if correlation is not None:
                note("texture_correlation", correlation)
                if target.patterns:
                    scores.textures.setdefault(target.patterns[index], []).append(correlation)
    if target.foreground is not None:
        note("silhouette_iou", iou(silhouette(picture), target.foreground))
    if target.truth is not None and not np.array_equal(picture, target.truth):
        note("psnr", psnr(picture, target.truth))
    if target.truth is not None and target.iuv is not None:
        noted("texel_psnr", texel_psnr(picture, target.iuv, target.truth, target.iuv))
        noted("texel_ssim", texel_ssim(picture, target.iuv, target.truth, target.iuv))
    if target.person is not None and target.mask is not None and not target.mask.all():
        kept = (picture == target.person).all(axis=-1)[~target.mask]
        note("kept_outside", kept.mean())
        own = picture if raw is None else raw
        noted("ssim_outside", ssim_outside(picture, target.person, target.mask))
        noted("raw_ssim_outside", ssim_outside(own, target.person, target.mask))
        noted("raw_psnr_outside", psnr_outside(own, target.person, target.mask))
    return Scores(scores.figures, scores.textures, face)


def face_scores(
    shown: Sequence[Palette | None], faces: Sequence[Palette | None], people: Sequence[int] | None = None
) -> list[dict[str, list[float]]]:
    """Each picture's face against its own asset and against those of all other people.

    shown: the faces' regions in the pictures, None where there is none; faces: the assets (`face_palette`); people:
    whose picture each is, as a number; by default nobody has two.
    """
    people = range(len(faces)) if people is None else people
    results: list[dict[str, list[float]]] = []
    for person, palette, own in zip(people, shown, faces, strict=True):
        others = [face for other, face in zip(people, faces, strict=True) if other != person and face is not None]
        if palette is None or own is None or not others:
            results.append({})
            continue
        distance = palette_distance(palette, own)
        wrong = [palette_distance(palette, face) for face in others]
        results.append(
            {
                "face_distance": [distance],
                "wrong_face_distance": [float(np.mean(wrong))],
                "face_recognised": [float(np.mean(np.array(wrong) > distance))],
            }
        )
    return results


def places_exchanged(
    plain: UInt8[ndarray, "h w 3"], exchanged: UInt8[ndarray, "h w 3"], target: Target, pair: tuple[int, int]
) -> bool:
    """The swap test of one set: whether two assets change places when their phrases are exchanged.

    Of the two assets alone, each region must be nearest to its own in the plain picture and to the other one in the
    picture whose phrases were exchanged.
    """
    first, second = pair
    candidates = [target.palettes[first], target.palettes[second]]

    def shown(picture: ndarray) -> list[int | None]:
        palettes = [region_palette(picture, target.regions == index + 1) for index in pair]
        return [None if palette is None else nearest_palette(palette, candidates)[0] for palette in palettes]

    return shown(plain) == [0, 1] and shown(exchanged) == [1, 0]
