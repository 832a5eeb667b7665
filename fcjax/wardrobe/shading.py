"""What a seen pixel looks like: skin, eyes, hair, cloth under one key light, a fill light and ambient light."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcjax.wardrobe import motifs
from fcjax.wardrobe.garments import Garment
from fcjax.wardrobe.meshes import Landmarks, smoothstep
from fcjax.wardrobe.people import Person
from fcjax.wardrobe.scene import EYES, FIRST_GARMENT, HAIR, SKIN, Scene, Surface


@dataclass(frozen=True)
class Light:
    """Directions are in camera axes: x to the right, y up, z towards the viewer."""

    key: tuple[float, float, float] = (0.45, 0.55, 0.70)
    key_strength: float = 0.52
    fill: tuple[float, float, float] = (-0.86, 0.16, 0.48)
    fill_strength: float = 0.16
    ambient: float = 0.44
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def shade(self, normals: Float[ndarray, "n 3"]) -> Float[ndarray, "n"]:
        key = np.asarray(self.key, np.float32) / np.float32(np.linalg.norm(self.key))
        fill = np.asarray(self.fill, np.float32) / np.float32(np.linalg.norm(self.fill))
        # Light wraps a little around the terminator, as from a softbox.
        lit = np.clip((normals @ key + 0.15) / 1.15, 0, 1)
        return self.ambient + self.key_strength * lit + self.fill_strength * np.clip(normals @ fill, 0, 1)


def draw_light(rng: np.random.Generator) -> Light:
    """A photographer's light: from the left or the right, mostly from above, hard or soft, warm or cool."""
    azimuth, elevation = rng.uniform(-1.1, 1.1), rng.uniform(0.25, 1.0)
    key = (np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation))
    strength = rng.uniform(0.36, 0.62)
    ambient = 0.89 - strength + rng.uniform(-0.04, 0.05)
    warm = rng.normal(0, 0.02)
    return Light(
        key=key,
        key_strength=strength,
        fill=(-key[0], 0.2, 0.5),
        fill_strength=rng.uniform(0.08, 0.2),
        ambient=ambient,
        tint=(1 + warm, 1.0, 1 - warm),
    )


@dataclass(frozen=True, eq=False)
class Texture:
    """A painted garment: front and back over the flat extent."""

    front: Float[ndarray, "h w 3"]
    back: Float[ndarray, "h w 3"]
    left: float  # metres of the first pixel's edge
    top: float
    density: float  # pixels per metre

    def look_up(self, flat: Float[ndarray, "n 2"], front: ndarray) -> Float[ndarray, "n 3"]:
        height, width = self.front.shape[:2]
        column = np.clip(((flat[:, 0] - self.left) * self.density).astype(np.int32), 0, width - 1)
        row = np.clip(((self.top - flat[:, 1]) * self.density).astype(np.int32), 0, height - 1)
        index = row * width + column
        color = self.front.reshape(-1, 3)[index]
        if not front.all():
            behind = np.flatnonzero(~front)
            color[behind] = self.back.reshape(-1, 3)[index[behind]]
        return color


@functools.lru_cache(maxsize=1)
def _creases() -> Float[ndarray, "h w 2"]:
    """Slopes of a crumpled sheet, periodic, about unit strength: sharp valleys between soft ridges."""
    tile = motifs.noise(np.arange(512) / 512 * 4, np.arange(512) / 512 * 4, 0.0625, np.random.default_rng(5))
    ridge = 1 - np.abs(2 * tile - 1) ** 1.4
    slope_x = np.roll(ridge, -2, axis=1) - np.roll(ridge, 2, axis=1)
    slope_y = np.roll(ridge, -2, axis=0) - np.roll(ridge, 2, axis=0)
    return np.stack([slope_x, slope_y], axis=-1).astype(np.float32) * 1.6


