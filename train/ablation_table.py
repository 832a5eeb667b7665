"""What `train.ablation` writes of its arms: figures with their intervals, as Markdown and as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any

from fcjax.metrics import FIGURES as WORDS
from fcjax.metrics import Figure, bootstrap_runs
from fcjax.wardrobe.alike import TOGETHER

FIGURES = (
    "binding_accuracy",
    "told_binding_accuracy",
    "palette_distance",
    "texture_correlation",
    "silhouette_iou",
    "swap_test",
)
"""Of `fcjax.metrics.FIGURES` those that a table shows, by name."""
Result = dict[str, Any]
"""An arm of one seed on one kind of sets, as `train.ablation.score` keeps it."""
Rows = dict[str, dict[int, dict[str, Result]]]
"""Results by arm, seed and split, as far as they are there."""


def over_seeds(results: Sequence[Result], name: str, together: int = 1) -> Figure | None:
    """A figure's mean over seeds, with an interval of what other sets and other seeds would give.

    together: so many sets in a row are of one person (`fcjax.wardrobe.alike`) and drawn as one.
    """
    if name == "swap_test":
        return bootstrap_runs([[[float(exchanged)] for exchanged in one["swaps"]] for one in results])
    return bootstrap_runs([[own.get(name, []) for own in one["sets"]] for one in results], together=together)


def against(results: Mapping[int, Result], others: Mapping[int, Result], name: str, together: int = 1) -> Figure | None:
    """How much more an arm has of a figure than another one, with an interval like `over_seeds`.

    Each set of each seed is compared with itself: what is hard in a set, or bad luck of a base model, is in both arms
    and in no interval. Seeds that one arm lacks are left out.
    """
    pairs = [(results[seed], others[seed]) for seed in results if seed in others]
    if name == "swap_test":
        return bootstrap_runs(
            [[[float(a) - float(b)] for a, b in zip(one["swaps"], other["swaps"], strict=True)] for one, other in pairs]
        )
    both = [
        [(a.get(name, []), b.get(name, [])) for a, b in zip(one["sets"], other["sets"], strict=True)]
        for one, other in pairs
    ]
    return bootstrap_runs(
        [[[sum(a) / len(a) - sum(b) / len(b)] if a and b else [] for a, b in of_sets] for of_sets in both],
        together=together,
    )


def summary(rows: Rows, splits: Sequence[str]) -> dict[str, Any]:
    """By arm its training, and by split every figure: over seeds, and of each."""
    found: dict[str, Any] = {}
    for arm, seeds in rows.items():
        found[arm] = {}
        for split in splits:
            results = {seed: one[split] for seed, one in seeds.items() if split in one}
            figures = {name: over_seeds(list(results.values()), name, _together(split)) for name in FIGURES}
            found[arm][split] = {
                "training": {seed: one["training"] for seed, one in results.items()},
                "figures": {
                    name: {
                        **figure._asdict(),
                        "seeds": {seed: one["figures"][name]["mean"] for seed, one in results.items()},
                    }
                    for name, figure in figures.items()
                    if figure is not None
                },
            }
    return found


def table(words: Mapping[str, str], rows: Rows, splits: Sequence[str], count: int) -> str:
    """Markdown: how arms were trained, and a line an arm with its figures for each kind of sets.

    words: what a line calls an arm. The last one's is what the others are compared with. Arms and seeds without
    results are listed.
    """
    parts = [_lines(["", "steps", "parameters", "minutes a seed"], [_training(words[arm], rows[arm]) for arm in words])]
    *others, last = words
    for split in splits:
        results = {arm: {seed: one[split] for seed, one in rows[arm].items() if split in one} for arm in words}
        names = [name for name in FIGURES if any(over_seeds([*own.values()], name) for own in results.values())]
        head = ["", *(WORDS[name] for name in names)]
        lines = [
            [words[arm], *(cell([*own.values()], name, _together(split)) for name in names)]
            for arm, own in results.items()
        ]
        parts.append(f"Sets: {split}.\n\n" + _lines(head, lines))
        apart = [
            [
                f"{words[arm]} less {words[last]}",
                *(_said(against(results[arm], results[last], name, _together(split))) for name in names),
            ]
            for arm in others
        ]
        parts.append(_lines(head, apart))
    seeds = {seed for own in rows.values() for seed in own}
    parts.append(
        f"Means over {len(seeds)} seeds, with 95 % bootstrap intervals over seeds and sets and, in parentheses, the "
        f"lowest and the highest seed's; {count} sets of each kind. Each seed has a base model of its own, which its "
        "arms share. Differences are means over sets of each seed, an arm's beside the other's of the same set."
    )
    missing = [
        f"{words[arm]} (seed {seed})"
        for arm, own in rows.items()
        for seed, found in own.items()
        if set(found) != set(splits)
    ]
    if missing:
        parts.append(f"NOT THERE YET, and in no mean: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _lines(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def _training(name: str, seeds: Mapping[int, Mapping[str, Result]]) -> list[str]:
    """Steps, millions of parameters beside the VAE's, and minutes and device of each seed."""
    told = [next(iter(splits.values()))["training"] for splits in seeds.values() if splits]
    if not told:
        return [name, "-", "-", "-"]
    steps = sorted({one["steps"] for one in told})
    minutes = ", ".join(f"{one['seconds'] / 60:.1f}" for one in told)
    devices = ", ".join(sorted({one["device"] for one in told}))
    millions = f"{told[0]['parameters'] / 1e6:.2f} M"
    return [name, ", ".join(map(str, steps)), millions, f"{minutes} ({devices})"]


def _together(split: str) -> int:
    """How many sets in a row are of one person."""
    return TOGETHER if split == "alike" else 1


def cell(results: Sequence[Result], name: str, together: int = 1) -> str:
    """ "0.830 [0.790, 0.860] (0.810 to 0.850)"."""
    figure = over_seeds(results, name, together)
    if figure is None:
        return "-"
    digits = _digits(figure)
    own = [one["figures"][name]["mean"] for one in results]
    spread = f" ({min(own):.{digits}f} to {max(own):.{digits}f})" if len(own) > 1 else ""
    return f"{_said(figure)}{spread}"


def _said(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    digits = _digits(figure)
    mean, low, high = (f"{value:.{digits}f}" for value in figure[:3])
    return f"{mean} [{low}, {high}]"


def _digits(figure: Figure) -> int:
    return 1 if abs(figure.mean) >= 2 else 3
