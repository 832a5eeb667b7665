"""The restricted unpickler: real model pickles are read, hostile ones are refused by name and nothing in them runs."""

import io
import os
import pickle
import sys
import types
import zlib
from collections import OrderedDict, defaultdict

import joblib
import numpy as np
import pytest
from joblib.numpy_pickle import NumpyArrayWrapper

from fcjax.body import pickles, stand_ins
from fcjax.body.pickles import RefusedGlobalError, load_pickle
from fcjax.body.smpl import load_arrays, load_smpl

HOSTILE = {
    "os.system": b"cos\nsystem\n(S'touch TARGET'\ntR.",
    "posix.system": b"cposix\nsystem\n(S'touch TARGET'\ntR.",
    "builtins.eval": b'\x80\x02cbuiltins\neval\n(S\'open("TARGET", "w")\'\ntR.',
    "__builtin__.eval": b'c__builtin__\neval\n(S\'open("TARGET", "w")\'\ntR.',
    "builtins.getattr": b"cbuiltins\ngetattr\n(cbuiltins\nset\nS'__init__'\ntR.",
    "nowhere.nothing": b"cnowhere\nnothing\n)R.",
    "numpy.load": b"cnumpy\nload\n(S'TARGET'\ntR.",
    "numpy.dtype.__init__": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    "chumpy.ch.depends_on": b"cchumpy.ch\ndepends_on\n)R.",
}