def _crumple(flat: ndarray, cell: tuple[float, float], lean: float, phase: int) -> Float[ndarray, "n 2"]:
    table = _creases()
    x, y = flat[:, 0] + lean * flat[:, 1], flat[:, 1]
    column = (x * np.float32(8 / cell[0])).astype(np.int32) + phase
    row = (y * np.float32(8 / cell[1])).astype(np.int32) + phase * 3
    return table[row & 511, column & 511]


def shade(
    scene: Scene,
    surface: Surface,
    light: Light,
    person: Person | None,
    marks: Landmarks,
    eye_centers: Float[ndarray, "2 3"],
    garments: tuple[Garment, ...],
    textures: tuple[Texture, ...],
    laid_out: bool = False,
) -> Float[ndarray, "n 3"]:
    """Colours of the seen pixels, float32 RGB in [0, 1]."""
    color = np.empty((len(surface.pixels), 3), np.float32)
    normals = surface.normals.copy()
    rows = {kind: np.flatnonzero(surface.kind == kind) for kind in np.unique(surface.kind)}
    for kind, chosen in rows.items():
        if kind == SKIN and person is not None:
            color[chosen] = _skin(scene, surface, chosen, person, marks, eye_centers)
        elif kind == EYES and person is not None:
            color[chosen] = _eyes(scene, surface, chosen, person, eye_centers)
        elif kind == HAIR and person is not None:
            color[chosen] = _hair(scene, surface, chosen, person, light)
        elif kind >= FIRST_GARMENT:
            garment, texture = garments[kind - FIRST_GARMENT], textures[kind - FIRST_GARMENT]
            color[chosen], normals[chosen] = _cloth(scene, surface, chosen, garment, texture, laid_out)
    color *= light.shade(normals)[:, None] * np.asarray(light.tint, np.float32)
    gloss = np.zeros(len(color), np.float32)
    half = np.asarray(light.key) / np.linalg.norm(light.key) + np.array((0, 0, 1))
    half = (half / np.linalg.norm(half)).astype(np.float32)
    for kind, strength, power in ((SKIN, 0.07, 16), (EYES, 0.5, 60)):
        if kind in rows:
            gloss[rows[kind]] = strength * np.clip(normals[rows[kind]] @ half, 0, 1) ** power
    color += gloss[:, None]
    return np.clip(color, 0, 1, out=color)


