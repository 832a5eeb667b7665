"""`python -m infer.densepose`: its files, the two bodies, and bad input as one line with exit code 2."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcjax.body import POSES, SMPL_JOINTS, Body, embedded_model
from fcjax.body.embedded import BONE_OF_JOINT, skin
from fcjax.cli import run
from infer.densepose import Request, main, preview, render

SIZE = ("--size", "128", "96")


def run_program(*arguments):
    run(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def smpl_file(tmp_path_factory):
    """The embedded body as an SMPL file: its T-pose, its skinning, its joints, no pose blend shapes."""
    model = embedded_model()
    shaped, body = model.shape(), model.ranges["body"]
    transforms = model.bone_transforms(shaped, finger_curl=0.25)
    vertices = skin(shaped.vertices[body], model.weights[body], transforms).astype(np.float64)
    heads = np.einsum("bij,bj->bi", transforms[..., :3], shaped.joints) + transforms[..., 3]
    joint_of_bone = {bone: SMPL_JOINTS.index(joint) for joint, bone in BONE_OF_JOINT.items()}
    weights = np.zeros((len(vertices), 24))
    joints = np.zeros((24, 3))
    for name, bone in model.bone_index.items():
        joint = joint_of_bone.get(name, 0 if name == "Root" else joint_of_bone.get(f"hand_{name[-1]}"))
        weights[:, joint] += model.weights[body, bone]
        if name in joint_of_bone:
            joints[joint] = heads[bone]
    joints[22:] = heads[[model.bone_index["middle_01_l"], model.bone_index["middle_01_r"]]]
    # The shortest affine combination of all vertices that gives each joint.
    lifted = np.concatenate([vertices.T, np.ones((1, len(vertices)))])
    regressor = np.concatenate([joints, np.ones((24, 1))], axis=1) @ np.linalg.pinv(lifted.T)
    parents = [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21]
    taller = np.zeros((len(vertices), 3, 10))
    taller[:, 1, 0] = vertices[:, 1] * 0.1
    path = tmp_path_factory.mktemp("smpl") / "model.npz"
    np.savez(
        path,
        v_template=vertices,
        shapedirs=taller,
        posedirs=np.zeros((len(vertices), 3, 207), np.float32),
        J_regressor=regressor,
        weights=weights / weights.sum(axis=1, keepdims=True),
        kintree_table=np.array([[2**32 - 1, *parents[1:]], range(24)], np.int64),
        f=model.faces["body"],
    )
    return path


def test_files(tmp_path, capsys):
    run_program("--pose", "walking", "--out", tmp_path / "maps", "--gender", "1", "--view", "30", *SIZE)
    maps = Body(pose="walking", gender=1, view=30).render(128, 96)
    with Image.open(tmp_path / "maps" / "iuv.png") as picture:
        iuv = np.asarray(picture)
    np.testing.assert_array_equal(iuv, maps.iuv)
    assert iuv.dtype == np.uint8 and iuv[..., 0].max() <= 24 and len(np.unique(iuv[..., 0])) > 12
    with np.load(tmp_path / "maps" / "uv.npz") as arrays:
        for key in ("uv", "face_mask", "depth", "normals"):
            np.testing.assert_array_equal(arrays[key], getattr(maps, key))
        assert (arrays["uv"][iuv[..., 0] == 0] == -1).all() and arrays["uv"][iuv[..., 0] > 0].min() >= 0
    with Image.open(tmp_path / "maps" / "preview.png") as picture:
        assert picture.size == (192, 128)
    assert "iuv.png" in capsys.readouterr().out


def test_flags_reach_the_body():
    flags = dict(pose="sitting", age=0.6, height=0.7, weight=0.8, muscle=0.2, proportions=0.9, elevation=12.0)
    request = Request(size=(96, 64), framing="upper", distance=3.0, **flags)
    np.testing.assert_array_equal(render(request).iuv, Body(framing="upper", distance=3.0, **flags).render(96, 64).iuv)


def test_preview_shows_parts_beside_the_atlas():
    maps = Body().render(96, 64)
    left, right = np.split(preview(maps), 2, axis=1)
    for picture in (left, right):
        np.testing.assert_array_equal(picture.any(axis=-1), maps.foreground)
    colours = {tuple(left[maps.part == part].max(axis=0)) for part in np.unique(maps.part[maps.foreground])}
    assert len(colours) == len(np.unique(maps.part[maps.foreground]))


def test_pose_files_move_the_embedded_body(tmp_path):
    np.savez(tmp_path / "pose.npz", poses=POSES["dancing"].rotations.reshape(1, 72), betas=np.ones(10))
    with pytest.warns(UserWarning, match="betas belong to SMPL and are not used: .* its shape from height, weight"):
        maps = render(Request(size=(128, 96), params=tmp_path / "pose.npz"))
    assert (maps.iuv == Body("dancing").render(128, 96).iuv).mean() > 0.999


@pytest.mark.parametrize("framing", ["full", "upper"])
def test_smpl_gives_the_embedded_bodys_map(framing, smpl_file, tmp_path):
    """The same mesh in SMPL's layout: equal but for skinning from another rest pose."""
    np.savez(tmp_path / "pose.npz", poses=POSES["walking"].rotations, transl=np.array([3.0, 1.0, -2.0]))
    request = Request(size=(256, 192), smpl=smpl_file, params=tmp_path / "pose.npz", view=20, framing=framing)
    maps = render(request)
    expected = Body("walking", view=20, framing=framing).render(256, 192)
    both, either = maps.foreground & expected.foreground, maps.foreground | expected.foreground
    assert both.sum() / either.sum() > 0.97
    same = both & (maps.part == expected.part)
    assert same.sum() / both.sum() > 0.95
    assert np.median(np.abs(maps.uv - expected.uv)[same]) < 0.005
    assert (maps.face_mask & expected.face_mask).sum() / (maps.face_mask | expected.face_mask).sum() > 0.9


