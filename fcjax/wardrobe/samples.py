"""Wardrobe: dressed people with their garments' flat pictures, phrases, captions and body maps, all drawn by code."""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int8, UInt8
from numpy import ndarray

from fcjax.body.camera import Camera, view_rotation
from fcjax.body.embedded import ShapedBody, embedded_model, skin
from fcjax.body.maps import BodyMaps, body_maps
from fcjax.wardrobe import captions, scene, shading
from fcjax.wardrobe.backgrounds import KINDS, Background, draw_background
from fcjax.wardrobe.garments import Garment
from fcjax.wardrobe.hair import Hair, grow_hair
from fcjax.wardrobe.meshes import Landmarks, landmarks
from fcjax.wardrobe.outfits import Wear, draw_outfit
from fcjax.wardrobe.people import Person, draw_person
from fcjax.wardrobe.poses import draw_pose
from fcjax.wardrobe.scene import Scene, Surface
from fcjax.wardrobe.shading import Light, Texture, draw_light
from fcjax.wardrobe.studio import draw_camera, draw_view, photograph

EDITION = 3
"""Raised where a seed, split and index give another sample than before, so that what is kept of samples can tell."""
SPLITS = ("train", "heldout")
POSES_PER_OUTFIT = {"train": 3, "heldout": 1}
"""How many neighbouring samples show one person in one outfit: cutting and painting are shared among them."""
SUPERSAMPLING = 2  # subpixels a side; the averages below are written for two
TEXTURE_DENSITY = 1.4  # texture pixels per metre, per pixel of picture height
FLAT_SHARE = 0.75  # greatest size of a flat picture, of the sample's size
SMALL_THINGS = ("shoes", "hat", "bag")
SMALL_SHARE = 0.5  # the same for small things
FACE_SHARE = 0.40
SWATCH_SHARE = 0.34  # of the width
LEAST_REGION = 5e-4  # share of the picture that an asset must cover to count as visible
COLORLESS_SAMPLES = 0.20  # share of samples with flats whose phrases name no colour; those with swatches add to it
SWATCH_SAMPLES = 0.25
FACE_SAMPLES = 0.75
ASSET_SHARES = {"shoes": 0.3, "hat": 0.8, "bag": 0.8}
MOST_GARMENTS = 4  # assets beside the face


@dataclass(frozen=True, eq=False)
class WardrobeAsset:
    """One reference picture: a garment's flat, a swatch of its fabric, or a face."""

    image: UInt8[ndarray, "h w 4"]  # straight alpha, transparent around
    phrase: str
    kind: str  # "top", "jacket", "trousers", "skirt", "dress", "shoes", "hat", "bag", "face" or "swatch"
    garment: str = ""  # the garment's name, for swatches too
    pattern: str = ""  # of its fabric


@dataclass(frozen=True, eq=False)
class Sample:
    """One dressed person and everything that describes the picture."""

    image: UInt8[ndarray, "h w 3"]
    assets: tuple[WardrobeAsset, ...]
    caption: str  # holds every asset's phrase word for word
    subject: str  # whom the caption shows, without what is worn
    maps: BodyMaps
    regions: Int8[ndarray, "h w"]  # 0 none, i + 1 the pixels of asset i
    origins: Float[ndarray, "h w 2"]  # the (x, y) of an asset's picture, 0 to 1, that a pixel shows; -1: of no flat
    foreground: Bool[ndarray, "h w"]
    background: str  # as the caption names it
    backdrop: UInt8[ndarray, "h w 3"]  # the picture without the person (and without the shadow)
    colorless: bool  # no phrase names a colour
    pose: str  # the nearest named pose
    view: float  # degrees about the vertical axis


