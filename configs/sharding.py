"""Sharding strategies as rule tables. A rule's value names the mesh axes of a parameter's LAST dimensions.

| name         | batch       | parameters                     | between                           |
|--------------|-------------|--------------------------------|-----------------------------------|
| data         | data        | whole on every device          |                                   |
| fsdp         | data x fsdp | split over fsdp                |                                   |
| tensor       | data        | heads and channels over tensor | heads, hidden channels            |
| fsdp_tensor  | data x fsdp | both                           | heads, hidden channels            |
| sequence     | data        | whole                          | rows of grids, queries            |
| hybrid       | data x fsdp | split over fsdp                | gradients alone cross the slices  |

`strategy("tensor", tensor=4)` sets sizes; the axis that is -1 takes the devices that are left. fsdp takes at most
FSDP_MOST of them, as far as Stable Diffusion's 320 channels divide, and data what is left: 256 devices are 4 x 64.
"""

import dataclasses
import difflib

from fcjax.sharding import MESH_AXES, Rule, Strategy

FSDP_MOST = 64

# Norms, biases, and what has too few channels to be worth splitting.
_VECTORS: tuple[Rule, ...] = ((r".*/(bias|scale)", ()),)
_NARROW: tuple[Rule, ...] = (
    (r".*/(quant_conv|post_quant_conv|linear_encoder|linear_decoder)/.*", ()),
    (r".*/conv_out/kernel", ("fsdp", None)),
)
WHOLE: tuple[Rule, ...] = ((r".*", ()),)
FSDP: tuple[Rule, ...] = (*_VECTORS, *_NARROW, (r".*/(kernel|embedding)", ("fsdp",)))


def _split_channels(fsdp: str | None) -> tuple[Rule, ...]:
    """Megatron's layout (arXiv 1909.08053): what is read whole writes a share of heads or hidden channels, and what
    reads a share writes a part of a sum. `fsdp` splits the other dimension.
    """
    text = r"text_encoder/encoder/.*"
    spread = r".*/(to_q|to_k|to_v|net_0/proj|conv1|time_emb_proj|time_embedding/linear_1)"
    gather = r".*/(to_out_0|net_2|conv2|time_embedding/linear_2)"
    return (
        # The VAE runs once a picture, and before training.
        (r"vae/.*/(bias|scale)", ()),
        (rf"{spread}/kernel", (fsdp, "tensor")),
        (rf"{spread}/bias", ("tensor",)),
        (r".*unet/.*/resnets_\d+/norm2/(scale|bias)", ("tensor",)),
        (rf"{gather}/kernel", ("tensor", fsdp)),
        (rf"{text}/(q_proj|k_proj|v_proj|fc1)/kernel", (fsdp, "tensor")),
        (rf"{text}/(q_proj|k_proj|v_proj|fc1)/bias", ("tensor",)),
        (rf"{text}/(out_proj|fc2)/kernel", ("tensor", fsdp)),
    )


STRATEGIES = (
    Strategy("data", (("data", -1),), WHOLE),
    Strategy("fsdp", (("fsdp", -1),), FSDP, most=FSDP_MOST),
    Strategy("tensor", (("data", -1), ("tensor", 2)), (*_split_channels(None), *WHOLE)),
    Strategy("fsdp_tensor", (("fsdp", -1), ("tensor", 2)), (*_split_channels("fsdp"), *FSDP), most=FSDP_MOST),
    Strategy("sequence", (("data", -1), ("sequence", 2)), WHOLE),
    Strategy("hybrid", (("data", 2), ("fsdp", -1)), FSDP, slices=2, most=FSDP_MOST),
)
_NAMES = {one.name: one for one in STRATEGIES}


def strategy(name: str, **sizes: int) -> Strategy:
    """The strategy of that name, with some of its axes' sizes changed.

    ValueError for an unknown name (naming the nearest one) or axis.
    """
    if name not in _NAMES:
        near = difflib.get_close_matches(name, _NAMES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_NAMES)}"
        raise ValueError(f"there is no sharding strategy {name!r}; {hint}")
    slices = sizes.pop("slices", _NAMES[name].slices)
    unknown = sorted(set(sizes) - set(MESH_AXES))
    if unknown:
        raise ValueError(f"a mesh has the axes {', '.join(MESH_AXES)}, got {', '.join(unknown)}")
    chosen = dict(_NAMES[name].axes) | sizes
    return dataclasses.replace(_NAMES[name], axes=tuple(chosen.items()), slices=slices)


def named(text: str) -> Strategy:
    """The strategy of "fsdp", or with sizes as in "fsdp:data=32" or "hybrid:data=4,slices=4".

    ValueError for an unknown name or axis and for what is no size.
    """
    name, _, rest = text.partition(":")
    sizes: dict[str, int] = {}
    for part in rest.split(",") if rest else ():
        axis, _, size = part.partition("=")
        if not size.removeprefix("-").isdecimal():
            raise ValueError(f"{text!r}: {part!r} gives an axis no size; write name:axis=size,axis=size")
        sizes[axis] = int(size)
    return strategy(name, **sizes)