def test_smpl_with_a_named_pose_and_betas(smpl_file, tmp_path):
    named = render(Request(size=(96, 64), smpl=smpl_file, pose="arms raised"))
    np.savez(tmp_path / "pose.npz", poses=POSES["arms_raised"].rotations)
    np.testing.assert_array_equal(
        render(Request(size=(96, 64), smpl=smpl_file, params=tmp_path / "pose.npz")).iuv, named.iuv
    )
    np.savez(tmp_path / "tall.npz", poses=POSES["arms_raised"].rotations, betas=np.array([2.0, 0, 0]))
    tall = render(Request(size=(96, 64), smpl=smpl_file, params=tmp_path / "tall.npz"))
    assert tall.foreground.sum() < named.foreground.sum()  # as high in the picture, hence thinner
    # AMASS has more betas than many model files know.
    many = np.array([2.0, 0, 0, *np.ones(397)])
    np.savez(tmp_path / "many.npz", poses=POSES["arms_raised"].rotations, betas=many)
    asked = Request(size=(96, 64), smpl=smpl_file, params=tmp_path / "many.npz")
    with pytest.raises(ValueError, match=r"has 400 betas, .* takes (\d+): --betas \1 uses the first"):
        render(asked)
    np.testing.assert_array_equal(render(dataclasses.replace(asked, betas=3)).iuv, tall.iuv)
    with pytest.raises(ValueError, match="--betas is how many to use"):
        render(dataclasses.replace(asked, betas=-1))


def test_betas_are_put_in_their_places_on_a_pose(smpl_file, tmp_path):
    np.savez(tmp_path / "pose.npz", poses=POSES["arms_raised"].rotations, betas=np.array([-1.0, 0.5, 0]))
    np.savez(tmp_path / "made.npz", poses=POSES["arms_raised"].rotations, betas=np.array([2.0, 0.5, -1]))
    given, made = (Request(size=(96, 64), smpl=smpl_file, params=tmp_path / f"{name}.npz") for name in ("pose", "made"))
    edited = render(dataclasses.replace(given, beta=("0=2", "2=-1")))
    np.testing.assert_array_equal(edited.iuv, render(made).iuv)
    assert not np.array_equal(edited.iuv, render(given).iuv)
    named = render(Request(size=(96, 64), smpl=smpl_file, pose="arms raised", beta=("0=2", "1=0.5", "2=-1")))
    np.testing.assert_array_equal(named.iuv, edited.iuv)
    for words in ("0", "tall=1", "0=tall", "-1=2", "400=1", "0=nan"):
        with pytest.raises(ValueError, match=f"--beta is '{words}'; expected"):
            render(dataclasses.replace(given, beta=(words,)))


