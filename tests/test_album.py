"""Albums: who uses whose keys and values, what alignment changes, and what an album of one page is."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.album import album_programs, compiled_memory
from configs.sharding import strategy
from fcjax import pretrained
from fcjax.album import Page, exchange, face_tokens, make_album, page_matches
from fcjax.assets import Asset
from fcjax.body import Body
from fcjax.body.matching import FOOTPRINT, match_tokens, token_places
from fcjax.composer import Composer
from fcjax.models.attention import Attention, Correspondence
from fcjax.preparation import prepare
from tests import oracles

PROMPT = "a woman in a red shirt"
SHIRT = Asset(np.full((12, 10, 4), (200, 20, 30, 255), np.uint8), "a red shirt")
COAT = Asset(np.full((12, 10, 4), (20, 60, 30, 255), np.uint8), "a green shirt")
STANDING, WALKING = Body(pose="standing", framing="upper"), Body(pose="walking", framing="upper", view=20)


@pytest.fixture(scope="module")
def composer(tiny_model_folder: Path) -> Composer:
    return Composer.load(tiny_model_folder)


def pages(*bodies: Body) -> list[Page]:
    return [Page(body, PROMPT, [SHIRT]) for body in bodies]


def pictures(album) -> list[np.ndarray]:
    return [np.asarray(picture.image) for picture in album.pictures]


# ---------------------------------------------------------------------------------------------------------------------
# Matching


@pytest.mark.parametrize(("factor", "framing"), [(4, "full"), (4, "upper"), (8, "upper")])
def test_a_picture_matches_itself_token_by_token(factor: int, framing: Literal["full", "upper"]):
    iuv = Body(pose="walking", framing=framing).render(512, 384).iuv
    height, width = 512 // factor, 384 // factor
    part, _ = token_places(iuv, height, width)
    found = match_tokens(iuv, iuv, height, width)
    here = np.flatnonzero(part.reshape(-1))
    np.testing.assert_array_equal(np.flatnonzero(found >= 0), here)
    # u and v have 256 values each: two tokens may show the very same, of which the first is taken.
    shown = iuv[factor // 2 :: factor, factor // 2 :: factor].reshape(-1, 3)
    np.testing.assert_array_equal(shown[found[here]], shown[here])
    assert (found[here] == here).mean() > 0.98


def test_matches_are_of_one_chart_and_one_place():
    first, other = (Body(pose=pose).render(256, 192).iuv for pose in ("standing", "hands_on_hips"))
    part, place = token_places(other, 64, 48)
    first_part, first_place = token_places(first, 64, 48)
    found = match_tokens(other, first, 64, 48)
    here = np.flatnonzero(found >= 0)
    assert 0.5 < len(here) / (part > 0).sum() <= 1
    np.testing.assert_array_equal(part.reshape(-1)[here], first_part.reshape(-1)[found[here]])
    apart = np.linalg.norm(place.reshape(-1, 3)[here] - first_place.reshape(-1, 3)[found[here]], axis=-1)
    # In units of half a body's height.
    assert apart.max() < 0.12 and np.median(apart) < 0.02


@pytest.mark.parametrize(("pose", "view"), [("hands_on_hips", 0), ("walking", 40), ("sitting", -30)])
def test_tokens_match_wherever_chart_and_place_agree_and_nowhere_else(pose: str, view: float):
    """Token by token, in loops."""
    height, width = 32, 24
    first, other = Body(pose="standing").render(128, 96).iuv, Body(pose=pose, view=view).render(128, 96).iuv
    part, place = token_places(other, height, width)
    first_part, first_place = token_places(first, height, width)
    uv, first_uv = (iuv[2::4, 2::4, 1:] / 255 for iuv in (other, first))
    reach = np.zeros((height, width))
    for row, column in np.ndindex(height, width):
        for down, across in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            beside = row + down, column + across
            if 0 <= beside[0] < height and 0 <= beside[1] < width and part[beside] == part[row, column]:
                step = np.linalg.norm(place[row, column] - place[beside], axis=-1)
                reach[row, column] = max(reach[row, column], step)
    reach[reach == 0] = np.median(reach[(part > 0) & (reach > 0)])
    expected = np.full((height, width), -1)
    for token in np.ndindex(height, width):
        apart = {
            there[0] * width + there[1]: np.linalg.norm(place[token] - first_place[there], axis=-1)
            for there in np.ndindex(height, width)
            if part[token] == first_part[there] > 0
        }
        near = [number for number, distance in apart.items() if distance <= FOOTPRINT * reach[token]]
        if near:
            beside = {number: np.linalg.norm(uv[token] - first_uv.reshape(-1, 2)[number]) for number in near}
            expected[token] = min(near, key=lambda number: (round(apart[number], 6), beside[number], number))
    found = match_tokens(other, first, height, width)
    assert 0.1 < (found >= 0).sum() / (part > 0).sum() < 1
    np.testing.assert_array_equal(found, expected.reshape(-1))


def test_what_the_first_picture_does_not_show_matches_nothing():
    front, back = (Body(pose="standing", view=view).render(256, 192).iuv for view in (0, 180))
    part, _ = token_places(back, 64, 48)
    found = match_tokens(back, front, 64, 48)
    # The back of the torso.
    assert not (found[part.reshape(-1) == 1] >= 0).any()
    with pytest.raises(ValueError, match="a body map of 32x24 pixels is smaller than its grid of 64x48"):
        match_tokens(back, front[:32, :24], 64, 48)


# ---------------------------------------------------------------------------------------------------------------------
# Keys and values


def test_only_matched_tokens_use_the_other_rows_keys_and_values():
    rng = np.random.default_rng(0)
    own = jnp.asarray(rng.standard_normal((3, 4, 2), np.float32))
    tokens = jnp.asarray([[-1, -1, -1, -1], [2, -1, 0, -1], [-1, 3, -1, 3]])
    exchanged = Correspondence(jnp.asarray([0, 0, 1]), tokens).exchanged(own)
    expected = np.array(own)
    expected[1, [0, 2]] = own[0, [2, 0]]
    expected[2, [1, 3]] = own[1, [3, 3]]
    np.testing.assert_array_equal(exchanged, expected)


def test_attention_looks_at_the_exchanged_keys_and_values():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    layer = Attention(2)
    params = oracles.random_parameters(jax.eval_shape(layer.init, jax.random.key(1), x))
    rows = jnp.asarray([0, 0])
    everything = Correspondence(rows, jnp.stack([jnp.full(5, -1), jnp.arange(5)]))
    shared, _ = layer.apply(params, x, corresponding=everything)
    alone, _ = layer.apply(params, x)
    np.testing.assert_allclose(shared[0], alone[0], atol=1e-6)
    # The second row's queries at the first row's keys and values.
    crossed, _ = layer.apply(params, x[1:], x[:1])
    np.testing.assert_allclose(shared[1], crossed[0], atol=1e-6)


def test_exchanges_of_an_album(composer: Composer):
    config = composer.config
    prepared = [prepare(config, composer.tokenizer, PROMPT, [SHIRT], body) for body in (STANDING, WALKING)]
    matches = page_matches(config, prepared)
    assert exchange("none", matches) is None
    cross = exchange("cross_frame", matches)
    by_place = exchange("correspondence", matches)
    assert cross is not None and by_place is not None
    for level, (whole, some) in enumerate(zip(cross, by_place, strict=True)):
        count = (config.latent_height >> level) * (config.latent_width >> level)
        assert whole.shape == some.shape == (2, count)
        assert (whole[0] == -1).all() and (some[0] == -1).all()
        np.testing.assert_array_equal(whole[1], np.arange(count))
        assert set(np.flatnonzero(some[1] >= 0)) <= set(np.flatnonzero(matches[1].on_body[level]))


# ---------------------------------------------------------------------------------------------------------------------
# Albums


def test_one_page_is_plain_composition(composer: Composer):
    settings = {"steps": 2, "seed": 5, "guidance": 4.0, "negative_prompt": "a man in a green coat"}
    album = make_album(composer, pages(WALKING), **settings)
    # Step by step, as albums are made; one program from noise to picture rounds otherwise.
    [plain] = composer.compose(PROMPT, [SHIRT], WALKING, **settings, progress=lambda done, steps: None)
    np.testing.assert_array_equal(pictures(album)[0], plain.image)
    assert not album.matched.any() and album.pictures[0].seed == 5


def test_equal_poses_give_equal_pictures_with_shared_noise(composer: Composer):
    album = make_album(composer, pages(WALKING, WALKING, WALKING), sharing="cross_frame", steps=2)
    first, *others = pictures(album)
    for other in others:
        np.testing.assert_array_equal(first, other)
    assert (album.matched == [[0, 0], [1, 1], [1, 1]]).all()


@pytest.mark.parametrize(
    "scales",
    [pytest.param({"guidance": 1.0}, marks=pytest.mark.slow), {"guidance": 2.0, "reference_guidance": 1.3}],
    ids=str,
)
def test_every_branch_of_guidance_looks_at_its_own_first_page(composer: Composer, scales: dict[str, float]):
    """One branch, and three: pages in one pose would differ, were a branch to look at another's."""
    first, other = pictures(make_album(composer, pages(WALKING, WALKING), sharing="cross_frame", steps=2, **scales))
    np.testing.assert_array_equal(first, other)
    [plain] = composer.compose(PROMPT, [SHIRT], WALKING, steps=2, progress=lambda done, steps: None, **scales)
    np.testing.assert_allclose(first.astype(int), np.asarray(plain.image), atol=1)


