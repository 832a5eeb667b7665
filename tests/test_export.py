"""The exported sampling function: equal to the live one, without fcjax or flax, for other steps, seeds and scales."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from fcjax import generation
from fcjax.body import Body
from fcjax.cli import run
from fcjax.composer import Composer
from fcjax.person import Person
from fcjax.preparation import prepare
from fcjax.samplers import sampler_table
from fcjax.sampling import FULL, UNCONDITIONAL, make_guidance
from infer import export, exported
from tests import oracles

PROMPT = "a woman in blue jeans"


def export_model(*words: object) -> None:
    run(export.main, [str(word) for word in words])


@pytest.fixture(scope="module")
def written(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "tiny"
    export_model(tiny_model_folder, path)
    return path


def arguments_of(folder: Path) -> list[Any]:
    given = exported.example(folder)
    return [given[name] for name in exported.ARGUMENTS]


def test_it_equals_the_live_function(written: Path, tiny_model_folder: Path) -> None:
    """Two requests at once, of other words, poses, seeds, steps, sampler and scale than the example's."""
    composer = Composer.load(tiny_model_folder)
    bodies = [Body(pose="walking"), Body(pose="t_pose")]
    inputs, *_ = arguments_of(written)
    requests = [prepare(composer.config, composer.tokenizer, PROMPT, shown=body).arrays for body in bodies]
    inputs = {name: np.concatenate([given[name] for given in requests]) for name in inputs if name != "empty_ids"}
    inputs["empty_ids"] = requests[0]["empty_ids"]
    table = vars(sampler_table(composer.config.diffusion, 5, "euler_ancestral"))
    guidance = make_guidance((FULL, UNCONDITIONAL), 3.0)._asdict()
    pictures = exported.load(written)(inputs, table, guidance, np.asarray([4, 9], np.uint32))
    for picture, body, seed in zip(pictures, bodies, (4, 9), strict=True):
        [live] = composer.compose(PROMPT, body=body, seed=seed, steps=5, sampler="euler_ancestral", guidance=3.0)
        difference = np.abs(np.asarray(picture, int) - np.asarray(live.image, int))
        assert difference.max() <= 1
    assert np.abs(np.asarray(pictures[0], int) - np.asarray(pictures[1], int)).max() > 8


