"""The ablations: arms that differ in one thing and begin alike, tables, resuming; the real thing is slow."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import load_config
from fcjax import folder, trees
from fcjax.appearance import begun
from fcjax.data.records import RECORD_VERSION
from fcjax.models.parameters import abstract_parameters, init_parameters
from tests import oracles
from tests.dual_unet import denoised, features_of, inputs_of
from train import ablation
from train.ablation import SPLITS, Request
from train.ablation_table import against, cell, over_seeds, summary, table
from train.arms import ARMS, TABLES
from train.documents import write_config
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
    params, inputs = begun(base, config, jax.random.key(3)), inputs_of(config)
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
    base = ablation.base_config(request, 5)
    assert base.seed == 5 and base.steps == 3 and base.start is None and base.model.binder.variant == "none"
    assert base.loss.drop_both + base.loss.drop_reference == 1 and not base.loss.matching
    arms = {arm: ablation.arm_config(request, arm, 5) for arm in ARMS}
    assert len({dataclasses.replace(one, name="", model=base.model, start=None) for one in arms.values()}) == 1
    assert arms["all"].model == load_config("tiny").model and arms["all"].seed == 5 and arms["all"].steps == 7


def test_no_arm_is_taught_what_others_cannot_be(tmp_path: Path) -> None:
    """The loss on reference features, which the mini model has, is off in the ablations' configuration."""
    request = Request("table3", tmp_path)
    assert not any(ablation.arm_config(request, arm, 0).loss.matching for arm in ARMS)
    with pytest.raises(ValueError, match=r"mini_coarse teaches reference features .* set them to 0"):
        ablation.arm_config(Request("table3", tmp_path, config="mini_coarse"), "controlnet", 0)


def test_start_folders(tmp_path: Path) -> None:
    base, none = base_parameters(), ARMS["none"](model())
    folder.save(tmp_path / "base", base, none)
    (tmp_path / "base/tokenizer").mkdir()
    (tmp_path / "base/tokenizer/vocab.json").write_text("{}")
    request = Request("table3", tmp_path, config="tiny")
    config = dataclasses.replace(ablation.arm_config(request, "controlnet", 0), model=ARMS["controlnet"](model()))
    ablation.write_start(tmp_path / "base", config, tmp_path / "start")
    loaded, params = folder.load(tmp_path / "start")
    assert loaded == config.model and (tmp_path / "start/tokenizer/vocab.json").is_file()
    jax.tree.map(np.testing.assert_array_equal, params["unet"], base["unet"])


def result(accuracies: list[float], seconds: float = 90.0, base: str = "b") -> dict[str, Any]:
    """What an arm keeps of sets with such a binding accuracy."""
    mean = float(np.mean(accuracies))
    return {
        "training": {"steps": 70, "parameters": 1_230_000, "seconds": seconds, "device": "cpu", "base": base},
        "figures": {"binding_accuracy": {"mean": mean}, "swap_test": {"mean": 1.0}},
        "sets": [{"binding_accuracy": [one]} for one in accuracies],
        "swaps": [True],
    }


def test_the_table() -> None:
    one, other = result([0.5] * 10), result([0.7] * 10, seconds=120)
    rows = {arm: {0: {split: one for split in SPLITS}, 1: {split: other for split in SPLITS}} for arm in ARMS}
    rows["conv_in"] = {0: rows["conv_in"][0], 1: {}}
    text = table(TABLES["table4"], rows, SPLITS, 10)
    # All sets alike: what is left of the interval are the seeds, drawn twice each.
    assert text.count("| Bind(1,2,3) | 0.600 [0.500, 0.700] (0.500 to 0.700) | 1.000 [1.000, 1.000]") == 2
    assert "| Bind(1,2,3) | 70 | 1.23 M | 1.5, 2.0 (cpu) |" in text and "| conv_in | 0.500 [0.500, 0.500] |" in text
    assert "| binding accuracy | swap test |" in text and "2 seeds" in text
    assert "NOT THERE YET, and in no mean: conv_in (seed 1)." in text
    # Seed 1 is told of both, and its sets are alike; where an arm lacks a seed, the other one is compared.
    assert text.count("| without binding less Bind(1,2,3) | 0.000 [0.000, 0.000] | 0.000 [0.000, 0.000] |") == 2
    # Sets alike are two of one person.
    for split, groups in (("alike", 5), ("heldout", 10)):
        found = summary(rows, SPLITS)["all"][split]["figures"]["binding_accuracy"]
        assert found["seeds"] == {0: 0.5, 1: 0.7} and found["groups"] == groups
    one_other = ({0: result([0.0, 1.0] * 10)}, {0: result([1.0] * 20)})
    assert against(*one_other, "binding_accuracy", 2)[:3] == (-0.5,) * 3
    assert cell([], "binding_accuracy") == "-"