def test_ways_of_sharing_differ_and_leave_the_first_page_alone(composer: Composer):
    made = {
        sharing: pictures(make_album(composer, pages(STANDING, WALKING), sharing=sharing, align=False, steps=2))
        for sharing in ("none", "cross_frame", "correspondence")
    }
    for sharing in ("cross_frame", "correspondence"):
        np.testing.assert_array_equal(made[sharing][0], made["none"][0])
        assert not np.array_equal(made[sharing][1], made["none"][1])
    assert not np.array_equal(made["cross_frame"][1], made["correspondence"][1])
    noises = make_album(composer, pages(STANDING, STANDING), sharing="cross_frame", steps=2, same_noise=False)
    assert not np.array_equal(*pictures(noises)) and noises.pictures[1].seed == 1


def test_an_aligned_album_is_joined_of_those_that_are_made_by_themselves(composer: Composer):
    given = pages(STANDING, WALKING)
    aligned = make_album(composer, given, keep_joined=True, steps=2)
    assert list(aligned.joined) == ["cross_frame", "correspondence"]
    for sharing, part in aligned.joined.items():
        alone = make_album(composer, given, sharing=sharing, align=False, keep_joined=True, steps=2)
        for one, other in zip(pictures(part), pictures(alone), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(part.matched, alone.matched)
        assert not alone.joined and not part.joined
    assert not make_album(composer, given, steps=2).joined


def test_alignment_changes_no_latent_outside_the_face(composer: Composer, monkeypatch: pytest.MonkeyPatch):
    """Latents decoded as colours, so that what is seen is what alignment put together."""
    seen: list[np.ndarray] = []

    def decode(params, latents, **_):
        seen.append(np.asarray(latents[0]))
        return jnp.zeros((1, 32, 32, 3), jnp.uint8)

    monkeypatch.setattr("fcjax.album.decode", decode)
    two = pages(STANDING, WALKING)
    for sharing, align in (("correspondence", True), ("correspondence", False), ("cross_frame", False)):
        make_album(composer, two, sharing=sharing, align=align, steps=2)
    (first, aligned), (_, plain), (_, crossed) = seen[:2], seen[2:4], seen[4:]
    face = face_tokens(composer.config, prepare(composer.config, composer.tokenizer, PROMPT, [SHIRT], WALKING))
    assert 0 < face.sum() < face.size
    np.testing.assert_array_equal(aligned[~face], plain[~face])
    np.testing.assert_array_equal(aligned[face], crossed[face])
    assert not np.array_equal(plain[face], crossed[face])
    np.testing.assert_array_equal(first, seen[2])


def test_batches_do_not_matter(composer: Composer):
    three = pages(STANDING, WALKING, Body(pose="standing", framing="upper", view=-30))
    steps: list[tuple[int, int]] = []
    whole = make_album(composer, three, steps=2, batch_size=3)
    by_two = make_album(composer, three, steps=2, batch_size=2, progress=lambda done, all: steps.append((done, all)))
    for one, other in zip(pictures(whole), pictures(by_two), strict=True):
        np.testing.assert_allclose(one.astype(int), other, atol=1)
    assert steps == [(done, 8) for done in range(1, 9)]


@pytest.mark.slow
def test_memory_grows_with_the_pages_at_once(composer: Composer):
    """In proportion, and by nothing else: an album of any length runs the programs of its batches."""
    steps = [album_programs(composer.config, pages, jnp.float32)["step"] for pages in (2, 4, 6)]
    more = np.diff([compiled_memory(step, jax.devices()[0]).temp_size_in_bytes for step in steps])
    assert more[0] > 0 and more[1] == pytest.approx(more[0], rel=0.2)


def test_albums_of_any_length_run_the_programs_of_their_batches(composer: Composer, monkeypatch: pytest.MonkeyPatch):
    sizes = []

    def denoise(params, conditions, table, guidance, keys, latents, progress, **_):
        sizes.append((len(latents), conditions.text.shape[0]))
        return latents

    monkeypatch.setattr("fcjax.album.denoise_stepwise", denoise)
    # Six pages by three: the first one in each batch, the last one filled up.
    make_album(composer, pages(*[WALKING] * 6), align=False, steps=2, batch_size=3)
    assert set(sizes) == {(3, 6)} and len(sizes) == 3


def test_pages_have_words_and_garments_of_their_own(composer: Composer):
    two = [Page(WALKING, PROMPT, [SHIRT]), Page(WALKING, "a woman in a green shirt", [COAT])]
    album = make_album(composer, two, sharing="cross_frame", steps=2)
    assert not np.array_equal(*pictures(album))
    assert album.pictures[1].canvas.phrases == ("a green shirt",)


def test_albums_that_cannot_be(composer: Composer):
    maps = Body().render(composer.config.height, composer.config.width)
    other, turned = (dataclasses.replace(maps, faces=faces) for faces in (maps.faces[:9], maps.faces[::-1]))
    for given, options, expected in (
        ([], {}, "at least one page"),
        (pages(WALKING), {"sharing": "all"}, "sharing is 'all'; expected one of none, cross_frame, correspondence"),
        (pages(WALKING, WALKING), {"batch_size": 1}, "batch_size must be at least 2"),
        ([*pages(WALKING), Page(Body(), PROMPT, [SHIRT] * 9)], {}, "page 2: at most 3 assets"),
        ([*pages(WALKING), Page(Body().render(64, 64), PROMPT)], {}, "page 2: the body's maps are 64x64"),
        ([*pages(WALKING, WALKING), Page(other, PROMPT)], {}, "page 3 shows a body of 9 triangles, page 1 one of "),
        ([*pages(WALKING), Page(turned, PROMPT)], {}, r"page 2 shows a body of \d+ triangles between other vertices"),
        (pages(WALKING), {"sharing": "none", "align": True}, "with sharing 'none' leave it out"),
        (pages(WALKING), {"sharing": "cross_frame", "align": True}, "with sharing 'cross_frame' leave it out"),
    ):
        with pytest.raises(ValueError, match=expected):
            make_album(composer, given, steps=1, **options)


def test_models_that_make_no_albums(composer: Composer, tiny_model_folder: Path):
    read = pretrained.load(tiny_model_folder, condition="tryon")
    tryon = Composer(read.config, read.params, composer.tokenizer)
    with pytest.raises(ValueError, match="composed from bodies, and this model's condition is 'tryon'"):
        make_album(tryon, pages(WALKING))
    spread = composer.spread(strategy("data"), jax.devices()[:1])
    with pytest.raises(ValueError, match="albums are made on one device"):
        make_album(spread, pages(WALKING))
