"""Whatever a user gets wrong in composing: a ValueError in Python, one line and exit code 2 on the command line."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcjax
from fcjax.cli import run
from fcjax.composer import Composer
from infer import compose
from infer.request import KEY, AssetFile, ComposeRequest


@pytest.fixture(scope="module")
def composer(tiny_model_folder: Path) -> Composer:
    return Composer.load(tiny_model_folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Asset files: one that is good and several that are not."""
    folder = tmp_path_factory.mktemp("files")
    red = np.zeros((20, 20, 4), np.uint8)
    red[2:18, 2:18] = (200, 0, 0, 255)
    Image.fromarray(red).save(folder / "shirt.png")
    Image.new("RGB", (20, 20), "white").save(folder / "white.png")
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(folder / "clear.png")
    Image.effect_noise((20, 20), 90).save(folder / "street.png")
    one_clear = Image.effect_noise((20, 20), 90).convert("RGBA")
    one_clear.putpixel((0, 0), (0, 0, 0, 0))
    one_clear.save(folder / "retouched.png")
    (folder / "words.png").write_text("this is no picture")
    (folder / "cut.png").write_bytes((folder / "shirt.png").read_bytes()[:60])
    (folder / "empty.png").touch()
    return folder


@pytest.fixture
def refused(composer: Composer, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Runs the program with these flags and returns its one line; nothing may have been written."""
    load = Composer.load
    # The good model is read once and not for every test.
    monkeypatch.setattr(
        Composer, "load", lambda path, **how: composer if path == str(tiny_model_folder) else load(path, **how)
    )

    def refuse(*words: object, prompt: str | None = "a woman in a red shirt") -> str:
        out = tmp_path / "out.png"
        flags = ["--model", tiny_model_folder, "--steps", 2, "--out", out, *words]
        if prompt is not None:
            flags += ["--prompt", prompt]
        with pytest.raises(SystemExit) as exit_:
            run(compose.main, list(map(str, flags)))
        shown = capsys.readouterr()
        lines = [line for line in shown.err.splitlines() if line and not line.startswith("composing")]
        assert exit_.value.code == 2 and not shown.out and not out.exists()
        assert len(lines) == 1 and lines[0].startswith("error: "), shown.err
        return lines[0].removeprefix("error: ")

    return refuse


# ---------------------------------------------------------------------------------------------------------------------
# Assets


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "no such asset file"),
        ("words.png", "as a picture"),
        ("cut.png", "as a picture"),
        ("empty.png", "as a picture"),
        ("", "cannot read the asset file"),
        ("white.png", "there is nothing to see"),
        ("clear.png", "there is nothing to see"),
        ("street.png", "has a real background"),
        ("retouched.png", "has a real background"),
    ],
)
def test_asset_files(files: Path, refused, name: str, message: str) -> None:
    line = refused("--asset", f"{files / name}=a red shirt")
    assert message in line and "object at 0x" not in line
    # What concerns the content alone names the phrase; the rest names the file.
    assert str(files / name) in line or "a red shirt" in line
    with pytest.raises(ValueError, match=message):
        file = AssetFile(str(files / name), "a red shirt")
        file.open(file.read())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{}/shirt.png", "has no phrase: write it as FILE=PHRASE, shirt.png='a red"),
        ("a red shirt", "the asset 'a red shirt' names no file: write it as FILE=PHRASE"),
        ("{}/shirt.png=", "has no phrase"),
        ("{}/shirt.png=  ", "has no phrase"),
        ("=a red shirt", "the phrase 'a red shirt' has no asset file"),
    ],
)
def test_a_phrase_and_a_file_belong_together(files: Path, refused, words: str, message: str) -> None:
    assert message in refused("--asset", words.format(files))
    with pytest.raises(ValueError, match=message):
        AssetFile.parse(words.format(files))


def test_things_of_the_wrong_kind(composer: Composer, files: Path) -> None:
    red, asset = np.full((9, 9, 4), (200, 0, 0, 255), np.uint8), fcjax.Asset.open(files / "shirt.png", "a red shirt")
    picture, box, nan = Image.fromarray(red), (0, 0, 16, 16), np.float64("nan")

    def compose(**given):
        return lambda: composer.compose("a woman", **{"assets": [asset], **given})

    sizes = r"size must be height and width, two whole numbers such as \(32, 32\), got "
    boxes = r"a box is four whole numbers \(top, left, bottom, right\), got "
    listed = r"assets must be a list of fcjax.Asset \(Asset.open\(path, phrase\)\), got "
    pictures = r"must be a Pillow image or a uint8 array of 0 to 255 \(height, width, 3 or 4\), got "
    for call, message in (
        (compose(assets=["shirt.png"]), r"assets must be fcjax.Asset \(Asset.open\(path, phrase\)\), got 'shirt.png'"),
        (compose(assets=[("shirt.png", "a shirt")]), r"must be fcjax.Asset .*, got \('shirt.png', 'a shirt'\)$"),
        (compose(assets=[picture]), "must be fcjax.Asset .*, got <PIL"),
        (compose(assets=asset), rf"{listed}Asset$"),
        (compose(assets="shirt.png"), rf"{listed}'shirt.png'"),
        (compose(size=256), rf"{sizes}256"),
        (compose(size=("256", "192")), rf"{sizes}\('256', '192'\)"),
        (compose(size=(np.float64("inf"), 192)), rf"{sizes}\(.*inf.*, 192\)"),
        (compose(size=(nan, 192)), rf"{sizes}\(.*nan.*, 192\)"),
        (compose(size=(256, 192, 3)), sizes),
        (compose(boxes=[(0, 0, nan, 16)]), rf"{boxes}\(0, 0, .*nan.*, 16\) for 'a red shirt'"),
        (compose(boxes=[(0, 0, "16", 16)]), rf"{boxes}\(0, 0, '16', 16\)"),
        (compose(boxes=[16]), rf"{boxes}16 for"),
        (compose(boxes=16), r"boxes must be a list of \(top, left, bottom, right\), one an asset, got 16"),
        (compose(guidance="2"), "guidance must be a number, got '2'"),
        (compose(reference_guidance="2"), "reference_guidance must be a number, got '2'"),
        (compose(guidance_rescale=[1]), r"guidance_rescale must be a number, got \[1\]"),
        (compose(sampler=["ddim"]), r"sampler must be one of ddim, .*; got \['ddim'\]"),
        (compose(eta="a"), "eta must be a number, got 'a'"),
        (lambda: fcjax.Asset.from_image(red / 255, "a shirt"), rf"{pictures}float64 \(9, 9, 4\); Asset.open reads"),
        (lambda: fcjax.Asset.from_image("x.png", "a shirt"), rf"{pictures}'x.png'; Asset.open reads"),
        (
            lambda: fcjax.Asset(picture, "a shirt"),
            r"must be uint8 RGBA \(height, width, 4\), got <PIL.*Asset.from_image",
        ),
        (lambda: fcjax.Person(picture, red[..., 0] > 0), "a person's picture must be an array, got Image; Person.open"),
        (lambda: fcjax.Person(red[..., :3], picture), "a person's mask must be an array, got Image; Person.open"),
        (lambda: Composer.load(None), "a model is a name such as 'mini', a folder or a file, got None"),
        (lambda: Composer.load("mini", clip_skip=1.5), "clip_skip must be a whole number of layers, got 1.5"),
        (lambda: fcjax.Asset.open(None, "a red shirt"), "the asset must be the name of a file, got None"),
        (lambda: fcjax.Asset.open("shirt.png", None), "an asset needs the phrase"),
        (lambda: composer.compose(None), "the prompt must be text that describes the picture, got None"),
        (
            lambda: composer.compose("a woman", body="walking"),
            r"the body must be a fcjax.Body \(Body\(pose='walking'\)\)",
        ),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            call()
        assert "\n" not in str(refused.value)
    # What means whole numbers may come as other kinds of them.
    settings = {"size": np.array([32.0, 32]), "boxes": np.array([box], float), "steps": 1}
    [made] = composer.compose("a red shirt", [asset], **settings)
    assert made.image.size == (32, 32) and made.canvas.boxes == (box,)


def test_too_many_assets(files: Path, refused, composer: Composer) -> None:
    given = [f"{files}/shirt.png=shirt number {number}" for number in range(4)]
    line = refused(*(word for asset in given for word in ("--asset", asset)))
    assert line == "at most 3 assets fit this model's canvas, got 4"
    asset = fcjax.Asset.open(files / "shirt.png", "a red shirt")
    with pytest.raises(ValueError, match="at most 3 assets"):
        composer.compose("a woman", [asset] * 4)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and names

SETTINGS = [
    ("steps", 0, "steps must lie between 1 and"),
    ("steps", -3, "steps must lie between 1 and"),
    ("steps", 100_000, "steps must lie between 1 and"),
    ("guidance", float("nan"), "guidance"),
    ("guidance", float("inf"), "guidance"),
    ("reference_guidance", float("nan"), "reference_guidance"),
    ("num_images", 0, "num_images must be at least 1"),
    ("seed", -1, "seeds must lie between 0 and 4294967295"),
    ("seed", 2**32, "seeds must lie between 0 and 4294967295"),
    ("sampler", "heun", "sampler must be one of ddim"),
    ("eta", 1.5, "eta must lie between 0"),
    ("eta", float("nan"), "eta"),
    ("size", (50, 32), "multiples of 8 for this model, got 50x32; 48x32 would do"),
    ("size", (0, 32), "multiples of 8 for this model"),
    ("layout_seed", -1, "layout_seed"),
]


@pytest.mark.parametrize(("name", "value", "message"), SETTINGS, ids=lambda value: str(value)[:20])
def test_settings(refused, composer: Composer, name: str, value, message: str) -> None:
    words = map(str, value if isinstance(value, tuple) else [value])
    assert message in refused(f"--{name.replace('_', '-')}", *words)
    with pytest.raises(ValueError, match=message):
        composer.compose("a woman", **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("seed", "steps", "num_images", "layout_seed") for value in (1.5, "1")]
    # Steps that nobody says are the model's own.
    + [(name, None) for name in ("seed", "num_images", "layout_seed")],
)
def test_whole_numbers(composer: Composer, name: str, value) -> None:
    with pytest.raises(ValueError, match=f"{name} "):
        ComposeRequest("a woman", **{name: value})
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        composer.compose("a woman", **{name: value})


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("pose", "walkin", "unknown pose 'walkin'; did you mean 'walking'?"),
        ("gender", "nan", "gender is nan; expected a number from 0 to 1"),
        ("weight", "1.5", "weight is 1.5; expected a number from 0 to 1"),
        ("view", "nan", "view is nan"),
        ("view", "inf", "view is inf"),
        ("elevation", "90", "elevation is 90.0"),
        ("distance", "nan", "distance is nan"),
    ],
)
def test_bodies(refused, flag: str, value: str, message: str) -> None:
    assert message in refused(f"--{flag}", value)
    with pytest.raises(ValueError, match=message.split(";")[0]):
        fcjax.Body(**{flag: value if flag == "pose" else float(value)})


@pytest.mark.parametrize("flag", ["--steps", "--guidance", "--size", "--framing", "--no-such-flag"])
def test_flags_of_the_wrong_kind(flag: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(compose.main, ["--prompt", "a woman", flag, "many"])
    assert exit_.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_no_prompt(refused) -> None:
    assert refused(prompt=None) == "expected --prompt, or --request with a file that holds one"
    assert "prompt is ' '" in refused(prompt=" ")


# ---------------------------------------------------------------------------------------------------------------------
# Model folders


def sdxl(folder: Path) -> None:
    """What tells a folder of Stable Diffusion XL: its index, and no reference UNet."""
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text(json.dumps({"addition_embed_type": "text_time"}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))


def empty(folder: Path) -> None:
    folder.mkdir()


def without(*names: str):
    """A copy of the tiny model that lacks these files or folders."""

    def make(folder: Path, tiny: Path) -> None:
        shutil.copytree(tiny, folder)
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return make


def broken(folder: Path, tiny: Path) -> None:
    shutil.copytree(tiny, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def small_vocabulary(folder: Path, tiny: Path) -> None:
    """Another model's tokenizer, with more tokens than the text encoder knows."""
    shutil.copytree(tiny, folder)
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    vocabulary |= {f"more{number}</w>": len(vocabulary) + number for number in range(10)}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))


