"""What a run tells of itself: its lines and event files, its speed, losses by timestep, traces, and why it stops."""

import dataclasses
import itertools
import json
import os
import signal
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from configs import load_config
from fcjax.data import training_batches
from fcjax.optim import make_optimizer
from train import progress, run
from train.alarm import Alarm
from train.checkpoints import steps_of
from train.config import OptimizerConfig, TrainConfig
from train.cost import flops_of
from train.logs import Log
from train.placement import Placement
from train.prepare import WardrobeJob, prepare_wardrobe
from train.progress import Progress, learning_rate, memory, peak_flops, sample_flops
from train.step import SAMPLE_LOSSES
from train.tasks import make_task
from train.watch import BUCKETS, Watch


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "pictures"
    prepare_wardrobe(WardrobeJob(out=out, count=8, height=64, width=48, shard_size=4, workers=1))
    return out


def lines(out: Path, name: str = "log") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def config_of(pictures: Path, **changes) -> TrainConfig:
    settings = {"data": pictures, "steps": 8, "log_every": 1, "checkpoint_every": 4, "workers": 1}
    return dataclasses.replace(load_config("tiny_vae"), **settings | changes)


# ---------------------------------------------------------------------------------------------------------------------
# The log


def test_a_log_keeps_every_digit_of_a_float32_and_takes_back_what_comes_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    loss = float(np.float32(1) / 3)
    with Log(tmp_path) as log:
        for step in (2, 4, 6):
            log.line(step, {"loss": loss, "rate": 1e-9})
        log.warn(5, "something")
        log.line(6, {"heldout_loss": 1.0}, "heldout")
    assert np.float32(lines(tmp_path)[0]["loss"]) == np.float32(loss) and lines(tmp_path)[0]["rate"] == 1e-9
    captured = capsys.readouterr()
    assert "step 4 loss 0.33333 rate 1e-09\n" in captured.out and captured.err == "warning: something\n"
    for name in ("log", "heldout", "notes"):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write('{"step": 7, "lo')
    with Log(tmp_path, step=4) as log:
        log.line(6, {"loss": 2.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (2, pytest.approx(loss)),
        (4, pytest.approx(loss)),
        (6, 2.0),
    ]
    # What happened stays told; what was measured comes again.
    assert lines(tmp_path, "notes") == [{"step": 5, "note": "something"}] and lines(tmp_path, "heldout") == []


def events(folder: Path) -> list[Any]:
    """What TensorBoard's files hold: records of a length, its checksum, an event, and the event's checksum."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportMissingImports]

    found = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            [length] = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_tensorboard_gets_numbers_and_pictures(tmp_path: Path):
    pytest.importorskip("tensorboardX")
    with Log(tmp_path, tensorboard=True) as log:
        log.line(3, {"loss": 0.5})
        log.picture(3, np.zeros((4, 6, 3), np.uint8))
    with Log(tmp_path, step=3, tensorboard=True) as log:
        log.line(4, {"loss": 0.25})
    values = [(event.step, value) for event in events(tmp_path / "tensorboard") for value in event.summary.value]
    numbers = [(step, value.tag, value.simple_value) for step, value in values if not value.HasField("image")]
    assert numbers == [(3, "loss", 0.5), (4, "loss", 0.25)]
    [image] = [value.image for _, value in values if value.HasField("image")]
    assert (image.height, image.width) == (4, 6)


def test_tensorboard_without_its_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"--tensorboard needs tensorboardX: pip install 'fcjax\[tensorboard\]'"):
        Log(tmp_path, tensorboard=True)
    Log(tmp_path).__exit__()


# ---------------------------------------------------------------------------------------------------------------------
# Speed, rate and memory


@pytest.mark.parametrize("final", [1.0, 0.1])
def test_the_rate_is_the_optimisers(final: float):
    config = OptimizerConfig(name="lion", learning_rate=0.25, warmup_steps=3, final_rate=final, weight_decay=0.0)
    fields = ("name", "learning_rate", "warmup_steps", "final_rate", "beta2", "weight_decay", "clip_norm")
    optimizer = make_optimizer(steps=8, **{name: getattr(config, name) for name in fields})
    params = {"kernel": jnp.zeros((1, 1))}
    state, gradients = optimizer.init(params), {"kernel": jnp.full((1, 1), 0.5)}
    updates: Any
    for step in range(10):
        # Lion moves by the rate, whatever the gradient.
        updates, state = optimizer.update(gradients, state, params)
        assert learning_rate(config, 8, step) == pytest.approx(-float(updates["kernel"][0, 0]), rel=1e-5, abs=1e-9)
        params = optax.apply_updates(params, updates)


def test_a_line_has_means_speed_and_the_share_of_the_peak(pictures: Path, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    counted: list[TrainConfig] = []
    monkeypatch.setattr(progress, "sample_flops", lambda config, task: counted.append(config) or 3e12)
    monkeypatch.setattr(progress, "peak_flops", lambda kind: 60e12)
    task: Any = None
    found = Progress(config_of(pictures, batch_size=4), task, 0, devices=2)

    def step(number: int, loss: float, wait: float) -> None:
        with found.waiting():
            clock[0] += wait
        clock[0] += 2.0 - wait
        found.add(number, {"loss": loss})

    clock[0] = 500.0  # what compiling took
    for number in (1, 2, 3):
        step(number, float(number), wait=0.5)
    line = found.line()
    assert line["loss"] == 2.0 and line["samples_per_second"] == pytest.approx(2.0)
    assert line["data_wait"] == pytest.approx(0.25)
    # A run of seconds does not count its FLOPs.
    assert "tflops_per_device" not in line and not counted
    for _ in range(2):
        with found.paused():
            clock[0] += progress.COUNT_AFTER
        step(4, 1.0, wait=0.0)
        line = found.line()
        assert line["tflops_per_device"] == pytest.approx(2.0 * 3.0 / 2) and line["mfu"] == pytest.approx(0.05)
    assert len(counted) == 1 and not found.unlogged


def test_peaks_are_known_or_left_out():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("cpu") is None
    [(name, size)] = memory().items()
    assert name == "process_gib" and 0.01 < size < 1000


def test_training_takes_three_times_the_forward_pass(pictures: Path):
    config = config_of(pictures)
    task = make_task(config)
    batch = {"images": jax.ShapeDtypeStruct((1, config.vae_loss.crop, config.vae_loss.crop, 3), jnp.uint8)}
    forward = flops_of(lambda params, batch: task.loss(params, batch, jax.random.key(0))[0], task.parameters, batch)
    # The first layer's input needs no gradient.
    assert 2.7 * forward < sample_flops(config, task) < 3 * forward


# ---------------------------------------------------------------------------------------------------------------------
# Held-out losses by timestep


@pytest.mark.parametrize("devices", [1, 4])
def test_heldout_losses_are_told_apart_by_timestep(pictures: Path, tmp_path: Path, devices: int):
    config = dataclasses.replace(load_config("tiny"), data=pictures, heldout=pictures, devices=devices)
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, noises=3))
    seen: list[np.ndarray] = []

    def loss(params: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        timesteps = batch["timesteps"].reshape(-1)
        jax.debug.callback(lambda these: seen.append(np.array(these)), timesteps)
        return jnp.mean(params * timesteps), {SAMPLE_LOSSES: params * timesteps}

    def transform(sample: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": sample["image"]}

    data = SimpleNamespace(index={"settings": {}})
    task: Any = SimpleNamespace(data=data, plain_transform=transform, loss=loss)
    with Log(tmp_path) as log:
        measured = Watch(config, task, Placement(config, {}), tmp_path, log).measure(5, jnp.float32(2.0))
    jax.effects_barrier()
    timesteps = np.concatenate(seen)
    # Two batches of four samples, with three noise levels each.
    assert timesteps.size == 24 and len(set(timesteps.tolist())) > 15
    [line] = lines(tmp_path, "heldout")
    assert measured == pytest.approx(2 * timesteps.mean(), rel=1e-5) and line["step"] == 5
    for bucket in range(BUCKETS):
        inside = timesteps[(timesteps >= 200 * bucket) & (timesteps < 200 * (bucket + 1))]
        name = f"heldout_loss_t{200 * bucket}-{200 * bucket + 199}"
        assert line[name] == pytest.approx(2 * inside.mean(), rel=1e-5) if inside.size else name not in line
    assert SAMPLE_LOSSES not in "".join(line)


# ---------------------------------------------------------------------------------------------------------------------
# What stops a run


def test_an_exploding_loss_is_told_by_its_median(tmp_path: Path):
    batch = {"images": np.arange(12, dtype=np.uint8).reshape(2, 6)[:, ::2]}

    def feed(alarm: Alarm, losses: list[float]) -> None:
        for step, loss in enumerate(losses, start=1):
            alarm.check(step, {"loss": loss, "gradient_norm": 1.0}, batch)

    usual = [1.0, 3.0] * 15
    feed(Alarm(tmp_path, 100.0), [1e9, *usual, 150.0])
    feed(Alarm(tmp_path, 0.0), [*usual, 1e9])
    assert not list(tmp_path.iterdir())
    told = r"step 31 has loss 400, more than 100 times the 2 of the median of 30 steps before\. .*--explode 0"
    with pytest.raises(ValueError, match=told):
        feed(Alarm(tmp_path, 100.0), [*usual, 400.0])
    kept = load_file(tmp_path / "stopped_00000031.safetensors")
    assert np.array_equal(kept["images"], batch["images"])
    with pytest.raises(ValueError, match="explode must be above 1"):
        dataclasses.replace(load_config("tiny"), explode=0.5)


class Scripted:
    """Stands in for the compiled step: no network, the losses that a test wants, and a note of when it was called."""

    def __init__(self, losses: list[float]):
        self.losses, self.calls = losses, []

    def __call__(self, config: TrainConfig, loss: Any, shardings: Any) -> Any:
        def step(state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
            number = int(state.step) + 1
            self.calls.append(("begun", number))
            metrics = {"loss": jnp.float32(self.losses[number - 1]), "gradient_norm": jnp.float32(1)}
            return dataclasses.replace(state, step=state.step + 1), metrics

        return step


def test_a_loss_that_is_no_number_stops_the_run(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, config = tmp_path / "run", config_of(pictures)
    monkeypatch.setattr(run, "make_step", Scripted([1.0] * 7 + [np.nan]))
    told = rf"step 8 has loss nan and gradient norm 1\.0\. Its batch is in {out}/stopped_00000008\.safetensors.* --raw"
    with pytest.raises(ValueError, match=told):
        run.train(config, out)
    # Its state, which would have been a checkpoint, is not kept; the one before is whole.
    assert steps_of(out / "checkpoints") == [4] and not (out / "model").exists()
    task = make_task(config)
    batches = training_batches(task.data, task.transform, config.batch_size, config.seed, 1, first_step=7)
    assert np.array_equal(load_file(out / "stopped_00000008.safetensors")["images"], next(batches)["images"])
    [note] = lines(out, "notes")
    assert note["step"] == 8 and "stopped_00000008" in note["note"]


def test_numbers_are_read_after_the_next_step_was_begun(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scripted, add = Scripted([1.0] * 8), Progress.add

    def read(self: Progress, step: int, values: dict[str, float]) -> None:
        scripted.calls.append(("read", step))
        add(self, step, values)

    monkeypatch.setattr(run, "make_step", scripted)
    monkeypatch.setattr(Progress, "add", read)
    assert run.train(config_of(pictures, log_every=3), tmp_path / "run")
    places = {call: place for place, call in enumerate(scripted.calls)}
    for step, following in itertools.pairwise(range(1, 9)):
        # A checkpoint is written of what was seen.
        assert (places["begun", following] < places["read", step]) == (step % 4 > 0)
    # A line every three steps, and one for those left at the end.
    assert [line["step"] for line in lines(tmp_path / "run")] == [3, 6, 8]


def test_the_best_checkpoints_go_by_the_heldout_loss(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    heldout = {2: 0.5, 4: 0.25, 6: 0.75, 8: 1.0}
    shown: list[int] = []
    monkeypatch.setattr(run, "make_step", Scripted([1.0] * 8))
    monkeypatch.setattr(Watch, "measure", lambda self, step, params: heldout[step])
    monkeypatch.setattr(Watch, "draw", lambda self, step, params: shown.append(step))
    config = config_of(pictures, checkpoint_every=2, keep=1, keep_best=2, heldout=pictures, watch_every=6)
    assert run.train(config, tmp_path / "run")
    assert steps_of(tmp_path / "run" / "checkpoints") == [2, 4, 8] and shown == [6, 8]


def test_traces_are_taken_of_named_steps_and_on_a_signal(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    add = Progress.add

    def ask(self: Progress, step: int, values: dict[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        add(self, step, values)

    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(run, "make_step", Scripted([1.0] * 8))
    monkeypatch.setattr(Progress, "add", ask)
    assert run.train(config_of(pictures, profile_at=2, profile_steps=1), tmp_path / "run")
    assert signal.getsignal(signal.SIGUSR1) is before
    traces = sorted((tmp_path / "run" / "profile").iterdir())
    # Step 5's numbers are read when step 6 was begun.
    assert [trace.name for trace in traces] == ["00000002", "00000007"]
    assert all(list(trace.rglob("*.xplane.pb")) for trace in traces)
