"""The planner: FLOPs, collectives, and the memory of a step that is compiled and not run."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from configs import load_config
from configs.sharding import strategy
from fcjax.hardware import HARDWARE, devices_of, network_rate
from fcjax.models.tpu_attention import blocks
from fcjax.sharding import make_mesh
from tests.training import one_level
from train import forecast, kernels
from train import plan as planner
from train.compiled import Compiled
from train.config import TrainConfig
from train.cost import collectives_of, flops_of
from train.sampling_programs import sampling_programs


def test_flops_of_products_convolutions_and_loops():
    a, b = jnp.ones((4, 3)), jnp.ones((3, 5))
    product = 2 * 4 * 3 * 5
    assert flops_of(jnp.dot, a, b) == product
    assert flops_of(lambda x: jax.lax.map(lambda row: row @ b, x), a) == product
    assert flops_of(
        jax.jit(lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ b, lambda y: (y + y) @ b @ b.T @ b, x)), a
    )
    grid, kernel = jnp.ones((2, 8, 6, 3)), jnp.ones((3, 3, 3, 7))
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolve(x: jax.Array, k: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers)

    assert flops_of(convolve, grid, kernel) == 2 * (2 * 8 * 6 * 7) * (3 * 3 * 3)
    # Half as many places, each the same work.
    assert flops_of(lambda x: jax.lax.conv_general_dilated(x, kernel, (2, 1), "SAME", dimension_numbers=numbers), grid)


def test_gradients_cost_what_is_asked_for():
    x, w = jnp.ones((4, 3)), jnp.ones((3, 5))

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(x @ w))

    once = 2 * 4 * 3 * 5
    assert flops_of(jax.grad(loss, (0, 1)), x, w) == 3 * once
    for gradients in (jax.grad(loss, (0, 1)), jax.jit(jax.grad(loss, (0, 1)))):
        assert flops_of(lambda x, w, both=gradients: both(x, w)[1], x, w) == 2 * once


def test_a_loop_of_unknown_length_is_refused():
    def endless(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ y, x)

    with pytest.raises(ValueError, match="a loop whose length is not known"):
        flops_of(endless, jnp.ones((3, 3)))


def test_collectives_are_counted_in_bytes_and_as_often_as_they_run():
    mesh = make_mesh(strategy("fsdp"))
    split, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
    rows = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=split)

    def summed(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=0)

    text = jax.jit(summed, out_shardings=whole).lower(rows).compile().as_text()
    [found] = collectives_of(text)
    assert (found.kind, found.group, found.count) == ("all-reduce", 8, 1)
    assert found.bytes == 2 * 7 / 8 * 32 * 4
    text = jax.jit(lambda x: x * 2, out_shardings=whole).lower(rows).compile().as_text()
    [found] = collectives_of(text)
    assert (found.kind, found.bytes) == ("all-gather", 7 / 8 * 64 * 32 * 4)

    def looped(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 6, lambda i, total: total * 0.5 + jnp.sum(x + i * total, axis=0), jnp.zeros(32))

    text = jax.jit(looped, out_shardings=whole).lower(rows).compile().as_text()
    assert sum(one.count for one in collectives_of(text)) == 6


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    """The tiny run with a single level in its UNets, which compiles three times faster."""
    tiny = load_config("tiny")
    return dataclasses.replace(tiny, model=one_level(tiny.model))


def test_a_plan_of_training_on_simulated_devices(config: TrainConfig):
    found = forecast.plan_training(config, "cpu:8", "fsdp", 1, "none")
    kinds = found.memory_by_kind
    assert found.devices == 8 and found.fits and found.memory == sum(kinds.values()) < found.usable_memory
    assert kinds["gradients"] == kinds["trained"] and kinds["activations"] > 0 and found.mesh == {"fsdp": 8}
    # Everything is trained; AdamW holds two numbers for each (and two counters).
    assert kinds["average"] == kinds["trained"] and 0 <= kinds["optimizer"] - 2 * kinds["trained"] < 64
    assert kinds["frozen"] == 0
    alone = sum(leaf.size for leaf in jax.tree.leaves(forecast.abstract_parameters(config.model)) if leaf.size) * 4
    assert alone / 8 < kinds["trained"] < alone / 3
    assert {one["kind"] for one in found.collectives} >= {"all-gather"}
    # No kernels of TPUs, and a roofline of products, other kernels' bytes and the network.
    assert found.kernel_flops == 0 and found.cycle_seconds is None and found.compiled_bytes
    assert found.seconds_by_kind["memory"] > 0 and found.seconds == sum(found.seconds_by_kind.values())
    assert found.seconds_by_kind["collectives"] == pytest.approx(
        sum(one["bytes"] for one in found.collectives) / HARDWARE["cpu"].link
    )
    assert found.flops == forecast.model_flops(config)
    assert 0 < found.mfu < 1 and found.samples_per_second == pytest.approx(1 / found.seconds)
    json.dumps(dataclasses.asdict(found))


def test_kernels_run_for_every_noise_level_and_forward_alone_in_a_rollout(config: TrainConfig):
    def training(**changes: Any) -> Any:
        changed = dataclasses.replace(config, loss=dataclasses.replace(config.loss, **changes))
        return forecast._training(changed, 1, False, jnp.bfloat16)

    denoiser, reader = kernels.denoiser_layers(config.model), kernels.reader_layers(config.model)
    plain, rolled = training(noises=3), training(noises=3, rollout=0.5)
    assert plain.attentions == rolled.attentions == [*denoiser * 3, *reader]
    assert plain.rolled == [] and rolled.rolled == denoiser * 3


def test_a_plan_of_training_the_denoiser_alone(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    """Without text encoder, reference UNet and pose channels, with a gradient for every weight."""
    found = forecast.plan_training(config, "cpu:1", "data", 2, "layers", alone=True)
    assert found.what == "unet" and found.memory_by_kind["frozen"] == 0
    sizes = jax.tree.map(lambda leaf: leaf.size, forecast.abstract_parameters(config.model)["unet"])
    unet = config.model.unet
    extra = (unet.in_channels - config.model.vae.latent_channels) * 9 * unet.block_out_channels[0]
    assert found.memory_by_kind["trained"] == 4 * (sum(jax.tree.leaves(sizes)) - extra)
    assert found.flops == 2 * forecast.model_flops(config, alone=True)
    assert 0 < found.flops / 2 < forecast.model_flops(config) / 2

    def planned(config: TrainConfig, *others: Any, alone: bool, quick: bool) -> forecast.Plan:
        assert alone and quick and (config.model.height, config.model.width) == (128, 96)
        return dataclasses.replace(found, strategy=others[1], remat=others[3])

    monkeypatch.setattr(planner, "plan_training", planned)
    settings = planner.Settings(
        "tiny", "unet", size=(128, 96), hardware=("cpu:1",), strategy=("fsdp",), remat=("dots",), quick=True
    )
    sized = planner._config(settings)
    assert [(one.strategy, one.remat) for one in planner.plans(settings, sized)] == [("fsdp", "dots")]


def test_any_field_of_the_configuration_can_be_set(
    sampling: forecast.Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    seen = []
    monkeypatch.setattr(planner, "model_flops", lambda config, alone: 1e12)
    monkeypatch.setattr(planner, "plans", lambda settings, config: seen.append((settings, config)) or [sampling])
    flags = ["--config", "tiny", "--strategy", "fsdp:data=2", "--task", "tryon", "--accumulate", "2"]
    planner.main([*flags, "--optimizer.ema-decay", "0", "--optimizer.trainable", "unet/.*", "True", ".*", "False"])
    [(settings, config)] = seen
    assert settings.strategy == ("fsdp:data=2",) and config.task == "tryon" and config.accumulate == 2
    assert config.optimizer.ema_decay == 0 and config.optimizer.trainable == (("unet/.*", True), (".*", False))
    with pytest.raises(SystemExit) as ended:
        planner.main(["--config", "tiny", "--optimiser.name", "lion"])
    assert ended.value.code == 2 and "optimiser" in capsys.readouterr().err


def test_what_the_compiler_refuses_does_not_fit(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The bytes are those of XLA's message; there is no time, and the comparison goes on."""
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G."

    def refuse(*_: Any, **__: Any) -> None:
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    found = forecast.plan_training(config, "cpu:1", "data", 1, "none")
    assert not found.fits and found.memory == pytest.approx(20.5 * 2**30)
    assert found.seconds is found.mfu is found.samples_per_second is None and found.seconds_by_kind == {}
    monkeypatch.setattr(planner, "load_config", lambda name: config)
    planner.main(["--hardware", "cpu:1", "--strategy", "data", "--batch", "1", "2", "--json", str(tmp_path / "p.json")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("cpu:1")]
    assert [line[line.index("NO") : -2] for line in lines] == [["NO", *["-"] * 8]] * 2
    planner.plot([found], tmp_path / "p.png")
    message = "INTERNAL: the compiler fell over"
    with pytest.raises(jax.errors.JaxRuntimeError, match="fell over"):
        forecast.plan_training(config, "cpu:1", "data", 1, "none")


@pytest.fixture(scope="module")
def sampling(config: TrainConfig) -> forecast.Plan:
    return forecast.plan_sampling(config.model, "cpu:8", "tensor", 1, steps=5, dtype=jnp.float32)


def test_a_plan_of_sampling_on_simulated_devices(config: TrainConfig, sampling: forecast.Plan):
    kinds = sampling.memory_by_kind
    assert sampling.fits and sampling.memory == sum(kinds.values()) and min(kinds.values()) > 0
    alone = 4 * sum(leaf.size for leaf in jax.tree.leaves(forecast.abstract_parameters(config.model)))
    assert alone / 2 < kinds["weights"] < alone
    conditions, step, decode = (
        forecast.flops_of(*forecast._counted(config.model, key, jnp.float32))
        for key in ("conditions", "step", "decode")
    )
    assert sampling.flops == pytest.approx(conditions + 5 * step + decode)
    assert sampling.collectives and sampling.samples_per_second == 1 / sampling.seconds
    with pytest.raises(ValueError, match="steps of sampling must be at least 1, got 0"):
        forecast.plan_sampling(config.model, "cpu:8", "tensor", 1, steps=0)
    json.dumps(dataclasses.asdict(sampling))


def test_a_comparison_says_what_does_not_suit_and_goes_on(
    sampling: forecast.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def planned(model: Any, hardware: str, name: str, batch: int, steps: int, quick: bool) -> forecast.Plan:
        strategy(name)
        return dataclasses.replace(sampling, hardware=hardware, strategy=name, batch=batch)

    monkeypatch.setattr(planner, "plan_sampling", planned)
    arguments = ["--config", "tiny", "--what", "sample", "--hardware", "cpu:8", "--batch", "1", "2"]
    files = ["--json", str(tmp_path / "plans.json"), "--plot", str(tmp_path / "plans.png")]
    planner.main([*arguments, *files, "--strategy", "tensr", "data"])
    assert "cpu:8 tensr none x2: there is no sharding strategy 'tensr'; did you mean" in capsys.readouterr().out
    found = json.loads((tmp_path / "plans.json").read_text())
    assert [(one["strategy"], one["batch"]) for one in found] == [("data", 1), ("data", 2)]
    with Image.open(tmp_path / "plans.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**20) or ()) > 10
    # One alone, and several of which none suits.
    for wrong in (arguments[:-1], [*arguments, "--plot", str(tmp_path / "none.png")]):
        with pytest.raises(SystemExit) as ended:
            planner.main([*wrong, "--strategy", "tensr"])
        assert ended.value.code == 2 and not (tmp_path / "none.png").exists()
    assert "no combination suits" in capsys.readouterr().err


def test_copies_ahead_are_told_beside_the_ideal(sampling: forecast.Plan):
    step = {"what": "train", "hardware": "v5p:2x2x2", "seconds": 0.3, "flops": 0.165 * HARDWARE["v5p"].flops}
    found = dataclasses.replace(sampling, **step, xla_seconds=-0.78, xla_seconds_counted_ahead=-0.75)
    assert "30.0 ms more, 330.0 ms, MFU 50.0%" in planner._notes(found)[-1]
    quick = dataclasses.replace(found, xla_seconds_counted_ahead=None)
    assert not any("copies ahead" in note for note in planner._notes(quick))


def test_a_batch_has_the_shapes_that_training_takes():
    config = load_config("mini")
    shapes = forecast.abstract_batch(config.model, 2)
    assert shapes["latents"].shape == (2, 64, 48, 6) and shapes["uv"].shape == (2, 128, 96, 2)
    assert shapes["masks"].shape == (2, 6, 64, 48)
    posed, worn, both = (
        forecast.abstract_batch(config.model.conditioned(condition), 2)
        for condition in ("pose", "tryon", "posed_tryon")
    )
    assert both == posed | worn and posed.keys() - worn.keys() == {"uv", "places"}


def test_sampling_of_try_on_with_a_pose_is_planned():
    """Its conditions hold more channels, all else is alike."""
    model = load_config("tiny").model
    found = {
        condition: sampling_programs(model.conditioned(condition), 1, jnp.float32)["step"][1][1].channels.shape[-1]
        for condition in ("pose", "tryon", "posed_tryon")
    }
    assert found["posed_tryon"] == found["pose"] + found["tryon"] == model.conditioned("posed_tryon").condition_channels


@pytest.mark.slow
def test_flops_of_stable_diffusion_twice():
    """By hand: 3.69 TFLOP with all weights of both UNets trained, about 2.8 with the paper's subset, at 512x384."""
    config = load_config("sd15")
    assert forecast.model_flops(config) == pytest.approx(2.8e12, rel=0.03)
    rules = ((r"text_encoder/.*", False), (r".*", True))
    everything = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, trainable=rules))
    assert forecast.model_flops(everything) == pytest.approx(3.69e12, rel=0.03)


def test_hardware_that_is_none(capsys: pytest.CaptureFixture[str]):
    for name in ("v9:2x2", "v5p", "v5p:0x2x2", "h100:2x4", "cpu:two", "v5p:2x2x2x2", "v5p:2x2x2:0"):
        with pytest.raises(ValueError, match=f"there is no hardware '{name}': name one of v4, v5e"):
            devices_of(name)
    with pytest.raises(ValueError, match="cpu:9 needs 9 devices, there are 8: set XLA_FLAGS"):
        devices_of("cpu:9")
    with pytest.raises(ValueError, match="h100:8:2: slices are a TPU's; of GPUs every 8 are a node, as in h100:16"):
        devices_of("h100:8:2")
    with pytest.raises(ValueError, match="12 GPUs are no whole nodes of 8"):
        devices_of("h100:12")
    with pytest.raises(SystemExit) as ended:
        planner.main(["--config", "tiny", "--hardware", "v9:1"])
    assert ended.value.code == 2 and "error: there is no hardware 'v9:1'" in capsys.readouterr().err


def test_hardware_is_plausible():
    """Memory in bytes, rates per second: no unit is off by a thousand."""
    for name, one in HARDWARE.items():
        assert 1e9 < one.memory < 1e12 and 1e11 < one.flops < 1e16, name
        assert one.flops > one.bandwidth > one.link > one.slow_network or name == "cpu"
        assert (one.clock > 1e9) == (one.platform == "tpu"), name
    assert np.all([HARDWARE[name].host for name in HARDWARE])


def test_the_network_between_devices():
    """All links along a group, twice where it fills an axis whose ends are joined; across slices their own network."""

    def chip(x: int, y: int, part: int = 0) -> Any:
        return types.SimpleNamespace(platform="tpu", coords=(x, y, 0), slice_index=part, id=0)

    line, sheet = [chip(x, 0) for x in range(16)], [chip(x, y) for x in range(16) for y in range(2)]
    v5e = HARDWARE["v5e"]
    assert network_rate(v5e, line[:8], sheet) == v5e.link
    assert network_rate(v5e, line, sheet) == 2 * v5e.link
    assert network_rate(v5e, sheet, sheet) == 3 * v5e.link
    others = [chip(x, 0, 1) for x in range(16)]
    assert network_rate(v5e, [line[0], others[0]], line + others) == v5e.slow_network
    assert network_rate(v5e, line + others, line + others) == 16 * v5e.slow_network
    gpus = [types.SimpleNamespace(platform="cuda", id=index) for index in range(16)]
    assert network_rate(HARDWARE["h100"], gpus[:8], gpus) == HARDWARE["h100"].link
    assert network_rate(HARDWARE["h100"], gpus[::8], gpus) == HARDWARE["h100"].slow_network


def test_kernels_take_their_schedules_cycles():
    """Two passes of a step, three where the forward one runs twice."""
    layers, v5p = [kernels.AttentionLayer(3072, 6144, 8, 40)], HARDWARE["v5p"]
    step = kernels.kernel_cost(layers, v5p, kernels.FORWARD + kernels.BACKWARD)
    assert step.flops == 7 * layers[0].product
    # 8 heads, 4 x 2 blocks of 768 x 3072 forward, 3 x 3 of 1024 x 2048 backward, two cores.
    forward, backward = (cycles[-1] for cycles in v5p.attention_cycles)
    assert step.seconds == pytest.approx(8 * (8 * forward + 9 * backward) / 2 / v5p.clock)
    # No schedule is better than the peak rate, and none takes heads of 40 for more than the units' 128.
    assert 1.5 < step.seconds * v5p.flops / step.flops < 128 / 40
    anew = kernels.kernel_cost(layers, v5p, kernels.FORWARD * 2 + kernels.BACKWARD)
    assert anew.flops == pytest.approx(9 / 7 * step.flops)
    assert anew.seconds - step.seconds == pytest.approx(8 * 8 * forward / 2 / v5p.clock)
    assert kernels.kernel_cost(layers, HARDWARE["h100"], kernels.FORWARD).flops == 0
    # Where little is computed for what is read, the bytes take longer.
    slow = dataclasses.replace(v5p, bandwidth=1e9)
    assert kernels.kernel_cost(layers, slow, kernels.FORWARD).seconds > 10 * step.seconds


def test_blocks_of_stable_diffusion_are_those_that_were_measured():
    for index, of_pass in enumerate(kernels._MEASURED):
        shapes = [(3072, 128, 40), (768, 1536, 80), (3072, 6144, 40)]
        sizes = [blocks(queries, keys, 2 * size)[index] for queries, keys, size in shapes]
        assert tuple(queries * keys for queries, keys, _ in sizes) == of_pass
        assert all(len(one.attention_cycles[index]) == 3 for one in HARDWARE.values() if one.platform == "tpu")


def test_blocks_that_were_not_measured_lie_between():
    layer, v5p = kernels.AttentionLayer(512, 1024, 1, 40), HARDWARE["v5p"]
    small, large = v5p.attention_cycles[0][:2]
    each = small + (large - small) * (512 * 1024 - 768 * 128) / (768 * 1536 - 768 * 128)
    assert kernels.kernel_cost([layer], v5p, kernels.FORWARD).seconds == pytest.approx(each / 2 / v5p.clock)
    # With 8 numbers of the mask wide heads are too many for one product, and 77 keys are filled up to 128.
    wide = dataclasses.replace(layer, size=128)
    assert kernels.kernel_cost([wide], v5p, kernels.FORWARD).seconds == pytest.approx(2 * each / 2 / v5p.clock)
    text = dataclasses.replace(layer, queries=768, keys=77)
    assert kernels.kernel_cost([text], v5p, kernels.FORWARD).seconds == pytest.approx(small / 2 / v5p.clock)
    few = dataclasses.replace(layer, queries=48, keys=96)
    assert kernels.kernel_cost([few], v5p, kernels.FORWARD) == kernels.KernelCost()


def compiled(**fields: Any) -> Compiled:
    kinds = {"arguments": 0.0, "temporaries": 0.0, "results": 0.0, "code": 0.0, "flops": None, "bytes": None}
    rest = {"xla_seconds": None, "cycles": (0.0, 0.0), "traffic": 0.0, "collectives": [], "compile_seconds": 0.0}
    return Compiled(**(kinds | rest | fields))


def test_what_xla_cannot_time_is_no_time():
    """Every such kernel costs its estimate a second, and loops are in it once; the cycles say how much that is."""
    v5p = HARDWARE["v5p"]
    assert compiled(xla_seconds=-0.98, cycles=(0.03 * v5p.clock,) * 2).ideal_seconds(v5p) == pytest.approx(0.02)
    assert compiled(xla_seconds=-2.9996, cycles=(0.004 * v5p.clock,) * 2).ideal_seconds(v5p) == pytest.approx(0.0004)
    assert compiled(xla_seconds=-1.7, cycles=(4.2 * v5p.clock,) * 2).ideal_seconds(v5p) == pytest.approx(1.3)
    assert compiled(xla_seconds=0.3, cycles=(0.8 * v5p.clock,) * 2).ideal_seconds(v5p) == pytest.approx(0.3)
    assert compiled(xla_seconds=0.3, cycles=(4.2 * v5p.clock,) * 2).ideal_seconds(v5p) == pytest.approx(1.3)
    looped = compiled(xla_seconds=0.1, cycles=(0.12 * v5p.clock, 0.5 * v5p.clock))
    assert looped.ideal_seconds(v5p) == pytest.approx(0.1 * 0.5 / 0.12)
    known = compiled(xla_seconds=0.3).seconds(v5p, 1e12, 0.5, 0.25)
    assert known == {"compute": 0.3, "memory": 0.0, "attention": 0.5, "collectives": 0.25}


def test_a_roofline_stands_where_xla_has_no_time():
    h100 = HARDWARE["h100"]
    found = compiled(traffic=3352e9 * 0.009).seconds(h100, 989e9, 0.5, 0.25)
    assert found == {
        "compute": pytest.approx(1e-3 / 0.8),
        "memory": pytest.approx(0.01),
        "attention": 0.0,
        "collectives": 0.25,
    }


def test_flags_that_would_change_nothing_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        planner.main(["--config", "tiny", "--hardware", "cpu:2", "--batch-size", "3"])
    assert ended.value.code == 2 and "the planner takes no --batch-size: give --batch" in capsys.readouterr().err