def _skin(scene, surface, chosen, person, marks, eye_centers) -> ndarray:
    skin = person.skin.astype(np.float32)
    color = np.tile(skin, (len(chosen), 1))
    rest = surface.interpolate(scene.rest, chosen)
    features = surface.interpolate(scene.features, chosen)
    face = np.flatnonzero((rest[:, 1] > marks.neck + 0.02) & (rest[:, 2] > eye_centers[0, 2] - 0.075))
    if not len(face):
        return color
    tone = color[face]
    lips = features[face, 0]
    x, y, z = rest[face].T
    eye_height = float(eye_centers[:, 1].mean())
    size = float(np.abs(eye_centers[:, 0]).mean()) / 0.032  # of this face

    def mix(coverage: ndarray, wanted: ndarray | tuple[float, float, float]) -> None:
        nonlocal tone
        tone = tone + coverage[:, None].astype(np.float32) * (np.asarray(wanted, np.float32) - tone)

    mouth = eye_height - 0.066 * size
    if person.blush:
        blob = np.exp(-(((np.abs(x) - 0.040 * size) / 0.017) ** 2) - ((y - eye_height + 0.035 * size) / 0.017) ** 2)
        mix(person.blush * blob, skin * (1.0, 0.70, 0.68))
    if person.beard:
        low = smoothstep(mouth + 0.020 * size, mouth + 0.004 * size, y)
        jaw = smoothstep(0.040 * size, 0.052 * size, np.abs(x)) * smoothstep(eye_height - 0.005, mouth + 0.02, y)
        whiskers = np.maximum(low, jaw) * smoothstep(mouth - 0.085 * size, mouth - 0.060 * size, y)
        grain = 0.85 + 0.15 * np.sin(x * 2100) * np.sin(y * 1900 + x * 700)
        mix(
            whiskers * (1 - np.clip(lips * 1.6, 0, 1)) * grain * (0.9 if person.beard > 0.7 else 0.38),
            person.hair * 0.9,
        )
    mix(np.clip(lips, 0, 1) * person.lip_strength, person.lips)
    mix(np.clip(lips, 0, 1) * np.exp(-(((y - mouth) / 0.0016) ** 2)) * 0.5, person.lips * 0.45)
    thickness, arch = person.brow
    for center, sign in zip(eye_centers, (1, -1), strict=True):
        across, up = (x - center[0]) * sign / size, (y - center[1]) / size
        # Sockets, lashes, brows.
        mix(0.30 * np.clip(1 - np.hypot(across / 0.026, (up - 0.002) / 0.015), 0, 1), skin * 0.35)
        lash = np.exp(-(((np.hypot(across / 0.0175, (up + 0.001) / 0.0085) - 1) / 0.14) ** 2)) * (up > 0.001)
        mix((0.85 if person.woman else 0.45) * lash, (0.06, 0.05, 0.05))
        taper = np.clip(1 - ((across - 0.003) / 0.022) ** 2, 0, 1)
        line = 0.0225 + 0.08 * across - arch * 8.0 * (across - 0.006) ** 2
        brow = np.clip(1.5 - np.abs(up - line) / (0.0030 * thickness * taper**0.5 + 1e-5), 0, 1) * (taper > 0)
        mix(0.8 * brow, person.hair * 0.75 if person.hair_color not in ("white", "blond") else person.hair * 0.6)
        if person.glasses != "none":
            radius = 0.024
            if person.glasses == "round":
                distance = np.abs(np.hypot(across, up) - radius)
            else:
                distance = np.abs(np.maximum(np.abs(across), np.abs(up) * 1.35) - radius)
            bridge = (np.abs(up - 0.006) < 0.0018) & (across < -0.022)
            mix(np.clip(1.6 - distance / 0.0018, 0, 1) * (z > center[2] - 0.03), (0.08, 0.08, 0.09))
            mix(bridge * 0.9, (0.08, 0.08, 0.09))
    color[face] = tone
    return color


def _eyes(scene, surface, chosen, person, eye_centers) -> ndarray:
    rest = surface.interpolate(scene.rest, chosen)
    color = np.full((len(chosen), 3), 0.90, np.float32)
    for center in eye_centers:
        distance = np.hypot(rest[:, 0] - center[0], rest[:, 1] - center[1])
        color[distance < 0.0068] = person.eyes * 0.55
        color[distance < 0.0058] = person.eyes
        color[distance < 0.0028] = 0.03
        glint = np.hypot(rest[:, 0] - center[0] - 0.002, rest[:, 1] - center[1] - 0.0026) < 0.0013
        color[glint] = 1.0
    return color * (0.84 + 0.16 * smoothstep(0.006, -0.002, rest[:, 1] - eye_centers[:, 1].mean()))[:, None]


def _hair(scene, surface, chosen, person, light) -> ndarray:
    around, along = surface.interpolate(scene.flat, chosen).T
    waviness = 0.25 * np.sin(along * 23 + around * 2)
    fine = np.sin(around * 83 + waviness * 4 + np.sin(along * 11) * 1.5) * np.sin(around * 37 + along * 9 + 1.3)
    broad = np.sin(around * 13 + 2.2 * np.sin(along * 7 + around))
    base = person.hair.astype(np.float32)
    tone = 0.86 + 0.20 * fine + 0.12 * broad
    tone *= 1 - 0.25 * surface.inside[chosen]
    color = base * tone[:, None].astype(np.float32)
    # A band of light across the strands, where their tangent is at right angles to the half vector.
    normal = surface.normals[chosen]
    key = np.asarray(light.key) / np.linalg.norm(light.key)
    facing = np.clip(normal @ np.array([0.35 * key[0], 0.55, 0.75], np.float32), 0, 1)
    band = np.exp(-(((facing - 0.93 + 0.03 * fine) / 0.05) ** 2))
    color += (0.10 + 0.28 * base) * (band * (0.8 + 0.4 * fine))[:, None]
    return color * (1 - 0.5 * smoothstep(0.25, -0.4, normal[:, 2]))[:, None]


