"""Runs that are killed, go on, and become model folders."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from configs import load_config
from fcjax import folder as model_folder
from fcjax.models.parameters import init_parameters
from train import export, run
from train.checkpoints import best_step, steps_of
from train.config import TrainConfig
from train.lock import alone
from train.prepare import LatentsJob, WardrobeJob, prepare_latents, prepare_wardrobe

EVERY = 2


def toy(**changes) -> TrainConfig:
    return dataclasses.replace(load_config("tiny_vae"), **changes)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "pictures"
    prepare_wardrobe(WardrobeJob(out=out, count=8, height=64, width=48, shard_size=4, workers=1))
    return out


def test_a_run_that_cannot_write_does_not_begin(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as exit_:
        run.main(["--config", "tiny_vae", "--out", str(tmp_path / "file" / "run"), "--data", str(pictures)])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == (
        f"error: expected a folder to write into, but {tmp_path / 'file'} is a file: choose another than "
        f"{tmp_path / 'file' / 'run'}\n"
    )


def test_two_runs_do_not_write_into_one_folder(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The second leaves all as it is; a lock that a killed run left is none."""
    arguments = ["--config", "tiny_vae", "--out", str(tmp_path / "run"), "--data", str(pictures), "--steps", "1"]
    with alone(tmp_path / "run"), pytest.raises(SystemExit) as exit_:
        run.main(arguments)
    assert exit_.value.code == 2
    told = f"error: another run is writing into {tmp_path / 'run'}: wait for it, or choose another folder\n"
    assert capsys.readouterr().err == told and not list((tmp_path / "run").iterdir())
    (tmp_path / "run/.lock").touch()
    run.main(arguments)
    assert (tmp_path / "run/model").is_dir() and not (tmp_path / "run/.lock").exists()


def test_a_file_system_without_locks_keeps_nobody_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(code: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("fcntl.flock", flock)

    refuse(errno.ENOLCK)
    with alone(tmp_path), alone(tmp_path):
        pass
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"), alone(tmp_path):
        pass


def begin(out: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "train.run", "--out", str(out), "--log-every", "1", "--workers", "1"]
    command += ["--checkpoint-every", str(EVERY), *arguments]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)


def losses(out: Path, name: str = "loss") -> dict[int, float]:
    """Of all whole lines; a line that comes again must say the same."""
    path, found = out / ("heldout.jsonl" if name.startswith("heldout") else "log.jsonl"), {}
    for text in path.read_text().splitlines(keepends=True) if path.exists() else []:
        line = json.loads(text) if text.endswith("\n") else {}
        if name in line:
            assert found.setdefault(line["step"], line[name]) == line[name]
    return found


def wait_for(process: subprocess.Popen[bytes], out: Path, step: int) -> None:
    """Until the run has logged the step, or has ended."""
    while process.poll() is None and max(losses(out), default=0) < step:
        time.sleep(0.005)


