"""Try-on of a list of pairs, a request a line: `infer.tryon --pairs`."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from fcjax.cli import one_line
from fcjax.pictures import icc_profile
from infer.compose import save_png
from infer.request import own_sampling, read_png_metadata, weights_digest
from infer.sampling_request import settled
from infer.tryon_fit import digests, fit, load, opened
from infer.tryon_request import FILES, TryOnRequest, as_made, put_over

if TYPE_CHECKING:
    from fcjax.composer import Composer


def read_pairs(path: Path, flags: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], TryOnRequest]]]:
    """Names of pictures and what makes their requests. ValueError for a list that cannot be read, or twice one name."""
    if not path.is_file():
        raise ValueError(f"no such list of pairs: {path}")
    seen = set()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}): save it so") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            given = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is no JSON ({error}); one object a line is expected") from error
        if not isinstance(given, dict):
            raise ValueError(f"{place} must be a JSON object with person, prompt and assets, got {line[:40]!r}")
        name = given.pop("name", f"{number:06d}.png")
        if not isinstance(name, str) or Path(name).name != name or not name.lower().endswith(".png"):
            raise ValueError(f"{place}: name is {name!r}; expected a file name that ends in .png")
        if name in seen:
            raise ValueError(f"{place}: the name {name} stands in the list twice")
        seen.add(name)
        yield name, lambda given=given, place=place: TryOnRequest.from_dict(put_over(flags, given), place)
    if not seen:
        raise ValueError(f"{path} holds no pair")


def try_on_pairs(path: Path, flags: Mapping[str, Any], out: Path) -> None:
    """One picture a line of the list into the folder `out`; those that are there stay.

    flags: what lines leave out. ValueError for a list that cannot be read, for pictures of another list, and at the end
    where pairs failed, which `out`/failed.json then lists.
    """
    # All names first, so that a mistake in the list is told before any work.
    pairs = list(read_pairs(path, flags))
    out.mkdir(parents=True, exist_ok=True)
    beside, weights = path.parent.absolute(), _Weights()
    left = _left_to_make(pairs, out, beside, weights)
    failed: dict[str, str] = {}
    composers: dict[tuple[str, str | None], Composer | ValueError] = {}
    with tqdm(total=len(pairs), initial=len(pairs) - len(left), unit="pair") as bar:
        for name, make in left:
            try:
                request = _placed(make(), beside)
                person, assets = opened(request)
                model = request.model, request.dtype
                if model not in composers:
                    composers = {model: _loaded(*model)}
                composer = composers[model]
                if isinstance(composer, ValueError):
                    raise composer
                request = settled(request, composer.config.own_sampling)
                fitting = fit(request, composer, person, assets)
                info = request.metadata(weights[request.model], digests(request))
                save_png(fitting.image, out / name, info, icc_profile(Path(request.person)))
            except (ValueError, OSError) as error:
                failed[name] = one_line(error)
            bar.update()
            bar.set_postfix(failed=len(failed))
    report = out / "failed.json"
    report.unlink(missing_ok=True)
    if failed:
        report.write_text(json.dumps(failed, indent=2, ensure_ascii=False) + "\n")
        name, reason = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(pairs)} pairs failed, {report} says why; the first, {name}: {reason}")
    print(f"{len(left)} pictures made, {len(pairs) - len(left)} were there: {out}")


def _placed(request: TryOnRequest, beside: Path) -> TryOnRequest:
    """The request with whole paths, so that its picture finds its files again from any folder."""
    return request.found(beside).found(Path.cwd())


def _left_to_make(
    pairs: Sequence[tuple[str, Callable[[], TryOnRequest]]], out: Path, beside: Path, weights: "_Weights"
) -> list[tuple[str, Callable[[], TryOnRequest]]]:
    """The pairs without a picture in the folder, or with a request that cannot be met.

    ValueError names pictures that are there and that their line does not ask for, and in what they differ.
    """
    left, others = [], {}
    own = functools.cache(own_sampling)
    for name, make in pairs:
        if not (out / name).exists():
            left.append((name, make))
            continue
        try:
            request = _placed(make(), beside)
            request = settled(request, own(request.model))
            asked = request.asdict(digests(request)), weights[request.model]
        except (ValueError, OSError):
            # What is wrong with it is said when its turn comes.
            left.append((name, make))
            continue
        differ = _differences(out / name, *asked)
        if differ:
            others[name] = differ
    if others:
        name, differ = next(iter(others.items()))
        raise ValueError(
            f"{len(others)} pictures in {out} are not what the list asks for; the first, {name}, was made with another "
            f"{', '.join(differ)}: remove them, or name another --out"
        )
    return left


def _differences(path: Path, asked: Mapping[str, Any], weights: str) -> list[str]:
    """In what the request inside a PNG, its files or the weights that met it are not those that are asked for.

    Files are told by name and content, so that they may have been moved, list and all.
    """
    try:
        held, made_by = read_png_metadata(path)
    except ValueError:
        return ["program"]
    if not isinstance(held, Mapping) or "person" not in held:
        return ["program"]
    asked = json.loads(json.dumps(asked))
    (before, files), (now, others) = (_by_name(as_made(said)) for said in (held, asked))
    told = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    digests = held.get("sha256", {})
    for role, file in others.items():
        old = files.get(role, "")
        if Path(old).name == Path(file).name and digests.get(old) not in (None, asked["sha256"][file]):
            told.append(f"file {file}")
    return told + ["weights"] * (made_by != weights)


def _by_name(said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A request's plain data with files by their names alone and without digests, and each file's path by its role."""
    assets = said.get("assets", [])
    paths = {role: said[role] for role in FILES if said.get(role) is not None}
    names: dict[str, Any] = {role: Path(path).name for role, path in paths.items()}
    names["assets"] = [{**asset, "path": Path(asset["path"]).name} for asset in assets]
    paths |= {f"asset {number}": asset["path"] for number, asset in enumerate(assets)}
    return {name: value for name, value in said.items() if name != "sha256"} | names, paths


class _Weights(dict[str, str]):
    """The digest of the weights of each model that is asked for."""

    def __missing__(self, model: str) -> str:
        self[model] = weights_digest(model)
        return self[model]


def _loaded(model: str, dtype: str | None) -> "Composer | ValueError":
    """The model, or why it cannot be had, which is the same for every pair."""
    try:
        return load(model, dtype)
    except ValueError as error:
        return error
