"""Files of torch.save read without torch: the same tensors, nothing run, broken files told."""

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from fcjax.metrics.networks.torchfile import load_torch_file

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("archive", [True, False], ids=["since 1.6", "before"])
def test_tensors_are_those_of_torch(archive: bool, tmp_path: Path) -> None:
    saved = {"_use_new_zipfile_serialization": archive}
    shared = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    given = OrderedDict(
        plain=shared,
        turned=shared.T,
        part=shared[1:3, ::2],
        half=torch.randn(3, 2).half(),
        brain=torch.randn(5).bfloat16(),
        double=torch.randn(2, dtype=torch.float64),
        count=torch.tensor(7),
        flags=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
        trained=torch.nn.Parameter(torch.randn(2, 2)),
    )
    torch.save({"state": given, "step": 3}, tmp_path / "model.pth", **saved)
    read = load_torch_file(tmp_path / "model.pth")
    assert read["step"] == 3 and list(read["state"]) == list(given)
    for name, tensor in given.items():
        expected = tensor.detach()
        array = read["state"][name]
        assert array.shape == tuple(expected.shape)
        np.testing.assert_array_equal(array.astype(np.float64), expected.double().numpy())
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(module.state_dict(), tmp_path / "module.pth", **saved)
    for name, array in load_torch_file(tmp_path / "module.pth").items():
        np.testing.assert_array_equal(array, module.state_dict()[name].numpy())


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile",)


@pytest.mark.parametrize("archive", [True, False], ids=["since 1.6", "before"])
def test_nothing_in_it_runs(archive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"weight": torch.zeros(2), "more": Hostile()}
    torch.save(content, "hostile.pth", _use_new_zipfile_serialization=archive)
    with pytest.raises(ValueError, match=r"asks for (posix|nt)\.system, which is refused"):
        load_torch_file("hostile.pth")
    torch.save(torch.nn.Linear(2, 2), "module.pth")
    with pytest.raises(ValueError, match="asks for torch.nn.modules.linear.Linear"):
        load_torch_file("module.pth")
    assert not Path("hostile").exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_torch_file(tmp_path / "none.pth")
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "cut_old.pth").write_bytes(whole[:-1000])
    # The number of stored numbers, which stands before them.
    place = whole.rindex(np.int64(1000).tobytes())
    (tmp_path / "huge.pth").write_bytes(whole[:place] + np.int64(10**15).tobytes() + whole[place + 8 :])
    for name, words in (
        ("cut.pth", "is no file of torch.save, or it is cut short"),
        ("cut_old.pth", "no readable file of tensors"),
        ("huge.pth", "has 1000000000000000 numbers, more than the file"),
    ):
        with pytest.raises(ValueError, match=words):
            load_torch_file(tmp_path / name)
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="a dict of tensors is expected"):
        load_torch_file(tmp_path / "tensor.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme", "no pickle")
    with pytest.raises(ValueError, match="holds a program"):
        load_torch_file(tmp_path / "other.pth")


def test_tensors_do_not_reach_beyond_their_storage(tmp_path: Path) -> None:
    """A file whose pickle says more than its bytes hold."""
    torch.save({"w": torch.arange(4.0)}, tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    place = next(name for name in entries if name.endswith("data.pkl"))
    # The size of the tensor: (4,) becomes (90,).
    changed = entries[place].replace(b"K\x04\x85", b"K\x5a\x85")
    assert changed != entries[place]
    with zipfile.ZipFile(tmp_path / "wrong.pth", "w") as archive:
        for name, held in {**entries, place: changed}.items():
            archive.writestr(name, held)
    with pytest.raises(ValueError, match="reaches beyond its 4 stored numbers"):
        load_torch_file(tmp_path / "wrong.pth")
    with zipfile.ZipFile(tmp_path / "noise.pth", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"w": 1})[:-4])
    with pytest.raises(ValueError, match="no readable file of tensors"):
        load_torch_file(tmp_path / "noise.pth")
