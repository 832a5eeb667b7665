"""Tensors in files: dtypes, shards, and files that are damaged or not what they should be."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from fcjax import weights
from fcjax.weights import Tensors, checked_dtype, load_parts

SHAPE = (3, 5)


def abstract() -> dict[str, Any]:
    return {"conv_in": {"bias": jax.ShapeDtypeStruct(SHAPE, jnp.float32)}}


def written(path: Path, array: np.ndarray, key: str = "conv_in.bias") -> Path:
    path.mkdir(exist_ok=True)
    save_file({key: array}, path / "model.safetensors")
    return path


def loaded(path: Path, dtype: Any = None) -> jax.Array:
    return load_parts({"unet": (Tensors.of_part(path, "model"), abstract())}, dtype)["unet"]["conv_in"]["bias"]


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_tensors_are_read_as_they_are_stored_or_as_is_asked(stored: str, dtype: str | None, tmp_path: Path) -> None:
    given = np.random.default_rng(0).standard_normal(SHAPE).astype(stored)
    array = loaded(written(tmp_path / "unet", given), dtype)
    assert array.dtype == (dtype or stored) and array.shape == SHAPE
    np.testing.assert_array_equal(array, given.astype(dtype or stored))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("shape", [(130, 300, 3, 3), (300, 129)])
def test_kernels_larger_than_a_tile_are_turned(shape: tuple[int, ...], dtype: str | None, tmp_path: Path) -> None:
    given = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    turned = given.transpose(2, 3, 1, 0) if len(shape) == 4 else given.T
    tree = {"conv_in": {"kernel": jax.ShapeDtypeStruct(turned.shape, jnp.float32)}}
    path = written(tmp_path / "unet", given, "conv_in.weight")
    found = load_parts({"unet": (Tensors.of_part(path, "model"), tree)}, dtype)["unet"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(found, turned.astype(dtype or np.float32))


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_values_that_are_not_finite_are_refused(stored: str, value: float, tmp_path: Path) -> None:
    given = np.full(SHAPE, ml_dtypes.finfo(stored).max, stored)
    loaded(written(tmp_path / "unet", given))
    given[-1, -1] = value
    with pytest.raises(ValueError, match=r"conv_in.bias holds values that are not finite"):
        loaded(written(tmp_path / "unet", given))


@pytest.mark.parametrize("stored", [np.int8, np.float64, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_other_precisions_are_refused(stored: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "unet", np.ones(SHAPE).astype(stored))
    with pytest.raises(
        ValueError, match="is quantised, or of another precision; tensors of float32, bfloat16"
    ) as error:
        loaded(path, "float32")
    assert "conv_in.bias: " in str(error.value) and str(path / "model.safetensors") in str(error.value)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_wherever_they_are(
    stored: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcjax.weights._CHECKED_AT_ONCE", 4)
    array = np.ones(SHAPE, stored)
    assert np.array_equal(loaded(written(tmp_path / "unet", array)), array)
    array[-1, -1] = value
    with pytest.raises(ValueError, match=r"model\.safetensors: conv_in\.bias holds values that are not finite"):
        loaded(written(tmp_path / "unet", array))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_in_host_memory_nothing_lies_on_a_device(dtype: str | None, tmp_path: Path) -> None:
    given = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    tensors = Tensors.of_part(written(tmp_path / "unet", given), "model")
    before = len(jax.live_arrays())
    array = load_parts({"unet": (tensors, abstract())}, dtype, host=True)["unet"]["conv_in"]["bias"]
    assert isinstance(array, np.ndarray) and len(jax.live_arrays()) == before
    np.testing.assert_array_equal(array, given.astype(dtype or "float32"))


def index(path: Path, content: Any) -> Path:
    """A part whose weights lie in the files that an index names."""
    written(path, np.ones(SHAPE, np.float32))
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps(content))
    return path


def test_an_index_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    shards = {"conv_in.bias": "model-00001-of-00002.safetensors", "conv_in.weight": "model-00002-of-00002.safetensors"}
    path = index(tmp_path / "unet", {"weight_map": shards})
    with pytest.raises(ValueError, match=r"index\.json names model-00002-of-00002\.safetensors, which is not there"):
        loaded(path)


@pytest.mark.parametrize("meant", [1, 2, None])
def test_a_tensor_in_two_shards_is_the_one_that_the_index_means(meant: int | None, tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    path = index(tmp_path / "unet", {"weight_map": {"first": names[0], "second": names[1]}})
    save_file({"conv_in.bias": np.full(SHAPE, 2, np.float32)}, path / names[1])
    if meant is None:
        with pytest.raises(ValueError, match=r"index\.json: conv_in\.bias lies in several files"):
            loaded(path)
        return
    said = {"weight_map": {"conv_in.bias": names[meant - 1], "other": names[2 - meant]}}
    (path / "model.safetensors.index.json").write_text(json.dumps(said))
    assert np.array_equal(loaded(path), np.full(SHAPE, meant))


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_values_beyond_float16_are_refused(stored: str, tmp_path: Path) -> None:
    given = np.full(SHAPE, 1e5, stored)
    path = written(tmp_path / "unet", given)
    with pytest.raises(
        ValueError, match=r"model\.safetensors: conv_in\.bias holds values beyond float16's 65504: take"
    ):
        loaded(path, "float16")
    assert np.isfinite(loaded(path, "bfloat16")).all()


def test_a_pointer_is_called_one(tmp_path: Path) -> None:
    path = written(tmp_path / "unet", np.ones(SHAPE, np.float32))
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(ValueError, match="is a pointer of Git LFS, not the weights: run git lfs pull"):
        loaded(path)


@pytest.mark.parametrize("weight_map", [None, 3, {}, ["model.safetensors"], {"conv_in.bias": 5}])
def test_an_index_without_a_map(weight_map: Any, tmp_path: Path) -> None:
    path = index(tmp_path / "unet", {} if weight_map is None else {"weight_map": weight_map})
    with pytest.raises(ValueError, match='index.json must map every tensor to its file under "weight_map"'):
        loaded(path)


@pytest.mark.parametrize("dtype", ["bf16", "int8", "float64", "", 3, int, None])
def test_names_that_are_no_dtype(dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16; got"):
        checked_dtype(dtype)


def test_on_a_cpu_parameters_are_not_copied_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the memory that was read into, which a step that donates them leaves as it is."""
    made, empty = [], weights._empty

    def remembered(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        made.append(empty(shape, dtype))
        return made[-1]

    monkeypatch.setattr(weights, "_empty", remembered)
    array = loaded(written(tmp_path / "unet", np.ones(SHAPE, np.float32)))
    [memory] = made
    assert array.unsafe_buffer_pointer() == memory.ctypes.data
    np.testing.assert_array_equal(jax.jit(lambda x: 2 * x, donate_argnums=0)(array), np.full(SHAPE, 2.0))
    np.testing.assert_array_equal(memory, np.ones(SHAPE))