def test_intervals_over_sets_and_seeds() -> None:
    """Seeds that agree leave the interval over sets, and the same one; seeds that do not widen it."""
    sets = np.random.default_rng(0).random(40).tolist()
    alone, agreeing, apart = (
        over_seeds(own, "binding_accuracy")
        for own in ([result(sets)], [result(sets)] * 2, [result(sets), result([one + 1 for one in sets])])
    )
    assert alone is not None and agreeing is not None and apart is not None
    assert alone[:3] == pytest.approx(agreeing[:3]) and agreeing.count == 80 and agreeing.groups == 40
    assert apart.mean == pytest.approx(alone.mean + 0.5) and apart.high - apart.low > 0.9


def test_differences_are_of_the_same_sets() -> None:
    """A constant difference has no interval, however much sets and seeds differ."""
    sets = np.random.default_rng(0).random((2, 40))
    one = {seed: result(sets[seed].tolist()) for seed in (0, 1)}
    other = {seed: result((sets[seed] - 0.25).tolist()) for seed in (0, 1)}
    found = against(one, other, "binding_accuracy")
    assert found is not None and found[:3] == pytest.approx((0.25,) * 3) and found.count == 80
    # Sets without a value in either, and seeds without results, are in no difference.
    other[0]["sets"][3] = {}
    found = against(one, {0: other[0], 7: other[1]}, "binding_accuracy")
    assert found is not None and found.count == 39
    swapped = {seed: {**result([0.5] * 40), "swaps": [True, False]} for seed in (0, 1)}
    against_all = against({seed: {**own, "swaps": [True, True]} for seed, own in one.items()}, swapped, "swap_test")
    assert against_all is not None and against_all.mean == 0.5
    assert against(one, {}, "binding_accuracy") is None


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be trained and scored, in order, at no cost."""
    done: list[str] = []

    def train(config: Any, out: Path, base: Path | None = None) -> None:
        done.append(out.name)
        write_config(out, config)
        (out / "model/unet").mkdir(parents=True)
        (out / "model/unet/diffusion_pytorch_model.safetensors").write_text(out.name)
        said = result([0.5], base=folder.weights_digest(base) if base else "")["training"]
        (out / "trained.json").write_text(json.dumps(said))

    def evaluate(*flags: str) -> None:
        given = {name: value for name, value in itertools.pairwise(flags) if name.startswith("--")}
        if "--sheet" in given:
            done.append(" ".join(("sheet of", *flags[flags.index("--labels") + 1 : flags.index("--sheet")])))
            assert all(Path(given[name]).is_dir() for name in ("--predictions", "--also") if name in given)
            return
        place = Path(given["--model"]).parent
        done.append(f"{given['--split']} of {place.name}")
        assert given["--steps"] == "20"
        Path(given["--pictures"]).mkdir(parents=True, exist_ok=True)
        figures = {"binding_accuracy": {"mean": 0.5}}
        content = {
            "settings": {"model": given["--model"]},
            "weights": {given["--model"]: folder.weights_digest(place / "model")},
            "arms": {"truth": {}, given["--model"]: {"figures": figures}},
            "sets": [{"figures": {"truth": {}, given["--model"]: {"binding_accuracy": [0.5]}}}],
            "swaps": [],
            "versions": {},
        }
        Path(given["--json"]).write_text(json.dumps(content))

    monkeypatch.setattr(ablation, "train_apart", train)
    monkeypatch.setattr(ablation, "evaluate", evaluate)
    return done


def test_it_goes_on_where_it_was(tmp_path: Path, stages: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    request = Request("table3", tmp_path, config="tiny", seeds=(0,), count=5)
    ablation.main(request)
    first = ["base_0", "image_encoder_0", "alike of image_encoder_0", "heldout of image_encoder_0", "controlnet_0"]
    assert stages[:5] == first
    assert stages[-1] == "sheet of DINOv2-style encoder, trained with the model ControlNet reference UNet"
    assert "| ControlNet | 0.500 [0.500, 0.500] |" in capsys.readouterr().out
    assert json.loads((tmp_path / "table3.json").read_text())["seeds"] == [0]
    stages.clear()
    ablation.main(request)
    assert len(stages) == 1
    # What is trained may be scored later.
    stages.clear()
    ablation.main(dataclasses.replace(request, seeds=(1,), score=False))
    assert stages == ["base_1", "image_encoder_1", "controlnet_1", "none_1"]
    stages.clear()
    ablation.main(dataclasses.replace(request, seeds=(1,), arms=("none",)))
    assert stages[:-1] == ["alike of none_1", "heldout of none_1"]
    # Other sets are scored anew, and other weights.
    stages.clear()
    ablation.main(dataclasses.replace(request, count=6))
    assert len(stages) == 7 and stages[0] == "alike of image_encoder_0"
    (tmp_path / "none_0/model/unet/diffusion_pytorch_model.safetensors").write_text("trained further")
    stages.clear()
    ablation.main(dataclasses.replace(request, count=6))
    assert stages[:-1] == ["alike of none_0", "heldout of none_0"]


def test_an_out_by_another_name(tmp_path: Path, stages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative once, absolute later."""
    monkeypatch.chdir(tmp_path)
    request = Request("table4", Path("out"), config="tiny", seeds=(0,), arms=("none",))
    ablation.main(request)
    stages.clear()
    ablation.main(dataclasses.replace(request, out=tmp_path / "out"))
    assert len(stages) == 1


