"""Pictures of sets drawn on several devices, which are simulated here."""

import jax
import numpy as np
import pytest

from fcjax.pictures import open_rgb
from infer import drawing
from infer.arms import Arm, make_arms
from infer.drawing import draw
from infer.sets import WardrobeSets


def test_devices_draw_side_by_side_what_one_draws(tmp_path, tiny_model_folder, monkeypatch):
    settings = {"steps": 1, "guidance": 1.0}
    [arm], size = make_arms(str(tiny_model_folder), [], settings, size=(64, 48), binding_off=False, truth=False)
    sets, used = WardrobeSets("heldout", 1, *size), set()

    def draws(one, assets, seed):
        used.add(jax.config.jax_default_device)
        return arm.draw(one, assets[:3], seed)

    for count in (1, 2):
        monkeypatch.setattr(drawing, "accelerators", lambda count=count: jax.devices()[:count])
        draw(sets, [Arm("model", draws)], tmp_path / str(count), 4, 0, (0, 1), quiet=True)
    assert used == {None, *jax.devices()[:2]}
    for path in sorted((tmp_path / "1/0").iterdir()):
        np.testing.assert_array_equal(open_rgb(path), open_rgb(tmp_path / "2/0" / path.name))


def test_a_failure_on_one_of_several_devices_ends_the_drawing(tmp_path, monkeypatch):
    begun = []

    def fails(one, assets, seed):
        begun.append(seed)
        raise ValueError("no picture")

    monkeypatch.setattr(drawing, "accelerators", lambda: jax.devices()[:2])
    with pytest.raises(ValueError, match="no picture"):
        draw(WardrobeSets("heldout", 1, 64, 48), [Arm("model", fails)], tmp_path, 200, 0, (0, 1), quiet=True)
    assert len(begun) < 20
