"""The training program on several devices and in several processes, with real collectives."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import load_config
from fcjax.data import Prepared, training_batches
from train import run
from train.config import TrainConfig
from train.placement import Placement
from train.prepare import WardrobeJob, prepare_wardrobe

STEPS, BEFORE = 6, 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures")
    prepare_wardrobe(WardrobeJob(out=out, count=16, height=64, width=48, shard_size=8, workers=1))
    return out


def config_of(pictures: Path, **changes) -> TrainConfig:
    """An autoencoder whose channels divide over 8 devices."""
    config = load_config("tiny_vae")
    vae = dataclasses.replace(config.model.vae, block_out_channels=(8, 8, 8))
    model = dataclasses.replace(config.model, vae=vae)
    # A schedule that does not depend on the number of steps.
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=1)
    settings = {
        "optimizer": optimizer,
        "steps": STEPS,
        "batch_size": 8,
        "checkpoint_every": 2,
        "log_every": 1,
        "workers": 1,
    }
    return dataclasses.replace(config, model=model, data=pictures, **settings | changes)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one device in one process."""
    out = tmp_path_factory.mktemp("alone")
    assert run.train(config_of(pictures), out)
    return losses(out)


def in_two_processes(*arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """The program in two processes of four simulated devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    command = [sys.executable, "-m", "train.run", *arguments]
    started = [
        subprocess.Popen(
            command,
            env=environment | {"JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    ended = [(process, *process.communicate(timeout=300)) for process in started]
    return [subprocess.CompletedProcess(command, process.returncode, out, error) for process, out, error in ended]


def test_two_processes_train_and_one_goes_on(pictures: Path, alone: list[float], tmp_path: Path):
    """Two processes of four devices begin; one goes on, with eight devices and with four, by other strategies."""
    out = tmp_path / "run"
    config = config_of(pictures)
    results = in_two_processes(
        *("--config", "tiny_vae", "--out", str(out), "--data", str(pictures), "--steps", str(BEFORE)),
        *("--model.vae.block-out-channels", "8", "8", "8", "--batch-size", "8", "--strategy", "fsdp", "--devices", "0"),
        *("--checkpoint-every", "2", "--log-every", "1", "--workers", "1", "--optimizer.warmup-steps", "1"),
    )
    assert [one.returncode for one in results] == [0, 0], results[0].stderr[-3000:] + results[1].stderr[-3000:]
    # One of the two speaks and writes.
    assert "\nwrote " in results[0].stdout and "\nstep " not in results[1].stdout
    assert losses(out) == pytest.approx(alone[:BEFORE], rel=1e-5)
    copies = {name: tmp_path / name for name in ("data", "fsdp_tensor")}
    for copy in copies.values():
        subprocess.run(["cp", "-r", out, copy], check=True)
    assert run.train(dataclasses.replace(config, strategy="data", devices=8), copies["data"])
    assert run.train(dataclasses.replace(config, strategy="fsdp_tensor", devices=4), copies["fsdp_tensor"])
    for copy in copies.values():
        assert losses(copy) == pytest.approx(alone, rel=1e-5)


def test_simulated_devices_share_no_memory_of_a_state(pictures: Path):
    """Else a step with a donated state writes into it once for every device."""
    placement = Placement(config_of(pictures, devices=4), {})
    whole = NamedSharding(placement.mesh, PartitionSpec())
    shared = jax.device_put(np.ones((512, 512), np.float32), whole)

    def buffers(array: jax.Array) -> set[int]:
        return {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}

    given = placement.unshared({"kernel": shared})["kernel"]
    assert len(buffers(given)) == 4 and np.array_equal(given, shared) and given.sharding == whole


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_read_the_rows_of_one_batch(pictures: Path, processes: int):
    def numbers(sample: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"picture": sample["image"][::16, ::16], "draw": rng.random(2)}

    def stream(rows: Callable[[int], list[int]] | None, process: int = 0):
        chosen = rows and rows(process)
        return training_batches(Prepared(pictures), numbers, 8, seed=3, workers=1, first_step=1, rows=chosen)

    each = 8 // processes
    whole = stream(None)
    parts = [stream(lambda process: list(range(process * each, (process + 1) * each)), p) for p in range(processes)]
    for _ in range(3):
        batch, shares = next(whole), [next(part) for part in parts]
        for name in ("picture", "draw"):
            assert np.array_equal(batch[name], np.concatenate([share[name] for share in shares]))


def test_what_does_not_suit_the_devices_is_refused(pictures: Path):
    def place(**changes) -> Placement:
        return Placement(config_of(pictures, **changes), {})

    with pytest.raises(ValueError, match=r"devices must lie in 0 \(all\) to 8, as many as there are: 9"):
        place(devices=9)
    with pytest.raises(ValueError, match="no sharding strategy 'fsdpp'; did you mean 'fsdp'"):
        place(devices=8, strategy="fsdpp")
    with pytest.raises(ValueError, match="a batch of 8 over data x fsdp of 6 devices"):
        place(devices=6)
    with pytest.raises(ValueError, match="needs a multiple of 3 devices, there are 8"):
        place(devices=8, strategy="tensor", axes=(("tensor", 3),))
