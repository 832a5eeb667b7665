"""Evaluations of models as pages: reports, or comparisons with their key beside them."""

import json
from collections.abc import Sequence

from infer.blind import Contest, blind_page
from infer.evaluation import Evaluation
from infer.evaluation_request import Request
from infer.figures import versions
from infer.report_page import report_page
from infer.sheet import Panel


def write_page(
    request: Request, title: str, evaluation: Evaluation, shown: Sequence[Sequence[Panel]] | Sequence[Contest]
) -> None:
    """Writes `request.html`. shown: rows of pictures, or for a comparison the contests."""
    path = request.html
    assert path is not None
    contests = [one for one in shown if isinstance(one, Contest)]
    if request.blind:
        # A title would tell whose pictures they are.
        page, key = blind_page("Which picture is better?", contests, request.seed)
        path.with_suffix(".key.json").write_text(json.dumps(key, indent=1) + "\n")
    else:
        words = evaluation.words
        summaries = {
            arm: {words[name]: figure for name, figure in evaluation.summary(arm).items()} for arm in evaluation.results
        }
        rows = [one for one in shown if not isinstance(one, Contest)]
        page = report_page(title, {**request.settings, **versions()}, summaries, rows)
    path.write_text(page, encoding="utf-8")
