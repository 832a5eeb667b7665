"""Write a model's sampling function for machines without fcjax: one file for cpu, cuda and tpu, and its weights.

python -m infer.export mini outputs/exported

python outputs/exported/run.py --out picture.png

From a request's arrays to pictures in one function: text, asset canvas and pose (or person and mask, for a model that
tries on) in, reference pass, guided sampling, decoding. Steps (to a bound), sampler, guidance scales, seeds, prompt,
assets and body or person are data to it. It takes any number of requests and makes their pictures one after another,
or, with --batch-size, so many at once.

OUT/sampling.jaxexport   the function, StableHLO (jax.export: readable by jax for 6 months to come): pictures, and
                         whether they were made of numbers alone, which a program cannot refuse by itself
OUT/weights.safetensors  its first argument
OUT/example.npz          its other arguments, for one picture
OUT/run.py               a loader of a few lines that needs neither fcjax nor flax
OUT/export.json          what was exported
"""

import dataclasses
import functools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from fcjax.cli import run
from infer import exported
from infer.compose import prepare_folder

if TYPE_CHECKING:
    from fcjax.composer import Composer
    from fcjax.config import ComposerConfig
    from fcjax.person import Person


@dataclass(frozen=True)
class Request:
    """What to export and where to."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """Where the function can run. For this host's own platform alone, its own attention kernel is exported."""
    batch_size: int | None = None
    """How many pictures at once; by default any number, one after another."""
    branches: Literal[1, 2, 3] = 2
    """Of guidance: 1 none, 2 one scale, 3 scales of their own for text and assets."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of computation, and of the weights."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures, if not the model's own."""
    prompt: str = "a woman in blue jeans"
    """Of the example."""


def main(request: Request) -> None:
    """Exports and says what was written."""
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise ValueError(f"{request.out} exists already; give a new folder, so that nothing is lost")
    out = request.out.resolve()
    if out == Path.cwd():
        raise ValueError(f"{request.out} is the working folder; name one in it")
    if request.batch_size is not None and request.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {request.batch_size}")
    if not request.platforms:
        raise ValueError("platforms is empty; expected some of cpu, cuda, tpu")
    try:
        import flatbuffers  # noqa: F401  (jax.export writes with it)
    except ImportError as error:
        raise ValueError("exporting needs flatbuffers: pip install 'fcjax[export]'") from error
    prepare_folder(out.parent)
    import jax

    from fcjax import trees
    from fcjax.composer import Composer
    from fcjax.weights import write_tensors

    composer = Composer.load(request.model, dtype=request.dtype)
    arguments = example_arguments(composer, request)
    serialized, kernel = export(composer, request, arguments)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        written = Path(aside) / "exported"
        written.mkdir()
        (written / "sampling.jaxexport").write_bytes(serialized)
        weights = {path: np.asarray(leaf) for path, leaf in trees.flatten(composer.params).items()}
        write_tensors(written / "weights.safetensors", weights)
        np.savez(written / "example.npz", **trees.flatten(arguments))
        shutil.copyfile(exported.__file__, written / "run.py")
        flat = {path: np.asarray(leaf) for path, leaf in trees.flatten(arguments).items()}
        facts = {
            "jax": jax.__version__,
            "attention_kernel": kernel,
            **{key: value for key, value in dataclasses.asdict(request).items() if key != "out"},
            "arguments": {path: f"{array.dtype}{list(array.shape)}" for path, array in flat.items()},
        }
        (written / "export.json").write_text(json.dumps(facts, indent=2) + "\n")
        written.replace(out)
    print(f"wrote {request.out} for {', '.join(request.platforms)}: {len(serialized) / 2**20:.1f} MiB and weights")


