"""Both UNets, binding and injection against an independent reference in torch, with diffusers' modules."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import convert, trees
from fcjax.config import ComposerConfig
from fcjax.models.parameters import abstract_parameters
from fcjax.network_config import BindingVariant
from fcjax.presets import tiny
from tests import oracles
from tests.dual_unet import composing, denoised, features_of, inputs_of

pytest.importorskip("torch")


class _Injecting:
    """A diffusers attention processor of self-attention: adds to keys and values, records them, or takes more."""

    def __init__(self, bound: Any = None, injected: Any = None, hidden: Any = None) -> None:
        self.bound, self.injected, self.hidden, self.recorded = bound, injected, hidden, None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_) -> Any:
        import torch

        key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        if self.bound is not None:
            key, value = key + self.bound[0], value + self.bound[1]
        self.recorded = (key, value)
        forbidden = torch.zeros(key.shape[:2], dtype=torch.bool)
        if self.injected is not None:
            key, value = (torch.cat(pair, dim=1) for pair in zip((key, value), self.injected, strict=True))
            forbidden = torch.cat([forbidden, self.hidden], dim=1)
        query, key, value = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), key, value))
        scores = torch.bmm(query, key.transpose(1, 2)) * attn.scale
        scores = scores.masked_fill(forbidden.repeat_interleave(attn.heads, 0)[:, None], float("-inf"))
        return attn.to_out[0](attn.batch_to_head_dim(torch.bmm(scores.softmax(-1), value)))


_ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


def _inject(module: Any, processors: dict[str, _Injecting]) -> None:
    module.set_attn_processor({name: processors.get(name, kept) for name, kept in module.attn_processors.items()})


def _self_attention_names(module: Any) -> list[str]:
    names = [name for name in module.attn_processors if name.endswith("attn1.processor")]
    return sorted(names, key=lambda name: (_ORDER[name.split(".")[0]], name))


class _Torch(NamedTuple):
    """The dual UNet in torch: its prediction, and what it was computed with, to ask for gradients."""

    prediction: Any
    denoiser: Any
    reference: Any
    binder: dict[str, Any]


def _torch_dual_unet(params, config: ComposerConfig, inputs: dict[str, Any]) -> _Torch:
    """Written from the paper, with nothing of fcjax but the weights and their names."""
    import torch
    from torch.nn import functional

    tensors = {name: torch.tensor(np.asarray(value)) for name, value in inputs.items()}
    binder = trees.flatten(params.get("binder", {}))
    weights = {path: torch.tensor(np.asarray(leaf), requires_grad=True) for path, leaf in binder.items()}
    phrases = tensors["spans"] @ tensors["text"]
    levels = len(config.unet.block_out_channels)
    grid = (config.latent_height, config.latent_width)
    coverage = [
        functional.adaptive_avg_pool2d(tensors["masks"], (grid[0] >> level, grid[1] >> level))
        for level in range(levels)
    ]

    def block_level(name: str) -> int:
        kind, *rest = name.split(".")
        return {"down_blocks": int(rest[0]) if rest[0].isdigit() else 0, "mid_block": levels - 1}.get(
            kind, levels - 1 - (int(rest[0]) if rest[0].isdigit() else 0)
        )

    def binding(name: str) -> Any:
        block = name.split(".attentions")[0].replace(".", "_")
        if f"{block}/linear_1/kernel" not in weights:
            return None
        hidden = functional.silu(phrases @ weights[f"{block}/linear_1/kernel"] + weights[f"{block}/linear_1/bias"])
        added = hidden @ weights[f"{block}/linear_2/kernel"] + weights[f"{block}/linear_2/bias"]
        tokens = coverage[block_level(name)].flatten(2).transpose(1, 2)
        return (tokens @ added).chunk(2, dim=-1)

    reference = oracles.load_into(oracles.torch_unet(_standard(config.reference_unet)), params["reference_unet"])
    denoiser = oracles.load_into(oracles.torch_unet(_standard(config.unet)), params["unet"])
    emitting = {name: _Injecting(bound=binding(name)) for name in _self_attention_names(reference)}
    _inject(reference, emitting)
    canvas = [oracles.to_tensor(inputs["canvas"])]
    if config.reference_octaves:
        canvas.append(_places_in_boxes(coverage[0], config.reference_octaves))
    if config.binder.variant == "conv_in":
        painted = torch.einsum(
            "bahw,bac->bchw",
            coverage[0],
            phrases @ weights["conv_in/proj/kernel"] + weights["conv_in/proj/bias"],
        )
        added = functional.conv2d(painted, weights["conv_in/kernel"].permute(3, 2, 0, 1), padding=1)
        reference.conv_in.register_forward_hook(lambda module, args, output: output + added)
    reference(torch.cat(canvas, 1), torch.zeros(2), tensors["text"])
    blank = [pooled.amax(1).flatten(1) == 0 for pooled in coverage]
    if config.attend_blank:
        blank = [torch.zeros_like(tokens) for tokens in blank]
    consuming = {
        name: _Injecting(injected=processor.recorded, hidden=blank[block_level(name)])
        for name, processor in emitting.items()
    }
    _inject(denoiser, consuming)
    sample = torch.cat([oracles.to_tensor(inputs[name]) for name in ("noisy", "condition")], 1)
    return _Torch(denoiser(sample, tensors["timesteps"], tensors["text"]).sample, denoiser, reference, weights)


def _places_in_boxes(coverage: Any, octaves: int) -> Any:
    """Sines and cosines of where in an asset's box each token lies, weighed by its coverage."""
    import torch

    def along(covered: Any) -> Any:
        where = covered.nonzero()
        middles = torch.arange(len(covered)) + 0.5
        return (2 * (middles - where.min()) / (where.max() + 1 - where.min()) - 1).clamp(-1, 1)

    channels = torch.zeros(len(coverage), 4 * octaves, *coverage.shape[2:])
    for made, masks in zip(channels, coverage, strict=True):
        for mask in masks:
            if mask.any():
                x, y = along(mask.any(0)).expand(mask.shape), along(mask.any(1))[:, None].expand(mask.shape)
                angles = torch.stack(
                    [torch.pi / 2 * 2**octave * place for place in (x, y) for octave in range(octaves)]
                )
                made += mask * torch.cat([angles.sin(), angles.cos()])
    return channels


