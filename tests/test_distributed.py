"""The training program on several devices and in several processes, with real collectives."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from jax.sharding import NamedSharding, PartitionSpec

from configs import load_config
from fcjax.data import Prepared, training_batches
from fcjax.network_config import CROSS_ATTENTION_DOWN, CROSS_ATTENTION_UP
from tests.training import prepared
from train import run
from train.checkpoints import steps_of
from train.config import TrainConfig
from train.placement import Placement

STEPS, BEFORE = 6, 4
# Of a batch over 8 devices; a schedule that does not depend on the number of steps.
SHARED = ["--batch-size", "8", "--checkpoint-every", "2", "--log-every", "1", "--workers", "1"]
SHARED += ["--optimizer.warmup-steps", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data"), count=16)


# The tiny model with one level in its UNets, which compiles three times faster.
_LEVEL = {"block-out-channels": "8", "down-block-types": CROSS_ATTENTION_DOWN, "up-block-types": CROSS_ATTENTION_UP}
ONE_LEVEL = [
    *(word for name, value in _LEVEL.items() for word in (f"--model.unet.{name}", value)),
    "model.reference-unet:u-net-config",
    *(word for name, value in _LEVEL.items() for word in (f"--model.reference-unet.{name}", value)),
]


def flags_of(data: Path, name: str) -> tuple[str, list[str]]:
    """A configuration, and the flags of a run by it; the autoencoder's own channels do not divide over 8 devices."""
    if name == "autoencoder":
        return "tiny_vae", [*SHARED, "--data", f"{data}/pictures", "--model.vae.block-out-channels", "8", "8", "8"]
    latents = ["--data", f"{data}/latents", "--vae", f"{data}/model", "--optimizer.learning-rate", "1e-3"]
    return "tiny", [*SHARED, *latents, *(ONE_LEVEL if name == "composer of one level" else [])]


def config_of(data: Path, name: str = "autoencoder", **changes) -> TrainConfig:
    config, flags = flags_of(data, name)
    made = tyro.cli(TrainConfig, default=load_config(config), args=flags)
    return dataclasses.replace(made, **{"steps": STEPS, **changes})


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def in_two_processes(
    *arguments: str, meanwhile: Callable[[list[subprocess.Popen[str]]], None] = lambda _: None
) -> list[subprocess.CompletedProcess[str]]:
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
    try:
        meanwhile(started)
        ended = [(process, *process.communicate(timeout=1800)) for process in started]
    finally:
        # One that is left waits for the other for ever.
        for process in started:
            process.kill()
    return [subprocess.CompletedProcess(command, process.returncode, out, error) for process, out, error in ended]


@pytest.mark.parametrize(
    "name",
    [
        "autoencoder",
        pytest.param("composer of one level", marks=pytest.mark.slow),
        pytest.param("composer", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_and_one_goes_on(data: Path, tmp_path: Path, name: str):
    """Two processes of four devices begin; one goes on from their checkpoint, with eight devices and with four, by
    other strategies. In float32, losses to 1e-5 of those of one device, which tell one batch from the next.
    """
    out, config = tmp_path / "run", config_of(data, name)
    assert run.train(config, tmp_path / "alone")
    alone = losses(tmp_path / "alone")
    assert len(alone) == STEPS and np.abs(np.diff(alone)).min() > 1e-3 * max(alone)
    program, flags = flags_of(data, name)
    begin = ["--steps", str(BEFORE), "--strategy", "fsdp", "--devices", "0"]
    results = in_two_processes("--config", program, "--out", str(out), *begin, *flags)
    assert [one.returncode for one in results] == [0, 0], results[0].stderr[-3000:] + results[1].stderr[-3000:]
    # One of the two speaks and writes.
    assert "\nwrote " in results[0].stdout and "\nstep " not in results[1].stdout
    assert losses(out) == pytest.approx(alone[:BEFORE], rel=1e-5)
    for strategy, devices in (("data", 8), ("fsdp_tensor", 4)):
        copy = shutil.copytree(out, tmp_path / strategy)
        assert run.train(dataclasses.replace(config, strategy=strategy, devices=devices), copy)
        assert losses(copy) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 4])
def test_two_processes_end_together_where_one_is_asked_to(data: Path, tmp_path: Path, steps: int):
    """At one step, in a run that begins and in one that goes on."""
    program, flags = flags_of(data, "autoencoder")
    if steps:
        assert run.train(config_of(data, steps=steps), tmp_path)

    def preempt(started: list[subprocess.Popen[str]]) -> None:
        log = tmp_path / "log.jsonl"
        while started[0].poll() is None and not (log.is_file() and len(losses(tmp_path)) >= steps + 2):
            time.sleep(0.05)
        started[1].terminate()

    results = in_two_processes(
        "--config", program, "--out", str(tmp_path), "--steps", "100000", "--devices", "0", *flags, meanwhile=preempt
    )
    assert [one.returncode for one in results] == [0, 0], results[0].stderr[-3000:] + results[1].stderr[-3000:]
    done = len(losses(tmp_path))
    assert steps + 2 <= done < 100000 and steps_of(tmp_path / "checkpoints")[-1] == done


def test_simulated_devices_share_no_memory_of_a_state(data: Path):
    """Else a step with a donated state writes into it once for every device."""
    placement = Placement(config_of(data, devices=4), {})
    whole = NamedSharding(placement.mesh, PartitionSpec())
    shared = jax.device_put(np.ones((512, 512), np.float32), whole)

    def buffers(array: jax.Array) -> set[int]:
        return {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}

    given = placement.unshared({"kernel": shared})["kernel"]
    assert len(buffers(given)) == 4 and np.array_equal(given, shared) and given.sharding == whole


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_read_the_rows_of_one_batch(data: Path, processes: int):
    def numbers(sample: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"picture": sample["image"][::16, ::16], "draw": rng.random(2)}

    def stream(rows: Callable[[int], list[int]] | None, process: int = 0):
        chosen = rows and rows(process)
        return training_batches(Prepared(data / "pictures"), numbers, 8, seed=3, workers=1, first_step=1, rows=chosen)

    each = 8 // processes
    whole = stream(None)
    parts = [stream(lambda process: list(range(process * each, (process + 1) * each)), p) for p in range(processes)]
    for _ in range(3):
        batch, shares = next(whole), [next(part) for part in parts]
        for name in ("picture", "draw"):
            assert np.array_equal(batch[name], np.concatenate([share[name] for share in shares]))


def test_what_does_not_suit_the_devices_is_refused(data: Path):
    def place(**changes) -> Placement:
        return Placement(config_of(data, **changes), {})

    with pytest.raises(ValueError, match=r"devices must lie in 0 \(all\) to 8, as many as there are: 9"):
        place(devices=9)
    with pytest.raises(ValueError, match="no sharding strategy 'fsdpp'; did you mean 'fsdp'"):
        place(devices=8, strategy="fsdpp")
    with pytest.raises(ValueError, match="a batch of 8 over data x fsdp of 6 devices"):
        place(devices=6)
    with pytest.raises(ValueError, match="needs a multiple of 3 devices, there are 8"):
        place(devices=8, strategy="tensor", axes=(("tensor", 3),))