@dataclass(frozen=True, eq=False)
class Outfit:
    """A person, dressed; what the samples of one outfit share."""

    person: Person
    shaped: ShapedBody
    marks: Landmarks
    hair: Hair | None
    wears: tuple[Wear, ...]
    height: int
    width: int

    @property
    def garments(self) -> tuple[Garment, ...]:
        return tuple(wear.garment for wear in self.wears)

    @functools.cached_property
    def dressed(self) -> Scene:
        return scene.assemble(self.shaped, self.marks, self.hair, self.garments)

    def fitting(self, transforms: Float[ndarray, "53 3 4"]) -> Scene:
        """The scene for a pose: without the bag where its hand is raised above the waist."""
        for index, garment in enumerate(self.garments):
            bone = garment.pieces[0].hangs_from
            if bone:
                moved = transforms[embedded_model().bone_index[bone]]
                height = float(moved[1, :3] @ self.marks.joints[bone] + moved[1, 3])
                if height > self.marks.waist - 0.06:
                    return self.dressed.select(self.dressed.kind != scene.FIRST_GARMENT + index)
        return self.dressed

    @functools.cached_property
    def textures(self) -> tuple[Texture, ...]:
        return tuple(wear.texture(TEXTURE_DENSITY * self.height) for wear in self.wears)

    @functools.cached_property
    def eye_centers(self) -> Float[ndarray, "2 3"]:
        eyes = self.shaped.vertices[embedded_model().ranges["eyes"]]
        return np.stack([eyes[eyes[:, 0] > 0].mean(axis=0), eyes[eyes[:, 0] < 0].mean(axis=0)])

    @property
    def skirted(self) -> bool:
        return any(wear.cut.kind in ("skirt", "dress") for wear in self.wears)

    def render(
        self, shown: Scene, posed: ndarray, camera: Camera, size: tuple[int, int], light: Light, flat: int | None = None
    ) -> tuple[Float[ndarray, "h w 4"], Surface]:
        """A picture with premultiplied alpha in [0, 1], and what its subpixels (2h, 2w) show.

        `flat` says which garment's flat scene this is; None is the person.
        """
        height, width = (SUPERSAMPLING * side for side in size)
        garments = self.garments if flat is None else self.garments[flat : flat + 1]
        textures = self.textures if flat is None else self.textures[flat : flat + 1]
        surface = scene.draw(
            shown, posed, camera.resized(SUPERSAMPLING), height, width, garments, self.marks, self.person
        )
        color = shading.shade(
            shown, surface, light, self.person, self.marks, self.eye_centers, garments, textures, flat is not None
        )
        image = np.zeros((height * width, 4), np.float32)
        image[surface.pixels, :3] = color
        image[surface.pixels, 3] = 1
        image = image.reshape(height, width, 4)
        # Four strided sums are ten times as fast as a mean over two axes.
        image = (image[::2, ::2] + image[::2, 1::2] + image[1::2, ::2] + image[1::2, 1::2]) * np.float32(0.25)
        if flat is None:
            image[..., :3] *= shading.ambient_occlusion(surface)[..., None]
        return image, surface

    def origins(self, shown: Scene, surface: Surface) -> Float[ndarray, "h w 2"]:
        """Where each garment's flat picture shows what a pixel of the person shows, (x, y) as shares of that picture.

        -1 where there is no cloth, and for shoes, hats and bags.
        """
        places = np.full((surface.height * surface.width, 2), -1, np.float32)
        for index, wear in enumerate(self.wears):
            if wear.cut.kind not in SMALL_THINGS:
                camera, size = self._flat_view(index)
                rows = np.flatnonzero(surface.kind == scene.FIRST_GARMENT + index)
                projected = camera.project(surface.interpolate(shown.laid, rows))[:, :2]
                places[surface.pixels[rows]] = projected / np.array(size[::-1])
        places[(places < 0).any(axis=1) | (places > 1).any(axis=1)] = -1
        return places.reshape(surface.height, surface.width, 2)[::SUPERSAMPLING, ::SUPERSAMPLING]

    @functools.cached_property
    def flats(self) -> tuple[UInt8[ndarray, "h w 4"], ...]:
        """Each garment's in-shop picture: laid out, from the front, cut out."""
        return tuple(self._flat(index) for index in range(len(self.wears)))

    def _flat(self, index: int) -> UInt8[ndarray, "h w 4"]:
        flat = scene.flat_scene(self.wears[index].garment)
        points, rotation = flat.points, np.eye(3)
        if self.wears[index].cut.kind == "shoes":
            # A pair, closer together than the feet stood, seen from above and from the side.
            points = points.copy()
            inner = np.abs(points[:, 0]).min()
            points[:, 0] -= np.sign(points[:, 0]) * (inner - 0.02)
            rotation = view_rotation(35, 28)
        elif self.wears[index].cut.kind in SMALL_THINGS:
            rotation = view_rotation(18, 10)
        camera, size = self._flat_view(index, points, rotation)
        image, _ = self.render(flat, points, camera, size, Light(), flat=index)
        return _straight(image)

    def _flat_view(
        self, index: int, points: Float[ndarray, "v 3"] | None = None, rotation: Float[ndarray, "3 3"] | None = None
    ) -> tuple[Camera, tuple[int, int]]:
        """Camera and size (height, width) of a garment's flat picture; small things are framed by their points."""
        rotation = np.eye(3) if rotation is None else rotation
        if self.wears[index].cut.kind in SMALL_THINGS:
            local = points @ rotation.T
            (left, bottom, _), (right, top, _) = local.min(axis=0), local.max(axis=0)
            share = SMALL_SHARE
        else:
            left, right, bottom, top = self.wears[index].garment.extent
            share = FLAT_SHARE
        bound_height, bound_width = int(self.height * share), int(self.width * share)
        scale = 0.92 * min(bound_height / (top - bottom), bound_width / (right - left))
        # Rounded up to whole pixels: a margin of at least four percent stays on every side.
        size = (
            min(int(np.ceil((top - bottom) * scale / 0.92)), bound_height),
            min(int(np.ceil((right - left) * scale / 0.92)), bound_width),
        )
        middle = rotation.T @ np.array([(left + right) / 2, (bottom + top) / 2, 0.0])
        return Camera(scale, (size[1] / 2, size[0] / 2), tuple(middle), rotation), size

    @functools.cached_property
    def face(self) -> UInt8[ndarray, "h w 4"]:
        """The head from the front, cut out at the neck."""
        bare = scene.assemble(self.shaped, self.marks, self.hair, (), bare=True)
        side = int(self.height * FACE_SHARE)
        seed = np.random.default_rng(self.person.hair_seed)
        turn = view_rotation(float(seed.uniform(-16, 16)), float(seed.uniform(-5, 5)))
        joints = self.marks.joints
        center = (0.0, float(joints["head"][1]) + 0.018, float(joints["head"][2]) + 0.05)
        reach = 0.225 if self.person.hair_style == "curly" else 0.19
        camera = Camera(side / (2 * reach), (side / 2, side / 2), center, turn)
        image, _ = self.render(bare, bare.points, camera, (side, side), Light())
        image[0] = image[-1] = 0  # a stray strand must not touch the border
        image[:, 0] = image[:, -1] = 0
        return _straight(image)

    def swatch(self, index: int) -> UInt8[ndarray, "h w 4"]:
        """A square of a garment's fabric with a transparent border."""
        side = int(self.width * SWATCH_SHARE)
        image = np.zeros((side + 4, side + 4, 4), np.uint8)
        image[2:-2, 2:-2, :3] = np.round(self.wears[index].swatch(side) * 255)
        image[2:-2, 2:-2, 3] = 255
        return image


