"""What latents of a given factor and number of channels can hold of Wardrobe's people, before any network is trained.

    python -m benchmarks.latents --train 100 --heldout 60

A picture is cut into squares of FACTOR x FACTOR pixels and each becomes its coordinates along the CHANNELS first
principal components of training pictures, as the small model's encoder has them. The table holds the PSNR of held-out
pictures that come back from those coordinates alone (also inside the garments, where texture is), beside what a model
pays: tokens of a picture, and numbers in all.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tyro
from tqdm import tqdm

from fcjax import presets
from fcjax.metrics import psnr
from fcjax.metrics.scores import FACE
from fcjax.models.vae import patches, principal_components
from fcjax.wardrobe import Sample, Wardrobe

CHOICES = ((2, 3), (4, 4), (4, 6), (4, 8), (4, 12), (8, 8), (8, 16), (8, 24), (8, 32))
"""(factor, channels)."""


@dataclasses.dataclass
class Settings:
    """How many pictures, of what size."""

    train: int = 100
    heldout: int = 60
    height: int = 256
    width: int = 192
    seed: int = 0


def samples(split: str, count: int, settings: Settings) -> Iterator[Sample]:
    """People of the data set."""
    wardrobe = Wardrobe(split, settings.seed, settings.height, settings.width)
    return (wardrobe[index] for index in tqdm(range(count), desc=split, unit="sample"))


def main(settings: Settings) -> None:
    known = np.stack([one.image for one in samples("train", settings.train, settings)]) / np.float32(127.5) - 1
    shown = list(samples("heldout", settings.heldout, settings))
    pictures = np.stack([one.image for one in shown])
    worn = [[place for place, asset in enumerate(one.assets, 1) if asset.kind != FACE] for one in shown]
    garments = np.stack([np.isin(one.regions, places) for one, places in zip(shown, worn, strict=True)])
    inside = np.repeat(garments[..., None], 3, axis=-1)
    print("| pixels a token | channels | tokens | numbers | PSNR | PSNR inside garments |\n|---|---|---|---|---|---|")
    for factor, channels in CHOICES:
        size, colours = factor // 2, 3 * (factor // 2) ** 2
        config = dataclasses.replace(
            presets.mini().vae, patch_size=size, in_channels=colours, out_channels=colours, latent_channels=channels
        )
        (encoder, bias), (decoder, mean) = (part.values() for part in principal_components(known, config).values())
        true = patches(pictures, factor)
        decoded = ((true / np.float32(127.5) - 1) @ encoder + bias) @ decoder + mean
        made = np.clip(np.round(127.5 * (decoded + 1)), 0, 255).astype(np.uint8)
        where, tokens = patches(inside, factor), settings.height * settings.width // factor**2
        whole, within = psnr(made, true), psnr(made[where], true[where])
        cells = (f"{factor}x{factor}", channels, tokens, tokens * channels, f"{whole:.1f}", f"{within:.1f}")
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
