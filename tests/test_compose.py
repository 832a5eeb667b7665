"""The composer and `infer.compose`: seeds, drivers, compilations, and pictures made again from themselves."""

import base64
import dataclasses
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import fcjax
from fcjax.assets import Asset
from fcjax.body import Body
from fcjax.cli import run
from fcjax.composer import Composer
from fcjax.preparation import prepare
from fcjax.samplers import SAMPLERS
from fcjax.sampling import SamplingCancelledError
from infer import compose
from infer.request import KEY, ComposeRequest
from train.examples import prompt_tokens

PROMPT = "a woman in a red shirt and blue jeans"
COMPILATION = "/jax/core/compile/backend_compile_duration"


def flat(color: tuple[int, int, int], height: int = 12, width: int = 10) -> np.ndarray:
    """A cut-out of one colour."""
    return np.full((height, width, 4), (*color, 255), np.uint8)


SHIRT = Asset(flat((200, 20, 30)), "a red shirt")
JEANS = Asset(flat((30, 40, 160), 16, 8), "blue jeans")


@pytest.fixture(scope="module")
def composer(tiny_model_folder: Path) -> Composer:
    return Composer.load(tiny_model_folder)


def test_prompts_are_as_long_as_the_text_encoder_reads(composer: Composer) -> None:
    short = dataclasses.replace(composer.config.text_encoder, max_position_embeddings=20)
    config = dataclasses.replace(composer.config, text_encoder=short)
    arrays = prepare(config, composer.tokenizer, PROMPT, [SHIRT]).arrays
    assert arrays["ids"].shape[1] == arrays["spans"].shape[2] == len(arrays["empty_ids"]) == 20
    sample = {"caption": PROMPT, "phrases": [SHIRT.phrase]}
    assert np.array_equal(prompt_tokens(composer.tokenizer, sample, config).ids, arrays["ids"][0])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with two assets as files: one transparent, one on white."""
    Image.fromarray(np.pad(SHIRT.image, ((2, 2), (2, 2), (0, 0)))).save(tmp_path / "shirt.png")
    on_white = np.full((30, 30, 3), 255, np.uint8)
    on_white[6:24, 10:20] = (30, 40, 160)
    Image.fromarray(on_white).save(tmp_path / "jeans.png")
    return tmp_path


def pixels(composition) -> np.ndarray:
    return np.asarray(composition.image)


def opened(path: Path) -> tuple[np.ndarray, dict]:
    """A picture file's pixels and its metadata of ours."""
    with Image.open(path) as image:
        return np.asarray(image), json.loads(image.text[KEY])


def picture(composer: Composer, **settings) -> np.ndarray:
    [made] = composer.compose(PROMPT, [SHIRT, JEANS], steps=3, progress=lambda done, steps: None, **settings)
    return pixels(made)


# ---------------------------------------------------------------------------------------------------------------------
# Composer


def test_a_seed_makes_the_same_image_again(composer: Composer) -> None:
    image = picture(composer, seed=5)
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and image.std() > 1
    np.testing.assert_array_equal(image, picture(composer, seed=5))
    assert np.abs(image - picture(composer, seed=6).astype(int)).max() > 3


def test_eta_adds_noise_of_the_seed(composer: Composer) -> None:
    ancestral = picture(composer, eta=1.0)
    assert np.array_equal(ancestral, picture(composer, eta=1.0))
    assert not np.array_equal(ancestral, picture(composer)) and not np.array_equal(
        ancestral, picture(composer, eta=0.5)
    )


def test_image_i_of_a_call_is_the_image_of_its_seed(composer: Composer) -> None:
    several = composer.compose(PROMPT, [SHIRT, JEANS], seed=5, steps=3, num_images=3, progress=lambda done, steps: None)
    assert [made.seed for made in several] == [5, 6, 7]
    for made in several:
        np.testing.assert_array_equal(pixels(made), picture(composer, seed=made.seed))


@pytest.mark.slow
def test_batches_differ_by_rounding_alone(composer: Composer) -> None:
    alone = composer.compose(PROMPT, [SHIRT], steps=3, num_images=3, progress=lambda done, steps: None)
    calls = []
    together = composer.compose(
        PROMPT, [SHIRT], steps=3, num_images=3, batch_size=2, progress=lambda *call: calls.append(call)
    )
    assert len(together) == 3 and calls == [(done, 6) for done in range(1, 7)]
    for one, other in zip(alone, together, strict=True):
        assert one.seed == other.seed
        np.testing.assert_allclose(pixels(one).astype(int), pixels(other).astype(int), atol=1)