def _straight(image: Float[ndarray, "h w 4"]) -> UInt8[ndarray, "h w 4"]:
    """Premultiplied float to straight 8-bit colours."""
    alpha = image[..., 3:]
    color = np.divide(image[..., :3], alpha, out=np.zeros_like(image[..., :3]), where=alpha > 0)
    return np.round(np.concatenate([color, alpha], axis=-1) * 255).astype(np.uint8)


class Wardrobe:
    """An endless set of dressed people.

    `Wardrobe(split, seed, height, width)[index]` is the same sample on every machine and in every process; the train
    and the heldout split share no colour pairs, no pattern variants and no poses (see `palette`, `textures`,
    `poses`). `backgrounds` limits the kinds of background (see `backgrounds.KINDS`); `swatches` is the share of samples
    that show their main garments' fabrics in place of flats. Of all samples a share of COLORLESS_SAMPLES shows flats
    whose phrases name no colour, or, from swatches of .8 on, all that show flats.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        height: int = 256,
        width: int = 192,
        backgrounds: tuple[str, ...] | None = None,
        swatches: float = SWATCH_SAMPLES,
    ):
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
        if height < 64 or width < 48:
            raise ValueError(f"size is {height}x{width}; Wardrobe's people need at least 64x48 pixels (height x width)")
        unknown = set(backgrounds or ()) - set(KINDS)
        if unknown or backgrounds == ():
            raise ValueError(f"backgrounds are {backgrounds}; expected some of {', '.join(KINDS)}")
        if not 0.0 <= swatches <= 1.0:
            raise ValueError(f"swatches is {swatches}; expected a share of the samples, 0 to 1")
        self.split, self.seed, self.height, self.width, self.backgrounds = split, seed, height, width, backgrounds
        self.swatches = swatches
        self._latest: tuple[int, Outfit] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_latest": None}

    def _rng(self, index: int, use: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), use, index])

    def outfit(self, number: int) -> Outfit:
        """The outfit that samples `number * n` to `number * n + n - 1` show, n being POSES_PER_OUTFIT of the split."""
        if self._latest is not None and self._latest[0] == number:
            return self._latest[1]
        rng = self._rng(number, 0)
        person = draw_person(rng)
        shaped = person.shape()
        marks = landmarks(shaped)
        wears = self._wears(rng, person, shaped, marks)
        hair = grow_hair(person, shaped, marks)
        outfit = Outfit(person, shaped, marks, hair, wears, self.height, self.width)
        self._latest = (number, outfit)
        return outfit

    def other_outfit(self, number: int) -> Outfit:
        """The person of `outfit(number)` in other clothes."""
        first, rng = self.outfit(number), np.random.default_rng([self.seed, SPLITS.index(self.split), 0, number, 1])
        return dataclasses.replace(first, wears=self._wears(rng, first.person, first.shaped, first.marks))

    def _wears(
        self, rng: np.random.Generator, person: Person, shaped: ShapedBody, marks: Landmarks
    ) -> tuple[Wear, ...]:
        hat_fits = person.hair_style not in ("curly", "bun")
        return draw_outfit(rng, self.split, shaped, marks, person.woman, rng.random() < 0.9, hat_fits)

    def _wording(self, rng: np.random.Generator) -> tuple[bool, str]:
        """Whether main garments are shown as swatches, and how much phrases tell (`captions.garment_phrase`)."""
        swatches = rng.random() < self.swatches
        flats = 1 - self.swatches  # above 0 where this sample has some
        colorless = swatches or rng.random() < COLORLESS_SAMPLES / flats
        return swatches, str(rng.choice(("pattern", "noun"))) if colorless else "colors"

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            raise IndexError(f"index is {index}; Wardrobe's samples count from 0 without end")
        return self._photograph(self.outfit(index // POSES_PER_OUTFIT[self.split]), self._rng(index, 1))

    def pages(self, number: int, count: int, changed: int = 0) -> tuple[Sample, ...]:
        """The person of `outfit(number)` in `count` poses, each seen from the front, as far as captions tell.

        The last `changed` of them show `other_outfit(number)`. Which garments are assets, and the words, differ from
        page to page; garments are known by their names.
        """
        found, turn = [], 0
        outfit, other = self.outfit(number), self.other_outfit(number) if changed else None
        while len(found) < count:
            shown = outfit if other is None or len(found) < count - changed else other
            sample = self._photograph(shown, self._rng(number, 4 + turn))
            turn += 1
            if ", seen from " not in sample.caption:
                found.append(sample)
        return tuple(found)

    def _photograph(self, outfit: Outfit, rng: np.random.Generator) -> Sample:
        """The sample of an outfit whose pose, view, light, background and words `rng` draws."""
        rotations, pose = draw_pose(rng, self.split, outfit.skirted)
        view = draw_view(rng)
        facing = view - float(np.degrees(rotations[0, 1]))
        transforms = embedded_model().bone_transforms(outfit.shaped, rotations)
        dressed = outfit.fitting(transforms)
        posed = scene.pose_scene(dressed, transforms, outfit.shaped.joints)
        camera = draw_camera(rng, posed, self.height, self.width, view)
        light = draw_light(rng)
        backdrop = draw_background(rng, self.backgrounds)
        image, surface = outfit.render(dressed, posed, camera, (self.height, self.width), light)
        maps = body_maps(outfit.shaped, rotations, camera, self.height, self.width)
        body = skin(outfit.shaped.vertices[:13380:7], embedded_model().weights[:13380:7], transforms)
        painted, foreground, plate = photograph(image, camera, body, backdrop, light)
        origins = outfit.origins(dressed, surface)
        kinds = surface.labels()
        return self._describe(
            outfit, rng, painted, foreground, plate, kinds, origins, maps, backdrop, pose, view, facing
        )

    def _describe(
        self, outfit, rng, painted, foreground, plate, kinds, origins, maps, backdrop: Background, pose, view, facing
    ) -> Sample:
        """Choose what becomes an asset, name everything, and mark the assets' regions."""
        person, wears = outfit.person, outfit.wears
        seen = np.where(foreground, _majority(kinds), -1)
        swatches, level = self._wording(rng)
        worn, carried, assets, labels = [], [], [], []
        for index, as_asset in _choose(rng, wears, seen):
            wear = wears[index]
            made = wear.described.name, wear.fabric.pattern
            if as_asset and swatches and wear.main:
                phrase = captions.swatch_phrase(wear.described, rng)
                assets.append(WardrobeAsset(outfit.swatch(index), phrase, "swatch", *made))
            else:
                phrase = captions.garment_phrase(wear.described, rng, level if as_asset else "colors")
                if as_asset:
                    assets.append(WardrobeAsset(outfit.flats[index], phrase, wear.cut.kind, *made))
            (carried if wear.cut.kind == "bag" else worn).append(phrase)
            if as_asset:
                labels.append((scene.FIRST_GARMENT + index,))
        face = None
        bare_face = maps.face_mask & np.isin(seen, (scene.SKIN, scene.EYES))
        if rng.random() < FACE_SAMPLES and np.count_nonzero(bare_face) >= LEAST_REGION * seen.size:
            face = captions.face_phrase(person, rng)
            assets.append(WardrobeAsset(outfit.face, face, "face"))
            labels.append(())
        order = rng.permutation(len(assets))
        regions = np.zeros(seen.shape, np.int8)
        for place, chosen in enumerate(order):
            covered = np.isin(seen, labels[chosen]) if labels[chosen] else bare_face
            regions[covered] = place + 1
        flat = [place + 1 for place, chosen in enumerate(order) if assets[chosen].kind not in ("swatch", "face")]
        # The subpixel that says the origin must be of the garment that the pixel shows.
        origins[~np.isin(regions, flat) | (kinds[::SUPERSAMPLING, ::SUPERSAMPLING] != seen)] = -1
        place = captions.background_words(backdrop, rng)
        subject = captions.subject_words(person, face, rng)
        caption = captions.caption_words(subject, tuple(worn), tuple(carried), _view_words(facing), place, rng)
        return Sample(
            image=painted,
            assets=tuple(assets[chosen] for chosen in order),
            caption=caption,
            subject=subject,
            maps=maps,
            regions=regions,
            origins=origins,
            foreground=foreground,
            background=place,
            backdrop=plate,
            colorless=level != "colors",
            pose=pose,
            view=view,
        )