MODELS = [
    (None, "there is no model folder"),
    (empty, "is no model folder: it has no model_index.json"),
    (sdxl, "is a folder of StableDiffusionXLPipeline; a composer's or one of StableDiffusionPipeline"),
    (without("binder", "vae"), "it has no vae, binder"),
    (without("unet/config.json"), "has no unet"),
    (without("vae/diffusion_pytorch_model.safetensors"), "has no weights of its vae"),
    (without("tokenizer"), "holds no tokenizer: give the tokenizer folder"),
    (broken, "is no readable safetensors file"),
    (small_vocabulary, "they belong to different models"),
]


@pytest.mark.parametrize(("make", "message"), MODELS, ids=lambda value: value if isinstance(value, str) else "")
def test_model_folders(tiny_model_folder: Path, tmp_path: Path, refused, make, message: str) -> None:
    folder = tmp_path / "model"
    if make in (empty, sdxl):
        make(folder)
    elif make is not None:
        make(folder, tiny_model_folder)
    assert message in refused("--model", folder)
    with pytest.raises(ValueError, match=message):
        Composer.load(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Requests and outputs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt: a woman", "is neither JSON nor a PNG of fcjax"),
        ("[1, 2]", "must be a JSON object with a prompt, not list"),
        ('{"seed": 1}', "prompt is missing"),
        ('{"prompt": 5}', "prompt is 5"),
        ('{"prompt": "a", "steps": 2.5}', "steps is 2.5; expected a whole number"),
        ('{"prompt": "a", "steps": true}', "steps is True; expected a whole number"),
        ('{"prompt": "a", "guidance": NaN}', "guidance is nan; expected a number"),
        ('{"prompt": "a", "guidance": "2"}', "guidance is '2'; expected a number"),
        ('{"prompt": "a", "negative_prompt": null}', "negative_prompt is None; expected words"),
        ('{"prompt": "a", "eta": "half"}', "eta is 'half'; expected a number"),
        ('{"prompt": "a", "dtype": 16}', "dtype is 16; expected a name"),
        ('{"prompt": "a", "size": [64]}', "size is (64,); expected 2 whole numbers"),
        ('{"prompt": "a", "size": 64}', "size is 64; expected 2 whole numbers"),
        ('{"prompt": "a", "boxes": 3}', "boxes"),
        ('{"prompt": "a", "boxes": [[1, 2, 3]]}', "a box is (1, 2, 3); expected 4 whole numbers"),
        ('{"prompt": "a", "body": {"pose": "walkin"}}', "did you mean 'walking'?"),
        ('{"prompt": "a", "body": "walking"}', "body must be an object"),
        ('{"prompt": "a", "body": {"age": null}}', "age is None; expected a number"),
        ('{"prompt": "a", "assets": {"shirt.png": "a shirt"}}', "assets must be a list"),
        ('{"prompt": "a", "assets": [{"path": "a.png"}]}', "assets[0].phrase is missing"),
        ('{"prompt": "a", "assets": [{"phrase": "a shirt"}]}', "assets[0].path is missing"),
        ('{"prompt": "a", "assets": [{"path": 1, "phrase": "b"}]}', "an asset's path is 1; expected text"),
        ('{"prompt": "a", "assets": [{"path": "a", "phrase": "b", "data": "?"}]}', "the embedded asset a is no base64"),
    ],
)
def test_request_files(tmp_path: Path, refused, content: str, message: str) -> None:
    path = tmp_path / "request.json"
    path.write_text(content)
    assert message in refused("--request", path, prompt=None)


