"""What several test files share: a tiny model folder with random weights."""

import dataclasses
import os
import shutil
from pathlib import Path

# The numbers in these tests are a CPU's. Programs that tests start inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
# Nor do tests fill the user's cache with programs.
os.environ["FCJAX_COMPILATION_CACHE"] = "off"
# Most of their programs run once or twice: optimising them would take longer.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

# Meshes need devices; what asks for none runs on the first.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

import tests.typecheck

# Shapes in annotations of what JAX traces are checked in every call; this must come before these are imported. (The
# NumPy rooms take what users give and check it themselves.)
CHECKED = ["fcjax.models", "fcjax.diffusion", "fcjax.samplers", "fcjax.sampling", "fcjax.generation"]
install_import_hook(CHECKED, f"{tests.typecheck.__name__}.checked")

TOKENIZER = Path(__file__).parents[1] / "fcjax" / "mini" / "tokenizer"


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
