"""What a request says, as the arrays that the compiled programs take. NumPy alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fcjax.assets import AssetCanvas, Placeable, lay_out, owned_tokens
from fcjax.body import Body, BodyMaps, atlas_uv, rest_places
from fcjax.config import ComposerConfig
from fcjax.person import Person
from fcjax.tokenizer import PromptTokens, Tokenizer


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request's canvas and tokens, and the arrays made of them (`fcjax.generation.PictureInputs`, with a batch of
    one in front of all but `empty_ids`). `maps` are the body's, for a model that composes. `negative` is what
    guidance leads away from, the empty text unless the request says more.
    """

    canvas: AssetCanvas
    tokens: PromptTokens
    negative: PromptTokens
    arrays: dict[str, np.ndarray]
    maps: BodyMaps | None = None


def prepare(
    config: ComposerConfig,
    tokenizer: Tokenizer,
    prompt: str,
    assets: Sequence[Placeable] = (),
    shown: Body | BodyMaps | Person | None = None,
    *,
    negative_prompt: str = "",
    boxes: Sequence[Sequence[int]] | None = None,
    layout_seed: int = 0,
) -> Prepared:
    """The arrays of one request, for pictures of the config's size.

    shown: a body (None: the default one) for a model that composes, a person for one that tries on. ValueError
    where it is of the other kind, and for what cannot be laid out or drawn.
    negative_prompt: what branches of guidance without text read.
    boxes, layout_seed: as `fcjax.assets.lay_out` takes them.
    """
    maps = None
    if config.tries_on:
        if not isinstance(shown, Person):
            raise ValueError(
                "this model tries garments on a person's picture, it does not compose from a body: use "
                "try_on (python -m infer.tryon), or load a composing model"
            )
        person, mask = shown.framed(config.height, config.width)
        condition = {"persons": person, "person_masks": mask.astype(np.float32)}
        if config.takes_pose:
            uv = atlas_uv(shown.posed(config.height, config.width))
            condition |= {"uv": uv, "places": rest_places(uv)}
    else:
        if isinstance(shown, Person):
            raise ValueError(
                "this model composes from a body, it cannot try on: load one whose condition is 'tryon' or "
                "'posed_tryon' (python -m infer.convert SRC DST --condition tryon makes one to train)"
            )
        maps = _maps(shown, config)
        condition = {"uv": maps.uv, "places": rest_places(maps.uv)}
    canvas = lay_out(assets, config.height, config.width, layout_seed, boxes, config.max_assets)
    length = config.text_encoder.max_position_embeddings
    tokens = tokenizer.encode_prompt(prompt, canvas.phrases, config.max_assets, length)
    negative = tokenizer.encode_prompt(negative_prompt, max_length=length)
    masks = owned_tokens(canvas.owners, config.max_assets, config.latent_height, config.latent_width)
    arrays = {"ids": tokens.ids, "spans": tokens.spans, "canvases": canvas.image, "masks": masks, **condition}
    arrays = {name: array[None] for name, array in arrays.items()}
    return Prepared(canvas, tokens, negative, {**arrays, "empty_ids": negative.ids}, maps)


def _maps(body: Body | BodyMaps | None, config: ComposerConfig) -> BodyMaps:
    if body is None or isinstance(body, Body):
        return (body or Body()).render(config.height, config.width)
    if not isinstance(body, BodyMaps):
        raise ValueError(f"the body must be a fcjax.Body (Body(pose='walking')) or what it renders, got {body!r}")
    if body.uv.shape[:2] != (config.height, config.width):
        height, width = body.uv.shape[:2]
        raise ValueError(
            f"the body's maps are {height}x{width}, the picture is {config.height}x{config.width}: "
            "render them at the picture's size"
        )
    return body