@pytest.fixture(scope="module")
def smplx_file(smpl_file, tmp_path_factory):
    """The same body as an SMPL-X file: its hands moved by fingers, half of its head by the jaw and an eye."""
    held = dict(np.load(smpl_file))
    weights, regressor = held["weights"], held["J_regressor"]
    more = np.zeros((len(weights), 55))
    more[:, :22] = weights[:, :22]
    more[:, 15] = weights[:, 15] / 2
    more[:, 22] = more[:, 23] = weights[:, 15] / 4
    more[:, [28, 29]], more[:, [43, 54]] = weights[:, 22:23] / 2, weights[:, 23:24] / 2
    places = np.array([*range(22), 15, 15, 15, *[22] * 15, *[23] * 15])
    parents = np.concatenate([held["kintree_table"][0, :22], [15] * 3, [20] * 15, [21] * 15])
    path = tmp_path_factory.mktemp("smplx") / "model.npz"
    held |= {"weights": more, "J_regressor": regressor[places], "kintree_table": np.stack([parents, np.arange(55)])}
    held |= {
        "posedirs": np.zeros((len(weights), 3, 486), np.float32),
        "shapedirs": np.tile(held["shapedirs"], (1, 1, 2)),
    }
    np.savez(path, **held)
    return path


def test_smplx_has_smpls_charts(smpl_file, smplx_file, tmp_path):
    np.savez(tmp_path / "pose.npz", global_orient=np.zeros(3), body_pose=POSES["walking"].rotations[1:22].ravel())
    made = [
        render(Request(size=(256, 192), smpl=file, params=tmp_path / "pose.npz")) for file in (smpl_file, smplx_file)
    ]
    assert (made[0].iuv[..., 0] == made[1].iuv[..., 0]).mean() > 0.995
    assert set(np.unique(made[1].iuv[..., 0])) == set(np.unique(made[0].iuv[..., 0]))


def test_the_body_lies_on_the_picture_that_it_was_estimated_from(smpl_file, tmp_path, capsys):
    # A picture with a person in its right half, as a pinhole camera of 500 pixels sees them from 4 metres.
    np.savez(
        tmp_path / "pose.npz", poses=np.concatenate([[np.pi, 0, 0], np.zeros(69)]), camera_translation=(0.6, 0, 4.0)
    )
    Image.fromarray(np.full((240, 320, 3), 200, np.uint8)).save(tmp_path / "photo.jpg")
    arguments = ("--smpl", smpl_file, "--params", tmp_path / "pose.npz", "--image", tmp_path / "photo.jpg")
    run_program(*arguments, "--focal", 500, "--out", tmp_path)
    drawn, iuv = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("overlay.png", "iuv.png"))
    assert drawn.shape == iuv.shape == (240, 320, 3) and "overlay.png" in capsys.readouterr().out
    body = iuv[..., 0] > 0
    assert abs(np.nonzero(body)[1].mean() - (160 + 500 * 0.6 / 4)) < 6
    # The head above, and nothing beside the body changed.
    assert np.nonzero(iuv[..., 0] >= 23)[0].mean() < np.nonzero(np.isin(iuv[..., 0], (5, 6)))[0].mean()
    assert (np.abs(drawn - 200).max(axis=-1)[~body] <= 2).all() and (
        np.abs(drawn - 200).max(axis=-1)[body] > 2
    ).mean() > 0.9


