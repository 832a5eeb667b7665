"""Strategies on 8 simulated devices: every one takes the step that a single device takes."""

import contextlib
import dataclasses
import math
import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import load_config
from configs.sharding import STRATEGIES, named, strategy
from fcjax import trees
from fcjax.config import ComposerConfig
from fcjax.models.parameters import abstract_parameters, init_parameters
from fcjax.presets import mini, sd15, tiny
from fcjax.sharding import (
    Strategy,
    axis_sizes,
    batch_sharding,
    check,
    make_mesh,
    parameter_specs,
    tree_shardings,
)
from tests.training import one_level
from train.config import TrainConfig
from train.placement import Placement
from train.run import start_of
from train.step import TrainState, composing_loss, initial_state, make_step, parameters

BATCH, KEY = 8, jax.random.key(0)
NAMES = [one.name for one in STRATEGIES]


def run_config() -> TrainConfig:
    """A run whose widths and heads divide over four devices."""
    config = load_config("tiny")
    small = tiny()
    unet = dataclasses.replace(small.unet, block_out_channels=(16, 32), attention_head_dim=4)
    widths = {"block_out_channels": unet.block_out_channels, "attention_head_dim": unet.attention_head_dim}
    reference = dataclasses.replace(small.reference_unet, **widths)
    model = dataclasses.replace(small, unet=unet, reference_unet=reference)
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=1)
    return dataclasses.replace(config, model=model, optimizer=optimizer)


def batch_of(model: ComposerConfig) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    latent, words = (BATCH, model.latent_height, model.latent_width), model.text_encoder.max_position_embeddings
    masks = np.zeros((BATCH, model.max_assets, *latent[1:]), np.float32)
    masks[:, 0, :, : latent[2] // 2] = 1
    masks[:4, 1, :2, latent[2] // 2 :] = 1
    spans = np.zeros((BATCH, model.max_assets, words), np.float32)
    spans[:, 0, 1:4], spans[:, 1, 5:7] = 1 / 3, 1 / 2
    ids = draw.integers(0, model.text_encoder.vocab_size, (BATCH, words), np.int32)
    return {
        "latents": draw.standard_normal((*latent, model.vae.latent_channels), np.float32),
        "canvas": draw.standard_normal((*latent, model.vae.latent_channels), np.float32),
        "ids": ids,
        "empty_ids": np.broadcast_to(ids[:1], ids.shape).copy(),
        "spans": spans,
        "masks": masks,
        "foreground": draw.random(latent, np.float32),
        "uv": draw.random((BATCH, model.height, model.width, 2), np.float32),
        "places": draw.random((BATCH, model.height, model.width, 3), np.float32),
        "matches": np.zeros((*latent, 2), np.float32),
    }


def alive(model: ComposerConfig) -> dict:
    """Parameters with no zeros, which would hide what comes before them."""
    draw = np.random.default_rng(1)
    params = {part: init_parameters(model, jax.random.key(0))[part] for part in ("unet", "reference_unet", "binder")}
    params |= {"text_encoder": init_parameters(model, jax.random.key(1))["text_encoder"]}
    return jax.tree.map(lambda leaf: leaf + 0.05 * draw.standard_normal(leaf.shape, np.float32), params)


def two_steps(config: TrainConfig, params: dict, chosen: Strategy | None) -> tuple[TrainState, list[float]]:
    """The first step's rate is 0, so that it takes two to move anything."""
    state = initial_state(config.optimizer, config.steps, jax.tree.map(jnp.copy, params))
    loss, batch = composing_loss(config.model, config.loss, jnp.float32), batch_of(config.model)
    losses = []
    if chosen is None:
        step, mesh = make_step(config, loss), contextlib.nullcontext()
    else:
        devices = make_mesh(chosen)
        sizes = dict(devices.shape)
        check(config.model, sizes, BATCH)
        specs = parameter_specs(params, chosen.parameters, sizes)
        shardings = tree_shardings(state, specs, devices), batch_sharding(devices)
        step, mesh = make_step(config, loss, shardings), jax.set_mesh(devices)
        state = jax.device_put(state, shardings[0])
    with mesh:
        for _ in range(2):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def single(request: pytest.FixtureRequest) -> tuple[TrainConfig, dict, TrainState, list[float]]:
    config = run_config()
    if request.param == "one level":
        config = dataclasses.replace(config, model=one_level(config.model, width=16))
    params = alive(config.model)
    return config, params, *two_steps(config, params, None)


# It splits the batch, parameters, heads and channels in one compilation; on one level in less than half the time.
QUICK = pytest.param("one level", strategy("fsdp_tensor"), id="fsdp_tensor of one level")
EACH = [pytest.param("two levels", one, id=one.name, marks=pytest.mark.slow) for one in STRATEGIES]


@pytest.mark.parametrize(("single", "chosen"), [QUICK, *EACH], indirect=["single"])
def test_steps_equal_one_device(single: Any, chosen: Strategy) -> None:
    """In float32: losses to 1e-5 of themselves, parameters to a hundredth of what a step moves them.

    The bias of the text encoder's keys is left out: softmax does not see it, so its gradient is rounding alone, and
    Adam moves it by a whole step whatever its size.
    """
    config, params, expected, losses = single
    state, found = two_steps(config, params, chosen)
    assert found == pytest.approx(losses, rel=1e-5)
    before, alone, spread = (trees.flatten(tree) for tree in (params, expected.trained, state.trained))
    moved = {path: np.abs(alone[path] - before[path]).max() for path in alone}
    wrong = {
        path: (error, moved[path])
        for path in alone
        if (error := np.abs(alone[path] - np.asarray(spread[path])).max()) > 0.01 * config.optimizer.learning_rate
        and not path.endswith("k_proj/bias")
    }
    assert not wrong
    # (What lies behind the reference UNet's last keys and values has no part in anything.)
    assert np.mean([distance > 0 for distance in moved.values()]) > 0.9


def test_every_device_encodes_its_own_captions() -> None:
    """A batch of the captions and the empty prompt together would not divide, and every device would encode all."""
    config = run_config()
    model, mesh = one_level(config.model), make_mesh(strategy("data"))
    loss, params = composing_loss(model, config.loss, jnp.float32), abstract_parameters(model)
    whole, rows = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)
    with jax.set_mesh(mesh):
        compiled = jax.jit(loss, in_shardings=(whole, rows, None)).lower(params, batch_of(model), KEY).compile()
    words, width = model.text_encoder.max_position_embeddings, model.text_encoder.intermediate_size
    hidden = re.findall(rf"f32\[(\d+,)?{words},{width}\]", compiled.as_text())
    assert hidden and set(hidden) <= {"", "1,"}


def test_state_lies_as_its_parameters() -> None:
    """Moments and averages are split like the parameters; counters are whole."""
    config = run_config()
    params = alive(config.model)
    state = initial_state(config.optimizer, config.steps, params)
    mesh = make_mesh(strategy("fsdp"))
    specs = parameter_specs(params, strategy("fsdp").parameters, dict(mesh.shape))
    shardings = tree_shardings(state, specs, mesh)
    placed = jax.device_put(state, shardings)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(placed))
    on_first = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    assert on_first < whole / 4
    kernel = "unet/mid_block/resnets_0/conv1/kernel"
    for tree in (shardings.trained, shardings.average):
        assert trees.flatten(tree)[kernel].spec == PartitionSpec(None, None, None, "fsdp")
    assert shardings.step.spec == PartitionSpec()