@pytest.fixture
def stored(tmp_path):
    def store(content: bytes, name: str = "model.pkl"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return store


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_global_is_refused_by_name(name, stored, tmp_path):
    target = tmp_path / "touched"
    path = stored(HOSTILE[name].replace(b"TARGET", str(target).encode()))
    for read in (load_pickle, load_smpl, load_arrays):
        with pytest.raises(RefusedGlobalError, match=f"asks for {name.replace('.', '[.]')}, which is refused"):
            read(path)
    assert not target.exists()


class Nested:
    """A harmless-looking dict whose array holds a reduce inside a reduce."""

    def __reduce__(self):
        return np.dtype, (Inner(),)


class Inner:
    def __reduce__(self):
        return eval, ("open('touched', 'w')",)


@pytest.mark.parametrize("protocol", range(6))
def test_nested_reduce_is_refused(protocol, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = stored(pickle.dumps({"v_template": [np.zeros(3), {"deep": Nested()}]}, protocol))
    with pytest.raises(RefusedGlobalError, match=r"asks for (builtins|__builtin__)\.eval"):
        load_pickle(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is text, not a pickle",
        b"\x80\x04]\x94.",  # a list
        b"cchumpy.ch\nCh\n.",  # the class itself
        b"(S'x'\ncchumpy.ch\nCh\n)Rd.",  # a Ch without state
        b"(S'x'\ncnumpy\nndarray\n(I1000000000\ntRd.",  # an array without contents
        b"(S'x'\ncnumpy\nndarray\nd.",
        b"(S'x'\nccopy_reg\n_reconstructor\n(c__builtin__\nset\nc__builtin__\nobject\nNtRd.",
        b"(S'x'\nc_codecs\nencode\n(S'x'\nS'rot13'\ntRd.",
        b"cchumpy.ch\nCh\n(dS'value'\nI1\nsb.",  # writing to a stand-in class
        b"cchumpy.ch\nCh\n(N(dS'value'\nI1\nstb.",
        b"(lp0\ng0\na.",  # a list that holds itself
    ],
)
def test_broken_pickles_give_one_value_error(content, stored):
    path = stored(content)
    with pytest.raises(ValueError, match=r"model\.pkl is not a readable pickle of arrays"):
        load_pickle(path)


@pytest.mark.parametrize("name", ["chumpy.ch.Ch", "collections.OrderedDict", "collections.defaultdict"])
def test_a_pickle_cannot_change_a_stand_in_for_those_after_it(name, stored):
    module, _, kind = name.rpartition(".")
    content = f"c{module}\n{kind}\n(N(dS'value'\nI1\nstb.".encode()
    with pytest.raises(ValueError, match=r"model\.pkl is not a readable pickle of arrays"):
        load_pickle(stored(content))
    assert "value" not in vars(stand_ins.STAND_INS[name]) or callable(vars(stand_ins.STAND_INS[name])["value"])


def test_a_truncated_pickle(stored):
    with pytest.raises(ValueError, match="is not a readable pickle of arrays"):
        load_pickle(stored(pickle.dumps({"x": np.zeros(50)}, 2)[:-60]))


def test_object_that_contains_itself(stored):
    content = {"x": []}
    content["x"].append(content)
    with pytest.raises(ValueError, match="RecursionError"):
        load_pickle(stored(pickle.dumps(content)))


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol(protocol, stored):
    content = {
        "c": np.arange(12.0).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
        "big": np.arange(5, dtype=">f4"),
        "scalar": np.float32(0.5),
        "empty": np.zeros((0, 3)),
        "flags": np.array([True, False]),
        "text": np.array(["ab", "c"]),
        "objects": np.array([np.arange(2), None], dtype=object),
        "plain": {"list": [1, 2.5, "three"], "tuple": (np.ones(2),), "set": {1, 2}},
        "bytes": b"\xff\x00",
        "people": defaultdict(dict, {0: {"pose": np.ones(3)}}),
        "ordered": OrderedDict(b=1, a=2),
    }
    read = load_pickle(stored(pickle.dumps(content, protocol)))
    assert list(read) == list(content)
    for key in ("c", "fortran", "big", "scalar", "empty", "flags", "text"):
        np.testing.assert_array_equal(read[key], content[key])
        assert np.shape(read[key]) == np.shape(content[key]) and read[key].dtype == content[key].dtype
    assert read["c"].flags.writeable
    np.testing.assert_array_equal(read["objects"][0], [0, 1])
    assert read["plain"]["list"] == [1, 2.5, "three"] and read["plain"]["set"] == {1, 2}
    np.testing.assert_array_equal(read["plain"]["tuple"][0], 1)
    assert read["bytes"] == b"\xff\x00"
    assert list(read["people"]) == [0] and list(read["ordered"].items()) == [("b", 1), ("a", 2)]
    np.testing.assert_array_equal(read["people"][0]["pose"], 1)


def python_2_array(array: np.ndarray) -> bytes:
    """The opcodes that Python 2.7's cPickle writes for a double array, protocol 2."""
    content = array.astype("<f8").tobytes()
    shape = b"".join(b"K" + bytes([size]) for size in array.shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R(K\x01("
        + shape
        + b"tcnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(content).to_bytes(4, "little")
        + content
        + b"tb"
    )


def test_python_2_pickles_with_chumpy(stored):
    array = np.random.default_rng(0).normal(size=(4, 3))
    chumpy = (
        b"cchumpy.ch\nCh\n)\x81}(U\x01x"
        + python_2_array(array)
        + b"U\x0b_dirty_varsc__builtin__\nset\n]\x85RU\x04_itrNub"
    )
    old_style = (
        b"ccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\nc__builtin__\nobject\nNtR(dU\x01x" + python_2_array(array) + b"sb"
    )
    content = (
        b"\x80\x02}(U\x0av_template" + chumpy + b"U\x04same" + old_style + b"U\x01f" + python_2_array(array) + b"u."
    )
    read = load_pickle(stored(content))
    for key in ("v_template", "same", "f"):
        np.testing.assert_array_equal(read[key], array)


@pytest.fixture
def foreign(monkeypatch):
    """Classes that pickle under other packages' names, without those packages."""

    def make(module: str, name: str) -> type:
        kind = type(name, (), {"__module__": module})
        fake = types.ModuleType(module)
        setattr(fake, name, kind)
        monkeypatch.setitem(sys.modules, module, fake)
        for parent in ("chumpy", "scipy", "scipy.sparse"):
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        return kind

    return make


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_chumpy_select(protocol, stored, foreign):
    inner, outer = foreign("chumpy.ch", "Ch")(), foreign("chumpy.reordering", "Select")()
    array = np.arange(24.0).reshape(2, 3, 4)
    inner.x = array
    outer.a, outer.idxs, outer.preferred_shape = inner, np.arange(24).reshape(2, 3, 4)[..., :2].ravel(), (2, 3, 2)
    read = load_pickle(stored(pickle.dumps({"shapedirs": outer}, protocol)))
    np.testing.assert_array_equal(read["shapedirs"], array[..., :2])


@pytest.mark.parametrize("module", ["scipy.sparse.csc", "scipy.sparse._csc", "scipy.sparse.csr", "scipy.sparse.coo"])
def test_sparse_matrices_without_scipy(module, stored, foreign):
    matrix = foreign(module, f"{module[-3:]}_matrix")()
    dense = np.array([[0, 2.0, 0], [3.0, 0, 4.0]])
    matrix._shape = dense.shape
    rows, columns = np.nonzero(dense)
    if module.endswith("coo"):
        matrix.row, matrix.col, matrix.data = rows.astype(np.int32), columns.astype(np.int32), dense[rows, columns]
    elif module.endswith("csr"):
        matrix.data, matrix.indices, matrix.indptr = dense[rows, columns], columns, np.array([0, 1, 3])
    else:
        matrix.data, matrix.indices, matrix.indptr = (
            np.array([3.0, 2.0, 4.0]),
            np.array([1, 0, 1]),
            np.array([0, 1, 2, 3]),
        )
    np.testing.assert_array_equal(load_pickle(stored(pickle.dumps({"m": matrix}, 2)))["m"], dense)
    matrix._shape = (10**9, 10**9)
    with pytest.raises(ValueError, match="too large for a body model"):
        load_pickle(stored(pickle.dumps({"m": matrix}, 2)))


@pytest.mark.parametrize("kind", ["csc_matrix", "csr_matrix", "coo_matrix", "csc_array"])
def test_sparse_matrices_as_scipy_writes_them(kind, stored):
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.random.default_rng(0).normal(size=(5, 7)) * (np.random.default_rng(1).random((5, 7)) < 0.3)
    read = load_pickle(stored(pickle.dumps({"m": getattr(sparse, kind)(dense)}, 2)))
    np.testing.assert_array_equal(read["m"], dense)


def test_npz_objects_are_left_out_never_unpickled(tmp_path):
    np.savez(tmp_path / "model.npz", numbers=np.arange(3), objects=np.array([{"a": 1}], dtype=object))
    assert list(load_arrays(tmp_path / "model.npz")) == ["numbers"]


# ---------------------------------------------------------------------------------------------------------------------
# joblib's files: arrays' bytes between the opcodes


CONTENT = {
    "c": np.arange(12.0).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "big": np.arange(5, dtype=">f4"),
    "scalar": np.float32(0.5),
    "whole": np.array(2.0),
    "empty": np.zeros((0, 3)),
    "flags": np.array([True, False]),
    "text": np.array(["ab", "c"]),
    "people": defaultdict(dict, {0: {"pose": np.ones(3, np.float32), "frame_ids": np.arange(4)}}),
    "after": [1, "two"],
}


def assert_content(read):
    assert list(read) == list(CONTENT)
    for key in ("c", "fortran", "big", "scalar", "whole", "empty", "flags", "text"):
        np.testing.assert_array_equal(read[key], CONTENT[key])
        assert np.shape(read[key]) == np.shape(CONTENT[key]) and read[key].dtype == CONTENT[key].dtype
    assert read["c"].flags.writeable and read["after"] == [1, "two"]
    np.testing.assert_array_equal(read["people"][0]["pose"], np.ones(3))
    np.testing.assert_array_equal(read["people"][0]["frame_ids"], np.arange(4))


@pytest.mark.parametrize("compress", [0, 1, 3, 9, ("gzip", 3)])
@pytest.mark.parametrize("protocol", [None, *range(6)])
def test_files_of_joblib(protocol, compress, tmp_path):
    joblib.dump(CONTENT, tmp_path / "out.pkl", compress=compress, protocol=protocol)
    assert_content(load_pickle(tmp_path / "out.pkl"))


def test_files_of_joblib_before_it_aligned_arrays(stored):
    class Pipe(io.BytesIO):
        """Where joblib cannot tell the place of an array, it writes as it did before 1.2."""

        def tell(self):
            raise io.UnsupportedOperation

    pipe = Pipe()
    joblib.dump(CONTENT, pipe)
    assert_content(load_pickle(stored(pipe.getvalue())))


class Touching:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch touched",)


@pytest.mark.parametrize("compress", [0, 3])
@pytest.mark.parametrize("protocol", [None, *range(6)])
def test_a_file_of_joblib_runs_nothing(protocol, compress, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = {"pose": np.zeros(3), "more": np.ones(3)}
    for name, content in (("before", {"evil": Touching(), **arrays}), ("after", {**arrays, "evil": Touching()})):
        joblib.dump(content, f"{name}.pkl", compress=compress, protocol=protocol)
        for read in (load_pickle, load_smpl, load_arrays):
            with pytest.raises(RefusedGlobalError, match=r"asks for posix\.system, which is refused"):
                read(f"{name}.pkl")
    # joblib pickles such an array by itself, behind the wrapper.
    joblib.dump({"pose": np.array([Touching()], dtype=object)}, "objects.pkl", compress=compress, protocol=protocol)
    with pytest.raises(ValueError, match="objects.pkl is not a readable pickle of arrays: an array of objects"):
        load_pickle("objects.pkl")
    assert not (tmp_path / "touched").exists()
    joblib.load("before.pkl")
    assert (tmp_path / "touched").exists(), "joblib itself runs it"


@pytest.mark.parametrize("name", ["joblib.numpy_pickle.NDArrayWrapper", "joblib.numpy_pickle.load", "joblib.load"])
def test_nothing_else_of_joblib_is_called(name, stored, tmp_path):
    joblib.dump({"x": np.zeros(3)}, tmp_path / "whole.pkl", protocol=2)
    module, _, kind = name.rpartition(".")
    # Behind an array, so that the file is taken for joblib's.
    whole = (tmp_path / "whole.pkl").read_bytes()
    assert whole.endswith(b"s.")
    with pytest.raises(RefusedGlobalError, match=f"asks for {name}, which is refused"):
        load_pickle(stored(whole[:-1] + f"0c{module}\n{kind}\n(S'whole.pkl'\ntR.".encode()))


def test_a_file_of_joblib_that_breaks_off(stored, tmp_path):
    joblib.dump({"x": np.zeros(50), "y": np.ones(2)}, tmp_path / "whole.pkl")
    whole = (tmp_path / "whole.pkl").read_bytes()
    for length in range(1, len(whole)):
        with pytest.raises(ValueError, match="is not a readable pickle of arrays"):
            load_pickle(stored(whole[:length]))
    with pytest.raises(ValueError, match=r"an array of 400 bytes, of which \d+ are there; is the file complete"):
        load_pickle(stored(whole[: whole.index(bytes(400)) + 300]))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10**12,), "an array of 8000000000000 bytes, of which"),
        ((2**40, 2**40), "an array of 9671406556917033397649408 bytes, of which"),
        ((-1,), r"an array of shape \(-1,\)"),
        (None, "TypeError"),
    ],
)
def test_shapes_that_no_file_of_joblib_has(shape, expected, stored):
    """Told without asking for the memory."""
    content = pickle.dumps({"x": NumpyArrayWrapper(np.ndarray, shape, "C", np.dtype("f8"))}) + bytes(100)
    with pytest.raises(ValueError, match=expected):
        load_pickle(stored(content))


