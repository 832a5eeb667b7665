"""Turns a source of samples into shards that training reads.

    python -m train.prepare wardrobe --out DIR --count 8000 --split train
    python -m train.prepare latents --data DIR --model RUN/model --out DIR2

The first draws Wardrobe's people with a pool of processes and lays their assets out on canvases; the second encodes
the pictures of a prepared set with a model's autoencoder, once, so that training need not. Both continue where they
stopped: shards that are there stay as they are.
"""

import dataclasses
import functools
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import Float16, UInt8
from PIL import Image
from tqdm import tqdm

from configs import load_config
from fcjax import folder, trees
from fcjax.assets import Box, lay_out, owned_tokens, token_masks
from fcjax.cli import exit_codes
from fcjax.config import ComposerConfig
from fcjax.data.records import decode_record, encode_record, read_index, read_shard, shards, write_index, write_shard
from fcjax.models import composer
from fcjax.wardrobe import Wardrobe


@dataclasses.dataclass(frozen=True)
class WardrobeJob:
    """What Wardrobe shards hold."""

    out: Path
    count: int = 8000
    split: Literal["train", "heldout"] = "train"
    seed: int = 0
    height: int = 256
    width: int = 192
    max_assets: int = 6
    # Canvases laid out per sample: the same assets at other places and sizes.
    layouts: int = 2
    shard_size: int = 250
    workers: int = 2

    def __post_init__(self):
        for field in ("count", "layouts", "shard_size", "workers"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")


def wardrobe_record(sample: Any, index: int, job: WardrobeJob) -> bytes:
    """One Wardrobe sample as a record: pictures, canvases with the map of their assets, IUV, regions, text."""
    pictures = {
        "image": sample.image,
        "iuv": sample.maps.iuv,
        "origins": _packed(sample),
        "foreground": 255 * sample.foreground.astype(np.uint8),
    }
    placed = []
    for layout in range(job.layouts):
        canvas = lay_out(
            sample.assets,
            job.height,
            job.width,
            seed=index * job.layouts + layout,
            max_assets=job.max_assets,
            varied=True,
        )
        pictures[f"canvas{layout}"] = canvas.image
        pictures[f"owners{layout}"] = canvas.owners
        placed.append(
            [
                _onto_canvas(asset.image, *pair, job)
                for asset, *pair in zip(sample.assets, canvas.crops, canvas.boxes, strict=True)
            ]
        )
    text = {
        "caption": sample.caption,
        "phrases": [asset.phrase for asset in sample.assets],
        "kinds": [asset.kind for asset in sample.assets],
        "layouts": job.layouts,
        "placed": placed,
    }
    return encode_record(pictures, {}, text)


def _packed(sample: Any) -> np.ndarray:
    """Where pixels show flats, in 8 bits: the asset's number from 1 (0: of none), x and y in 1/255 of its picture."""
    shown = sample.origins[..., :1] >= 0
    places = np.round(255 * sample.origins).astype(np.int16)
    return np.where(shown, np.concatenate([sample.regions[..., None], places], axis=-1), 0).astype(np.uint8)


def _onto_canvas(image: np.ndarray, crop: Box, box: Box, job: WardrobeJob) -> list[float]:
    """[a, b, c, d]: the place (x, y) of an asset's picture is at (a x + b, c y + d) of the canvas, all in shares."""
    found = []
    for low, high, length, whole in (
        ("left", "right", image.shape[1], job.width),
        ("top", "bottom", image.shape[0], job.height),
    ):
        scale = (getattr(box, high) - getattr(box, low)) / (getattr(crop, high) - getattr(crop, low))
        found += [scale * length / whole, (getattr(box, low) - scale * getattr(crop, low)) / whole]
    return found


def _wardrobe_shard(number: int, job: WardrobeJob) -> tuple[str, int]:
    name = f"{number:05d}.arrayrecord"
    first, last = number * job.shard_size, min((number + 1) * job.shard_size, job.count)
    if not (job.out / name).exists():
        wardrobe = Wardrobe(split=job.split, seed=job.seed, height=job.height, width=job.width)
        write_shard(job.out / name, (wardrobe_record(wardrobe[i], i, job) for i in range(first, last)))
    return name, last - first


def prepare_wardrobe(job: WardrobeJob) -> None:
    """Writes the shards of `job` with a pool of processes, then the index."""
    job.out.mkdir(parents=True, exist_ok=True)
    numbers = range(-(-job.count // job.shard_size))
    settings = {key: value for key, value in dataclasses.asdict(job).items() if key not in ("out", "workers")}
    # Code that draws other samples makes another set, whatever the settings say.
    first = Wardrobe(split=job.split, seed=job.seed, height=job.height, width=job.width)[0]
    settings["first_sample"] = hashlib.sha256(wardrobe_record(first, 0, job)).hexdigest()[:16]
    _refuse_other_settings(job.out, settings)
    with multiprocessing.get_context("spawn").Pool(job.workers) as pool, tqdm(total=job.count, unit="sample") as bar:
        names = []
        for name, count in pool.imap(functools.partial(_wardrobe_shard, job=job), numbers):
            names.append(name)
            bar.update(count)
    write_index(job.out, source="wardrobe", settings=settings, shards=names, count=job.count)


def _refuse_other_settings(out: Path, settings: dict[str, Any]) -> None:
    """Shards made with other settings must not be taken for ours."""
    note = out / "settings.json"
    if note.exists():
        before = json.loads(note.read_text())
        differ = sorted(key for key in settings if before.get(key) != settings[key])
        if differ:
            raise ValueError(
                f"{out} was begun with other settings ({', '.join(differ)}): remove it or choose another --out"
            )
    else:
        note.write_text(json.dumps(settings))


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


def prepare_latents(job: LatentsJob, config: ComposerConfig) -> None:
    """Writes a copy of the set in which latents, token masks and UV points stand for the pictures."""
    index = read_index(job.data)
    if index["source"] == "latents":
        raise ValueError(f"{job.data} holds latents already; name the set of pictures that they were made of")
    vae = folder.load_part_config(job.model, "vae")
    params = folder.load_part(job.model, "vae", vae)
    config = dataclasses.replace(config, vae=vae)
    encode = jax.jit(lambda pictures: composer.encode_images({"vae": params}, config, pictures / 127.5 - 1.0))
    settings = {**index["settings"], "vae": trees.digest(composer.encoding_parameters(params))}
    job.out.mkdir(parents=True, exist_ok=True)
    _refuse_other_settings(job.out, settings)
    names = []
    with tqdm(total=index["count"], unit="sample") as bar:
        for path in shards(job.data):
            name = Path(path).name
            samples = [decode_record(record) for record in read_shard(path)]
            if not (job.out / name).exists():
                write_shard(job.out / name, _latent_records(samples, encode, config, job.batch_size))
            names.append(name)
            bar.update(len(samples))
    write_index(job.out, source="latents", settings=settings, shards=names, count=index["count"])


def _latent_records(
    samples: list[dict[str, Any]], encode: Callable[[np.ndarray], Any], config: ComposerConfig, batch_size: int
) -> Iterator[bytes]:
    layouts = samples[0]["layouts"]
    pictures = ["image", *(f"canvas{layout}" for layout in range(layouts))]
    latents: dict[str, list[np.ndarray]] = {name: [] for name in pictures}
    for name in pictures:
        for first in range(0, len(samples), batch_size):
            batch = np.stack(
                [_fitted(sample[name], config.height, config.width) for sample in samples[first : first + batch_size]]
            )
            padded = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), 0)])
            latents[name] += list(np.asarray(encode(padded.astype(np.float32)), np.float16)[: len(batch)])
    grid = (config.latent_height, config.latent_width)
    points = (grid[0] * config.pose_patch, grid[1] * config.pose_patch)
    finest = min(config.unet.attention_levels)
    attended = (grid[0] >> finest, grid[1] >> finest)
    for number, sample in enumerate(samples):
        arrays = {name: latents[name][number] for name in pictures}
        for layout in range(layouts):
            tokens = owned_tokens(sample[f"owners{layout}"], config.max_assets, *grid)
            arrays[f"masks{layout}"] = np.round(255 * tokens).astype(np.uint8)
            arrays[f"matches{layout}"] = _matches(sample["origins"], sample["placed"][layout], *attended)
        on_person = sample["foreground"][None].astype(np.float32) / 255.0
        arrays["foreground"] = np.round(255 * token_masks(on_person, *grid)[0]).astype(np.uint8)
        text = {key: sample[key] for key in ("caption", "phrases", "kinds", "layouts")}
        yield encode_record({"iuv": _sampled(sample["iuv"], *points)}, arrays, text)


