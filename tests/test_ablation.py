"""The ablations: arms that differ in one thing and begin alike, tables, resuming; the real thing is slow."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import load_config
from fcjax import folder, trees
from fcjax.models.parameters import abstract_parameters, init_parameters
from tests import oracles
from tests.dual_unet import denoised, features_of, inputs_of
from train import ablation
from train.ablation import Request, cell, table
from train.arms import ARMS, TABLES, arm_start
from train.prepare import LatentsJob, WardrobeJob, prepare_latents, prepare_wardrobe


def model():
    given = load_config("tiny").model
    return dataclasses.replace(given, height=32, width=32)


def base_parameters() -> dict[str, Any]:
    return {"binder": {}, **oracles.random_parameters(abstract_parameters(ARMS["none"](model())))}


def test_every_arm_of_a_table_is_one() -> None:
    assert {arm for arms in TABLES.values() for arm in arms} == ARMS.keys()
    config = load_config("mini_ablation").model
    sizes = {arm: abstract_parameters(make(config)) for arm, make in ARMS.items()}
    encoders = [trees.count(sizes[arm][ARMS[arm](config).appearance]) for arm in ("none", "image_encoder")]
    assert 0.8 < encoders[1] / encoders[0] < 1.25


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_begins_as_the_model_without_assets(arm: str) -> None:
    """With its assets hidden it is the base model, whatever encodes them; DINOv2's arm has no text to be alike in."""
    base, config = base_parameters(), ARMS[arm](model())
    params, inputs = arm_start(base, config, seed=3), inputs_of(config)
    assert jax.tree.structure(params) == jax.tree.structure({"binder": {}, **abstract_parameters(config)})
    for name in ("vae", "text_encoder"):
        jax.tree.map(np.testing.assert_array_equal, params[name], base[name])
    if arm == "image_encoder":
        same = trees.flatten(base["unet"])
        changed = [path for path, leaf in trees.flatten(params["unet"]).items() if leaf.shape != same[path].shape]
        assert changed and all("attn2/to_" in path for path in changed)
        return
    ours = denoised(params, config, inputs)
    theirs = denoised(base, ARMS["none"](model()), inputs)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    kernel = params[config.appearance]["conv_in"]["kernel"]
    if arm == "controlnet":
        np.testing.assert_array_equal(kernel, base["unet"]["conv_in"]["kernel"])
        np.testing.assert_allclose(
            denoised(params, config, inputs, features_of(params, config, inputs)), ours, atol=1e-6
        )
    else:
        latent = config.vae.latent_channels
        np.testing.assert_array_equal(kernel[:, :, :latent], base["unet"]["conv_in"]["kernel"][:, :, :latent])
        assert not kernel[:, :, latent:].any()


def test_arms_differ_in_the_model_alone(tmp_path: Path) -> None:
    request = Request("table4", tmp_path, config="tiny", steps=7, base_steps=3)
    base = ablation.base_config(request)
    assert base.steps == 3 and base.start is None and base.model.binder.variant == "none"
    assert base.loss.drop_both + base.loss.drop_reference == 1 and not base.loss.matching
    arms = {arm: ablation.arm_config(request, arm, 5, tmp_path) for arm in ARMS}
    assert len({dataclasses.replace(one, name="", model=base.model) for one in arms.values()}) == 1
    assert arms["all"].model == load_config("tiny").model and arms["all"].seed == 5 and arms["all"].steps == 7


def test_start_folders(tmp_path: Path) -> None:
    base, none = base_parameters(), ARMS["none"](model())
    folder.save(tmp_path / "base", base, none)
    (tmp_path / "base/tokenizer").mkdir()
    (tmp_path / "base/tokenizer/vocab.json").write_text("{}")
    request = Request("table3", tmp_path, config="tiny")
    config = dataclasses.replace(
        ablation.arm_config(request, "controlnet", 0, tmp_path), model=ARMS["controlnet"](model())
    )
    ablation.write_start(tmp_path / "base", config, tmp_path / "start")
    loaded, params = folder.load(tmp_path / "start")
    assert loaded == config.model and (tmp_path / "start/tokenizer/vocab.json").is_file()
    jax.tree.map(np.testing.assert_array_equal, params["unet"], base["unet"])