def test_one_program_equals_steps_driven_from_python(composer: Composer) -> None:
    [whole] = composer.compose(PROMPT, [SHIRT, JEANS], seed=5, steps=3)
    np.testing.assert_allclose(pixels(whole).astype(int), picture(composer, seed=5).astype(int), atol=1)


def test_assets_text_body_and_guidance_all_matter(composer: Composer) -> None:
    image = picture(composer)
    others = {
        "guidance": picture(composer, guidance=4.0),
        "body": picture(composer, body=Body(pose="arms_raised")),
        "layout": picture(composer, boxes=[(0, 0, 16, 16), (16, 16, 32, 32)]),
    }
    [fewer] = composer.compose(PROMPT, [SHIRT], steps=3, progress=lambda done, steps: None)
    [words] = composer.compose(
        "a man in a red shirt and blue jeans", [SHIRT, JEANS], steps=3, progress=lambda done, steps: None
    )
    [swapped] = composer.compose(
        PROMPT,
        [Asset(SHIRT.image, "blue jeans"), Asset(JEANS.image, "a red shirt")],
        boxes=[SHIRT_BOX, JEANS_BOX],
        steps=3,
        progress=lambda done, steps: None,
    )
    [placed] = composer.compose(
        PROMPT, [SHIRT, JEANS], boxes=[SHIRT_BOX, JEANS_BOX], steps=3, progress=lambda done, steps: None
    )
    for name, other in {**others, "assets": pixels(fewer), "prompt": pixels(words)}.items():
        assert np.abs(image.astype(int) - other).max() > 0, name
    assert np.abs(pixels(placed).astype(int) - pixels(swapped)).max() > 0, "phrases"


SHIRT_BOX, JEANS_BOX = (0, 0, 16, 16), (16, 16, 32, 32)


def test_without_assets(composer: Composer) -> None:
    [made] = composer.compose("a woman in blue jeans", steps=2, progress=lambda done, steps: None)
    assert made.canvas.image.min() == 255 and not made.canvas.masks.any() and made.tokens.spans.max() == 0


def test_maps_stand_for_the_body_that_drew_them(composer: Composer) -> None:
    body = Body(pose="walking", view=30)
    np.testing.assert_array_equal(picture(composer, body=body), picture(composer, body=body.render(32, 32)))
    with pytest.raises(ValueError, match="maps are 64x48, the picture is 32x32"):
        picture(composer, body=body.render(64, 48))


@pytest.mark.slow
def test_another_size(composer: Composer) -> None:
    assert picture(composer, size=(48, 32)).shape == (48, 32, 3)