def test_charts_of_uv_processed(smpl_file, tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    faces = embedded_model().faces["body"]
    vertices = np.unique(faces)[:6000]  # the file knows 6,890 vertices, the mesh here has more
    corners = faces[np.isin(faces, vertices).all(axis=1)]
    table = dict(
        All_Faces=np.searchsorted(vertices, corners) + 1,
        All_FaceIndices=np.full((len(corners), 1), 2),
        All_vertices=vertices[None] + 1,
        All_U_norm=np.full((len(vertices), 1), 0.2),
        All_V_norm=np.full((len(vertices), 1), 0.6),
    )
    assert vertices.max() < 6890
    scipy_io.savemat(tmp_path / "UV_Processed.mat", table)
    maps = render(Request(size=(96, 64), smpl=smpl_file, uv_processed=tmp_path / "UV_Processed.mat"))
    assert maps.foreground.any()
    np.testing.assert_array_equal(np.unique(maps.iuv[maps.foreground], axis=0), [[2, 51, 153]])


@pytest.mark.parametrize("up", ["-y", "z"])
def test_bodies_of_other_axes_stand_upright(up, smpl_file, tmp_path):
    root = {"-y": (np.pi, 0, 0), "z": (np.pi / 2, 0, 0)}[up]
    np.savez(tmp_path / "pose.npz", poses=np.concatenate([root, POSES["standing"].rotations[1:].ravel()]))
    for smpl in (None, smpl_file):
        maps = render(Request(size=(96, 64), params=tmp_path / "pose.npz", up=up, smpl=smpl))
        assert (maps.iuv == render(Request(size=(96, 64), smpl=smpl, pose="standing")).iuv).mean() > 0.99


HOSTILE = b"cos\nsystem\n(S'touch touched'\ntR."


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pose", "wakling"], "unknown pose 'wakling'; did you mean 'walking'?"),
        (["--gender", "nan"], "gender is nan; expected a number from 0 to 1"),
        (["--weight", "1.5"], "weight is 1.5; expected a number from 0 to 1"),
        (["--view", "nan"], "view is nan"),
        (["--distance", "0.1"], "distance is 0.1"),
        (["--size", "0", "64"], "--size is 0 64; expected height and width from 16 to 4096 pixels"),
        (["--params", "missing.npz"], "missing.npz: No such file or directory"),
        (["--smpl", "missing.pkl"], "missing.pkl: No such file or directory"),
        (["--params", "nan.npz"], "nan.npz: poses holds NaN"),
        (["--params", "hostile.pkl"], "hostile.pkl: the pickle asks for os.system, which is refused"),
        (["--smpl", "hostile.pkl"], "hostile.pkl: the pickle asks for os.system, which is refused"),
        (["--smpl", "nan.npz"], "nan.npz is not an SMPL model: it lacks v_template"),
        (["--smpl", "text.npz"], "text.npz is not a readable .npz"),
        (["--params", "pose.npz", "--frame", "1"], "pose.npz: there is no frame 1 of poses, only 1"),
        (["--params", "pose.npz", "--pose", "walking"], "--pose and --params both give a pose"),
        (["--smpl", "hostile.pkl", "--gender", "1"], "--gender shape the body of fcjax"),
        (["--uv-processed", "UV_Processed.mat"], "--uv-processed belongs to SMPL's mesh: give --smpl too"),
        (["--image", "photo.jpg"], "give --smpl and --params, too"),
        (["--focal", "500"], "--focal is of the camera that saw --image: give --image, too"),
        (["--frame", "2", "--up", "z"], "--frame, --up tell how --params are to be read: give --params, too"),
        (
            ["--image", "photo.jpg", "--params", "pose.npz", "--up", "-y", "--view", "20"],
            "as its estimator's camera saw it, in the file's own axes: leave --view, --up out",
        ),
        (["--image", "photo.jpg", "--size", "64", "48"], "the maps have that picture's size: leave --size out"),
        (["--beta", "0=2"], "--beta shapes your own SMPL body: give --smpl, too"),
        (["--out", "text.npz"], "text.npz: File exists"),
    ],
)
def test_bad_input(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("nan.npz", poses=np.full(72, np.nan))
    np.savez("pose.npz", poses=np.zeros((1, 72)))
    Path("hostile.pkl").write_bytes(HOSTILE)
    Path("text.npz").write_text("no archive")
    Image.new("RGB", (96, 128)).save("photo.jpg")
    with pytest.raises(SystemExit) as exit_:
        run_program(*([] if {"--size", "--image"} & {*flags} else SIZE), *flags)
    captured = capsys.readouterr()
    assert exit_.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and message in captured.err and captured.err.count("\n") == 1
    assert not Path("touched").exists()


def test_from_the_shell(tmp_path):
    """No traceback where it counts: in a process of its own."""
    command = [sys.executable, "-m", "infer.densepose", "--pose", "wakling", "--out", str(tmp_path / "maps")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: unknown pose 'wakling'") and result.stderr.count("\n") == 1
    assert not (tmp_path / "maps").exists()
