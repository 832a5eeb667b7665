"""Albums: several pictures of one person, each in a pose, a view and an outfit of its own.

pages = [fcjax.Page(fcjax.Body(pose="walking"), "a woman in a red dress", [dress]), ...]
album = fcjax.make_album(fcjax.Composer.load("mini"), pages, seed=0)
album.pictures[0].image.save("page.png")

What makes the pages one person's, without training (the paper's section on albums): from the second page on, tokens
use keys and values of the first page's instead of their own. "cross_frame" exchanges all of them, "correspondence"
those that show the same place of the body, and then the album is made twice (`align`): the faces of a cross-frame one
are put into the other's latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from PIL import Image

from fcjax.assets import Placeable
from fcjax.body import Body, BodyMaps
from fcjax.body.matching import match_tokens, token_places
from fcjax.composer import Composer, Composition, check_whole, sampling_of, warn
from fcjax.config import ComposerConfig
from fcjax.generation import Conditions, PictureInputs, conditions_of_pictures, decode, denoise_stepwise
from fcjax.models.attention import Correspondence
from fcjax.preparation import Prepared, prepare
from fcjax.sampling import initial_latents

Sharing = Literal["none", "cross_frame", "correspondence"]
Progress = Callable[[int, int], bool | None]


@dataclass(frozen=True)
class Page:
    """One picture of an album: the body, the words, and what is worn."""

    body: Body | BodyMaps
    prompt: str
    assets: Sequence[Placeable] = ()


@dataclass(frozen=True, eq=False)
class Album:
    """The pictures, page by page, and per page and level of the UNet (the finest first) the share of the body's tokens
    whose keys and values are the first page's: 0 for the first page, 1 for the others of a cross-frame album.
    """

    pictures: list[Composition]
    matched: Float[np.ndarray, "n l"]
    joined: "dict[Sharing, Album]" = field(default_factory=dict)
    """The two albums that alignment joined, by how their pages share, where they were asked for."""


def make_album(
    composer: Composer,
    pages: Sequence[Page],
    *,
    sharing: Sharing = "correspondence",
    align: bool | None = None,
    same_noise: bool = True,
    negative_prompt: str = "",
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    reference_guidance: float | None = None,
    guidance_rescale: float = 0.0,
    sampler: str = "ddim",
    eta: float = 0.0,
    size: tuple[int, int] | None = None,
    layout_seed: int = 0,
    batch_size: int = 4,
    keep_joined: bool = False,
    progress: Progress | None = None,
) -> Album:
    """An album of one person.

    sharing: how the pages use the first one's keys and values.
    align: put the faces of a cross-frame album into this one, in twice the time: by default of "correspondence", for
      which alone it has a meaning.
    same_noise: all pages start from the noise of `seed`; else page i from that of `seed + i`.
    batch_size: pages sampled at once, the first included; it is part of every batch. Memory grows with it.
    keep_joined: give the two albums that alignment joins, too (`Album.joined`), to see what it changed.
    progress(done, steps): after every step, all batches counted; returning False raises SamplingCancelledError.

    One page is what `Composer.compose` makes of it, to the last bit where that is given a `progress`, too (else it runs
    all steps as one program). Other arguments, warnings and errors as there; ValueError as well for a composer that was
    spread over several devices.
    """
    if not pages:
        raise ValueError("an album needs at least one page")
    check_sharing(sharing, align)
    if composer.config.condition != "pose":
        raise ValueError(
            f"albums are composed from bodies, and this model's condition is {composer.config.condition!r}: load one "
            "that composes"
        )
    if composer.mesh is not None:
        raise ValueError("albums are made on one device: give the composer that was loaded, not the one of `spread`")
    config = composer.config.sized(size)
    check_whole(layout_seed=layout_seed)
    count = len(pages)
    check_batch_size(batch_size, count)
    sampling = sampling_of(
        config, seed, steps, sampler, guidance, reference_guidance, guidance_rescale, 1 if same_noise else count,
        batch_size, eta,
    )  # fmt: skip
    keys = jnp.repeat(sampling.keys, count) if same_noise else sampling.keys
    prepared = []
    for number, page in enumerate(pages, 1):
        prepared.append(_prepared(composer, config, page, number, negative_prompt, layout_seed))
        warn(prepared[-1], sampling, f"page {number}: ")
    check_bodies(prepared)
    aligned = (sharing == "correspondence" if align is None else align) and count > 1
    modes: list[Sharing] = ["cross_frame", sharing] if aligned else [sharing]
    matches = page_matches(config, prepared)
    # The first page is in every batch; the last one is filled up with repetitions.
    fresh = max(min(batch_size, count) - 1, 1)
    batches = [[0, *range(start, start + fresh)] for start in range(1, count, fresh)] or [[0]]
    whole = len(modes) * len(batches) * int(sampling.table.steps)
    denoise = _Denoise(composer, config, sampling, whole, progress)
    # Of the album, then of those that it is joined of.
    latents: list[dict[int, Array]] = [{} for _ in range(1 + len(modes))]
    for pages_of in batches:
        rows = [min(number, count - 1) for number in pages_of]
        conditions = denoise.conditions([prepared[row] for row in rows])
        made = [
            denoise(conditions, exchange(mode, [matches[row] for row in rows]), keys[np.array(rows)]) for mode in modes
        ]
        clean = made[-1]
        if aligned:
            faces = jnp.asarray(np.stack([face_tokens(config, prepared[row]) for row in rows]))
            # The first page is the same in both.
            clean = jnp.where(faces[..., None], made[0], made[1])
        for of_album, values in zip(latents, [clean, *made], strict=True):
            of_album |= {row: values[place] for place, row in reversed(list(enumerate(rows)))}

    def album(how: Sharing, clean: dict[int, Array]) -> Album:
        pictures = []
        for number, given in enumerate(prepared):
            image = decode(composer.params, clean[number][None], config=config, dtype=composer.dtype)
            assert given.maps is not None
            drawn = Image.fromarray(np.asarray(image[0]))
            own = seed if same_noise else seed + number
            pictures.append(Composition(drawn, own, given.canvas, given.maps, given.tokens))
        return Album(pictures, np.array([shares(how, match) for match in matches]))

    made_of = zip(modes, latents[1:], strict=True) if keep_joined and aligned else ()
    return replace(album(sharing, latents[0]), joined={how: album(how, clean) for how, clean in made_of})


def check_sharing(sharing: str, align: bool | None) -> None:
    """ValueError for an unknown way of sharing, and for alignment with another than that which it belongs to."""
    if sharing not in get_args(Sharing):
        raise ValueError(f"sharing is {sharing!r}; expected one of {', '.join(get_args(Sharing))}")
    if align and sharing != "correspondence":
        raise ValueError(
            f"align puts faces into an album that is made by correspondence; with sharing {sharing!r} leave it out"
        )


def check_batch_size(batch_size: int, pages: int) -> None:
    """ValueError where a batch has no room for the first page, and for another if there are several."""
    if pages > 1 and batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, the first page and another, got {batch_size}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def _prepared(
    composer: Composer, config: ComposerConfig, page: Page, number: int, negative_prompt: str, layout_seed: int
) -> Prepared:
    try:
        return prepare(
            config, composer.tokenizer, page.prompt, page.assets, page.body,
            negative_prompt=negative_prompt, layout_seed=layout_seed,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"page {number}: {error}") from error


def check_bodies(prepared: Sequence[Prepared]) -> None:
    """ValueError where a page shows another mesh than the first: their places on the body mean different things."""
    meshes = [page.maps.faces for page in prepared if page.maps is not None]
    for number, mesh in enumerate(meshes[1:], 2):
        if not np.array_equal(mesh, meshes[0]):
            counts = f"{len(mesh)} triangles, page 1 one of {len(meshes[0])}"
            same = f"{len(mesh)} triangles between other vertices than those of page 1"
            raise ValueError(
                f"page {number} shows a body of {same if len(mesh) == len(meshes[0]) else counts}: pages of one "
                "person need bodies of one model (all SMPL's, or all the embedded one's)"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Who uses whose keys and values


@dataclass(frozen=True, eq=False)
class PageMatch:
    """Of one page, per level of the UNet: the first page's token at the same place of the body (-1: none), and which
    tokens show the body. The first page itself matches nothing.
    """

    tokens: tuple[Int[np.ndarray, "t"], ...]
    on_body: tuple[Bool[np.ndarray, "t"], ...]
    first: bool


def page_matches(config: ComposerConfig, prepared: Sequence[Prepared]) -> list[PageMatch]:
    """The matches of every page with the first."""
    found = []
    for number, given in enumerate(prepared):
        tokens, on_body = [], []
        for level in range(config.unet.levels):
            height, width = config.latent_height >> level, config.latent_width >> level
            on_body.append((token_places(_iuv(given), height, width)[0] > 0).reshape(-1))
            none = np.full(height * width, -1)
            tokens.append(match_tokens(_iuv(given), _iuv(prepared[0]), height, width) if number else none)
        found.append(PageMatch(tuple(tokens), tuple(on_body), number == 0))
    return found


def _iuv(prepared: Prepared) -> np.ndarray:
    assert prepared.maps is not None
    return prepared.maps.iuv


def exchange(sharing: Sharing, matches: Sequence[PageMatch]) -> tuple[Int[np.ndarray, "n t"], ...] | None:
    """Per level the tokens of the first of these pages that stand for each page's own, -1 for its own."""
    if sharing == "none" or len(matches) == 1:
        return None
    if sharing == "correspondence":
        return tuple(np.stack(level) for level in zip(*(match.tokens for match in matches), strict=True))
    return tuple(
        np.stack(
            [
                np.full(len(tokens), -1) if match.first else np.arange(len(tokens))
                for match, tokens in zip(matches, level, strict=True)
            ]
        )
        for level in zip(*(match.tokens for match in matches), strict=True)
    )


