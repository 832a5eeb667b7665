"""The composer that users hold: a model folder in, pictures out.

composer = fcjax.Composer.load("mini")
[picture] = composer.compose(
    "a woman in a red striped shirt and blue jeans",
    assets=[fcjax.Asset.open("shirt.png", "a red striped shirt"), fcjax.Asset.open("jeans.png", "blue jeans")],
    body=fcjax.Body(pose="walking"),
    seed=0,
)
picture.image.save("out.png")
"""

import contextlib
import dataclasses
import functools
import numbers
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key, UInt8
from PIL import Image

from fcjax import folder, pretrained
from fcjax.assets import AssetCanvas, Placeable
from fcjax.body import Body, BodyMaps
from fcjax.config import ComposerConfig, Condition
from fcjax.generation import Conditions, PictureInputs, conditions_of_pictures, generate, generate_stepwise
from fcjax.models.layers import Dtype
from fcjax.network_config import BindingVariant
from fcjax.person import Person
from fcjax.preparation import Prepared, prepare
from fcjax.samplers import SAMPLERS, SamplerTable, sampler_table
from fcjax.sampling import Branch, Guidance, guidance_branches, image_keys, initial_latents, make_guidance
from fcjax.sharding import Strategy, check, make_mesh, parameter_specs, tree_shardings
from fcjax.tokenizer import PromptTokens, Tokenizer
from fcjax.weights import checked_dtype

Progress = Callable[[int, int], bool | None]
_ONEDNN = "--xla_cpu_experimental_onednn_custom_call"


@dataclasses.dataclass(frozen=True, eq=False)
class Composition:
    """One picture and what it was made from. `seed` alone, with the same inputs, makes it again."""

    image: Image.Image
    seed: int
    canvas: AssetCanvas
    maps: BodyMaps
    tokens: PromptTokens


@dataclasses.dataclass(frozen=True, eq=False)
class Fitting:
    """A person's picture in other garments, at its own size, and what it was made from."""

    image: Image.Image
    seed: int
    canvas: AssetCanvas
    tokens: PromptTokens


