"""The model of a request and how it samples, which all requests for pictures say alike, and their flags."""

import dataclasses
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from infer.flags import flag, flag_of
from infer.values import check, check_whole_numbers

Asked = TypeVar("Asked", bound=Any)


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """A model, as a name or a folder, and how it samples: arguments that `Composer.compose` explains."""

    model: str = "mini"
    dtype: str | None = None
    negative_prompt: str = ""
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    reference_guidance: float | None = None
    guidance_rescale: float = 0.0
    sampler: str = "ddim"
    eta: float = 0.0
    size: tuple[int, int] | None = None
    layout_seed: int = 0

    @property
    def sampling(self) -> dict[str, Any]:
        """The keyword arguments that `Composer.compose`, `Composer.try_on` and `make_album` have in common."""
        fields = (field.name for field in dataclasses.fields(SamplingRequest))
        return {name: getattr(self, name) for name in fields if name not in ("model", "dtype")}

    def check_values(self) -> None:
        """ValueError for values of a wrong kind."""
        for name in ("seed", "layout_seed", *(["steps"] if self.steps is not None else [])):
            check(name, getattr(self, name), numbers.Integral, "a whole number")
        for name in ("guidance_rescale", "eta"):
            check(name, getattr(self, name), numbers.Real, "a number")
        for name in ("guidance", "reference_guidance"):
            if getattr(self, name) is not None:
                check(name, getattr(self, name), numbers.Real, "a number")
        check("negative_prompt", self.negative_prompt, str, "words")
        for name in ("model", "sampler", *(["dtype"] if self.dtype is not None else [])):
            check(name, getattr(self, name), str, "a name")
        if self.size is not None:
            check_whole_numbers("size", self.size, 2, "height and width")

    def check_sampler(self) -> None:
        """ValueError for a sampler that there is not, or not with these steps and eta; before a model is loaded."""
        # Here, because it takes seconds that a request with a mistake of another kind need not wait for.
        from fcjax.samplers import check_sampler

        # A model's own steps are checked with it.
        check_sampler(self.sampler, 1 if self.steps is None else self.steps, self.eta)


def settled(request: Asked, own: Mapping[str, Any]) -> Asked:
    """A request (a dataclass) with the model's own (`ComposerConfig.own_sampling`) where nothing is asked for, so that
    it makes a picture again alike.
    """
    return dataclasses.replace(request, **{name: own[name] for name in own if getattr(request, name) is None})


def _of_request(metavar: str, name: str) -> Any:
    return flag_of(SamplingRequest, metavar, name)


@dataclass(frozen=True)
class SamplingFlags:
    """How the model samples."""

    negative_prompt: Annotated[str | None, flag("TEXT", "none")] = None
    """What guidance leads away from."""
    seed: Annotated[int | None, _of_request("INT", "seed")] = None
    steps: Annotated[int | None, flag("INT", "the model's")] = None
    sampler: Annotated[str | None, _of_request("NAME", "sampler")] = None
    """ddim, ddpm, euler, euler_karras, euler_ancestral, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde, dpmpp_2m_sde_karras or
    lcm (for models distilled for it)."""
    eta: Annotated[float | None, _of_request("0..1", "eta")] = None
    """Of ddim: 0 is deterministic, 1 ancestral."""
    guidance: Annotated[float | None, flag("FLOAT", "the model's")] = None
    """How far to go from the picture without text and assets; 1 is off, and twice as fast."""
    reference_guidance: Annotated[float | None, flag("FLOAT", "as --guidance")] = None
    """A scale of its own for the assets."""
    guidance_rescale: Annotated[float | None, _of_request("0..1", "guidance_rescale")] = None
    """Against over-exposed pictures of strong guidance."""
    size: Annotated[tuple[int, int] | None, flag("HEIGHT WIDTH", "the model's")] = None
    """At which the model works, in pixels."""
    layout_seed: Annotated[int | None, _of_request("INT", "layout_seed")] = None
    """Where the assets stand on their canvas."""
    dtype: Annotated[str | None, flag("float32|bfloat16", "float32 on a CPU, else bfloat16")] = None
    """Of computation."""
