"""A prepared set of pictures as one of latents: encoded once with an autoencoder, so that training need not.

Each batch is split over the devices of this machine.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from configs.sharding import strategy
from fcjax import folder, trees
from fcjax.config import ComposerConfig
from fcjax.data.records import decode_record, encode_record, read_index, read_shard, shards
from fcjax.models import composer
from fcjax.sharding import batch_sharding, make_mesh
from fcjax.tokenizer import Tokenizer
from train.examples import asset_tokens, fitted, latent_sizes, matches, person_tokens, pose_points, prompt_tokens


@dataclasses.dataclass(frozen=True)
class LatentsJob:
    """Encodes the pictures of the prepared set `data` with the autoencoder in the model folder `model`.

    `config` names the run that will read the result; its pictures may be smaller by a whole factor.
    """

    data: Path
    model: Path
    out: Path
    config: str = "mini"
    batch_size: int = 16
    """Pictures that are encoded at once, on all devices together; rounded up to a multiple of their number."""
    text: bool = False
    """The captions as well, by the text encoder in the model folder: for runs that keep it as it is."""
    workers: int = 2
    """Threads that read the pictures and pack the records; a GPU encodes faster than one of them."""

    def __post_init__(self):
        for field in ("batch_size", "workers"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")


class LatentShards:
    """A shard of latents for each of pictures: latents, token masks and UV points stand for the pictures.

    Of a cloth-agnostic person, where the set has them, there are latents too, and the mask at the model's size; of the
    captions, where the job says so, their embeddings. ValueError where the set holds latents already.
    """

    source = "latents"

    def __init__(self, job: LatentsJob, config: ComposerConfig):
        index = read_index(job.data)
        if index["source"] == "latents":
            raise ValueError(f"{job.data} holds latents already; name the set of pictures that they were made of")
        vae = folder.load_part_config(job.model, "vae")
        params = folder.load_part(job.model, "vae", vae, host=True)
        self.config = config = dataclasses.replace(config, vae=vae)
        self.samples, self.paths = index["count"], shards(job.data)
        devices = len(jax.local_devices())
        self.batch_size = -(-job.batch_size // devices) * devices
        self.encode = _Spread(
            lambda params, pictures: composer.encode_images({"vae": params}, config, pictures / 127.5 - 1.0), params
        )
        self.settings = {
            **index["settings"],
            "vae": trees.digest(composer.encoding_parameters(params)),
            "encoded": latent_sizes(config),
            "pictures": index.get("sha256"),
        }
        self.workers = job.workers
        self.words = None
        if job.text:
            self.words = _Words(job.model, config)
            self.settings["text"] = self.words.digest

    @property
    def shards(self) -> int:
        """As many as the set of pictures has."""
        return len(self.paths)

    def records(self, number: int) -> Iterator[bytes]:
        """The records of a shard."""
        with ThreadPoolExecutor(self.workers) as pool:
            samples = list(pool.map(decode_record, read_shard(self.paths[number])))
            yield from _latent_records(samples, self.encode, self.words, self.config, self.batch_size, pool)


class _Spread:
    """A function of parameters and rows, the rows split over this machine's devices, the parameters whole on each."""

    def __init__(self, function: Callable[..., jax.Array], params: Any):
        self._mesh = make_mesh(strategy("data"), jax.local_devices())
        whole, rows = NamedSharding(self._mesh, PartitionSpec()), batch_sharding(self._mesh)
        self._params = jax.device_put(params, whole)
        self._function = jax.jit(function, in_shardings=(whole, rows), out_shardings=rows)

    def __call__(self, rows: np.ndarray) -> jax.Array:
        with jax.set_mesh(self._mesh):
            return self._function(self._params, rows)


class _Words:
    """Captions as the text encoder of a model folder reads them."""

    def __init__(self, model: Path, config: ComposerConfig):
        self.config = dataclasses.replace(config, text_encoder=folder.load_part_config(model, "text_encoder"))
        self.tokenizer = Tokenizer.load(model / "tokenizer")
        params = folder.load_part(model, "text_encoder", self.config.text_encoder, dtype=jnp.float32, host=True)
        self.digest = trees.digest(params)
        self.encode = _Spread(
            lambda params, ids: composer.encode_prompt({"text_encoder": params}, self.config, ids), params
        )

    def __call__(self, samples: list[dict[str, Any]], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Of each sample, its token ids (77,) int32 and embeddings (77, e) float16."""
        for first in range(0, len(samples), batch_size):
            part = samples[first : first + batch_size]
            rows = [prompt_tokens(self.tokenizer, one, self.config).ids for one in part]
            ids = np.stack([*rows, *rows[-1:] * (batch_size - len(rows))])
            for row, text in zip(rows, np.asarray(self.encode(ids), np.float16), strict=False):
                yield {"ids": row, "embeddings": text}


def _latent_records(
    samples: list[dict[str, Any]],
    encode: Callable[[np.ndarray], Any],
    words: _Words | None,
    config: ComposerConfig,
    batch_size: int,
    pool: Executor,
) -> Iterator[bytes]:
    layouts, tried_on = samples[0]["layouts"], "agnostic" in samples[0]
    names = ["image", *(f"canvas{layout}" for layout in range(layouts)), *(["agnostic"] if tried_on else [])]
    latents = {name: _encoded([sample[name] for sample in samples], encode, config, batch_size) for name in names}
    texts = itertools.repeat({}) if words is None else words(samples, batch_size)

    def record(sample: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
        for layout in range(layouts):
            arrays[f"masks{layout}"] = np.round(255 * asset_tokens(sample, layout, config)).astype(np.uint8)
            arrays[f"matches{layout}"] = matches(sample, layout, config)
        arrays["foreground"] = np.round(255 * person_tokens(sample, config)).astype(np.uint8)
        pictures = {"iuv": pose_points(sample["iuv"], config)}
        if tried_on:
            pictures["mask"] = fitted(sample["mask"], config.height, config.width)
        text = {key: sample[key] for key in ("caption", "phrases", "kinds", "layouts")}
        return encode_record(pictures, arrays, text)

    encoded = ({name: latents[name][number] for name in names} for number in range(len(samples)))
    return pool.map(record, samples, (own | more for own, more in zip(encoded, texts, strict=False)))


def _encoded(
    pictures: list[np.ndarray], encode: Callable[[np.ndarray], Any], config: ComposerConfig, batch_size: int
) -> list[np.ndarray]:
    """The latents (h, w, c) float16 of pictures uint8 (H, W, 3), all batches of one size."""
    latents: list[np.ndarray] = []
    for first in range(0, len(pictures), batch_size):
        batch = np.stack(
            [fitted(picture, config.height, config.width) for picture in pictures[first : first + batch_size]]
        )
        padded = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), 0)])
        latents += list(np.asarray(encode(padded.astype(np.float32)), np.float16)[: len(batch)])
    return latents