def example_arguments(composer: "Composer", request: Request) -> dict[str, Any]:
    """Arguments of the exported function but the weights, as nested dicts of NumPy arrays: one picture, or a batch."""
    from fcjax.preparation import prepare
    from fcjax.samplers import sampler_table
    from fcjax.sampling import make_guidance

    config = composer.config.sized(request.size)
    inputs = prepare(config, composer.tokenizer, request.prompt, shown=_example_person(config)).arrays
    count = request.batch_size or 1
    inputs = {name: array if name == "empty_ids" else np.repeat(array, count, 0) for name, array in inputs.items()}
    scales = {1: (1.0, None), 2: (config.guidance, None), 3: (config.guidance, 2.0)}[request.branches]
    guidance = make_guidance(_branches(request), *scales)
    table = sampler_table(config.diffusion, config.steps)
    return {
        "inputs": inputs,
        "table": {field.name: np.asarray(getattr(table, field.name)) for field in dataclasses.fields(table)},
        "guidance": {name: np.asarray(value) for name, value in guidance._asdict().items()},
        "seeds": np.arange(count, dtype=np.uint32),
    }


def _example_person(config: "ComposerConfig") -> "Person | None":
    """Whom a try-on model's example dresses: nobody in particular, repainted in the middle."""
    from fcjax.person import Person

    if not config.tries_on:
        return None
    height, width = config.height, config.width
    mask = np.zeros((height, width), bool)
    mask[height // 4 : -height // 4, width // 4 : -width // 4] = True
    return Person(np.full((height, width, 3), 128, np.uint8), mask)


def _branches(request: Request) -> tuple[Any, ...]:
    from fcjax.sampling import FULL, REFERENCE_ONLY, UNCONDITIONAL

    return {1: (FULL,), 2: (FULL, UNCONDITIONAL), 3: (FULL, REFERENCE_ONLY, UNCONDITIONAL)}[request.branches]


def export(composer: "Composer", request: Request, arguments: dict[str, Any]) -> tuple[bytes, str]:
    """The serialized function and the attention kernel in it."""
    import jax
    from jax import export as jax_export

    from fcjax.models.attend import attention_kernel

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)

    shapes = jax.tree.map(abstract, arguments)
    if request.batch_size is None:
        [any_number] = jax_export.symbolic_shape("n")

        def of_any_number(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((any_number, *leaf.shape[1:]), leaf.dtype)

        empty = shapes["inputs"]["empty_ids"]
        shapes["inputs"] = {**jax.tree.map(of_any_number, shapes["inputs"]), "empty_ids": empty}
        shapes["seeds"] = of_any_number(shapes["seeds"])
    own = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    kernel = "auto" if request.platforms == (own,) else "portable"
    with attention_kernel(kernel):
        function = jax.jit(functools.partial(_sample, composer, request))
        made = jax_export.export(function, platforms=request.platforms)(
            jax.tree.map(abstract, composer.params), *(shapes[name] for name in exported.ARGUMENTS)
        )
    return bytes(made.serialize()), kernel


def _sample(
    composer: "Composer",
    request: Request,
    weights: dict[str, Any],
    inputs: dict[str, Any],
    table: dict[str, Any],
    guidance: dict[str, Any],
    seeds: Any,
) -> Any:
    """What is exported."""
    import jax

    from fcjax.generation import PictureInputs, conditions_of_pictures, generate_unchecked
    from fcjax.samplers import SamplerTable
    from fcjax.sampling import Guidance, initial_latents

    config, dtype = composer.config.sized(request.size), composer.dtype
    noise = (config.latent_height, config.latent_width, config.vae.latent_channels)
    sampler, mixing = SamplerTable(**table), Guidance(**guidance)

    def pictures(inputs: dict[str, Any], seeds: Any) -> Any:
        conditions = conditions_of_pictures(
            weights, PictureInputs(**inputs), config=config, branches=_branches(request), images=1, dtype=dtype
        )
        # The generator that fcjax.sampling.image_keys names.
        keys = jax.vmap(functools.partial(jax.random.key, impl="threefry2x32"))(seeds)
        latents = initial_latents(sampler, keys, *noise)
        return generate_unchecked(weights, conditions, sampler, mixing, keys, latents, config=config, dtype=dtype)

    if request.batch_size is not None:
        return pictures(inputs, seeds)
    empty_ids = inputs["empty_ids"]
    several = {name: array for name, array in inputs.items() if name != "empty_ids"}

    def one(given: tuple[dict[str, Any], Any]) -> Any:
        batched = {name: array[None] for name, array in given[0].items()}
        [picture], finite = pictures({**batched, "empty_ids": empty_ids}, given[1][None])
        return picture, finite

    return jax.lax.map(one, (several, seeds))


if __name__ == "__main__":
    run(main)
