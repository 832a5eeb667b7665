"""Turns a source of samples into shards that training reads.

    python -m train.prepare wardrobe --out DIR --count 8000 --split train
    python -m train.prepare viton-hd|dresscode|deepfashion|folder SRC OUT
    python -m train.prepare viton-hd SRC --check
    python -m train.prepare latents --data DIR --model RUN/model --out DIR2

The first draws Wardrobe's people and lays their assets out on canvases; the second reads a data set in its makers'
layout, or a folder of your own pictures, and the third says what is missing or odd in one without writing; the last
encodes the pictures of a prepared set with a model's autoencoder, once, so that training need not. Many processes or
machines share the work, and all continue where they stopped: shards that are there stay as they are. OUT/report.json
lists the samples that were left out and why.
"""

from collections.abc import Sequence

import tyro

from configs import load_config
from fcjax.cli import exit_codes
from fcjax.config import ComposerConfig
from train.latent_records import LatentShards, LatentsJob
from train.shards import write_set
from train.source_jobs import DeepFashionJob, DressCodeJob, FolderJob, SourceJob, VitonHDJob, prepare_source
from train.wardrobe_records import WardrobeJob, wardrobe_record

__all__ = ["LatentsJob", "WardrobeJob", "main", "prepare_latents", "prepare_wardrobe", "wardrobe_record"]


JOBS = {
    "wardrobe": WardrobeJob,
    "viton-hd": VitonHDJob,
    "dresscode": DressCodeJob,
    "deepfashion": DeepFashionJob,
    "folder": FolderJob,
    "latents": LatentsJob,
}


def prepare_wardrobe(job: WardrobeJob) -> None:
    """Writes the shards of `job` with a pool of processes, then the index."""
    write_set(job, job.out, job.workers, job.ray)


def prepare_latents(job: LatentsJob, config: ComposerConfig) -> None:
    """Writes a copy of the set in which latents, token masks and UV points stand for the pictures."""
    write_set(LatentShards(job, config), job.out)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m train.prepare --help` lists the sub-commands, each with its own settings."""
    with exit_codes():
        job = tyro.extras.subcommand_cli_from_dict(JOBS, args=arguments, prog="python -m train.prepare")
        if isinstance(job, WardrobeJob):
            prepare_wardrobe(job)
        elif isinstance(job, SourceJob):
            prepare_source(job)
        else:
            prepare_latents(job, load_config(job.config).model)


if __name__ == "__main__":
    main()
