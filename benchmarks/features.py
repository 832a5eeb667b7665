"""What the small model's reference UNet hands over of its assets, and what of a picture's colours is lost.

    python -m benchmarks.features --model fcjax/mini --count 40

Of Wardrobe's held-out people. The first table: the share of every latent channel's variance on the assets' tokens that
a linear map reads from the values of each layer of injected self-attention (R squared, fitted to three quarters of the
samples, shown for the others). What the finest layers do not hold no attention brings to its place.

The second: palette distances between garments' regions and their own assets for the truth, for its latents decoded, for
the canvas' latents copied to where the truth shows them, for the same as the last layer's attention sums them up there,
for the model's prediction from noise alone, and for that with the truth's channels of colour, or of lightness, in place
of its own.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from configs import load_config
from fcjax import folder
from fcjax.composer import Composer
from fcjax.diffusion import make_alphas_cumprod, to_clean
from fcjax.generation import decode
from fcjax.metrics import asset_palette, palette_distance, region_palette
from fcjax.models import composer
from fcjax.models.attention import split_heads
from fcjax.wardrobe import Wardrobe
from train.prepare import LatentsJob, WardrobeJob, prepare_latents, prepare_wardrobe
from train.step import matched_tokens
from train.tasks import channel_weights, make_task

LEAST_PIXELS = 300
"""Of a region that is compared."""
ONE_COLOUR = ("solid", "denim", "knit", "lace")
"""Fabrics without a pattern of their own."""
WAYS = ("truth", "decoded", "copied", "attended", "predicted", "its lightness", "its colours")


@dataclasses.dataclass
class Settings:
    """A model folder with a linear encoder, and how many people."""

    model: Path = Path("fcjax/mini")
    count: int = 40
    seed: int = 3


class Measured:
    """A model, and what it makes of one example of training."""

    def __init__(self, settings: Settings, root: Path):
        config = Composer.load(settings.model).config
        pictures, latents = root / "pictures", root / "latents"
        size = {"height": config.height, "width": config.width}
        prepare_wardrobe(
            WardrobeJob(out=pictures, count=settings.count, split="heldout", seed=settings.seed, layouts=1, **size)
        )
        prepare_latents(LatentsJob(data=pictures, model=settings.model, out=latents), config)
        run = dataclasses.replace(
            load_config("mini"), model=config, data=latents, vae=settings.model, start=settings.model
        )
        self.task, self.config = make_task(run), config
        vae = folder.load_part(settings.model, "vae", config.vae)
        self.params = {**jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), self.task.parameters), "vae": vae}
        self.kernel = np.asarray(vae["linear_decoder"]["kernel"], np.float64)
        self.seen = np.asarray(channel_weights(vae))
        self.decode: Callable[[jax.Array], jax.Array] = jax.jit(
            functools.partial(decode, self.params, config=config, dtype=jnp.float32)
        )
        self.predict = jax.jit(self._predict)

    def example(self, index: int) -> dict[str, np.ndarray]:
        """A batch of one."""
        example = self.task.transform(self.task.data[index], np.random.default_rng(index))
        return {name: np.asarray(array)[None] for name, array in example.items()}

    def _predict(
        self, batch: Mapping[str, jax.Array], noise: jax.Array
    ) -> tuple[composer.ReferenceFeatures, jax.Array, jax.Array]:
        """The reference's features, the clean latents predicted from noise alone, and what its last attention makes of
        the canvas' latents for that (both of one shape)."""
        params, config = self.params, self.config
        text = composer.encode_prompt(params, config, batch["ids"])
        given = {name: batch[name] for name in ("canvas", "spans", "masks")}
        features = composer.appearance_features(params, config, text=text, **given)
        schedule = make_alphas_cumprod(config.diffusion)
        last = jnp.full(len(noise), len(schedule) - 1)
        condition = composer.condition_channels(config, batch)
        said, queries = composer.denoise_with_queries(
            params, config, noisy=noise, timesteps=last, text=text, condition=condition, features=features
        )
        heads = config.unet.heads(min(config.unet.attention_levels))
        query, key = (split_heads(x, heads) for x in (queries[-1], features.layers[-1][0]))
        scores = jnp.einsum("bqnd,bknd->bnqk", query, key) * query.shape[-1] ** -0.5
        attention = jax.nn.softmax(jnp.where(features.masks[-1][:, None, None], scores, -jnp.inf)).mean(axis=1)
        attended = (attention @ batch["canvas"].reshape(*attention.shape[::2], -1)).reshape(noise.shape)
        return features, to_clean(config.diffusion.prediction_type, schedule, said, noise, last), attended