def _standard(config: Any) -> Any:
    """diffusers knows a feed-forward of 4 times the width alone."""
    assert config.ff_mult == 4
    return config


def _with_standard_width(config: ComposerConfig) -> ComposerConfig:
    wide = {name: dataclasses.replace(getattr(config, name), ff_mult=4) for name in ("unet", "reference_unet")}
    return dataclasses.replace(config, **wide)


VARIANTS = [("none", False), ("conv_in", False), ("smallest", False), ("all", False), ("all", True)]


@pytest.mark.parametrize(("variant", "attend_blank"), VARIANTS)
def test_prediction_equals_the_torch_reference(variant: BindingVariant, attend_blank: bool, parity) -> None:
    config = dataclasses.replace(_with_standard_width(tiny(variant)), attend_blank=attend_blank)
    params, inputs = oracles.random_parameters(abstract_parameters(config)), inputs_of(config)
    ours = composing(config)(params, inputs)
    theirs = oracles.to_array(_torch_dual_unet(params, config, inputs).prediction)
    parity(ours, theirs, most=1e-4)


def test_the_optimised_program_equals_the_torch_reference(optimised, parity) -> None:
    config = _with_standard_width(tiny())
    params, inputs = oracles.random_parameters(abstract_parameters(config)), inputs_of(config)
    ours = composing(config)(params, inputs)
    parity(ours, oracles.to_array(_torch_dual_unet(params, config, inputs).prediction), most=1e-4)


@pytest.mark.parametrize("variant", [pytest.param("conv_in", marks=pytest.mark.slow), "all"])
def test_gradients_equal_torch_autograd(variant: BindingVariant, gradient_parity) -> None:
    """Of the loss with respect to every parameter of both UNets and of the binder."""
    config = _with_standard_width(tiny(variant))
    params, inputs = oracles.random_parameters(abstract_parameters(config)), inputs_of(config)
    target = oracles.normal(9, *inputs["noisy"].shape)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.sum((denoised(params, config, inputs, features_of(params, config, inputs)) - target) ** 2)

    ours = gradient(params)
    theirs = _torch_dual_unet(params, config, inputs)
    ((theirs.prediction - oracles.to_tensor(target)) ** 2).sum().backward()
    mine = {f"binder/{path}": leaf for path, leaf in trees.flatten(ours["binder"]).items()}
    expected = {f"binder/{path}": tensor.grad.numpy() for path, tensor in theirs.binder.items()}
    for name, module in (("unet", theirs.denoiser), ("reference_unet", theirs.reference)):
        mine |= {f"{name}.{key}": leaf for key, leaf in convert.state_dict(ours[name]).items()}
        # What lies behind the reference UNet's last keys and values has no gradient.
        expected |= {f"{name}.{key}": leaf for key, leaf in oracles.torch_gradients(module).items()}
    gradient_parity(mine, expected)
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    assert all(
        np.abs(leaf).max() > 1e-4 * largest for key, leaf in mine.items() if "linear_2" in key and "binder" in key
    )
