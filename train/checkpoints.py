"""The checkpoints of a run: written while it trains, kept by age and by held-out loss, and checked when they are read.

`checkpoints/STEP/` is Orbax's: `default/` holds the training state, `metrics/` the held-out loss where it was measured.
A checkpoint gets its name when it is whole. `seal.json`, written into it a little later, has the size and the CRC-32 of
every file, as bytes that a disk has changed may well decode to other numbers.

Where a run stands in its data and which random numbers come next are functions of its seed and step. What they depend
on is kept with the state and compared when the run goes on.
"""

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from fcjax.cli import one_line
from train.config import TrainConfig

SEAL = "seal.json"
_HELDOUT = "heldout_loss"
_BLOCK = 2**24


class Checkpoints:
    """Writes the checkpoints of one run; a context, which ends when the last of them is on the disk.

    ValueError from any method: a checkpoint could not be written. Those before it stay.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, samples: int, content: str | None, warn: Callable[[str], None]
    ):
        """samples, content: how many the run's data has, and its hash; warn: is told what the user should know."""
        self._folder, self._warn = folder.absolute(), warn
        self._facts = _facts(config, samples, content)
        kept: list[policies.PreservationPolicy] = [policies.LatestN(n=config.keep)]
        if config.keep_best:
            best = {"reverse": True, "keep_checkpoints_without_metrics": False}
            kept.append(policies.BestN(get_metric_fn=_heldout_loss, n=config.keep_best, **best))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=_heldout_loss if config.keep_best else None,
            best_mode="min",
            # What a killed run left half-written.
            cleanup_tmp_directories=True,
            # Where a folder cannot be made, threads that wait for it would keep the program from ending.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._saving: int | None = None
        self._sealer = ThreadPoolExecutor(1)
        self._sealing: tuple[Path, Future[None]] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._finish()
        except ValueError as failure:
            # What ended the run is told first.
            if kind is None:
                raise
            self._warn(str(failure))
        finally:
            self._sealer.shutdown()
            self._manager.close()

    def check(self, step: int) -> None:
        """ValueError where the checkpoint's seed or random numbers are not this run's; a warning for other data."""
        recorded = (self._manager.metadata(step).custom_metadata or {}).get("must match", {})
        differ = {
            name: f"{name} ({recorded[name]} there, {value} now)"
            for name, value in self._facts["must match"].items()
            if recorded.get(name, value) != value
        }
        data = [told for name in ("samples", "content") if (told := differ.pop(name, None)) is not None]
        if differ:
            raise ValueError(
                f"{self._folder / str(step)} was written by a run with other random numbers: "
                f"{', '.join(differ.values())}. Restore these, or choose another --out"
            )
        if data:
            self._warn(f"the data is not what the run had: {', '.join(data)}; from here on its batches are others")

    def save(self, step: int, state: Any, heldout_loss: float | None = None) -> None:
        """Begins to write the state after `step` steps; returns when the state may be given away."""
        self._finish()
        position = {"next_batch": step, "key": f"fold_in(key({self._facts['must match']['seed']}), {step})"}
        metrics = None if heldout_loss is None else {_HELDOUT: heldout_loss}
        self._saving = step
        try:
            self._manager.save(
                step, args=ocp.args.StandardSave(state), metrics=metrics, custom_metadata={**self._facts, **position}
            )
        except (ValueError, OSError) as error:
            self._saving = None
            raise self._failure(step, error) from error

    def poll(self) -> None:
        """Costs next to nothing: seals a checkpoint that has been written since, and tells of one that failed."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self._wait()

    def _finish(self) -> None:
        self._wait()
        if self._sealing is not None:
            (path, sealing), self._sealing = self._sealing, None
            try:
                sealing.result()
            except OSError as error:
                raise ValueError(
                    f"{path} is whole, but its {SEAL} could not be written: {_reason(error)}. Training stops here; "
                    "make room there, and give the same command again"
                ) from error

    def _wait(self) -> None:
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            # Orbax hands on whatever its threads met, at times as a bare Exception.
            raise self._failure(step, error) from error
        if jax.process_index() == 0:
            path = self._folder / str(step)
            self._sealing = path, self._sealer.submit(seal, path)

    def _failure(self, step: int, error: Exception) -> ValueError:
        before = [one for one in steps_of(self._folder) if one != step]
        left = f"the one of step {before[-1]} is whole" if before else "there is no earlier one"
        return ValueError(
            f"the checkpoint of step {step} could not be written into {self._folder}: {_reason(error)}. "
            f"Training stops here; {left}. Make room there, or make it writable, and give the same command again"
        )


def _heldout_loss(metrics: Mapping[str, float]) -> float:
    return metrics[_HELDOUT]


def _facts(config: TrainConfig, samples: int, content: str | None) -> dict[str, Any]:
    must_match = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "samples": samples,
        "content": content,
        "generator": str(jax.random.key_impl(jax.random.key(0))),
        "partitionable": bool(jax.config.jax_threefry_partitionable),  # pyright: ignore[reportAttributeAccessIssue]
    }
    return {"must match": must_match, "jax": jax.__version__}


def steps_of(folder: Path) -> list[int]:
    """The steps of the checkpoints in `checkpoints/`, in order; those half-written are none."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(int(path.name) for path in found if path.name.isdecimal() and path.is_dir())


