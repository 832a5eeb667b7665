"""The columns of an evaluation: who draws the pictures of its sets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from fcjax.assets import Placeable
from fcjax.config import Condition
from infer.figures import counted
from infer.folders import SHOWN, beside, pictures, size_of
from infer.sets import EvaluationSet

if TYPE_CHECKING:
    from fcjax.composer import Composer

TRUTH, RECONSTRUCTION = "truth", "truth through the VAE"

Draw = Callable[[EvaluationSet, Sequence[Placeable], int], UInt8[ndarray, "h w 3"]]
"""A picture of a set, with these assets in place of its own, from a seed; of a try-on the model's own, everywhere."""


@dataclass(frozen=True, eq=False)
class Arm:
    """One column of the table."""

    name: str
    draw: Draw
    composes: bool = True  # False for what knows no phrases: the truth and its reconstruction
    condition: Condition | None = None  # what a model is told beside text and assets
    drawn: Mapping[int, Path] = field(default_factory=dict)  # pictures that are there already, by set, scored or not


def make_arms(
    model: str,
    also: Sequence[str],
    settings: Mapping[str, Any],
    *,
    size: tuple[int, int] | None,
    binding_off: bool | None,
    truth: bool,
    tries_on: bool = False,
    labels: Sequence[str] = (),
) -> tuple[list[Arm], tuple[int, int]]:
    """The columns of the table, and the size of all pictures.

    settings: keywords of `Composer.compose`; size: of pictures, if not the model's; binding_off: the model once more,
    with its binding switched off, None: where it has any; truth: true pictures and their reconstruction, first;
    tries_on: whether all models do, or compose; labels: what columns are called, if not by their models.
    ValueError where models cannot be compared, or do the other.
    """
    # Here, because it takes seconds that a request with a mistake need not wait for.
    from fcjax.composer import Composer

    composer = _of_task(Composer.load(model), model, tries_on)
    chosen = size or (composer.config.height, composer.config.width)
    settings = {**settings, "size": chosen}
    names = labels or (model, *also)
    told = composer.config.condition
    columns = [Arm(names[0], _composing(composer, settings), condition=told)]
    if binding_off or (binding_off is None and composer.params["binder"]):
        columns.append(Arm(f"{names[0]}, binding off", _composing(without_binding(composer), settings), condition=told))
    for name, other in zip(names[1:], also, strict=True):
        loaded = _of_task(Composer.load(other), other, tries_on)
        own = (loaded.config.height, loaded.config.width)
        if size is None and own != chosen:
            raise ValueError(
                f"{other} makes pictures of {own[0]}x{own[1]} pixels and {model} of {chosen[0]}x{chosen[1]}: "
                "models are compared at one size, which --size can state"
            )
        columns.append(Arm(name, _composing(loaded, settings), condition=loaded.config.condition))
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        raise ValueError(f"every model can be scored once, got {', '.join(names)}")
    if truth:
        columns = [Arm(TRUTH, _truth, False), Arm(RECONSTRUCTION, _reconstructing(composer), False), *columns]
    return columns, chosen