class Composer:
    """A model folder ready to compose (`compose`), or to try on (`try_on`) where its condition says so.

    `params` is the plain parameter tree, `config` says how it is built.

    Programs compile on the first picture; the prompt, the number of assets, the body, steps, sampler, seed, number of
    images and guidance are data to them. Guidance compiles anew where its branches change: one scale, where it is
    switched on or off (1); two, where `reference_guidance` becomes 1 or equal to `guidance`, or ceases to. Composers
    of equal configs share their programs.
    """

    def __init__(
        self, config: ComposerConfig, params: dict[str, Any], tokenizer: Tokenizer, dtype: Dtype | None = None
    ):
        tokenizer.check(config.text_encoder)
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.dtype = checked_dtype(_default_dtype() if dtype is None else dtype)
        self.mesh: Mesh | None = None

    @classmethod
    def load(
        cls,
        path: str | Path = "mini",
        dtype: Dtype | None = None,
        *,
        tokenizer: str | Path | None = None,
        clip_skip: int = 0,
        condition: Condition | None = None,
        binding: BindingVariant | None = None,
        param_dtype: Dtype | None = None,
        host: bool = False,
    ) -> "Composer":
        """Reads a model: "mini" is the one in the package; else a composer's folder, a Stable Diffusion 1.x or 2.x
        folder as diffusers writes it, a single file of Stable Diffusion 1.x, or such a folder's name on the Hub.

        What is no composer yet becomes one (`fcjax.pretrained`) that, until it is trained, composes as Stable Diffusion
        does where it is given no assets. Assets change its pictures, but not yet to their likeness. ValueError says
        what does not fit.
        dtype: of computation: float32, bfloat16 or float16; by default float32 on a CPU and bfloat16 elsewhere. On GPUs
          and TPUs JAX multiplies float32 less exactly unless jax_default_matmul_precision is "highest".
        tokenizer: its folder, where it is not the model's own.
        clip_skip: how many of the text encoder's last layers to leave out (1 is what others call clip skip 2).
        condition, binding: what a model of others becomes, as in `fcjax.pretrained.load`.
        param_dtype: of the parameters, by default that of computation, so that no step casts them. What is saved again
          without loss needs the file's own.
        host: parameters stay NumPy arrays until `spread` lays them on devices, none of which has to hold all of them.
        """
        dtype = checked_dtype(_default_dtype() if dtype is None else dtype)
        warn_of_slow_bfloat16(dtype)
        model = pretrained.load(
            pretrained.locate(path),
            condition=condition,
            binding=binding,
            clip_skip=clip_skip,
            dtype=dtype if param_dtype is None else param_dtype,
            host=host,
        )
        where = tokenizer or model.tokenizer
        if where is None:
            raise ValueError(
                f"{path} holds no tokenizer: give the tokenizer folder that it was trained with (of a single file, "
                "Stable Diffusion 1.x's) as tokenizer="
            )
        return cls(model.config, model.params, Tokenizer.load(where), dtype)

    def save(self, path: str | Path, *, dtype: Any = None) -> None:
        """Writes a model folder, whose parts diffusers and transformers open; tensors are stored as `dtype`, by default
        each as it is held: of a composer loaded in bfloat16 rounded ones.
        """
        folder.save(path, self.params, self.config, dtype=dtype)
        self.tokenizer.save(Path(path) / "tokenizer")

    def spread(self, strategy: Strategy, devices: Sequence[Any] | None = None) -> "Composer":
        """A composer like this one whose parameters lie on these devices (all there are) as the strategy says.

        It samples the images of a batch on all of them. ValueError where the model does not suit the strategy. Of a
        composer loaded with `host`, no device ever holds more than its share.
        """
        mesh = make_mesh(strategy, devices)
        check(self.config, mesh.shape, mesh.shape["data"] * mesh.shape["fsdp"])
        specs = parameter_specs(self.params, strategy.parameters, mesh.shape)
        placed = Composer(self.config, {}, self.tokenizer, self.dtype)
        placed.params = jax.device_put(self.params, tree_shardings(self.params, specs, mesh))
        placed.mesh = mesh
        return placed

    def compose(
        self,
        prompt: str,
        assets: Sequence[Placeable] = (),
        body: Body | BodyMaps | None = None,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        reference_guidance: float | None = None,
        guidance_rescale: float = 0.0,
        num_images: int = 1,
        sampler: str = "ddim",
        eta: float = 0.0,
        size: tuple[int, int] | None = None,
        boxes: Sequence[Sequence[int]] | None = None,
        layout_seed: int = 0,
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> list[Composition]:
        """Pictures of one request; image i has the seed `seed + i`.

        body: what to draw, or maps that are drawn already, of the picture's size.
        negative_prompt: what guidance leads away from, in place of a picture without text.
        steps: of sampling, by default as many as the model's config says.
        guidance: how far to go from the picture without text and assets (1: not at all), by default as far as the
          model's config says; with `reference_guidance` the two are scaled apart.
        guidance_rescale: against over-exposed pictures of strong guidance, 0 (off) to 1 (arXiv 2305.08891).
        sampler: one of `fcjax.samplers.SAMPLERS`.
        eta: of the sampler ddim: 0 is deterministic, 1 ancestral.
        size: height and width in pixels, if not the ones that the model was trained at.
        boxes, layout_seed: where the assets stand on their canvas.
        batch_size: how many images are sampled at once. More is faster on accelerators, but the last bits of an image
          then depend on it: with 1, an image of a call equals the image of its seed alone, pixel by pixel. On a mesh
          (`spread`), a multiple of the devices that split the batch.
        progress(done, steps): called after every step, all batches counted; returning False raises
          SamplingCancelledError. Given, every step is a program of its own, which may round the last bit of a pixel
          otherwise than the one program of all steps.

        Warns (UserWarning) of words that the model never learnt, of phrases that the prompt lacks (they are appended),
        of a prompt too long to be read to its end, and of a negative one without guidance. ValueError for bad input.
        """
        config = self.config.sized(size)
        sampling = sampling_of(
            config, seed, steps, sampler, guidance, reference_guidance, guidance_rescale, num_images, batch_size, eta
        )
        check_whole(layout_seed=layout_seed)
        prepared = prepare(
            config, self.tokenizer, prompt, assets, body,
            negative_prompt=negative_prompt, boxes=boxes, layout_seed=layout_seed,
        )  # fmt: skip
        pictures = self._pictures(prepared, config, sampling, progress)
        assert prepared.maps is not None
        return [
            Composition(Image.fromarray(image), seed + index, prepared.canvas, prepared.maps, prepared.tokens)
            for index, image in enumerate(pictures)
        ]

    def try_on(
        self,
        prompt: str,
        assets: Sequence[Placeable],
        person: Person,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        reference_guidance: float | None = None,
        guidance_rescale: float = 0.0,
        num_images: int = 1,
        sampler: str = "ddim",
        eta: float = 0.0,
        size: tuple[int, int] | None = None,
        boxes: Sequence[Sequence[int]] | None = None,
        layout_seed: int = 0,
        batch_size: int = 1,
        feather: int | None = None,
        raw: bool = False,
        progress: Progress | None = None,
    ) -> list[Fitting]:
        """The person in other garments, at the size of the person's own picture; image i has the seed `seed + i`.

        All assets are put on in one pass. A model whose condition is "tryon" or "posed_tryon" is needed. Outside the
        mask every pixel is the person's own. Warns where the latter is given no body map and has to guess the pose.

        size: height and width at which the model works; pictures of another shape are letterboxed.
        feather: pixels inside the mask over which old becomes new (by default the person's longer side / 128).
        raw: the model's own picture everywhere instead.

        All else, the warnings and the errors as in `compose`.
        """
        config = self.config.sized(size)
        sampling = sampling_of(
            config, seed, steps, sampler, guidance, reference_guidance, guidance_rescale, num_images, batch_size, eta
        )
        check_whole(layout_seed=layout_seed)
        if feather is not None:
            check_whole(feather=feather)
        prepared = prepare(
            config, self.tokenizer, prompt, assets, person,
            negative_prompt=negative_prompt, boxes=boxes, layout_seed=layout_seed,
        )  # fmt: skip
        if config.takes_pose and not person.tells_pose:
            warnings.warn(
                "there is no body map of the person with u and v, so the model guesses the pose from what the mask "
                "leaves to see: Person's iuv (--iuv) tells it",
                stacklevel=2,
            )
        pictures = self._pictures(prepared, config, sampling, progress)
        return [
            Fitting(
                Image.fromarray(person.restored(image, feather=feather, raw=raw)),
                seed + index,
                prepared.canvas,
                prepared.tokens,
            )
            for index, image in enumerate(pictures)
        ]

    def _pictures(
        self, prepared: Prepared, config: ComposerConfig, sampling: "Sampling", progress: Progress | None
    ) -> UInt8[np.ndarray, "n H W 3"]:
        """A picture for each of the sampling's keys, of one request."""
        warn(prepared, sampling)
        if self.mesh is None:
            sampling = dataclasses.replace(sampling, batch_size=min(sampling.batch_size, len(sampling.keys)))
        else:
            check(config, self.mesh.shape, sampling.batch_size)
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            conditions = conditions_of_pictures(
                self.params,
                PictureInputs(**{name: jnp.asarray(array) for name, array in prepared.arrays.items()}),
                config=config,
                branches=sampling.branches,
                images=sampling.batch_size,
                dtype=self.dtype,
            )
            return self._sampled(conditions, config, sampling, progress)

    def _sampled(
        self, conditions: Conditions, config: ComposerConfig, sampling: "Sampling", progress: Progress | None
    ) -> UInt8[np.ndarray, "n H W 3"]:
        """A picture for each key, `batch_size` at a time."""
        table, keys, batch_size = sampling.table, sampling.keys, sampling.batch_size
        noise, count = (config.latent_height, config.latent_width, config.vae.latent_channels), len(keys)
        batches = -(-count // batch_size)
        pictures = []
        for batch in range(batches):
            # The last batch is filled up with repetitions, so that it needs no program of its own.
            chosen = keys[np.minimum(np.arange(batch_size) + batch * batch_size, count - 1)]
            program = generate
            if progress is not None:
                advance = functools.partial(_advance, progress, batch, batches)
                program = functools.partial(generate_stepwise, progress=advance)
            latents = initial_latents(table, chosen, *noise)
            pictures.append(
                program(
                    self.params, conditions, table, sampling.mixing, chosen, latents, config=config, dtype=self.dtype
                )
            )
        return np.concatenate([np.asarray(made) for made in pictures])[:count]


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """How the pictures of a request are sampled."""

    keys: Key[Array, "n"]
    table: SamplerTable
    branches: tuple[Branch, ...]
    mixing: Guidance
    batch_size: int


def sampling_of(
    config: ComposerConfig,
    seed: int,
    steps: int | None,
    sampler: str,
    guidance: float | None,
    reference_guidance: float | None,
    guidance_rescale: float,
    num_images: int,
    batch_size: int,
    eta: float = 0.0,
) -> Sampling:
    """What these settings mean; ValueError for those that mean nothing."""
    steps = config.steps if steps is None else steps
    check_whole(seed=seed, steps=steps, num_images=num_images, batch_size=batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    guidance = config.guidance if guidance is None else guidance
    check_numbers(guidance=guidance, guidance_rescale=guidance_rescale, eta=eta)
    if reference_guidance is not None:
        check_numbers(reference_guidance=reference_guidance)
    if not isinstance(sampler, str):
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {sampler!r}")
    branches = guidance_branches(guidance, reference_guidance)
    return Sampling(
        image_keys(seed, num_images),
        sampler_table(config.diffusion, steps, sampler, eta=eta),
        branches,
        make_guidance(branches, guidance, reference_guidance, guidance_rescale),
        batch_size,
    )


def check_whole(**values: Any) -> None:
    """ValueError for what is no whole number, or negative where that means nothing."""
    for name, value in values.items():
        if not isinstance(value, numbers.Integral):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if name in ("layout_seed", "feather") and value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def check_numbers(**values: Any) -> None:
    """ValueError for what is no number; which numbers can be is for others to say."""
    for name, value in values.items():
        if not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be a number, got {value!r}")


def _default_dtype() -> Dtype:
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def warn_of_slow_bfloat16(dtype: Dtype) -> None:
    """Warns where bfloat16 runs on a CPU without the library that makes it fast. Never set here: it is a flag of the
    whole process's, and changes the last bits of everything that it computes.
    """
    slow = dtype == jnp.bfloat16 and jax.default_backend() == "cpu" and _ONEDNN not in os.environ.get("XLA_FLAGS", "")
    if slow and tuple(map(int, jax.__version__.split(".")[:2])) >= (0, 12):
        warnings.warn(
            f"bfloat16 convolutions on a CPU are several times faster with XLA_FLAGS={_ONEDNN}=true in the environment",
            stacklevel=3,
        )


def warn(prepared: Prepared, sampling: Sampling, place: str = "") -> None:
    """Warns of what the prompts said and the picture will not show, or not where it was said."""
    messages = []
    for name, tokens in (("prompt", prepared.tokens), ("negative prompt", prepared.negative)):
        if tokens.unknown:
            messages.append(f"the model never learnt: {', '.join(tokens.unknown)}")
        if tokens.appended:
            phrases = ", ".join(repr(phrase) for phrase in tokens.appended)
            messages.append(f"not in the prompt, so added to its end: {phrases}")
        if tokens.truncated:
            messages.append(f"the {name} is too long, its end is not read: {tokens.truncated!r}")
    if prepared.negative.prompt and all(branch.text for branch in sampling.branches):
        messages.append("the negative prompt changes nothing, as guidance is off (1)")
    for message in messages:
        warnings.warn(place + message, stacklevel=4)


def _advance(progress: Progress, batch: int, batches: int, done: int, steps: int, _: Array) -> bool | None:
    """A batch's progress as that of the whole call."""
    return progress(batch * steps + done, batches * steps)
