"""Records, shards and the stream of batches."""

import contextlib
import json
import queue
from pathlib import Path

import numpy as np
import pytest

from fcjax.data import Mixed, Prepared, decode_record, encode_record, read_index, training_batches, write_shard
from fcjax.data.records import RECORD_VERSION, read_shard, shards, write_index

RNG = np.random.default_rng(0)


def a_record(number: int) -> bytes:
    picture = np.full((6, 4, 3), number, np.uint8)
    return encode_record(
        {"image": picture}, {"latents": np.full((2, 2), number, np.float16)}, {"caption": f"no {number}"}
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    for shard in range(2):
        write_shard(tmp_path / f"{shard}.arrayrecord", (a_record(5 * shard + i) for i in range(5)))
    write_index(tmp_path, shards=["0.arrayrecord", "1.arrayrecord"], count=10, settings={})
    return tmp_path


def test_a_record_comes_back_as_it_went_in():
    picture = RNG.integers(0, 256, (9, 7, 3), np.uint8)
    parts = RNG.integers(0, 25, (9, 7), np.uint8)
    latents = RNG.standard_normal((3, 2, 4)).astype(np.float16)
    record = encode_record({"image": picture, "parts": parts}, {"latents": latents}, {"phrases": ["a", "b"]})
    sample = decode_record(record)
    assert np.array_equal(sample["image"], picture) and np.array_equal(sample["parts"], parts)
    assert np.array_equal(sample["latents"], latents) and sample["latents"].dtype == np.float16
    assert sample["phrases"] == ["a", "b"]


def test_a_record_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fcjax.data.records.RECORD_VERSION", 0)
    old = a_record(1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 0.*version 2.*prepare the data again"):
        decode_record(old)


def test_a_damaged_record_is_refused():
    with pytest.raises(ValueError, match="a record of the prepared set is damaged .*: prepare the data again"):
        decode_record(b"\x08" + bytes(40))


def test_an_empty_set_is_refused(tmp_path: Path):
    (tmp_path / "index.json").write_text(json.dumps({"version": RECORD_VERSION, "count": 0, "shards": []}))
    with pytest.raises(ValueError, match="is empty: prepare at least one sample"):
        Prepared(tmp_path)


def test_an_unfinished_preparation_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="run train.prepare first"):
        read_index(tmp_path)


def test_missing_shards_are_named(prepared: Path):
    (prepared / "1.arrayrecord").unlink()
    with pytest.raises(ValueError, match="lacks 1 of its 2 shards: 1.arrayrecord"):
        shards(prepared)


def test_an_index_of_another_version_is_refused(prepared: Path):
    index = json.loads((prepared / "index.json").read_text()) | {"version": 99}
    (prepared / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="version 99, expected 2"):
        read_index(prepared)


def test_a_shard_is_there_whole_or_not_at_all(tmp_path: Path):
    def breaks():
        yield a_record(0)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_shard(tmp_path / "0.arrayrecord", breaks())
    assert not (tmp_path / "0.arrayrecord").exists()
    assert write_shard(tmp_path / "0.arrayrecord", [a_record(3)]) == 1
    assert decode_record(read_shard(tmp_path / "0.arrayrecord")[0])["caption"] == "no 3"


def numbers(sample, rng):
    return {"number": sample["latents"][0, 0], "noise": rng.standard_normal()}


def test_batches_repeat_for_a_seed_and_resume_at_a_step(prepared: Path):
    data = Prepared(prepared)
    whole = training_batches(data, numbers, batch_size=2, seed=1)
    first = [next(whole) for _ in range(12)]
    again = training_batches(data, numbers, batch_size=2, seed=1, first_step=7)
    for step in range(7, 12):
        batch = next(again)
        assert all(np.array_equal(batch[name], first[step][name]) for name in batch)
    # An epoch holds every sample once, and the next has another order.
    epochs = [np.concatenate([batch["number"] for batch in first[5 * i : 5 * i + 5]]) for i in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert list(epochs[0]) != list(epochs[1])
    other = next(training_batches(data, numbers, batch_size=2, seed=2))
    assert not np.array_equal(other["noise"], first[0]["noise"])


def test_batches_are_laid_two_ahead_and_stay_what_they_are(prepared: Path):
    data, laid = Prepared(prepared), queue.Queue[float]()

    def lay(batch: dict[str, np.ndarray]) -> float:
        laid.put(batch["noise"][0])
        return batch["noise"][0]

    plain = training_batches(data, numbers, batch_size=2, seed=1, first_step=3)
    expected = [next(plain) for _ in range(6)]
    with contextlib.closing(training_batches(data, numbers, batch_size=2, seed=1, first_step=3, lay=lay)) as pairs:
        for step in range(4):
            batch, made = next(pairs)
            assert all(np.array_equal(batch[name], expected[step][name]) for name in batch)
            assert made == expected[step]["noise"][0]
            for ahead in expected[:3] if step == 0 else expected[step + 2 : step + 3]:
                assert laid.get(timeout=60) == ahead["noise"][0]
            assert laid.empty()


def test_what_laying_a_batch_raises_comes_where_it_is_asked_for(prepared: Path):
    def lay(batch: dict[str, np.ndarray]) -> None:
        raise RuntimeError("out of memory")

    batches = training_batches(Prepared(prepared), numbers, batch_size=2, seed=1, lay=lay)
    with contextlib.closing(batches), pytest.raises(RuntimeError, match="out of memory"):
        next(batches)


def test_a_set_smaller_than_a_batch_is_refused(prepared: Path):
    with pytest.raises(ValueError, match="a batch of 11 needs at least as many samples"):
        training_batches(Prepared(prepared), numbers, batch_size=11, seed=0)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    folder.mkdir()
    write_shard(folder / "0.arrayrecord", (a_record(100 + i) for i in range(4)))
    write_index(folder, shards=["0.arrayrecord"], count=4, settings={})
    return folder


def test_sets_are_mixed_by_weight_and_each_is_seen_whole(prepared: Path, other: Path):
    data = Mixed([Prepared(prepared), Prepared(other)], [3, 1])
    assert len(data) == 14 and data[10]["caption"] == "no 100"
    batches = training_batches(data, numbers, batch_size=4, seed=1)
    seen = np.concatenate([next(batches)["number"] for _ in range(10)])
    assert sum(seen >= 100) == 10
    assert sorted(seen[seen >= 100][:4]) == [100, 101, 102, 103] and sorted(seen[seen < 100][:10]) == list(range(10))


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_reads_the_same_batches(prepared: Path, other: Path, processes: int):
    """More of them than there are shards, too: it is samples that they share."""
    assert len(shards(prepared)) + len(shards(other)) == 3
    data, share = Mixed([Prepared(prepared), Prepared(other)], [2, 1]), 8 // processes
    whole = training_batches(data, numbers, 8, seed=3)
    parts = [
        training_batches(data, numbers, 8, seed=3, rows=range(share * process, share * (process + 1)))
        for process in range(processes)
    ]
    for _ in range(4):
        expected, found = next(whole), [next(part) for part in parts]
        for name in expected:
            assert np.array_equal(np.concatenate([part[name] for part in found]), expected[name])


def test_sets_that_do_not_go_together_are_refused(prepared: Path, other: Path):
    with pytest.raises(ValueError, match="2 sets and the weights"):
        Mixed([Prepared(prepared), Prepared(other)], [1.0])
    write_index(other, shards=["0.arrayrecord"], count=4, settings={"vae": "abc"})
    with pytest.raises(ValueError, match="must agree in vae: .* has None, .* abc"):
        Mixed([Prepared(prepared), Prepared(other)])