def picture_arms(
    folders: Sequence[Path], labels: Sequence[str], count: int, *, truth: bool, sets: int | None = None
) -> tuple[list[Arm], tuple[int, int]]:
    """Columns of pictures that are there, NUMBER.png (or another ending) of every set, and the size of all of them.

    count: how many sets are scored, from the first; sets: how many there are, None where there is no end. ValueError
    lists the sets without a picture, and pictures that are of no set, cannot be read or are of another size.
    """
    columns, sizes, problems = [], {}, []
    for folder, name in zip(folders, labels, strict=True):
        there = pictures(folder)
        numbered = [
            (int(stem), path) for stem, path in there.items() if stem.isdecimal() and (sets is None or int(stem) < sets)
        ]
        found = dict(numbered)
        stray = {*there.values(), *beside(folder)[1]} - {path for _, path in numbered}
        if stray:
            names = ", ".join(sorted(path.name for path in stray)[:SHOWN])
            problems.append(f"{folder} has {counted(len(stray), 'picture')} of no set ({names})")
        if len(found) < len(numbered):
            problems.append(f"{folder} has several pictures of one number, such as 1.png and 001.png")
        missing = [str(number) for number in range(count) if number not in found]
        if missing:
            problems.append(f"{folder} has no picture of {len(missing)} of {count} sets ({', '.join(missing[:SHOWN])})")
        sizes |= {found[number]: size_of(found[number]) for number in range(count) if number in found}
        columns.append(Arm(name, _nothing, drawn=found))
    size = next((size for size in sizes.values() if size is not None), (0, 0))
    odd = [str(path) for path, own in sizes.items() if own != size]
    if odd:
        problems.append(f"{len(odd)} cannot be read or are not {size[0]}x{size[1]} ({', '.join(odd[:SHOWN])})")
    if problems:
        raise ValueError(f"every set needs a picture NUMBER.png, all of one size: {'; '.join(problems)}")
    return [*([Arm(TRUTH, _truth, False)] if truth else []), *columns], size


def _nothing(one: EvaluationSet, assets: Sequence[Placeable], seed: int) -> UInt8[ndarray, "h w 3"]:
    raise ValueError("pictures that are there are of their own sets and assets alone")


def without_binding(composer: "Composer") -> "Composer":
    """The same model with a binder that adds nothing. ValueError for a model that was built without one."""
    import jax

    from fcjax.composer import Composer

    if not composer.params["binder"]:
        raise ValueError("this model was built without binding, so there is nothing to switch off")
    # Its last layers are linear: without weights, nothing is added to keys and values.
    binder = jax.tree.map(lambda leaf: leaf * 0, composer.params["binder"])
    return Composer(composer.config, {**composer.params, "binder": binder}, composer.tokenizer, composer.dtype)


def _of_task(composer: "Composer", name: str, tries_on: bool) -> "Composer":
    if composer.config.tries_on != tries_on:
        raise ValueError(
            f"{name} is a model whose condition is {composer.config.condition!r}; these sets need one that "
            + ("tries on" if tries_on else "composes")
        )
    return composer


def _composing(composer: "Composer", settings: Mapping[str, Any]) -> Draw:
    """What the composer draws, on the device of `jax.default_device` where a thread has said one."""
    import jax

    from fcjax.composer import Composer

    placed = {None: composer}

    def draw(one: EvaluationSet, assets: Sequence[Placeable], seed: int) -> UInt8[ndarray, "h w 3"]:
        given = {"seed": seed, "boxes": one.boxes, **settings}
        device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
        if device not in placed:
            params = jax.device_put(composer.params, device)
            placed[device] = Composer(composer.config, params, composer.tokenizer, composer.dtype)
        if one.person is None:
            [made] = placed[device].compose(one.prompt, assets, one.maps, **given)
        else:
            [made] = placed[device].try_on(one.prompt, assets, one.person, **given, raw=True)
        return np.asarray(made.image)

    return draw


def _truth(one: EvaluationSet, assets: Sequence[Placeable], seed: int) -> UInt8[ndarray, "h w 3"]:
    if one.target.truth is None:
        raise ValueError("this set has no true picture")
    return one.target.truth


def _reconstructing(composer: "Composer") -> Draw:
    """The true picture, encoded and decoded."""
    import jax

    from fcjax.generation import decode
    from fcjax.models.composer import encode_images

    @jax.jit
    def encode(params: dict[str, Any], images: jax.Array) -> jax.Array:
        return encode_images(params, composer.config, images / 127.5 - 1.0, dtype=composer.dtype)

    def draw(one: EvaluationSet, assets: Sequence[Placeable], seed: int) -> UInt8[ndarray, "h w 3"]:
        latents = encode(composer.params, _truth(one, assets, seed)[None].astype(np.float32))
        return np.asarray(decode(composer.params, latents, config=composer.config, dtype=composer.dtype))[0]

    return draw