def test_it_runs_where_neither_fcjax_nor_flax_is(written: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    blocked = "import sys; sys.modules |= dict.fromkeys(['fcjax', 'flax', 'optax', 'transformers']); "
    started = f"import runpy; sys.argv = ['run.py', '--out', {str(out)!r}, '--seed', '2']; "
    code = blocked + started + f"runpy.run_path({str(written / 'run.py')!r}, run_name='__main__')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    [live] = Composer.load(tiny_model_folder).compose(PROMPT, seed=2)
    difference = np.abs(np.asarray(Image.open(out), int) - np.asarray(live.image, int))
    assert difference.max() <= 1


@pytest.mark.parametrize("name", ["sampling.jaxexport", "weights.safetensors", "example.npz"])
def test_files_that_are_not_whole_are_named(name: str, written: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(written, tmp_path / "cut"))
    (path / name).write_bytes((path / name).read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"cannot read {re.escape(str(path / name))} \(cut short"):
        exported.example(path), exported.load(path)
    (path / name).unlink()
    with pytest.raises(ValueError, match=rf"cannot read {re.escape(str(path / name))} \(cut short, or not there\?\)"):
        exported.example(path), exported.load(path)


def test_the_loader_refuses_before_it_samples(written: Path, tmp_path: Path) -> None:
    for seed, pictures in ((-1, 1), (2**32, 1), (2**32 - 1, 2)):
        with pytest.raises(ValueError, match=rf"seed must lie between 0 and {2**32 - pictures}, got {seed}"):
            exported.check(tmp_path / "out.png", seed, pictures)
    exported.check(tmp_path / "out.png", 2**32 - 1)
    with pytest.raises(ValueError, match=r"must end in a picture's suffix, such as \.png"):
        exported.check(tmp_path / "out.txt", 0)
    (tmp_path / "folder.png").mkdir()
    for out in (tmp_path / "nowhere/out.png", tmp_path / "folder.png"):
        with pytest.raises(ValueError, match=r"cannot be written: name a file in a folder that is there"):
            exported.check(out, 0)
    words = [sys.executable, written / "run.py", "--out", tmp_path / "out.png", "--seed", "-1"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 2 and "error: the seed must lie between" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_is_no_number_is_refused_as_the_live_function_does(written: Path, tmp_path: Path) -> None:
    """By the loader and by its program, in one line, where one picture of several is none."""
    with pytest.raises(ValueError, match="drew NaN") as live:
        generation._numbers(jnp.zeros((1, 8, 8, 3), jnp.uint8), jnp.asarray(False))
    assert str(live.value) == exported.NO_NUMBERS
    inputs, table, guidance, _ = arguments_of(written)
    inputs = {name: array if name == "empty_ids" else np.repeat(array, 2, 0) for name, array in inputs.items()}
    inputs["uv"] = inputs["uv"].copy()
    inputs["uv"][1] = np.nan
    with pytest.raises(ValueError, match="drew NaN or infinite numbers, no pictures"):
        exported.load(written)(inputs, table, guidance, np.arange(2, dtype=np.uint32))
    path = Path(shutil.copytree(written, tmp_path / "broken"))
    weights = load_file(path / "weights.safetensors")
    weights["vae/decoder/conv_out/bias"] = np.full_like(weights["vae/decoder/conv_out/bias"], np.nan)
    save_file(weights, path / "weights.safetensors")
    words = [sys.executable, path / "run.py", "--out", tmp_path / "out.png"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.endswith(f"error: {exported.NO_NUMBERS}\n")
    assert "Traceback" not in ended.stderr and not (tmp_path / "out.png").exists()


def test_what_was_exported_is_said(written: Path) -> None:
    facts = json.loads((written / "export.json").read_text())
    assert facts["platforms"] == ["cpu", "cuda", "tpu"] and facts["attention_kernel"] == "portable"
    assert facts["arguments"]["inputs/canvases"].startswith("uint8[1, 32, 32")
    assert sorted(path.name for path in written.iterdir()) == [
        "example.npz",
        "export.json",
        "run.py",
        "sampling.jaxexport",
        "weights.safetensors",
    ]


def test_a_tryon_model_equals_the_live_function(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Of another person than the example's, who is seen in the picture."""
    composer = Composer.load(tiny_model_folder, condition="posed_tryon")
    kernel = composer.params["unet"]["conv_in"]["kernel"]
    composer.params["unet"]["conv_in"]["kernel"] = 0.2 * oracles.normal(1, *kernel.shape)
    composer.save(tmp_path / "tryon")
    export_model(tmp_path / "tryon", tmp_path / "out", "--branches", 1, "--platforms", "cpu", "--batch-size", 1)
    height, width = composer.config.height, composer.config.width
    mask = np.zeros((height, width), bool)
    mask[height // 2 :] = True
    iuv = Body().render(height, width).iuv
    person = Person(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8), mask, iuv)
    inputs = prepare(composer.config, composer.tokenizer, PROMPT, shown=person).arrays
    _, table, guidance, seeds = arguments_of(tmp_path / "out")
    sample = exported.load(tmp_path / "out")
    [picture] = sample(inputs, table, guidance, seeds)
    [live] = composer.try_on(PROMPT, [], person, guidance=1.0, raw=True)
    assert np.abs(np.asarray(picture, int) - np.asarray(live.image, int)).max() <= 1
    [example] = sample(*arguments_of(tmp_path / "out"))
    assert np.abs(np.asarray(picture, int) - np.asarray(example, int)).max() > 8


@pytest.mark.slow
# On a CPU there is a faster way for it, which is no matter here.
@pytest.mark.filterwarnings("ignore:bfloat16 convolutions on a CPU")
def test_three_branches_in_bfloat16(tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    export_model(tiny_model_folder, out, "--branches", 3, "--dtype", "bfloat16", "--platforms", "cpu")
    weights = load_file(out / "weights.safetensors")
    assert {array.dtype.name for array in weights.values()} == {"bfloat16"}
    [picture] = exported.load(out)(*arguments_of(out))
    composer = Composer.load(tiny_model_folder, "bfloat16")
    [live] = composer.compose(PROMPT, guidance=1.5, reference_guidance=2.0)
    difference = np.abs(np.asarray(picture, int) - np.asarray(live.image, int))
    [other] = Composer.load(tiny_model_folder).compose(PROMPT, guidance=1.5, reference_guidance=2.0)
    # Programs round bfloat16 in other places: less far apart than the precisions are.
    assert difference.mean() <= np.abs(np.asarray(other.image, int) - np.asarray(live.image, int)).mean()
    assert difference.mean() <= 1


@pytest.mark.slow
def test_a_fixed_batch(tiny_model_folder: Path, tmp_path: Path) -> None:
    export_model(tiny_model_folder, tmp_path / "two", "--batch-size", 2, "--branches", 1, "--platforms", "cpu")
    pictures = exported.load(tmp_path / "two")(*arguments_of(tmp_path / "two"))
    composer = Composer.load(tiny_model_folder)
    for seed, picture in enumerate(pictures):
        [live] = composer.compose(PROMPT, seed=seed, guidance=1.0)
        assert np.abs(np.asarray(picture, int) - np.asarray(live.image, int)).max() <= 1
    words = [sys.executable, tmp_path / "two" / "run.py", "--out", tmp_path / "picture.png"]
    subprocess.run(words, check=True, capture_output=True)
    for number, picture in enumerate(pictures):
        np.testing.assert_array_equal(Image.open(tmp_path / f"picture_{number}.png"), picture)
    assert json.loads((tmp_path / "two" / "export.json").read_text())["attention_kernel"] == "auto"


def test_bad_requests_are_refused_in_one_line(tiny_model_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            export_model(*words)
        assert exit_.value.code == 2 and not (tmp_path / "out").exists()
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert "exists already; give a new folder" in refused(tiny_model_folder, tiny_model_folder)
    (tmp_path / "file").touch()
    assert f"cannot write into {tmp_path / 'file'}" in refused(tiny_model_folder, tmp_path / "file" / "deep")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert ". is the working folder; name one in it" in refused(tiny_model_folder, ".")
    assert "batch_size must be at least 1" in refused(tiny_model_folder, out, "--batch-size", 0)
    assert "multiples of 8" in refused(tiny_model_folder, out, "--size", 30, 32)
    assert "there is no model folder" in refused(tmp_path / "nowhere", out)
    assert "invalid choice" in refused(tiny_model_folder, out, "--platforms", "metal")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    assert "pip install 'fcjax[export]'" in refused(tiny_model_folder, out)