def _cloth(scene, surface, chosen, garment, texture, laid_out) -> tuple[ndarray, ndarray]:
    attributes = np.concatenate([scene.flat, scene.fields[:, :2], scene.rest[:, 2:], surface.squeeze[:, None]], axis=1)
    attributes = surface.interpolate(attributes, chosen)
    flat, edge, depth, squeeze = (
        attributes[:, :2],
        np.minimum(attributes[:, 2], attributes[:, 3]),
        attributes[:, 4],
        attributes[:, 5],
    )
    inside = surface.inside[chosen]
    front = ~inside if laid_out else depth > garment.depth
    color = texture.look_up(flat, front)
    cut = garment.cut
    strength = cut.wrinkles * ((0.5 if laid_out else 1.0) + (0 if laid_out else 6.0) * squeeze)
    phase = 37 * cut.fold_count
    if cut.kind in ("skirt", "dress"):
        large, small = _crumple(flat, (0.07, 0.5), 0.1, phase), _crumple(flat, (0.05, 0.09), 0.4, phase + 91)
    elif cut.kind == "trousers":
        large, small = _crumple(flat, (0.16, 0.09), 0.3, phase), _crumple(flat, (0.05, 0.06), -0.5, phase + 91)
    else:
        large, small = _crumple(flat, (0.12, 0.20), 0.55, phase), _crumple(flat, (0.06, 0.07), -0.4, phase + 91)
    normals = surface.normals[chosen].copy()
    normals[:, :2] += (0.62 * large + 0.22 * small) * strength[:, None]
    normals /= np.sqrt(np.einsum("nk,nk->n", normals, normals))[:, None]
    # A seam near the cloth's ends and a darker edge.
    color = color * np.where(((edge > 0.011) & (edge < 0.0145)) | (edge < 0.002), 0.80, 1.0)[:, None].astype(np.float32)
    if cut.opening:  # a facing along a jacket's front, which tells it from what is worn beneath
        color *= np.where((edge < 0.011) & (edge > 0), 0.78, 1.0)[:, None].astype(np.float32)
    color *= np.where(inside, 0.55, 1.0)[:, None].astype(np.float32)
    # Valleys are darker than slopes alone tell.
    color *= (1 - 0.22 * strength * np.clip(np.abs(large[:, 0]) + np.abs(large[:, 1]) - 0.25, 0, 1))[:, None]
    return color, normals


def box_blur(image: Float[ndarray, "h w"], radius: int) -> Float[ndarray, "h w"]:
    """The mean over a square of 2 radius + 1 pixels a side; the border is repeated."""
    for axis in (0, 1):
        padding = [(radius + 1, radius) if side == axis else (0, 0) for side in (0, 1)]
        total = np.cumsum(np.pad(image, padding, mode="edge"), axis=axis, dtype=np.float32)
        ahead, behind = (total[2 * radius + 1 :], total[: -2 * radius - 1]) if axis == 0 else (
            total[:, 2 * radius + 1 :], total[:, : -2 * radius - 1])  # fmt: skip
        image = (ahead - behind) / np.float32(2 * radius + 1)
    return image


def ambient_occlusion(surface: Surface) -> Float[ndarray, "h2 w2"]:
    """How much light reaches each pixel of half the surface's size past its neighbours that stand nearer, in [0.65,
    1]."""
    depth = np.full(surface.height * surface.width, np.nan, np.float32)
    depth[surface.pixels] = surface.depth
    depth = depth.reshape(surface.height, surface.width)[::2, ::2]
    if not len(surface.depth):
        return np.ones(depth.shape, np.float32)
    # The background counts as far: only parts of the person shade each other.
    depth = np.where(np.isnan(depth), surface.depth.max(), depth)
    around = box_blur(depth, max(round(surface.height / 2 * 0.016), 1))
    return 1 - np.clip((depth - around - 0.006) * 6.0, 0, 0.35)
