"""Checkpoints: which stay, what is read when one is damaged, what is left by kill -9 and by a full disk, and export."""

import dataclasses
import gc
import json
import resource
import shutil
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
from train.checkpoints import SEAL, Checkpoints, best_step, newest, read_parts, steps_of
from train.config import TrainConfig
from train.documents import config_of, document_of


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
    with pytest.raises(ValueError, match="LossConfig has no taste"):
        config_of({**document, "loss": {"taste": 1}})
