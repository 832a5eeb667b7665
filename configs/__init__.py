"""Training runs as plain Python: each function returns a `TrainConfig`; its docstring names command and result."""

import difflib
from collections.abc import Callable

from configs import mini, sd15
from train.config import TrainConfig

CONFIGS: dict[str, Callable[[], TrainConfig]] = {
    "mini_vae": mini.autoencoder,
    "mini_coarse": mini.compose_coarse,
    "mini": mini.compose,
    "mini_tryon": mini.tryon,
    "mini_unbound": mini.unbound,
    "mini_ablation": mini.ablation,
    "sd15": sd15.compose,
    "sd15_controlnet": sd15.controlnet,
    "sd15_image_encoder": sd15.image_encoder,
    "sd15_tryon": sd15.tryon,
    "sd15_posed_tryon": sd15.posed_tryon,
    "tiny_vae": mini.tiny_autoencoder,
    "tiny": mini.tiny_compose,
}


def load_config(name: str) -> TrainConfig:
    """The configuration of that name. ValueError names the nearest one."""
    if name not in CONFIGS:
        near = difflib.get_close_matches(name, CONFIGS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(CONFIGS)}"
        raise ValueError(f"there is no configuration {name!r}; {hint}")
    return CONFIGS[name]()
