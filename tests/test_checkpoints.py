"""Checkpoints: which stay, what is read when one is damaged, what is left by kill -9 and by a full disk, and export."""

import dataclasses
import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import load_config
from fcjax import folder as model_folder
from fcjax.models.parameters import init_parameters
from train import export, run
from train.checkpoints import SEAL, Checkpoints, best_step, newest, read_parts, steps_of
from train.config import TrainConfig
from train.documents import config_of, document_of
from train.prepare import LatentsJob, WardrobeJob, prepare_latents, prepare_wardrobe

EVERY = 2


def toy(**changes) -> TrainConfig:
    return dataclasses.replace(load_config("tiny_vae"), **changes)


def state(step: int) -> dict[str, Any]:
    """Numbers that do not compress, so that their file is the largest."""
    drawn = np.random.default_rng(step).standard_normal((64, 64)).astype(np.float32)
    return {"step": jnp.int32(step), "trained": {"kernel": jnp.asarray(drawn)}, "average": {"kernel": -drawn}}


def abstract(example: Any) -> Any:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), example)


def fail(text: str) -> None:
    raise AssertionError(f"unexpected warning: {text}")


def write(folder: Path, steps: dict[int, float | None], config: TrainConfig | None = None) -> None:
    with Checkpoints(folder, config or toy(), samples=8, content="a", warn=fail) as checkpoints:
        for step, loss in steps.items():
            checkpoints.save(step, state(step), loss)


def taken(folder: Path, warn: Callable[[str], None] = fail) -> int:
    """The step of the newest whole checkpoint, its numbers compared with what was saved."""
    found = newest(folder, abstract(state(0)), warn)
    assert found is not None
    step, restored = found
    jax.tree.map(np.testing.assert_array_equal, restored, state(step))
    return step


def test_the_newest_and_the_best_stay(tmp_path: Path):
    config = toy(keep=2, keep_best=2, heldout=tmp_path)
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 2.6, 6: 2.7, 7: None}
    write(tmp_path / "checkpoints", losses, config)
    assert steps_of(tmp_path / "checkpoints") == [2, 3, 6, 7]
    assert best_step(tmp_path / "checkpoints") == 2 and taken(tmp_path / "checkpoints") == 7
    # A run that goes on remembers what the others lost.
    write(tmp_path / "checkpoints", {8: 0.5, 9: 4.0}, config)
    assert steps_of(tmp_path / "checkpoints") == [2, 8, 9]
    with pytest.raises(ValueError, match="name a set with --heldout"):
        toy(keep_best=1)


def largest(path: Path) -> Path:
    return max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def cut_off(path: Path) -> None:
    file = largest(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def one_bit(path: Path) -> None:
    file = largest(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def unsealed_and_cut_off(path: Path) -> None:
    (path / SEAL).unlink()
    cut_off(path)


@pytest.fixture
def orbax_fails() -> Iterator[None]:
    """Lets go of what Orbax leaves behind where it fails, before another test is blamed for it."""
    yield
    gc.collect()


# Coroutines that were never awaited, and tasks of a loop that is closed.
LEFT_BEHIND = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@LEFT_BEHIND
@pytest.mark.usefixtures("orbax_fails")
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (cut_off, "bytes instead of"),
        (one_bit, "have changed"),
        (lambda path: largest(path).unlink(), "is missing"),
        (lambda path: (path / SEAL).write_text("{"), "is no JSON"),
        (unsealed_and_cut_off, "rror"),
        (lambda path: [shutil.rmtree(path), path.mkdir()], "default"),
    ],
    ids=["cut off", "one bit", "a file gone", "seal cut off", "unsealed", "empty"],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, harm: Callable[[Path], Any], told: str):
    folder, warned = tmp_path / "checkpoints", []
    write(folder, {4: None, 8: None})
    harm(folder / "8")
    assert taken(folder, warned.append) == 4
    [warning] = warned
    assert str(folder / "8") in warning and told in warning and "goes on from step 4" in warning
    assert (tmp_path / "damaged" / "8").is_dir()
    # The step comes again and is written again.
    write(folder, {8: None})
    assert taken(folder) == 8


@LEFT_BEHIND
@pytest.mark.usefixtures("orbax_fails")
def test_where_all_are_damaged_nothing_is_moved(tmp_path: Path):
    write(tmp_path / "checkpoints", {4: None, 8: None})
    for step in (4, 8):
        cut_off(tmp_path / "checkpoints" / str(step))
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read \(8: .* bytes instead of .*; 4: .*\)\."):
        newest(tmp_path / "checkpoints", abstract(state(0)), fail)
    assert steps_of(tmp_path / "checkpoints") == [4, 8] and not (tmp_path / "damaged").exists()
    assert newest(tmp_path / "none", abstract(state(0)), fail) is None