def best_step(folder: Path) -> int | None:
    """The step with the lowest held-out loss of those in `checkpoints/` that have one."""
    files = {step: folder / str(step) / "metrics" / "metrics" for step in steps_of(folder)}
    losses = {step: json.loads(file.read_text())[_HELDOUT] for step, file in files.items() if file.exists()}
    return min(losses, key=losses.__getitem__, default=None)


def newest(folder: Path, abstract: Any, warn: Callable[[str], None]) -> tuple[int, Any] | None:
    """The step and the state of the newest checkpoint in `checkpoints/`; None where there is none.

    abstract: shapes, dtypes and shardings of the state, which may be others than those it was saved with.

    A damaged checkpoint is passed over for the one before, moved to `damaged/` beside `checkpoints/`, and `warn` is
    told so. ValueError where all are damaged, or where a whole one does not suit `abstract`; nothing is moved then.
    """
    folder, damaged = folder.absolute(), {}
    steps = steps_of(folder)
    for step in reversed(steps):
        path = folder / str(step)
        problem = damage(path) if jax.process_index() == 0 else None
        if _all_agree(problem is None):
            state, problem = _restored(path, abstract)
            if _all_agree(problem is None):
                # Orbax reads the numbers of the others, too.
                for one in steps[: steps.index(step)]:
                    small = damage(folder / str(one), contents=False)
                    damaged |= {one: small} if small else {}
                _set_aside(folder, damaged, step, warn)
                return step, state
        damaged[step] = problem or "another process could not read it"
    if damaged:
        listed = "; ".join(f"{step}: {problem}" for step, problem in damaged.items())
        raise ValueError(
            f"no checkpoint in {folder} can be read ({listed}). Bring one back from a copy, or move the folder away to "
            "begin anew"
        )
    return None


def _all_agree(fine: bool) -> bool:
    if jax.process_count() == 1:
        return fine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))


def _restored(path: Path, abstract: Any) -> tuple[Any, str | None]:
    """The state, or what is wrong with it."""
    try:
        with ocp.StandardCheckpointer() as reader:
            return reader.restore(path / "default", abstract), None
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        # TensorStore's failures come as a bare Exception.
        if (path / SEAL).exists():
            raise ValueError(
                f"{path} is undamaged, but holds no state of this configuration: {_reason(error)}"
            ) from error
        return None, _reason(error)


def _set_aside(folder: Path, damaged: Mapping[int, str], taken: int, warn: Callable[[str], None]) -> None:
    for step, problem in damaged.items():
        target = folder.parent / "damaged" / str(step)
        while target.exists():
            target = target.with_name(target.name + "_again")
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            (folder / str(step)).rename(target)
        went_on = f"; the run goes on from step {taken}" if step > taken else ""
        warn(f"the checkpoint {folder / str(step)} is damaged ({problem}) and now lies in {target}{went_on}")
    if damaged and jax.process_count() > 1:
        multihost_utils.sync_global_devices("set aside")


def read_parts(path: Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of the state in `checkpoints/STEP`, by the names of its fields, as NumPy arrays; the rest stays unread.

    ValueError where they are damaged or missing.
    """
    problem = damage(path)
    if problem is None:
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(abstract))
        given = ocp.args.PyTreeRestore(item=dict(abstract), restore_args=kinds, partial_restore=True)
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                return reader.restore(path.absolute() / "default", args=given)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            raise ValueError(f"{path} cannot be read: {_reason(error)}") from error
    raise ValueError(f"{path} is damaged: {problem}. Name an earlier one with --step")


# ---------------------------------------------------------------------------------------------------------------------
# Seals


def seal(path: Path) -> None:
    """Notes the sizes and CRC-32s of the files below `path` in its seal.json."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name != SEAL]
    content = {str(file.relative_to(path)): [file.stat().st_size, _crc(file)] for file in sorted(files)}
    partial = path / f"{SEAL}.partial"
    partial.write_text(json.dumps(content, indent=0) + "\n")
    os.replace(partial, path / SEAL)


def damage(path: Path, contents: bool = True) -> str | None:
    """What of the files below `path` is not as they were sealed; None: nothing, or it was killed before its seal.

    contents: whether the files are read, not only their sizes.
    """
    if not (path / SEAL).exists():
        return None
    try:
        sealed = json.loads((path / SEAL).read_text())
    except ValueError:
        return f"{SEAL} is no JSON"
    for name, (size, crc) in sealed.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if contents and _crc(file) != crc:
            return f"the bytes of {name} have changed"
    return None


def _crc(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _reason(error: Exception) -> str:
    """Why it failed, in the operating system's words where TensorStore quotes its number."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else one_line(error)[:300]
