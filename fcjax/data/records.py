"""One training sample as bytes, and shards of them.

A record is a safetensors blob: arrays by name, pictures PNG-compressed under `<name>.png`, everything that is not an
array as JSON under `text`. Shards are ArrayRecord files beside an `index.json` that says how many samples there are
and with which settings they were made. Nothing in a record can run code.
"""

import errno
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] (no stubs)
from PIL import Image
from safetensors.numpy import load, save

from fcjax.whole_files import write_json, written_whole

RECORD_VERSION = 2
INDEX = "index.json"


def encode_record(
    pictures: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], text: Mapping[str, Any]
) -> bytes:
    """Packs one sample. `pictures` are uint8 (H, W) or (H, W, 3) and are stored losslessly compressed."""
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for name, picture in pictures.items():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
        tensors[f"{name}.png"] = np.frombuffer(buffer.getvalue(), np.uint8)
    document = json.dumps({"version": RECORD_VERSION, **text}).encode()
    tensors["text"] = np.frombuffer(document, np.uint8)
    return save(tensors)


def decode_record(record: bytes) -> dict[str, Any]:
    """Unpacks one sample into a flat dict: pictures and arrays by name, the text entries beside them.

    Raises ValueError for a damaged record and for one of another version.
    """
    try:
        tensors = load(record)
        sample: dict[str, Any] = json.loads(tensors.pop("text").tobytes())
    except Exception as error:  # safetensors' own error has no base of Python's
        raise ValueError(f"a record of the prepared set is damaged ({error}): prepare the data again") from error
    version = sample.pop("version", None)
    if version != RECORD_VERSION:
        raise ValueError(
            f"this record has version {version}, this program reads version {RECORD_VERSION}: prepare the data again"
        )
    for key, tensor in tensors.items():
        name = key.removesuffix(".png")
        sample[name] = np.asarray(Image.open(io.BytesIO(tensor.tobytes()))) if key.endswith(".png") else tensor
    return sample


def write_shard(path: Path, records: Iterable[bytes]) -> int:
    """Writes an ArrayRecord shard aside and renames it, so that a shard is there whole or not at all.

    Returns the number of records. OSError where it cannot be written, on a full disk for instance.
    """
    count = 0
    with written_whole(path) as aside:
        # group_size:1 lets the shuffled reader fetch one record without decompressing its neighbours.
        writer = _writing(path, array_record_module.ArrayRecordWriter, str(aside), "group_size:1,uncompressed")
        try:
            for record in records:
                _writing(path, writer.write, record)
                count += 1
        finally:
            _writing(path, writer.close)
    return count


def _writing(path: Path, act: Any, *arguments: Any) -> Any:
    """ArrayRecord tells of the system's errors as RuntimeError, with the system's words inside."""
    try:
        return act(*arguments)
    except RuntimeError as error:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT, errno.EACCES, errno.EROFS):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise OSError(errno.EIO, str(error), str(path)) from error


def read_shard(path: str | Path) -> list[bytes]:
    """Every record of one shard, in order."""
    reader = array_record_module.ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    return records


def write_index(folder: Path, **settings: Any) -> None:
    """Writes `index.json`, the last step of a preparation: a folder without it is an unfinished one."""
    write_json(folder / INDEX, {"version": RECORD_VERSION, **settings})


def read_index(folder: str | Path) -> dict[str, Any]:
    """Reads `index.json`. Raises ValueError where the folder is no finished preparation."""
    path = Path(folder) / INDEX
    if not path.is_file():
        raise ValueError(f"expected a prepared data set with {INDEX}, found none in {folder}: run train.prepare first")
    index = json.loads(path.read_text())
    if index.get("version") != RECORD_VERSION:
        raise ValueError(
            f"{path} has version {index.get('version')}, expected {RECORD_VERSION}: prepare the data again"
        )
    return index


def shards(folder: str | Path) -> list[str]:
    """The shard files of a finished preparation, in order. Raises ValueError where some are missing."""
    index = read_index(folder)
    paths = [Path(folder) / name for name in index["shards"]]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} of its {len(paths)} shards: {', '.join(missing[:5])}")
    return [str(path) for path in paths]
