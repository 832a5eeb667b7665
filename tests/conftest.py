"""What several test files share: a tiny model folder with random weights."""

import ctypes
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# The numbers in these tests are a CPU's. Programs that tests start inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
# Nor do tests fill the user's cache with programs.
os.environ["FCJAX_COMPILATION_CACHE"] = "off"
# Most of their programs run once or twice: optimising them would take longer. Those of `optimised` are as users' are.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

# Meshes need devices; what asks for none runs on the first.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

import tests.typecheck
from tests.published import module_of, stand_in

# Shapes in annotations of what JAX traces are checked in every call; this must come before these are imported. (The
# NumPy rooms take what users give and check it themselves.)
CHECKED = ["fcjax.models", "fcjax.diffusion", "fcjax.samplers", "fcjax.sampling", "fcjax.generation"]
install_import_hook(CHECKED, f"{tests.typecheck.__name__}.checked")


# torchmetrics imports it where it is there, and fails with it.
stand_in("torch_fidelity")

TOKENIZER = Path(__file__).parents[1] / "fcjax" / "mini" / "tokenizer"


@pytest.fixture(scope="module", autouse=True)
def memory_given_back() -> Iterator[None]:
    """A file's programs, and what compiling them left to the C library's heap, end with it: gigabytes otherwise."""
    yield
    jax.clear_caches()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@pytest.fixture
def optimised() -> Iterator[None]:
    """Programs are compiled as users run them."""
    jax.config.update("jax_disable_most_optimizations", False)
    # What was compiled before would be taken again.
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Holds an array against a reference's; the figure stands in the summary of the tests."""
    from tests import oracles

    def check(ours: Any, theirs: Any, *, most: float, what: str = "") -> None:
        record(request.node, oracles.relative_error(ours, theirs), most, what)

    return check


@pytest.fixture
def gradient_parity(request: pytest.FixtureRequest) -> Callable[..., None]:
    """The same of gradients, {name: array}."""
    from tests import oracles

    def check(ours: Any, theirs: Any, *, most: float = 1e-3) -> None:
        record(request.node, oracles.gradient_error(ours, theirs), most, f"of {len(theirs)} gradients")

    return check


@pytest.fixture(scope="session")
def inception(tmp_path_factory: pytest.TempPathFactory):
    """torch-fidelity's network with random weights and normalisation statistics, and the file of them."""
    from fcjax.metrics.networks.inception import FILES, layers

    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    given = module_of("torch_fidelity", "feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("inception") / FILES[1]
    rng, state = torch.Generator().manual_seed(0), {}
    for name, (out, channels, height, width) in layers().items():
        scale = (2 / (channels * height * width)) ** 0.5
        state[f"{name}.conv.weight"] = scale * torch.randn(out, channels, height, width, generator=rng)
        state[f"{name}.bn.weight"] = 1 + 0.2 * torch.randn(out, generator=rng)
        state[f"{name}.bn.bias"] = 0.2 * torch.randn(out, generator=rng)
        state[f"{name}.bn.running_mean"] = 0.2 * torch.randn(out, generator=rng)
        state[f"{name}.bn.running_var"] = 0.5 + torch.rand(out, generator=rng)
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(3)
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(state, path)
    return given.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path)), path


def record(test: pytest.Item, error: float, most: float, what: str) -> None:
    test.user_properties.append(("parity", f"{error:.1e} (at most {most:.0e}) {what}".rstrip()))
    assert error <= most, f"{what}: {error}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How far every network is from the reference that it is held against."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    figures = [
        f"{report.nodeid}: {value}"
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "parity" and report.when == "call"
    ]
    if figures:
        terminalreporter.section("largest errors, relative to the reference's scale")
        for figure in sorted(figures):
            terminalreporter.line(figure)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `fcjax.presets.tiny()` with random weights and the mini model's tokenizer; not to be written into."""
    from fcjax import folder, presets, trees
    from fcjax.models.parameters import init_parameters
    from fcjax.tokenizer import Tokenizer

    vocab_size = Tokenizer.load(TOKENIZER).vocab_size
    tiny = presets.tiny()
    text_encoder = dataclasses.replace(
        tiny.text_encoder,
        vocab_size=vocab_size,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    tiny = dataclasses.replace(tiny, text_encoder=text_encoder)
    params = init_parameters(tiny, jax.random.key(0))

    def alive(path: str, leaf: jax.Array) -> jax.Array:
        """Layers that start at zero get values, or else nothing that goes in would be seen in what comes out."""
        if not path.endswith("kernel") or leaf.any():
            return leaf
        return jax.numpy.asarray(0.3 * np.random.default_rng(len(path)).standard_normal(leaf.shape, np.float32))

    path = tmp_path_factory.mktemp("models") / "tiny"
    folder.save(path, trees.map_paths(alive, params), tiny)
    shutil.copytree(TOKENIZER, path / "tokenizer")
    return path


@pytest.fixture(scope="session")
def stable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A Stable Diffusion folder of small networks, which is not to be written into, and their parameters."""
    from tests.stable_diffusion import LATENT, save_stable_diffusion

    path = tmp_path_factory.mktemp("sd") / "model"
    return path, save_stable_diffusion(path, "StableDiffusionPipeline", LATENT)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A single file of small networks, which is not to be written into, and their parameters."""
    from tests.stable_diffusion import save_single_file

    path = tmp_path_factory.mktemp("single") / "v1-5-pruned-emaonly.safetensors"
    return path, save_single_file(path)


@pytest.fixture(scope="session")
def tryon_model(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the tiny model for try-on, with random weights; not to be written into."""
    from tests.tryon_model import save_tryon_model

    path = tmp_path_factory.mktemp("models") / "tryon"
    save_tryon_model(tiny_model_folder, path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Small folders of predictions and truth."""
    from tests.scored_folders import write_folders

    return write_folders(tmp_path)


@pytest.fixture
def small_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published protocols at a sixteenth of their size."""
    from tests.scored_folders import shrink_protocols

    shrink_protocols(monkeypatch)