def _choose(rng: np.random.Generator, wears: tuple[Wear, ...], seen: ndarray) -> list[tuple[int, bool]]:
    """Which garments the caption names, from the outermost to the innermost, and whether each is an asset.

    Main garments nearly always are; a garment that is not is told by its phrase alone.
    """
    least = LEAST_REGION * seen.size
    visible = [i for i in range(len(wears)) if np.count_nonzero(seen == scene.FIRST_GARMENT + i) >= least]
    chosen: dict[int, bool] = {}
    assets = 0
    # Main garments first: at most MOST_GARMENTS become assets.
    for index in sorted(visible, key=lambda i: not wears[i].main):
        kind = wears[index].cut.kind
        share = 0.95 if wears[index].main and assets else 1.0 if wears[index].main else ASSET_SHARES[kind]
        as_asset = bool(rng.random() < share) and assets < MOST_GARMENTS
        if not as_asset and kind == "shoes" and rng.random() < 0.6:
            continue  # most captions do not mention shoes
        assets += as_asset
        chosen[index] = as_asset
    return sorted(chosen.items(), reverse=True)


def _view_words(view: float) -> str:
    """How the caption puts an angle between the camera and where the hips face, degrees."""
    view = abs((view + 180) % 360 - 180)
    if view > 120:
        return "behind"
    return "the side" if view > 45 else ""


def _majority(kinds: ndarray) -> ndarray:
    """Per pixel the label that most of its four subpixels carry."""
    a, b, c, d = kinds[::2, ::2], kinds[::2, 1::2], kinds[1::2, ::2], kinds[1::2, 1::2]
    return np.where((a == b) | (a == c) | (a == d), a, np.where((b == c) | (b == d), b, np.where(c == d, c, a)))