def _matches(
    origins: UInt8[np.ndarray, "H W 3"], placed: list[list[float]], height: int, width: int
) -> Float16[np.ndarray, "h w 2"]:
    """Per token of the person the (x, y) of the canvas, as shares, where the flat shows the same cloth; -1: nowhere.

    A token takes the mean over the pixels of the garment that most of it shows, if that is a third of it at least.
    """
    rows, columns = origins.shape[0] // height, origins.shape[1] // width
    cells = origins.reshape(height, rows, width, columns, 3).transpose(0, 2, 1, 3, 4).reshape(height, width, -1, 3)
    matches = np.full((height, width, 2), -1, np.float16)
    most = np.full((height, width), rows * columns / 3)
    for number, (a, b, c, d) in enumerate(placed, 1):
        own = cells[..., 0] == number
        count = own.sum(axis=-1)
        mean = (cells[..., 1:] * own[..., None]).sum(axis=2) / np.maximum(count, 1)[..., None] / 255
        matches[count >= most] = (mean * [a, c] + [b, d])[count >= most]
        most = np.maximum(most, count)
    return matches


def _fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture at the model's size, by means of equal squares of pixels."""
    rows, columns = picture.shape[:2]
    factor = rows // height
    if (factor * height, factor * width) != (rows, columns):
        raise ValueError(
            f"the prepared pictures are {rows}x{columns} (height x width), the configuration's {height}x{width}: "
            "prepare pictures of that size or a multiple of it, or name another --config"
        )
    return picture if factor == 1 else np.asarray(Image.fromarray(picture).reduce(factor))


def _sampled(picture: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The nearest pixels at rows x columns points: part ids and (u, v) must never be averaged."""
    height, width = picture.shape[:2]
    row = (np.arange(rows) * 2 + 1) * height // (2 * rows)
    column = (np.arange(columns) * 2 + 1) * width // (2 * columns)
    return picture[row][:, column]


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m train.prepare wardrobe|latents --help` lists the settings."""
    with exit_codes():
        job = tyro.extras.subcommand_cli_from_dict(
            {"wardrobe": WardrobeJob, "latents": LatentsJob}, args=arguments, prog="python -m train.prepare"
        )
        if isinstance(job, WardrobeJob):
            prepare_wardrobe(job)
        else:
            prepare_latents(job, load_config(job.config).model)


if __name__ == "__main__":
    main()