def test_a_state_begins_with_no_more_on_a_device_than_its_share() -> None:
    """The parameters come from host memory, and nothing of them stays beside the state."""
    config = dataclasses.replace(run_config(), strategy="fsdp", devices=8, batch_size=BATCH)
    params = jax.device_get(alive(config.model))
    placement, before = Placement(config, params), jax.live_arrays()
    state = placement.initial(start_of(config), params)
    known = set(map(id, before))
    new = [array for array in jax.live_arrays() if id(array) not in known]
    held = [sum(array.addressable_shards[place].data.nbytes for array in new) for place in range(8)]
    leaves = jax.tree.leaves(state)
    share = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    assert share < sum(leaf.nbytes for leaf in leaves) / 4
    assert held == [share] * 8
    for path, leaf in trees.flatten(parameters(state)).items():
        np.testing.assert_array_equal(leaf, trees.flatten(params)[path])


@pytest.mark.parametrize("preset", [sd15, mini], ids=["sd15", "mini"])
@pytest.mark.parametrize("name", NAMES)
def test_the_tables_cover_whole_models(preset: Any, name: str) -> None:
    config, chosen = preset(), strategy(name)
    parameter_specs(abstract_parameters(config), chosen.parameters, axis_sizes(chosen, 8))
    check(config, axis_sizes(chosen, 8) | {"tensor": 1}, BATCH)


@pytest.mark.parametrize("devices", [64, 256])
@pytest.mark.parametrize("name", NAMES)
def test_the_tables_cover_stable_diffusion_on_many_devices(name: str, devices: int) -> None:
    chosen = strategy(name)
    sizes = axis_sizes(chosen, devices)
    assert np.prod(list(sizes.values())) == devices
    parameter_specs(abstract_parameters(sd15()), chosen.parameters, sizes)
    check(sd15(), sizes, 2 * devices)


