"""What a request says, as the arrays that the compiled programs take. NumPy alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fcjax.assets import AssetCanvas, Placeable, lay_out, owned_tokens
from fcjax.body import Body, BodyMaps, rest_places
from fcjax.config import ComposerConfig
from fcjax.tokenizer import PromptTokens, Tokenizer


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request's canvas, body maps and tokens, and the arrays made of them (`fcjax.generation.PictureInputs`, with a
    batch of one in front of all but `empty_ids`).
    """

    canvas: AssetCanvas
    maps: BodyMaps
    tokens: PromptTokens
    arrays: dict[str, np.ndarray]


def prepare(
    config: ComposerConfig,
    tokenizer: Tokenizer,
    prompt: str,
    assets: Sequence[Placeable] = (),
    body: Body | BodyMaps | None = None,
    *,
    boxes: Sequence[Sequence[int]] | None = None,
    layout_seed: int = 0,
) -> Prepared:
    """The arrays of one request, for pictures of the config's size. ValueError for what cannot be laid out or drawn.

    boxes, layout_seed: as `fcjax.assets.lay_out` takes them.
    """
    canvas = lay_out(assets, config.height, config.width, layout_seed, boxes, config.max_assets)
    tokens = tokenizer.encode_prompt(prompt, canvas.phrases, max_assets=config.max_assets)
    maps = _maps(body, config)
    masks = owned_tokens(canvas.owners, config.max_assets, config.latent_height, config.latent_width)
    arrays = {
        "ids": tokens.ids[None],
        "empty_ids": tokenizer.encode(""),
        "spans": tokens.spans[None],
        "canvases": canvas.image[None],
        "masks": masks[None],
        "uv": maps.uv[None],
        "places": rest_places(maps.uv)[None],
    }
    return Prepared(canvas, maps, tokens, arrays)


def _maps(body: Body | BodyMaps | None, config: ComposerConfig) -> BodyMaps:
    if not isinstance(body, BodyMaps):
        return (Body() if body is None else body).render(config.height, config.width)
    if body.uv.shape[:2] != (config.height, config.width):
        height, width = body.uv.shape[:2]
        raise ValueError(
            f"the body's maps are {height}x{width}, the picture is {config.height}x{config.width}: "
            "render them at the picture's size"
        )
    return body