def test_arms_of_several_machines(tmp_path: Path, stages: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Figures and pictures alone are carried; what is not there yet is said."""
    here = Request("table4", tmp_path / "here", config="tiny", seeds=(0,), arms=("all",))
    for request in (here, dataclasses.replace(here, out=tmp_path / "there", arms=("conv_in",))):
        ablation.main(request)
    said = capsys.readouterr().out
    assert "NOT THERE YET, and in no mean: without binding (seed 0), Bind(1) (seed 0), Bind(1,2,3) (seed 0)" in said
    carried = ("alike.json", "heldout.json", "pictures")
    shutil.copytree(
        tmp_path / "there/conv_in_0",
        tmp_path / "here/conv_in_0",
        ignore=lambda place, names: set(names) - set(carried) if place.endswith("conv_in_0") else set(),
    )
    stages.clear()
    ablation.main(dataclasses.replace(here, arms=("conv_in", "all")))
    assert (
        stages == ["sheet of conv_in Bind(1,2,3)"]
        and "without binding (seed 0), Bind(1) (seed 0).\n" in (tmp_path / "here/table4.md").read_text()
    )
    # There is no model here to draw other sets.
    with pytest.raises(ValueError, match=r"conv_in_0 holds figures of other sets \(alike and heldout\)"):
        ablation.main(dataclasses.replace(here, arms=("conv_in",), count=3))
    # One that began with another base is none of this table.
    path = tmp_path / "here/conv_in_0/alike.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "training": {**told["training"], "base": "another"}}))
    with pytest.raises(ValueError, match=r"these are of different ones: .*conv_in_0/alike another"):
        ablation.main(dataclasses.replace(here, arms=("all",)))


def test_what_was_made_otherwise_is_refused(tmp_path: Path, stages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(name: str, seed: int) -> Path:
        (tmp_path / name).mkdir()
        content = {"version": RECORD_VERSION, "source": "latents", "count": 1, "settings": {"seed": seed}}
        (tmp_path / name / "index.json").write_text(json.dumps(content))
        return tmp_path / name

    data, other = prepared("data", 0), prepared("other", 1)
    request = Request("table4", tmp_path / "out", "tiny", data, seeds=(0,), steps=7, arms=("all",))
    ablation.main(request)
    stages.clear()
    for changes, words in (
        ({"steps": 8}, r"arms.steps \(7 there, 8 now\), base.steps"),
        ({"base_steps": 3}, r"base.steps \(7 there, 3 now\)"),
        ({"data": other}, r"data.seed \(0 there, 1 now\)"),
    ):
        changed = dataclasses.replace(request, **changes)
        with pytest.raises(ValueError, match=rf"alike.json was made otherwise; these differ: {words}"):
            ablation.main(changed)
        # Nor does another arm join them.
        with pytest.raises(ValueError, match=rf"out was made otherwise; these differ: {words}"):
            ablation.main(dataclasses.replace(changed, arms=("none",)))
    # Figures of sets that were drawn otherwise do not join these.
    with monkeypatch.context() as later:
        later.setattr(ablation, "EDITION", ablation.EDITION + 1)
        with pytest.raises(ValueError, match=r"alike.json was made otherwise; these differ: edition \("):
            ablation.main(request)
    (tmp_path / "out/made-from.json").unlink()
    (tmp_path / "out/all_0/alike.json").unlink()
    (tmp_path / "out/all_0/heldout.json").unlink()
    # A run that is done is still one of its own configuration.
    write_config(tmp_path / "out/all_0", dataclasses.replace(ablation.arm_config(request, "all", 0), batch_size=5))
    with pytest.raises(ValueError, match=r"all_0 holds a run with another configuration.* batch_size \(5 there"):
        ablation.main(request)
    assert not stages
    # Latents of another size claim no folder.
    index = json.loads((other / "index.json").read_text())
    index["settings"]["encoded"] = {"height": 8}
    (other / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"other do not fit the configuration 'tiny': they have height 8 \("):
        ablation.main(dataclasses.replace(request, data=other, out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    # Arms of before these were the models' own know none.
    told = json.loads((tmp_path / "out/made-from.json").read_text())
    for part in ("arms", "base"):
        del told[part]["model"]["guidance"], told[part]["model"]["steps"]
    (tmp_path / "out/made-from.json").write_text(json.dumps(told))
    # Where the data is not here, it cannot differ.
    shutil.rmtree(data)
    write_config(tmp_path / "out/all_0", ablation.arm_config(request, "all", 0))
    ablation.main(request)
    assert stages[:-1] == ["alike of all_0", "heldout of all_0"]


def test_times_of_a_run(tmp_path: Path) -> None:
    lines = [
        {"step": 5, "loss": 1, "samples_per_second": 8},
        {"step": 9, "loss": 1, "samples_per_second": 4},
        {"step": 10, "loss": 1},
    ]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert ablation.training_seconds(tmp_path, batch_size=4) == 5 * 4 / 8 + 4 * 4 / 4


def test_sigterm_is_the_workers(tmp_path: Path) -> None:
    """What this program started gets the signal, ends in its own way, and that ends this program."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n    pathlib.Path('saved').touch()\n    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, stop)\npathlib.Path('started').touch()\ntime.sleep(60)\n"
    )
    parent = (
        "import sys\nfrom train import ablation\nsys.executable = sys.argv[1]\n"
        "try:\n    ablation.evaluate('--model', 'none')\nexcept ValueError as error:\n    sys.exit(str(error))\n"
    )
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nexec {sys.executable} {script}\n")
    fake.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    started = subprocess.Popen(
        [sys.executable, "-c", parent, str(fake)], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=60)
    assert "infer.evaluate ended with 7" in said and (tmp_path / "saved").exists() and started.returncode == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, "one at least"),
        ({"seeds": (1, 1)}, "different numbers"),
        ({"count": 0}, "count must be at least 1"),
        ({"arms": ("all",)}, "table3 has no arm all; it has image_encoder, controlnet, none"),
        ({"config": "tiny_vae"}, "trains no composing model"),
        (
            {"config": "sd15"},
            "sd15 goes on from outputs/sd15 or trains a part of its parameters",
        ),
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
    # Random weights compose sets of few assets alone.
    request = Request("table3", tmp_path / "out", "tiny", latents, vae, ("controlnet",), seeds=(0,), steps=3, count=2)
    ablation.main(request)
    assert "| ControlNet | " in (tmp_path / "out/table3.md").read_text()
    assert (tmp_path / "out/table3.png").is_file()
    steps = [json.loads(line)["step"] for line in (tmp_path / "out/controlnet_0/log.jsonl").read_text().splitlines()]
    assert steps[-1] == 3