def test_fsdp_takes_no_more_than_it_divides() -> None:
    """Data takes the devices beyond, and those that sizes of one's own leave."""

    def batch_axes(chosen: Strategy, devices: int) -> tuple[int, int]:
        sizes = axis_sizes(chosen, devices)
        return sizes["data"], sizes["fsdp"]

    assert [batch_axes(strategy("fsdp"), devices) for devices in (8, 12, 256)] == [(1, 8), (3, 4), (4, 64)]
    assert batch_axes(named("fsdp:data=32"), 256) == (32, 8)
    assert batch_axes(named("fsdp:data=-1,fsdp=16"), 256) == (16, 16)
    assert batch_axes(strategy("fsdp_tensor"), 256) == (2, 64)
    assert batch_axes(named("hybrid:data=4,slices=4"), 256) == (4, 64)
    assert batch_axes(strategy("hybrid"), 512) == (8, 64)


def test_data_lies_across_slices() -> None:
    devices = [types.SimpleNamespace(platform="tpu", slice_index=index // 4) for index in range(8)]
    with pytest.raises(ValueError, match="'fsdp': a data axis of 1 does not divide over the 2 slices .* fsdp:data=2"):
        make_mesh(strategy("fsdp"), devices)


def test_sizes_behind_a_name() -> None:
    assert named("fsdp") == strategy("fsdp") and named("tensor:tensor=4") == strategy("tensor", tensor=4)
    for text in ("fsdp:data", "fsdp:data=two", "fsdp:data=2,"):
        with pytest.raises(ValueError, match=rf"{text!r}: .* gives an axis no size; write name:axis=size"):
            named(text)


def test_what_does_not_fit_is_named() -> None:
    params = abstract_parameters(sd15())
    with pytest.raises(ValueError, match=r"(?s)cannot lie on the mesh.*320 does not divide over 'fsdp' of 256 devices"):
        parameter_specs(params, strategy("fsdp").parameters, axis_sizes(strategy("fsdp", fsdp=256), 256))
    with pytest.raises(ValueError, match="covered by none of 1 rules"):
        parameter_specs(params, ((r"unet/.*", ()),), axis_sizes(strategy("data"), 8))
    with pytest.raises(ValueError, match="names an axis twice"):
        parameter_specs(params, ((r".*/kernel", ("fsdp", "fsdp")), (r".*", ())), axis_sizes(strategy("fsdp"), 8))
    with pytest.raises(ValueError, match="for 5 dimensions or more"):
        parameter_specs(params, ((r".*", (None,) * 5),), axis_sizes(strategy("fsdp"), 8))


def test_a_mesh_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="needs a multiple of 3 devices, there are 8"):
        axis_sizes(strategy("tensor", tensor=3), 8)
    with pytest.raises(ValueError, match="needs 4 devices, there are 8"):
        axis_sizes(strategy("data", data=4), 8)
    with pytest.raises(ValueError, match="does not divide over 3 slices"):
        axis_sizes(strategy("hybrid", slices=3), 8)
    with pytest.raises(ValueError, match="a batch of 6 over data x fsdp of 4 devices"):
        check(sd15(), {"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1}, 6)
    with pytest.raises(ValueError, match="a batch of 8 in 4 parts over data x fsdp of 4 devices"):
        check(sd15(), {"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1}, 8, parts=4)
    halves = dataclasses.replace(load_config("tiny"), batch_size=8, accumulate=2, devices=8)
    with pytest.raises(ValueError, match="a batch of 8 in 2 parts over data x fsdp of 8 devices"):
        Placement(halves, {})
    with pytest.raises(ValueError, match="the 8 heads of unet's level 0 over tensor of 3 devices"):
        check(sd15(), {"data": 1, "fsdp": 1, "tensor": 3, "sequence": 1}, 1)
    with pytest.raises(ValueError, match="the 8 rows of unet's coarsest grid over sequence of 16 devices"):
        check(sd15(), {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 16}, 1)
    with pytest.raises(ValueError, match="tensor and sequence together"):
        check(sd15(), {"data": 1, "fsdp": 1, "tensor": 2, "sequence": 2}, 1)


def test_an_unknown_strategy_or_axis() -> None:
    with pytest.raises(ValueError, match="did you mean 'fsdp'"):
        strategy("fsdpp")
    with pytest.raises(ValueError, match="a mesh has the axes data, fsdp, tensor, sequence, got pipeline"):
        strategy("fsdp", pipeline=2)
    with pytest.raises(ValueError, match="axes must be distinct"):
        Strategy("mine", (("rows", 2),), ())
    with pytest.raises(ValueError, match="slices must be at least 1 and most at least 0, got 1, -2"):
        Strategy("mine", (), (), most=-2)
    with pytest.raises(ValueError, match="one of them at most -1"):
        Strategy("mine", (("data", -1), ("fsdp", -1)), ())