@pytest.mark.parametrize(
    "content",
    [
        b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n.",  # the class itself
        b"(S'x'\ncjoblib.numpy_pickle\nNumpyArrayWrapper\n(tRd.",  # without a state
        b"(S'x'\ncjoblib.numpy_pickle\nNumpyArrayWrapper\n(tR(dbd.",  # with an empty one
        b"(S'x'\ncjoblib.numpy_pickle\nNumpyArrayWrapper\n(tRNbd.",
        b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n(dS'value'\nI1\nsb.",  # writing to the stand-in
        b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n(N(dS'value'\nI1\nstb.",
    ],
)
def test_broken_files_of_joblib_give_one_value_error(content, stored):
    with pytest.raises(ValueError, match=r"model\.pkl is not a readable pickle of arrays"):
        load_pickle(stored(content))
    assert callable(stand_ins.JoblibArray.value)


@pytest.mark.parametrize("method", ["bz2", "xz", "lzma", "lz4"])
def test_other_compression_is_refused_with_what_to_do(method, stored, tmp_path):
    if method == "lz4":  # for which joblib needs a package
        path = stored(b"\x04\x22\x4d\x18" + bytes(50))
    else:
        path = tmp_path / "out.pkl"
        joblib.dump({"x": np.zeros(50)}, path, compress=(method, 3))
    with pytest.raises(ValueError, match=f"compressed by {method}, .* save it without compression") as error:
        load_pickle(path)
    assert "load" not in str(error.value), "nobody is sent to an unpickler that runs what the file holds"


def test_compressed_files_that_grow_too_large_or_break_off(stored, monkeypatch):
    packed = zlib.compress(pickle.dumps({"x": np.zeros(1000)}))
    with pytest.raises(ValueError, match="compressed content breaks off"):
        load_pickle(stored(packed[:-20]))
    monkeypatch.setattr(pickles, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="or is more than"):
        load_pickle(stored(packed))
