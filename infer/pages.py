"""Evaluations of models as pages: reports, or comparisons with their key beside them."""

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from infer.blind import Contest, blind_page
from infer.evaluation import Evaluation, settings
from infer.evaluation_request import Request
from infer.figures import versions
from infer.predictions import Scored, lines
from infer.predictions import title as title_of
from infer.report_page import report_page
from infer.sheet import Panel


def write_page(
    request: Request,
    title: str,
    evaluation: Evaluation,
    shown: Sequence[Sequence[Panel]] | Sequence[Contest],
    protocols: Mapping[str, Scored] | None = None,
) -> None:
    """Writes `request.html`. shown: rows of pictures, or for a comparison the contests. protocols: what arms' pictures
    score by a published one.
    """
    path = request.html
    assert path is not None
    contests = [one for one in shown if isinstance(one, Contest)]
    if request.blind:
        write_contests(path, contests)
    else:
        words = evaluation.words
        summaries = {
            arm: {words[name]: figure for name, figure in evaluation.summary(arm).items()} for arm in evaluation.results
        }
        rows = [one for one in shown if not isinstance(one, Contest)]
        tables = {f"{name}: {title_of(one)}": lines(one) for name, one in (protocols or {}).items()}
        page = report_page(title, {**settings(request), **versions()}, summaries, rows, tables)
        path.write_text(page, encoding="utf-8")


def key_file(page: Path) -> Path:
    """Where the key of a comparison page lies."""
    return page.with_suffix(".key.json")


def write_contests(path: Path, contests: Sequence[Contest]) -> None:
    """Writes a comparison page, and whose pictures it shows beside it. Their order is new on every page."""
    # A title would tell whose pictures they are.
    page, key = blind_page("Which picture is better?", contests, secrets.randbits(32))
    key_file(path).write_text(json.dumps(key, indent=1) + "\n")
    path.write_text(page, encoding="utf-8")