def test_a_size_that_the_levels_do_not_divide(composer: Composer) -> None:
    with pytest.raises(ValueError, match="multiples of 8 for this model, got 50x32; 48x32 would do"):
        picture(composer, size=(50, 32))


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """What JAX compiles while a test runs."""
    compiled: list[str] = []

    def listen(event: str, _: float, **others: object) -> None:
        if event == COMPILATION:
            compiled.append(str(others.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("progress", [None, lambda done, steps: None], ids=["one program", "step by step"])
def test_data_does_not_recompile(composer: Composer, compilations: list[str], progress) -> None:
    """New requests run the programs that are there, whatever they ask for."""
    jax.jit(lambda number: number * 2.5)(1.0)
    assert compilations, "the event that tells of a compilation has another name in this JAX"
    composer.compose(PROMPT, [SHIRT], steps=2, progress=progress)
    compilations.clear()
    settings = {"steps": 4, "seed": 9, "guidance": 3.0, "sampler": "dpmpp_2m", "layout_seed": 2}
    composer.compose(PROMPT, [SHIRT, JEANS], progress=progress, **settings)
    composer.compose("a man", body=Body(pose="walking", gender=1), steps=3, eta=1.0, progress=progress)
    Composer(composer.config, composer.params, composer.tokenizer).compose("a man", steps=1, progress=progress)
    assert not compilations


def test_one_program_makes_what_steps_from_python_make(composer: Composer) -> None:
    settings = {"steps": 4, "seed": 3, "guidance": 3.0}
    whole, steps = (
        pixels(composer.compose(PROMPT, [SHIRT, JEANS], progress=progress, **settings)[0])
        for progress in (None, lambda done, steps: None)
    )
    # Two programs may round the last bit of a pixel apart.
    assert np.abs(whole.astype(int) - steps.astype(int)).max() <= 1 and whole.std() > 5


def test_progress_can_cancel(composer: Composer) -> None:
    calls = []

    def stop(done: int, steps: int) -> bool:
        calls.append((done, steps))
        return done < 2

    with pytest.raises(SamplingCancelledError, match="step 2 of 3"):
        composer.compose(PROMPT, steps=3, progress=stop)
    assert calls == [(1, 3), (2, 3)]


def test_what_is_not_shown_is_warned_of(composer: Composer) -> None:
    with pytest.warns(UserWarning, match="never learnt: xylophone, brocade$"):
        composer.compose("a xylophone in brocade on a xylophone", steps=1, progress=lambda done, steps: None)
    with pytest.warns(UserWarning, match="added to its end: 'a red shirt'$"):
        composer.compose("a woman", [SHIRT], steps=1, progress=lambda done, steps: None)
    with pytest.warns(UserWarning, match="its end is not read: 'man in"):
        composer.compose("woman man " * 37 + "woman man in a shirt", steps=1, progress=lambda done, steps: None)


def test_no_warning_without_reason(composer: Composer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture(composer)


# ---------------------------------------------------------------------------------------------------------------------
# The program


def arguments(model: Path, files: Path, *others: object) -> list[str]:
    words = ["--model", model, "--prompt", PROMPT, "--asset", f"{files}/shirt.png=a red shirt"]
    words += ["--asset", f"{files}/jeans.png=blue jeans", "--pose", "walking", "--steps", 2, *others]
    return list(map(str, words))


def test_an_image_is_made_again_from_itself(tiny_model_folder: Path, files: Path, capsys) -> None:
    out, again = files / "out.png", files / "new" / "again.png"
    run(compose.main, arguments(tiny_model_folder, files, "--out", out, "--seed", 3, "--sheet", files / "sheet.png"))
    shown = capsys.readouterr()
    assert shown.out.split() == [str(out), str(files / "sheet.png")] and "composing" in shown.err
    held = opened(out)[1]["request"]
    assert held["seed"] == 3 and held["body"] == {"pose": "walking"}
    assert held["assets"][0]["sha256"] == hashlib.sha256((files / "shirt.png").read_bytes()).hexdigest()

    run(compose.main, ["--request", str(out), "--out", str(again)])
    np.testing.assert_array_equal(opened(again)[0], opened(out)[0])
    assert opened(again)[1] == opened(out)[1]
    run(compose.main, ["--request", str(out), "--out", str(again), "--seed", "4"])
    assert np.abs(opened(again)[0].astype(int) - opened(out)[0]).max() > 0


def test_embedded_assets_need_no_files(tiny_model_folder: Path, files: Path) -> None:
    out = files / "out.png"
    run(compose.main, arguments(tiny_model_folder, files, "--out", out, "--embed-assets"))
    held = opened(out)[1]["request"]["assets"]
    assert base64.b64decode(held[1]["data"]) == (files / "jeans.png").read_bytes()
    (files / "shirt.png").unlink()
    (files / "jeans.png").unlink()
    run(compose.main, ["--request", str(out), "--out", str(files / "again.png"), "--embed-assets"])
    np.testing.assert_array_equal(opened(files / "again.png")[0], opened(out)[0])


def test_every_image_of_several_is_made_again_alone(tiny_model_folder: Path, files: Path) -> None:
    run(compose.main, arguments(tiny_model_folder, files, "--out", files / "out.png", "--num-images", 2, "--seed", 7))
    assert not (files / "out.png").exists()
    for index, seed in enumerate((7, 8)):
        made, held = opened(files / f"out_{index}.png")
        assert held["request"]["seed"] == seed
        run(compose.main, ["--request", str(files / f"out_{index}.png"), "--out", str(files / "again.png")])
        np.testing.assert_array_equal(opened(files / "again.png")[0], made)


def test_a_request_file_finds_assets_beside_it(tiny_model_folder: Path, files: Path) -> None:
    request = {"prompt": PROMPT, "model": str(tiny_model_folder), "steps": 1, "body": {"pose": "waving", "view": 20}}
    request["assets"] = [{"path": "shirt.png", "phrase": "a red shirt"}]
    (files / "request.json").write_text(json.dumps(request))
    run(compose.main, ["--request", str(files / "request.json"), "--out", str(files / "out.png"), "--pose", "walking"])
    held = opened(files / "out.png")[1]["request"]
    assert held["body"] == {"pose": "walking", "view": 20.0} and held["assets"][0]["path"] == "shirt.png"


def test_other_weights_are_warned_of(tiny_model_folder: Path, files: Path, capsys) -> None:
    out = files / "out.png"
    run(compose.main, arguments(tiny_model_folder, files, "--out", out))
    request = ComposeRequest.from_dict(opened(out)[1]["request"])
    Image.new("RGB", (8, 8)).save(out, pnginfo=request.metadata("0" * 64))
    run(compose.main, ["--request", str(out), "--out", str(files / "again.png")])
    assert "are not those that made this picture before" in capsys.readouterr().err


def test_words_that_the_model_never_learnt_are_a_warning(tiny_model_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.png"
    run(
        compose.main,
        ["--model", str(tiny_model_folder), "--steps", "1", "--prompt", "a xylophone in tulle", "--out", str(out)],
    )
    assert "warning: the model never learnt: xylophone, tulle\n" in capsys.readouterr().err
    assert out.exists()


def test_pose_parameters_of_smpl_become_part_of_the_request(tiny_model_folder: Path, files: Path) -> None:
    poses = np.zeros((2, 72), np.float32)
    poses[1, 3:6] = (-0.6, 0, 0)
    np.savez(files / "pose.npz", poses=poses)
    given = ["--model", str(tiny_model_folder), "--prompt", "a woman", "--params", str(files / "pose.npz")]
    request, _ = compose.requested(_flags([*given, "--frame", "1"]))
    np.testing.assert_allclose(request.body.rotations.reshape(-1), poses[1], atol=1e-6)
    with pytest.raises(ValueError, match="--pose and --params both give a pose"):
        compose.requested(_flags([*given, "--pose", "walking"]))
    people = {name: {"pose": poses + number} for number, name in enumerate(("ann", "ben"))}
    (files / "pose.pkl").write_bytes(pickle.dumps(people, 2))
    given[-1] = str(files / "pose.pkl")
    request, _ = compose.requested(_flags([*given, "--subject", "ben"]))
    np.testing.assert_allclose(request.body.rotations, 1, atol=1e-6)
    with pytest.raises(ValueError, match="choose one of the subjects ann, ben"):
        compose.requested(_flags(given))


def test_a_request_names_a_file_of_parameters_beside_it(files: Path) -> None:
    poses = np.zeros((2, 72))
    poses[1, 3:6] = (-0.6, 0, 0)
    np.savez(files / "pose.npz", poses=poses)
    path = files / "request.json"

    def read(**body: object) -> np.ndarray:
        path.write_text(json.dumps({"prompt": "a woman", "body": {"weight": 0.8, **body}}))
        request, _ = ComposeRequest.read(path)
        assert request.body.weight == 0.8
        # A picture's own request needs no file.
        assert ComposeRequest.from_dict(json.loads(json.dumps(request.asdict()))) == request
        return request.body.rotations

    np.testing.assert_allclose(read(params="pose.npz", frame=1).reshape(-1), poses[1], atol=1e-9)
    upright = read(params="pose.npz", up="z")
    np.testing.assert_allclose(upright[0], (-np.pi / 2, 0, 0), atol=1e-6)
    for body, expected in (
        ({"params": "pose.npz", "pose": "walking"}, "params and pose both give a pose"),
        ({"frame": 1}, "frame: of a file of SMPL parameters, which must be named as params"),
        ({"params": "pose.npz", "frame": 2}, "there is no frame 2 of poses"),
        ({"params": "pose.npz", "frame": 1.5}, "frame is 1.5; expected a whole number"),
        ({"params": "pose.npz", "up": "x"}, "up is 'x'; expected one of y, -y, z"),
        ({"params": "pose.npz", "subject": 0}, "subject is 0; expected a name"),
        ({"params": 3}, "params is 3; expected a file's name"),
        ({"params": "none.npz"}, "none.npz"),
    ):
        with pytest.raises((ValueError, OSError), match=expected):
            read(**body)


def _flags(words: list[str]) -> compose.Flags:
    found = []

    def take(flags: compose.Flags) -> None:
        found.append(flags)

    run(take, words)
    return found[0]


def test_in_a_process_of_its_own(tiny_model_folder: Path, files: Path) -> None:
    """The module as a user starts it: without assets, and with a mistake, which costs no traceback."""
    command = [sys.executable, "-m", "infer.compose", "--model", str(tiny_model_folder), "--steps", "1"]
    root = Path(fcjax.__file__).parents[1]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiles faster
    good = [*command, "--prompt", "a woman", "--out", str(files / "out.png")]
    done = subprocess.run(good, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert opened(files / "out.png")[0].shape == (32, 32, 3)
    done = subprocess.run([*good, "--size", "50", "32"], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if line and "composing" not in line]
    assert line == "error: height and width must be multiples of 8 for this model, got 50x32; 48x32 would do"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "heun"}, "sampler must be one of"),
        ({"steps": 101}, "steps must lie"),
        ({"eta": 2.0}, "eta must lie"),
    ],
)
def test_a_sampler_is_looked_at_before_a_model_is_loaded(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose.make(ComposeRequest(PROMPT, model="nowhere", **settings))


def test_the_help_names_every_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(compose.main, ["--help"])
    assert set(SAMPLERS) <= set(re.findall(r"\w+", capsys.readouterr().out))