def test_the_table(tmp_path: Path) -> None:
    def figures(accuracy: float) -> dict[str, Any]:
        return {"binding_accuracy": {"mean": accuracy}, "palette_distance": {"mean": 10 * accuracy}}

    rows = {arm: {split: [figures(0.5), figures(0.7)] for split in ablation.SPLITS} for arm in TABLES["table4"]}
    text = table(Request("table4", tmp_path), rows)
    assert text.count("| Bind(1,2,3) | 0.600 (0.500 to 0.700) | 6.0 (5.0 to 7.0) |") == 2
    assert "| binding accuracy | palette distance to the own asset |" in text and "2 seeds" in text
    assert cell([]) == "-" and cell([0.25]) == "0.250"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be trained and scored, in order, at no cost."""
    done: list[str] = []

    def train(config: Any, out: Path) -> Path:
        done.append(out.name)
        return out / "model"

    def evaluate(*flags: str) -> None:
        given = dict(zip(flags[::2], flags[1::2], strict=True))
        done.append(f"{given['--split']} of {Path(given['--model']).parent.name}")
        if "--json" in given:
            summary = {"binding_accuracy": {"mean": 0.5}}
            Path(given["--json"]).write_text(json.dumps({"arms": {given["--model"]: {"figures": summary}}}))

    monkeypatch.setattr(ablation, "_trained", train)
    monkeypatch.setattr(ablation, "write_start", lambda base, config, out: out.mkdir())
    monkeypatch.setattr(ablation, "evaluate", evaluate)
    return done


def test_it_goes_on_where_it_was(tmp_path: Path, stages: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    request = Request("table3", tmp_path, config="tiny", seeds=(0,), count=5)
    for arm in ARMS:
        (tmp_path / f"{arm}_0").mkdir()
    ablation.main(request)
    assert stages[0] == "base" and stages[1:4] == [
        "image_encoder_0",
        "alike of image_encoder_0",
        "heldout of image_encoder_0",
    ]
    assert "| ControlNet | 0.500 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "table3.json").read_text())["seeds"] == [0]
    stages.clear()
    ablation.main(request)
    assert not [stage for stage in stages[:-1] if " of " in stage]
    # Other sets are scored anew.
    stages.clear()
    ablation.main(dataclasses.replace(request, count=6))
    assert len([stage for stage in stages if " of " in stage]) == 7


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, "one at least"),
        ({"seeds": (1, 1)}, "different numbers"),
        ({"count": 0}, "count must be at least 1"),
        ({"config": "tiny_vae"}, "trains no composing model"),
        ({"config": "tinny"}, "did you mean"),
    ],
)
def test_wrong_requests(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        ablation.main(Request(**{"table": "table3", "out": tmp_path, "config": "tiny", **changes}))


@pytest.mark.slow
def test_the_whole_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One arm trained and scored for real, each in a process of its own."""
    job = WardrobeJob(out=tmp_path / "pictures", count=8, height=64, width=48, shard_size=4, workers=1)
    prepare_wardrobe(job)
    vae, latents, given = tmp_path / "vae", tmp_path / "latents", load_config("tiny").model
    folder.save_part(vae, "vae", init_parameters(given, jax.random.key(0))["vae"], given.vae)
    prepare_latents(LatentsJob(data=job.out, model=vae, out=latents, batch_size=4), given)
    monkeypatch.setattr(ablation, "TABLES", {"table3": {"controlnet": "ControlNet"}})
    request = Request("table3", tmp_path / "out", "tiny", latents, vae, seeds=(0,), steps=3, count=2)
    ablation.main(request)
    assert "| ControlNet | " in (tmp_path / "out/table3.md").read_text()
    assert (tmp_path / "out/table3.png").is_file()
    steps = [json.loads(line)["step"] for line in (tmp_path / "out/controlnet_0/log.jsonl").read_text().splitlines()]
    assert steps[-1] == 3
