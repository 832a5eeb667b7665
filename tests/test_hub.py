"""Names on the Hugging Face Hub: what of a repository is downloaded, and what its cache on this machine gives."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects

from fcjax import pretrained
from fcjax.composer import Composer
from tests.stable_diffusion import save_stable_diffusion

# What lies beside a Stable Diffusion model in its repository, and is not read.
OTHERS = [
    "README.md",
    "v1-5-pruned.safetensors",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "safety_checker/model.fp16.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.bin",
]
CONFIGS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]
NAME = "nobody/model"


class Repository:
    """A repository of empty files in the Hub's place; what is downloaded lies in `root`."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self.root, self.files = root, files

    def snapshot_download(self, name: str, allow_patterns: list[str]) -> str:
        assert name == NAME
        self.root.mkdir(exist_ok=True)
        for file in filter_repo_objects(self.files, allow_patterns=allow_patterns):
            (self.root / file).parent.mkdir(parents=True, exist_ok=True)
            (self.root / file).write_text("{}" if file.endswith(".json") else "")
        return str(self.root)

    @property
    def downloaded(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())


PLAIN = ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
HALF = ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"]
SHARDS = [f"unet/diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
HALF_SHARDS = [f"unet/diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
TEXT = ["text_encoder/model.safetensors"]


@pytest.mark.parametrize(
    ("read", "left"),
    [
        ([*PLAIN, *TEXT], [*HALF, "unet/diffusion_pytorch_model.non_ema.safetensors"]),
        ([*HALF, "text_encoder/model.fp16.safetensors"], []),
        (["unet/diffusion_pytorch_model.bf16.safetensors", PLAIN[1], *TEXT], []),
        ([*SHARDS, "unet/diffusion_pytorch_model.safetensors.index.json", PLAIN[1], *TEXT], [*HALF, *HALF_SHARDS]),
        ([*HALF_SHARDS, "unet/diffusion_pytorch_model.safetensors.index.fp16.json", HALF[1], *TEXT], []),
        (
            [*PLAIN, *TEXT, *(f"binder/{file}" for file in ("config.json", "model.safetensors"))],
            [*HALF, "reference_unet/model.safetensors"],
        ),
    ],
    ids=["several precisions", "half alone", "mixed", "shards", "half shards", "composer"],
)
def test_what_a_composer_reads_is_downloaded(
    read: list[str], left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(tmp_path / "repository", [*CONFIGS, *read, *left, *OTHERS])
    monkeypatch.setattr("huggingface_hub.snapshot_download", repository.snapshot_download)
    assert pretrained.locate(NAME) == repository.root
    assert repository.downloaded == sorted([*CONFIGS, *read])


def test_what_was_begun_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has downloaded half precision before, and not all of it."""
    repository = Repository(tmp_path / "repository", [*CONFIGS, *PLAIN, *HALF_SHARDS, *TEXT])
    monkeypatch.setattr("huggingface_hub.snapshot_download", repository.snapshot_download)
    repository.snapshot_download(NAME, [HALF_SHARDS[0]])
    pretrained.locate(NAME)
    assert repository.downloaded == sorted([*CONFIGS, PLAIN[1], *HALF_SHARDS, *TEXT])


def test_paths_and_packaged_names_go_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    for file in ("models/v1-5.safetensors", "v1-5.ckpt"):
        with pytest.raises(ValueError, match=f"^there is no file {file}$"):
            pretrained.locate(file)
    assert pretrained.locate("mini") == pretrained.MINI and pretrained.locate("a/b/c") == Path("a/b/c")
    assert pretrained.locate(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert pretrained.locate(NAME) == Path(NAME)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The Hub's cache of a machine without a network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    yield cache


def cached(cache: Path) -> Path:
    """A model in the Hub's cache."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    kept = cache / "models--nobody--model"
    snapshot = kept / "snapshots" / commit
    save_stable_diffusion(snapshot, "StableDiffusionPipeline", 4)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    return snapshot


@pytest.mark.parametrize("lost", ["vae/diffusion_pytorch_model.safetensors", "unet", "model_index.json"])
def test_a_name_that_is_cached_in_part_says_so(lost: str, offline: Path) -> None:
    place = cached(offline) / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    what = lost if lost.endswith("json") else f"weights of its {lost.split('/')[0]} in safetensors"
    with pytest.raises(
        ValueError, match=f"^nobody/model on the Hugging Face Hub has no {what}, or .*HF_HUB_OFFLINE unset"
    ):
        pretrained.locate(NAME)


def test_an_error_without_words_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ValueError, match=r"not to be had as a name on the Hugging Face Hub \(TimeoutError\); download"):
        pretrained.locate(NAME)


def test_a_cached_name_is_loaded_without_a_network(offline: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot = cached(offline)
    with caplog.at_level(logging.ERROR):
        assert pretrained.locate(NAME) == snapshot
        assert Composer.load(NAME).config.condition == "pose"


def test_a_name_that_is_not_cached_says_where_to_put_it(offline: Path, tmp_path: Path) -> None:
    """And there it is found."""
    place = Path.cwd() / NAME
    with pytest.raises(ValueError, match="nobody/model is no path, and not to be had .* put it in the folder") as error:
        pretrained.locate(NAME)
    assert f"put it in the folder {place}, or anywhere" in str(error.value)
    save_stable_diffusion(tmp_path / "downloaded", "StableDiffusionPipeline", 4)
    shutil.copytree(tmp_path / "downloaded", place)
    assert Composer.load(NAME).config.binder.variant == "all"