def main(settings: Settings) -> None:
    people, values, read, distances = Wardrobe("heldout", settings.seed), [], [], {True: [], False: []}
    with tempfile.TemporaryDirectory() as root:
        model = Measured(settings, Path(root))
        # Where an error in a channel counts more by how it is seen than in RGB, it is one of colour.
        energy = np.square(model.kernel).sum(axis=1)
        coloured = model.seen > energy / energy.mean()
        for index in tqdm(range(settings.count), desc="predicted", unit="sample"):
            batch = model.example(index)
            noise = jax.random.normal(jax.random.key(index), batch["latents"].shape)
            features, predicted, attended = model.predict(batch, noise)
            values.append([np.asarray(value[0]) for _, value in features.layers])
            read.append((batch["canvas"][0], batch["masks"][0].any(axis=0)))
            sample = people[index]
            truth = np.asarray(batch["latents"], np.float32)
            tokens, known = (np.asarray(found)[0] for found in matched_tokens(batch["matches"]))
            copied = batch["canvas"].reshape(len(tokens), -1)[tokens].reshape(truth.shape)
            known = known.reshape(*truth.shape[:-1], 1)
            made = [truth, *(np.where(known, brought, truth) for brought in (copied, attended)), predicted]
            made += [np.where(coloured, *pair) for pair in ((truth, predicted), (predicted, truth))]
            shown = [sample.image, *(np.asarray(model.decode(jnp.asarray(latents)))[0] for latents in made)]
            for place, asset in enumerate(sample.assets, 1):
                region = sample.regions == place
                if asset.kind not in ("face", "swatch") and region.sum() >= LEAST_PIXELS:
                    own = asset_palette(asset.image)
                    found = [palette_distance(region_palette(image, region), own) for image in shown]
                    distances[asset.pattern in ONE_COLOUR].append(found)
    print_read(model, values, read)
    print(f"\n| garments | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    for plain, found in distances.items():
        means = " | ".join(f"{mean:.1f}" for mean in np.mean(found, axis=0))
        print(f"| {len(found)} {'of one colour' if plain else 'with patterns'} | {means} |")


def print_read(model: Measured, values: list[list[np.ndarray]], read: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """The first table, of the finest layers."""
    channels = range(1, len(model.seen) + 1)
    print(f"\n| layer | width | {' | '.join(f'channel {channel}' for channel in channels)} |")
    print(f"|---|---|{'---|' * len(model.seen)}\n| (what an error counts) | | {cells(model.seen)} |")
    fitted = 3 * len(values) // 4
    for layer, first in enumerate(values[0]):
        if len(first) != read[0][1].size:
            continue
        given = [sample[layer][mask.reshape(-1)] for sample, (_, mask) in zip(values, read, strict=True)]
        asked = [canvas.reshape(-1, canvas.shape[-1])[mask.reshape(-1)] for canvas, mask in read]
        x, y = (np.concatenate(part[:fitted]).astype(np.float64) for part in (given, asked))
        line, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y)
        x, y = (np.concatenate(part[fitted:]).astype(np.float64) for part in (given, asked))
        left = np.square(np.c_[x, np.ones(len(x))] @ line - y).mean(axis=0)
        print(f"| {layer} | {first.shape[-1]} | {cells(1 - left / y.var(axis=0))} |")


def cells(row: np.ndarray) -> str:
    return " | ".join(f"{cell:.2f}" for cell in row)


if __name__ == "__main__":
    main(tyro.cli(Settings))
