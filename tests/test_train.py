"""Runs of the program, and what the autoencoder learns in them, on models that compile in seconds."""

import dataclasses
import json
import os
import queue
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import load_config
from fcjax import folder, processor, trees
from fcjax.data import Prepared, training_batches
from fcjax.data.augment import Augmentation
from fcjax.models.composer import encode_images, encoding_parameters
from tests.training import losses, prepared
from train import prepare, run
from train.checkpoints import Checkpoints, steps_of
from train.config import TrainConfig, VAELossConfig
from train.documents import check_continues, read_config, write_config
from train.latent_records import LatentShards
from train.logs import Log
from train.placement import Placement
from train.prepare import LatentsJob, WardrobeJob, prepare_latents, prepare_wardrobe
from train.progress import Progress
from train.step import (
    autoencoder_loss,
    make_step,
)
from train.tasks import make_task
from train.watch import Watch

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("data"))


def autoencoder(data: Path, **changes) -> TrainConfig:
    config = dataclasses.replace(load_config("tiny_vae"), data=data / "pictures", steps=6, checkpoint_every=4)
    return dataclasses.replace(config, **{"log_every": 1, "workers": 1, **changes})


@pytest.mark.parametrize(
    ("listed", "has"),
    [
        ("flags\t\t: fpu avx512_vnni amx_bf16 amx_tile", True),
        ("flags\t\t: avx512_bf16", True),
        ("Features\t: fp asimd i8mm bf16", True),
        ("flags\t\t: fma avx2 avx512f avx512_vnni", False),
        ("processor\t: 0", True),
    ],
)
def test_bfloat16_on_a_processor_without_it_is_advised_against(
    listed: str, has: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processor, "_DESCRIBED", tmp_path / "cpuinfo")
    assert processor.multiplies_bfloat16()
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{listed}\n")
    assert processor.multiplies_bfloat16() == has
    told = run.advice(autoencoder(data, compute_dtype="bfloat16"))
    assert [text.rpartition("--compute-dtype ")[2].split()[0] for text in told] == ([] if has else ["float32"])
    assert not run.advice(autoencoder(data, compute_dtype="float32"))


