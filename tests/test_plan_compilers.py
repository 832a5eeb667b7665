"""The planner with the compilers of TPUs and GPUs, which need neither: `make test-plan` installs them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.kernels import Settings, compile_attention
from configs import load_config
from configs.sharding import strategy
from fcjax.hardware import HARDWARE, devices_of
from fcjax.sharding import batch_sharding, make_mesh
from tests.training import one_level
from train import forecast
from train.compiled import compile_ahead

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("dtype", "size"), [("bfloat16", 128), ("bfloat16", 256), ("bfloat16", 512), ("float32", 64), ("float32", 256)]
)
def test_the_widest_heads_of_an_attention_kernel_compile(dtype: str, size: int, monkeypatch: pytest.MonkeyPatch):
    """Forward and backward at SD1.5's tokens, for the least of the cores' memories."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    v5e, [chip] = devices_of("v5e:1x1")
    text = compile_attention(v5e, chip, Settings(batch=1, dtype=dtype), (3072, 6144, 1, size)).as_text()
    assert text and "attention_forward" in text and "attention_backward" in text


def test_a_step_compiles_for_a_tpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    tiny = load_config("tiny")
    config = dataclasses.replace(tiny, model=one_level(tiny.model))
    found = forecast.plan_training(config, "v5e:2x2", "fsdp", 2, "none")
    assert found.fits and found.devices == 4 and found.memory_by_kind["padding"] > 0
    assert found.seconds and found.cycle_seconds and found.xla_seconds is not None and found.compiled_bytes
    assert {one["kind"] for one in found.collectives} >= {"all-gather", "all-reduce"}
    quick = forecast.plan_training(config, "v5e:2x2", "fsdp", 2, "none", quick=True)
    assert quick.xla_seconds == found.xla_seconds and quick.cycle_seconds is None
    assert found.xla_seconds_counted_ahead is not None and quick.xla_seconds_counted_ahead is None
    # Collectives may be others: the default level may take a product of what is gathered apart.
    assert all(quick.seconds_by_kind[kind] == found.seconds_by_kind[kind] for kind in ("compute", "attention"))
    assert quick.seconds_by_kind["collectives"] > 0 < found.seconds_by_kind["collectives"]
    assert quick.memory_by_kind["trained"] == found.memory_by_kind["trained"]
    _, chips = devices_of("v5e:2x2:2")
    mesh = make_mesh(strategy("hybrid"), chips)
    assert {chip.slice_index for chip in mesh.devices[0].flat} == {0} and dict(mesh.shape)["fsdp"] == 4


@pytest.mark.parametrize(
    "name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1", "h100:8", "a100:16", "rtx4090:2"]
)
def test_there_is_a_compiler_for_all_hardware(name: str, monkeypatch: pytest.MonkeyPatch):
    platform = HARDWARE[name.partition(":")[0]].platform
    pytest.importorskip("libtpu" if platform == "tpu" else "jax_cuda13_plugin")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    hardware, devices = devices_of(name)
    mesh = make_mesh(strategy("data"), devices)
    whole, rows = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)
    given = [
        jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=whole),
        jax.ShapeDtypeStruct((128 * len(devices), 512), jnp.bfloat16, sharding=rows),
    ]
    slope = jax.jit(jax.grad(lambda kernel, rows: jnp.sum((rows @ kernel) ** 2)), out_shardings=whole)
    found = compile_ahead(slope, tuple(given), mesh, hardware)
    assert found.arguments == 2 * 512 * (512 + 128) and found.results == 2 * 512 * 512 and not found.refused
    [sum_] = found.collectives
    assert sum_.kind == "all-reduce" and len(sum_.members) == len(devices)
    taken = found.seconds(hardware, 4 * 2 * 128 * 512 * 512, 0.0, 0.0)
    assert taken["compute"] > 0 and (found.xla_seconds is not None) == (platform == "tpu")