@LEFT_BEHIND
@pytest.mark.usefixtures("orbax_fails")
def test_a_whole_checkpoint_that_does_not_suit_is_not_damaged(tmp_path: Path):
    write(tmp_path / "checkpoints", {4: None, 8: None})
    other = {**state(0), "further": jnp.zeros(3)}
    with pytest.raises(ValueError, match="is undamaged, but holds no state of this configuration"):
        newest(tmp_path / "checkpoints", abstract(other), fail)
    assert steps_of(tmp_path / "checkpoints") == [4, 8]


def test_what_random_numbers_depend_on_is_kept_and_compared(tmp_path: Path):
    write(tmp_path / "checkpoints", {4: None})
    metadata = json.loads((tmp_path / "checkpoints/4/_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    assert metadata["next_batch"] == 4 and metadata["key"] == "fold_in(key(0), 4)"
    warned: list[str] = []
    for samples, content in ((9, "a"), (8, "b")):
        data = {"samples": samples, "content": content}
        with Checkpoints(tmp_path / "checkpoints", toy(), warn=warned.append, **data) as checkpoints:
            checkpoints.check(4)
    assert "samples (8 there, 9 now)" in warned[0] and "content (a there, b now)" in warned[1]
    other = toy(seed=5, batch_size=2)
    with (
        Checkpoints(tmp_path / "checkpoints", other, samples=8, content="a", warn=fail) as checkpoints,
        pytest.raises(ValueError, match=r"random numbers: seed \(0 there, 5 now\), batch_size \(4 there, 2 now\)"),
    ):
        checkpoints.check(4)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more into a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@LEFT_BEHIND
@pytest.mark.usefixtures("orbax_fails")
def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    write(folder, {4: None})
    told = r"step 8 could not be written into .*: File too large\. Training stops here; the one of step 4 is whole"
    checkpoints = Checkpoints(folder, toy(keep=1), samples=8, content="a", warn=fail)
    with pytest.raises(ValueError, match=told), files_of_at_most(4000), checkpoints:
        checkpoints.save(8, state(8))
        # The loop learns of it while it goes on.
        for _ in range(1000):
            time.sleep(0.01)
            checkpoints.poll()
    assert taken(folder) == 4
    write(folder, {8: None})
    assert taken(folder) == 8
    # What was left half-written is gone.
    assert {path.name for path in folder.iterdir()} == {"4", "8"}


@LEFT_BEHIND
@pytest.mark.usefixtures("orbax_fails")
def test_a_folder_that_takes_no_files_stops_the_run(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, toy(), samples=8, content="a", warn=fail)
    told = "the checkpoint of step 8 could not be written .* there is no earlier one"
    with pytest.raises(ValueError, match=told), checkpoints:
        shutil.rmtree(folder)
        folder.write_text("no folder")
        checkpoints.save(8, state(8))


@LEFT_BEHIND
@pytest.mark.usefixtures("orbax_fails")
def test_parts_are_read_without_the_rest(tmp_path: Path):
    write(tmp_path / "checkpoints", {4: None})
    wanted = {"average": abstract(state(4))["average"]}
    read = read_parts(tmp_path / "checkpoints/4", wanted)
    assert set(read) == {"average"} and np.array_equal(read["average"]["kernel"], state(4)["average"]["kernel"])
    one_bit(tmp_path / "checkpoints/4")
    with pytest.raises(ValueError, match="is damaged: the bytes of .* Name an earlier one with --step"):
        read_parts(tmp_path / "checkpoints/4", wanted)


@pytest.mark.parametrize("name", ["mini", "mini_vae", "sd15", "tiny"])
def test_a_configuration_comes_back_from_its_file(name: str):
    config = dataclasses.replace(load_config(name), axes=(("tensor", 2),), mixed_with=(Path("a"), Path("b")))
    document = document_of(config)
    assert config_of(document) == config
    # One of an earlier version, and one of a later.
    del document["keep_best"], document["loss"]["noises"], document["loss"]["weighting"]
    # What all runs had before it could be chosen.
    assert config_of(document).loss.noises == 1 and config_of(document).loss.weighting == "min_snr_plus_one"
    with pytest.raises(ValueError, match="LossConfig has no colour"):
        config_of({**document, "loss": {"colour": 1}})


# ---------------------------------------------------------------------------------------------------------------------
# Runs that are killed


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
    assert capsys.readouterr().err == f"error: {tmp_path / 'file' / 'run'}: Not a directory\n"


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
    for step in (2, 4, 5, 7, 9):
        wait_for(process, out, step)
        time.sleep(draw.uniform(0, 0.1))
        process.send_signal(signal.SIGSTOP)
        copies.append(Path(shutil.copytree(out, root / f"killed{step}")))
        process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=300) == 0
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
