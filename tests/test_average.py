"""The mean of models trained from one."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcjax import folder, trees
from fcjax.cli import run
from infer import convert
from train import average


@pytest.fixture
def others(tiny_model_folder: Path, tmp_path: Path) -> list[Path]:
    """The model, and two whose denoisers went elsewhere; the last is sampled in another way."""
    config, params = folder.load(tiny_model_folder, dtype=jnp.float32)
    folders = [tiny_model_folder]
    for number in (1, 2):
        moved = {**params, "unet": jax.tree.map(lambda leaf, step=number: leaf + 0.25 * step, params["unet"])}
        folders.append(tmp_path / f"model{number}")
        folder.save(folders[-1], moved, dataclasses.replace(config, steps=config.steps + number), dtype=jnp.float32)
        shutil.copytree(tiny_model_folder / "tokenizer", folders[-1] / "tokenizer")
    return folders


def test_the_mean_of_three_models(others: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "mean"
    run(average.main, [*map(str, others), "--out", str(out), "--dtype", "float32"])
    assert "the mean of 3 models" in capsys.readouterr().out
    (config, first), (same, mean) = (folder.load(path, dtype=jnp.float32) for path in (others[0], out))
    assert same == config and (out / "tokenizer/vocab.json").is_file()
    for path, leaf in trees.flatten(mean).items():
        moved = 0.25 if path.startswith("unet/") else 0.0
        np.testing.assert_allclose(leaf, trees.flatten(first)[path] + moved, atol=1e-6)


def test_what_all_share_keeps_every_bit_in_half_precision(others: list[Path], tmp_path: Path):
    run(average.main, [*map(str, others), "--out", str(tmp_path / "mean")])
    (_, first), (_, mean) = (folder.load(path) for path in (others[0], tmp_path / "mean"))
    assert jax.tree.leaves(mean)[0].dtype == jnp.bfloat16
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_array_equal(ours, theirs.astype(jnp.bfloat16)),
        mean["reference_unet"],
        first["reference_unet"],
    )


def test_parts_that_lie_in_another_folder_are_found(others: list[Path], tmp_path: Path):
    shared = []
    for number, source in enumerate(others[1:]):
        shared.append(str(tmp_path / f"shared{number}"))
        run(convert.main, [str(source), shared[-1], "--shared-with", str(others[0])])
    assert not Path(shared[0], "tokenizer").exists()
    run(average.main, [*shared, "--out", str(tmp_path / "mean")])
    assert (tmp_path / "mean/tokenizer/vocab.json").is_file()


def test_models_that_have_no_mean(others: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def refused(*given: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run(average.main, [*given])
        assert ended.value.code == 2
        return capsys.readouterr().err

    one, two, three = map(str, others)
    out = str(tmp_path / "mean")
    assert "two model folders or more, got 1" in refused(one, "--out", out)
    assert "is there already" in refused(one, two, "--out", three)
    assert "int8" in refused(one, two, "--out", out, "--dtype", "int8")
    config, params = folder.load(others[1])
    folder.save(others[1], params, dataclasses.replace(config, attend_blank=not config.attend_blank))
    assert f"{two} is no model like {one}: attend_blank (False there, True now)" in refused(one, two, "--out", out)
    vocabulary = others[2] / "tokenizer/vocab.json"
    vocabulary.write_text(vocabulary.read_text().replace('"a</w>"', '"b</w>"'))
    assert f"{three} has another tokenizer than {one}" in refused(one, three, "--out", out)
    assert not (tmp_path / "mean").exists()
