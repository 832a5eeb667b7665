"""What latents of a given factor and number of channels can hold of Wardrobe's people, before any network is trained.

    python -m benchmarks.latents --train 200 --heldout 100

A picture is cut into squares of FACTOR x FACTOR pixels and each becomes its coordinates along the CHANNELS first
principal components of training pictures, as the small model's encoder has them. The table holds the PSNR of held-out
pictures that come back from those coordinates alone (also inside the garments, where texture is), beside what a model
pays: tokens of a picture, and numbers in all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tyro
from tqdm import tqdm

from fcjax.config import VAEConfig
from fcjax.metrics.scores import FACE
from fcjax.models.vae import principal_components
from fcjax.wardrobe import Sample, Wardrobe

CHOICES = ((2, 3), (4, 4), (4, 6), (4, 8), (4, 12), (8, 8), (8, 16), (8, 24), (8, 32))
"""(factor, channels)."""


@dataclass
class Settings:
    """How many pictures, of what size."""

    train: int = 200
    heldout: int = 100
    height: int = 256
    width: int = 192
    seed: int = 0


def samples(split: str, count: int, settings: Settings) -> Iterator[Sample]:
    """People of the data set."""
    wardrobe = Wardrobe(split, settings.seed, settings.height, settings.width)
    return (wardrobe[index] for index in tqdm(range(count), desc=split, unit="sample"))


def squares(pictures: np.ndarray, factor: int) -> np.ndarray:
    """Pictures (b, h, w, 3) as (b, h / factor, w / factor, 3 factor^2)."""
    batch, height, width, colours = pictures.shape
    cells = pictures.reshape(batch, height // factor, factor, width // factor, factor, colours)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // factor, width // factor, -1)


def psnr(errors: np.ndarray) -> float:
    """Of errors of pixels in [-1, 1], in dB."""
    return float(10 * np.log10(4 / np.mean(np.square(errors))))


def main(settings: Settings) -> None:
    known = np.stack([one.image for one in samples("train", settings.train, settings)]) / np.float32(127.5) - 1
    shown = list(samples("heldout", settings.heldout, settings))
    pictures = np.stack([one.image for one in shown]) / np.float32(127.5) - 1
    garments = np.stack(
        [
            np.isin(one.regions, [place for place, asset in enumerate(one.assets, 1) if asset.kind != FACE])
            for one in shown
        ]
    )
    print("| pixels a token | channels | tokens | numbers | PSNR | PSNR inside garments |\n|---|---|---|---|---|---|")
    for factor, channels in CHOICES:
        config = VAEConfig(
            in_channels=3 * (factor // 2) ** 2,
            out_channels=3 * (factor // 2) ** 2,
            patch_size=factor // 2,
            block_out_channels=(8, 8),
            latent_channels=channels,
            linear_encoder=True,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            norm_num_groups=8,
        )
        code = principal_components(known, config)
        (encoder, bias), (decoder, mean) = ((code[name]["kernel"], code[name]["bias"]) for name in code)
        errors = (squares(pictures, factor) @ encoder + bias) @ decoder + mean - squares(pictures, factor)
        inside = errors[squares(np.repeat(garments[..., None], 3, axis=-1), factor)]
        tokens = settings.height * settings.width // factor**2
        cells = (
            f"{factor}x{factor}",
            channels,
            tokens,
            tokens * channels,
            f"{psnr(errors):.1f}",
            f"{psnr(inside):.1f}",
        )
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