@pytest.fixture(scope="module")
def ran(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A run that went through, and its folder as a kill -9 at some moments would have left it.

    A stopped process writes as little as a killed one; this one goes on after its folder was copied.
    """
    root = tmp_path_factory.mktemp("runs")
    out, copies = root / "run", []
    process = begin(out, "--config", "tiny_vae", "--data", str(pictures), "--steps", "12")
    draw = random.Random()
    try:
        for step in (2, 4, 5, 7, 9):
            wait_for(process, out, step)
            time.sleep(draw.uniform(0, 0.1))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGSTOP)
                # Until the last of its threads has stopped, or it has ended; its status is left to `wait`.
                os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            copies.append(Path(shutil.copytree(out, root / f"killed{step}")))
            process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
        process.wait()
    return out, copies


def test_sigterm_ends_the_program_in_order(ran: tuple[Path, list[Path]], pictures: Path, tmp_path: Path):
    out, _ = ran
    process = begin(tmp_path, "--config", "tiny_vae", "--data", str(pictures), "--steps", "2000")
    wait_for(process, tmp_path, 2)
    process.terminate()
    assert process.wait(timeout=120) == 0
    whole, seen = losses(out), losses(tmp_path)
    assert steps_of(tmp_path / "checkpoints")[-1] == max(seen) < 2000 and not (tmp_path / "model").exists()
    # Its rate does not fall, so that the first steps are those of any run.
    assert all(whole[step] == loss for step, loss in seen.items() if step in whole)


def test_a_kill_loses_no_more_than_the_steps_since_the_last_checkpoint(ran: tuple[Path, list[Path]], pictures: Path):
    out, copies = ran
    whole = losses(out)
    assert list(whole) == list(range(1, 13))
    for copy in copies:
        seen = losses(copy)
        assert seen.items() <= whole.items()
        # A checkpoint is on the disk before the next is begun, which comes after its step was logged.
        assert max([0, *steps_of(copy / "checkpoints")]) >= ((max(seen) - 1) // EVERY - 1) * EVERY
    config = toy(data=pictures, steps=12, checkpoint_every=EVERY, log_every=1, workers=1)
    copy = random.choice(copies)
    with (copy / "log.jsonl").open("a") as log:
        log.write('{"step": 12, "lo')
    assert run.train(config, copy)
    assert losses(copy) == whole
    for path in ("model/vae/diffusion_pytorch_model.safetensors", "model/vae/config.json"):
        assert (copy / path).read_bytes() == (out / path).read_bytes()
    assert not list(copy.rglob("*orbax-checkpoint-tmp*")) and not list(copy.rglob("*.partial"))


def test_a_checkpoint_becomes_a_model_folder(
    ran: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, tensors = ran[0], "vae/diffusion_pytorch_model.safetensors"
    export.export(export.Export(out, tmp_path / "averaged"))
    assert (tmp_path / "averaged" / tensors).read_bytes() == (out / "model" / tensors).read_bytes()
    export.export(export.Export(out, tmp_path / "raw", raw=True))
    assert (tmp_path / "raw" / tensors).read_bytes() != (out / "model" / tensors).read_bytes()
    assert "the last parameters of step 12" in capsys.readouterr().out
    for request, message in (
        (export.Export(out, tmp_path / "other", step=3), "no checkpoint of step 3; there are 10, 12"),
        (export.Export(out, tmp_path / "raw"), "exists and is no empty folder"),
        (export.Export(out, tmp_path / "other", best=True), "trained with --keep-best"),
        (export.Export(tmp_path / "raw", tmp_path / "other"), "holds no run"),
    ):
        with pytest.raises(ValueError, match=message):
            export.export(request)
    assert not (tmp_path / "other").exists()


def test_without_an_average_the_last_parameters_are_exported(pictures: Path, tmp_path: Path):
    config = toy(data=pictures, steps=2, checkpoint_every=2, workers=1)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, ema_decay=0.0))
    assert run.train(config, tmp_path / "run")
    export.export(export.Export(tmp_path / "run", tmp_path / "model"))
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "run/model" / name).read_bytes()


def test_other_data_is_told(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    job = WardrobeJob(out=tmp_path / "heldout", count=8, split="heldout", height=64, width=48, shard_size=4, workers=1)
    prepare_wardrobe(job)
    config = toy(data=pictures, steps=1, workers=1)
    assert run.train(config, tmp_path / "run")
    assert run.train(dataclasses.replace(config, steps=2), tmp_path / "run")
    assert "the data is not what the run had" not in capsys.readouterr().err
    assert run.train(dataclasses.replace(config, steps=3, data=tmp_path / "heldout"), tmp_path / "run")
    assert "the data is not what the run had: content" in capsys.readouterr().err


@pytest.mark.parametrize("final", [1.0, 0.1])
def test_more_steps_may_be_asked_for(pictures: Path, tmp_path: Path, final: float):
    """A rate that stays gives the longer run's losses, one that falls says that it falls otherwise."""
    config = toy(data=pictures, steps=4, log_every=1, workers=1)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, warmup_steps=1, final_rate=final)
    )
    assert run.train(config, tmp_path / "whole")
    assert run.train(dataclasses.replace(config, steps=3), tmp_path / "parts") and run.train(config, tmp_path / "parts")
    same = losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same == (final == 1.0)
    assert (tmp_path / "parts/notes.jsonl").exists() == (final != 1.0)
    if final != 1.0:
        assert "over 4 steps, no longer over 3" in (tmp_path / "parts/notes.jsonl").read_text()


@pytest.mark.slow
def test_composing_runs_end_alike_however_often_they_are_killed(pictures: Path, tmp_path: Path):
    model = load_config("tiny").model
    model_folder.save_part(tmp_path / "model", "vae", init_parameters(model, jax.random.key(0))["vae"], model.vae)
    latents = tmp_path / "latents"
    prepare_latents(LatentsJob(data=pictures, model=tmp_path / "model", out=latents, batch_size=4), model)
    given = ["--config", "tiny", "--data", str(latents), "--vae", str(tmp_path / "model"), "--steps", "16"]
    given += ["--heldout", str(latents), "--keep-best", "1"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert begin(whole, *given, **cache).wait() == 0
    draw = random.Random()
    for _ in range(4):
        process = begin(killed, *given, **cache)
        wait_for(process, killed, max(losses(killed), default=0) + draw.randint(1, 4))
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.wait()
    assert begin(killed, *given, **cache).wait() == 0
    for name in ("loss", "heldout_loss"):
        assert losses(killed, name) == losses(whole, name)
    assert best_step(killed / "checkpoints") == best_step(whole / "checkpoints")
    for part in ("unet", "reference_unet", "binder"):
        [file] = (whole / "model" / part).glob("*.safetensors")
        assert (killed / "model" / part / file.name).read_bytes() == file.read_bytes()