def test_resuming_equals_an_uninterrupted_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = autoencoder(data)
    assert run.train(config, tmp_path / "whole")
    add = Progress.add

    def interrupt(self, step, values):
        add(self, step, values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "add", interrupt)
    assert not run.train(config, tmp_path / "parts")
    assert not (tmp_path / "parts" / "model").exists()
    monkeypatch.undo()
    assert run.train(config, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for path in ("vae/diffusion_pytorch_model.safetensors", "vae/config.json"):
        assert (tmp_path / "parts/model" / path).read_bytes() == (tmp_path / "whole/model" / path).read_bytes()


def test_sigterm_before_the_first_step_and_after_the_last(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There is nothing to save of the one, and the other lets the model be written."""
    config, leave = autoencoder(data, steps=2), Checkpoints.__exit__

    def asked(given):
        os.kill(os.getpid(), signal.SIGTERM)
        return make_task(given)

    monkeypatch.setattr(run, "make_task", asked)
    assert not run.train(config, tmp_path) and not steps_of(tmp_path / "checkpoints")
    monkeypatch.undo()

    def interrupted(self, *given):
        os.kill(os.getpid(), signal.SIGTERM)
        leave(self, *given)

    monkeypatch.setattr(Checkpoints, "__exit__", interrupted)
    assert run.train(config, tmp_path) and (tmp_path / "model").is_dir() and steps_of(tmp_path / "checkpoints") == [2]


def test_a_step_is_compiled_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a run, and by the same key in one that goes on, so that it finds what the first left in the cache."""
    config, steps = autoencoder(data), []

    def lowered(*given):
        step = make_step(*given)

        def call(state, batch):
            steps.append([leaf.committed for leaf in jax.tree.leaves(state)])
            return step(state, batch)

        return call

    monkeypatch.setattr(run, "make_step", lowered)
    for count in (2, 4):
        assert run.train(dataclasses.replace(config, steps=count), tmp_path)
    assert len(steps) == 4 and all(map(all, steps))


def test_a_strategy_is_checked_before_data_is_drawn(tmp_path: Path):
    for changes, told in (
        ({"strategy": "fsdb"}, "did you mean 'fsdp'"),
        ({"strategy": "fsdp", "devices": 8, "batch_size": 6}, "a batch of 6"),
        ({"devices": 99}, "devices must lie in 0"),
    ):
        with pytest.raises(ValueError, match=told):
            run.train(dataclasses.replace(load_config("tiny"), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_batches_lie_on_the_devices_two_steps_ahead(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int
):
    """In a run and in the one that continues it; each step has the batch of its number."""
    config, laid, put = autoencoder(data, devices=devices), queue.Queue[jax.Array](), Placement.put_batch
    task, steps = make_task(config), []
    plain = training_batches(task.data, task.transform, config.batch_size, config.seed, workers=1)
    expected = [next(plain)["images"] for _ in range(7)]

    def noted(self, rows):
        placed = put(self, rows)
        laid.put(placed["images"])
        return placed

    def watched(*given):
        step = make_step(*given)

        def call(state, batch):
            number, images = int(state.step), batch["images"]
            assert len(images.devices()) == devices and np.array_equal(images, expected[number])
            for ahead in range(0 if number in (0, 3) else 2, 3):
                assert np.array_equal(laid.get(timeout=60), expected[number + ahead])
            steps.append(number)
            return step(state, batch)

        return call

    monkeypatch.setattr(Placement, "put_batch", noted)
    monkeypatch.setattr(run, "make_step", watched)
    assert run.train(dataclasses.replace(config, steps=3), tmp_path)
    while not laid.empty():
        laid.get()
    assert run.train(dataclasses.replace(config, steps=5), tmp_path)
    assert steps == [0, 1, 2, 3, 4]


def test_a_run_shows_its_heldout_losses_and_pictures(data: Path, tmp_path: Path):
    config = autoencoder(data, heldout=data / "pictures", watch_every=4, steps=6)
    assert run.train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "heldout.jsonl").read_text().splitlines()]
    shown = {line["step"]: line["heldout_psnr"] for line in lines}
    assert list(shown) == [4, 6] and shown[4] != shown[6]
    page = np.asarray(Image.open(tmp_path / "samples/00000006.png"))
    # A row for every sample of the batch: the crop and its reconstruction.
    assert page.shape == (config.batch_size * config.vae_loss.crop, 2 * config.vae_loss.crop, 3)
    with pytest.raises(ValueError, match="has 8 samples, held-out losses need a batch: 9"):
        larger, task = dataclasses.replace(config, batch_size=9), make_task(config)
        with Log(tmp_path) as log:
            Watch(larger, task, Placement(larger, task.parameters), tmp_path, log)


def test_another_configuration_does_not_continue_a_run(data: Path, tmp_path: Path):
    begun = autoencoder(data)
    write_config(tmp_path, begun)
    assert read_config(tmp_path) == begun
    check_continues(tmp_path, autoencoder(data, steps=99, log_every=7))
    check_continues(tmp_path, dataclasses.replace(begun, model=dataclasses.replace(begun.model, guidance=9.0, steps=7)))
    tabled = autoencoder(data, augment=Augmentation(symmetry=Path("UV_symmetry_transforms.mat")))
    check_continues(tmp_path, tabled)
    slower = dataclasses.replace(begun.optimizer, learning_rate=1e-5)
    differ = (
        r"these fields differ: batch_size \(4 there, 2 now\), optimizer\.learning_rate \(0\.0001 there, 1e-05 now\)"
    )
    with pytest.raises(ValueError, match=rf"{differ}\. Choose another --out"):
        check_continues(tmp_path, autoencoder(data, batch_size=2, optimizer=slower))
    write_config(tmp_path, tabled)
    assert read_config(tmp_path) == tabled


def test_bad_input_is_one_line_and_code_2(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, latents, model = str(tmp_path / "run"), str(data / "latents"), str(data / "model")
    tiny = ["--config", "tiny", "--out", out, "--data", latents]
    for program, arguments, message in (
        (run.main, ["--config", "mini-vae", "--out", out], "did you mean 'mini_vae'"),
        (run.main, ["--config", "tiny_vae", "--out", out, "--data", latents], "holds latents; an autoencoder is"),
        (run.main, ["--config", "tiny_vae", "--out", out, "--data", str(tmp_path)], f"{tmp_path}"),
        (run.main, tiny, "composing needs --vae"),
        (run.main, [*tiny, "--vae", model, "--augment.flip", "0.5"], "latents cannot be changed by"),
        (run.main, [*tiny, "--vae", out], "has no vae"),
        (prepare.main, ["wardrobe", "--out", out, "--count", "0"], "count must be at least 1"),
        (prepare.main, ["wardrobe", "--out", out, "--swatches", "45"], "swatches must be a share of the samples"),
        (prepare.main, ["latents", "--data", latents, "--model", model, "--out", out], "holds latents already"),
    ):
        with pytest.raises(SystemExit) as exit_:
            program(arguments)
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and message in error, error
        assert "Traceback" not in error and not (tmp_path / "run").exists()


def test_an_unknown_configuration_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mini_vae'"):
        load_config("mini-vae")


def test_shards_of_other_settings_are_not_taken_over(data: Path):
    with pytest.raises(ValueError, match=r"begun with other settings \(count\)"):
        prepare_wardrobe(WardrobeJob(out=data / "pictures", count=9, height=64, width=48, shard_size=4))


def linear(config: TrainConfig) -> TrainConfig:
    """The configuration with the mini model's kind of encoder."""
    fields = ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
    vae = dataclasses.replace(config.model.vae, linear_encoder=True, **dict.fromkeys(fields, False))
    optimizer = dataclasses.replace(config.optimizer, trainable=load_config("mini_vae").optimizer.trainable)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vae=vae), optimizer=optimizer)


def test_training_a_decoder_leaves_the_latents_alone(data: Path, tmp_path: Path):
    config = linear(autoencoder(data, steps=2))
    begun = make_task(config).parameters["vae"]
    assert run.train(config, tmp_path)
    trained = folder.load_part(tmp_path / "model", "vae", folder.load_part_config(tmp_path / "model", "vae"))
    encoding = [trees.digest(encoding_parameters(params)) for params in (begun, trained)]
    assert encoding[0] == encoding[1] and trees.digest(begun) != trees.digest(trained)


def test_noise_in_the_latents_is_what_the_decoder_learns_to_stand(data: Path):
    config = linear(autoencoder(data))
    params = make_task(config).parameters
    pictures = Prepared(data / "pictures")
    batch = {"images": jnp.asarray(np.stack([pictures[index]["image"] for index in range(4)]))}
    psnr = [
        float(
            autoencoder_loss(config.model, VAELossConfig(latent_noise=noise), jnp.float32)(params, batch, KEY)[1][
                "psnr"
            ]
        )
        for noise in (0.0, 0.5, 2.0)
    ]
    assert psnr[0] > psnr[1] + 1 > psnr[2] + 2
    # Without noise the decoder undoes the encoder up to what principal components leave out.
    assert psnr[0] > 15


def test_latents_of_smaller_pictures_come_of_means_of_pixels(data: Path, tmp_path: Path):
    model = load_config("tiny").model
    half = dataclasses.replace(model, height=32, width=24)
    job = LatentsJob(data=data / "pictures", model=data / "model", out=tmp_path, batch_size=4)
    prepare_latents(job, half)
    picture, latent = Prepared(data / "pictures")[3]["image"], Prepared(tmp_path)[3]["image"]
    small = picture.reshape(32, 2, 24, 2, 3).mean((1, 3))[None] / 127.5 - 1
    params = folder.load_part(data / "model", "vae", model.vae)
    expected = encode_images({"vae": params}, half, jnp.asarray(small, jnp.float32))[0]
    np.testing.assert_allclose(latent, expected, atol=0.03)
    with pytest.raises(ValueError, match="are 64x48 .* the configuration's 128x96: prepare pictures of that size"):
        prepare_latents(dataclasses.replace(job, out=tmp_path / "b"), dataclasses.replace(model, height=128, width=96))
    for field in ("batch_size", "workers"):
        with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
            dataclasses.replace(job, **{field: 0})


def test_latents_of_several_devices_are_those_of_one(
    data: Path, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """A batch is split over them; one of 5 becomes one of 8, which changes no sample."""
    model = load_config("tiny").model
    job = LatentsJob(data / "pictures", tiny_model_folder, tmp_path / "all", batch_size=5, text=True)
    made = LatentShards(job, model)
    assert made.batch_size == len(jax.devices()) == 8
    latents = made.encode(np.zeros((8, model.height, model.width, 3), np.float32))
    assert {shard.device: len(shard.data) for shard in latents.addressable_shards} == dict.fromkeys(jax.devices(), 1)
    prepare_latents(job, model)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    prepare_latents(dataclasses.replace(job, out=tmp_path / "one"), model)
    sets = [Prepared(tmp_path / name) for name in ("all", "one")]
    for place in range(8):
        several, one = (each[place] for each in sets)
        assert several.keys() == one.keys()
        for name in ("image", "canvas0", "embeddings"):
            np.testing.assert_allclose(several[name], one[name], rtol=2e-3, atol=2e-3, err_msg=name)