def test_every_unknown_key_is_named(tmp_path: Path, refused) -> None:
    request = {"prompt": "a", "stpes": 3, "colour": 1, "body": {"hight": 1}, "assets": [{"path": "a", "frase": "b"}]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    line = refused("--request", tmp_path / "request.json", prompt=None)
    for part in ("stpes (did you mean steps?)", "unknown key colour;", "body.hight (did you mean height?)"):
        assert part in line
    assert "assets[0].frase (did you mean phrase?)" in line and "assets[0].phrase is missing" in line


def test_request_files_that_are_none(files: Path, tmp_path: Path, refused) -> None:
    assert "no such request file" in refused("--request", tmp_path / "none.json", prompt=None)
    assert "holds no request" in refused("--request", files / "shirt.png", prompt=None)
    assert "as a PNG" in refused("--request", files / "cut.png", prompt=None)
    assert str(tmp_path) in refused("--request", tmp_path, prompt=None)
    for index, text in enumerate(("no json", "[]", '{"request": 3}', "{}")):
        info = compose.ComposeRequest("a").metadata("")
        info.chunks.clear()
        info.add_text(KEY, text)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png", pnginfo=info)
        assert str(tmp_path / f"{index}.png") in refused("--request", tmp_path / f"{index}.png", prompt=None)


def test_an_asset_file_that_changed(files: Path, tmp_path: Path, refused) -> None:
    request = ComposeRequest("a woman", (AssetFile(str(files / "shirt.png"), "a red shirt", sha256="0" * 64),))
    (tmp_path / "request.json").write_text(json.dumps(request.asdict()))
    line = refused("--request", tmp_path / "request.json", prompt=None)
    assert "is not the file that the request was made with" in line and "0" * 64 in line


def test_assets_too_large_to_embed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer.request.MOST_TEXT", 1000)
    large = AssetFile("a.png", "a shirt").sealed(bytes(2000), embed=True)
    with pytest.raises(ValueError, match="leave out --embed-assets"):
        ComposeRequest("a woman", (large,)).metadata("")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.jpg", "its name must end in .png"),
        ("folder.png", "is a folder; name a file in it"),
        ("file/out.png", "cannot write into"),
        ("file/deeper/out.png", "cannot write into"),
    ],
)
@pytest.mark.parametrize("flag", ["--out", "--sheet"])
def test_outputs(tmp_path: Path, refused, flag: str, name: str, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    assert message in refused(flag, tmp_path / name)


def test_a_folder_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    """The system's refusal is simulated, because a superuser would not meet it."""

    def deny(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", deny)
    assert refused() == f"cannot write into {tmp_path}: Permission denied"