def shares(sharing: Sharing, match: PageMatch) -> list[float]:
    """Per level the share of the body's tokens that use the first page's keys and values."""
    if sharing == "none" or match.first:
        return [0.0] * len(match.tokens)
    if sharing == "cross_frame":
        return [1.0] * len(match.tokens)
    return [
        float((tokens >= 0)[body].mean()) if body.any() else 0.0
        for tokens, body in zip(match.tokens, match.on_body, strict=True)
    ]


def face_tokens(config: ComposerConfig, prepared: Prepared) -> Bool[np.ndarray, "h w"]:
    """The latent tokens of which the body's face covers half or more."""
    assert prepared.maps is not None
    height, width, factor = config.latent_height, config.latent_width, config.vae.factor
    cells = prepared.maps.face_mask.reshape(height, factor, width, factor)
    return cells.mean(axis=(1, 3)) >= 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


class _Denoise:
    """Noise to clean latents for some pages of an album, counting the steps of all."""

    def __init__(
        self, composer: Composer, config: ComposerConfig, sampling: Any, whole: int, progress: Progress | None
    ):
        self._composer, self._config, self._sampling = composer, config, sampling
        self._whole, self._progress, self._done = whole, progress, 0

    def conditions(self, prepared: Sequence[Prepared]) -> Conditions:
        """What stays the same over the steps, pages within branches."""
        names = prepared[0].arrays
        arrays = {
            name: names[name] if name == "empty_ids" else np.concatenate([given.arrays[name] for given in prepared])
            for name in names
        }
        return conditions_of_pictures(
            self._composer.params,
            PictureInputs(**{name: jnp.asarray(array) for name, array in arrays.items()}),
            config=self._config,
            branches=self._sampling.branches,
            images=1,
            dtype=self._composer.dtype,
        )

    def __call__(
        self, conditions: Conditions, tokens: tuple[Int[np.ndarray, "n t"], ...] | None, keys: jax.Array
    ) -> Float[Array, "n h w c"]:
        config, sampling = self._config, self._sampling
        if tokens is not None:
            count, branches = len(keys), len(sampling.branches)
            # Every branch of guidance has a first page of its own.
            rows = jnp.asarray(np.repeat(np.arange(branches) * count, count))
            exchanged = tuple(Correspondence(rows, jnp.asarray(np.tile(level, (branches, 1)))) for level in tokens)
            conditions = conditions._replace(corresponding=exchanged)
        shape = (config.latent_height, config.latent_width, config.vae.latent_channels)
        return denoise_stepwise(
            self._composer.params,
            conditions,
            sampling.table,
            sampling.mixing,
            keys,
            initial_latents(sampling.table, keys, *shape),
            self._advance,
            config=config,
            dtype=self._composer.dtype,
        )

    def _advance(self, done: int, steps: int, _: Array) -> bool | None:
        self._done += 1
        return None if self._progress is None else self._progress(self._done, self._whole)
