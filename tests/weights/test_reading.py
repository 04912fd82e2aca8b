from __future__ import annotations

import copyreg
import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file
from weight_files import Parameter, Storage, Tensor, add_names, jittor_file, tensor, torch_stream, torch_zip

from pfseg.errors import CheckpointError
from pfseg.weights.reading import read_weights

A = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def names(monkeypatch):
    return add_names(monkeypatch)


@pytest.fixture
def read(tmp_path, names):
    def read(data: bytes, name="weights.bin"):
        (tmp_path / name).write_bytes(data)
        return read_weights(tmp_path / name)

    return read


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].dtype.isnative, name
        assert found[name].flags.c_contiguous and found[name].flags.writeable, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].shape == array.shape, name


# --- formats


@pytest.mark.parametrize("write", [torch_zip, torch_stream])
def test_torch_files_keep_types_views_and_shapes(read, write):
    base = Storage(np.arange(24))
    bits = (np.float32([1.5, -2, 0.1]).view(np.uint32) >> 16).astype(np.uint16)
    state = OrderedDict(
        plain=tensor(A),
        transposed=Tensor(base, 0, (4, 6), (1, 4)),
        offset=Tensor(base, 10, (2, 3), (6, 2)),
        expanded=Tensor(base, 3, (2, 3), (0, 1)),
        old=Tensor(base, 1, (3,), (1,), "_rebuild_tensor"),
        parameter=Parameter(tensor(A)),
        half=tensor(np.float16([[0.1, 2], [3, 4]]), "Half"),
        bfloat=Tensor(Storage(bits, "BFloat16"), 0, (3,), (1,)),
        bfloat_scalar=Tensor(Storage(bits, "BFloat16"), 1, (), ()),
        bfloat_transposed=Tensor(Storage(np.repeat(bits, 2), "BFloat16"), 0, (3, 2), (1, 3)),
        long=tensor([1, 2**40], "Long"),
        double=tensor([0.1], "Double"),
        bools=tensor([True, False], "Bool"),
        scalar=Tensor(base, 7, (), ()),
        empty=tensor(np.zeros((0, 3))),
    )
    state._metadata = OrderedDict({"": {"version": 1}})
    values, decoded = np.arange(24, dtype=np.float32), np.float32([1.5, -2, 0.099609375])
    same(
        read(write(state)),
        {
            "plain": A,
            "transposed": values.reshape(6, 4).T,
            "offset": np.float32([[10, 12, 14], [16, 18, 20]]),
            "expanded": np.float32([[3, 4, 5], [3, 4, 5]]),
            "old": values[1:4],
            "parameter": A,
            "half": np.float16([[0.1, 2], [3, 4]]).astype(np.float32),
            "bfloat": decoded,
            "bfloat_scalar": decoded[1].reshape(()),
            "bfloat_transposed": np.repeat(decoded, 2).reshape(2, 3).T,
            "long": np.array([1, 2**40]),
            "double": np.array([0.1]),
            "bools": np.array([True, False]),
            "scalar": values[7].reshape(()),
            "empty": np.zeros((0, 3), np.float32),
        },
    )


@pytest.mark.parametrize("wrap", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("write", [torch_zip, torch_stream])
def test_wrapper_prefix_and_counters_go(read, write, wrap):
    state = {"module.a.weight": tensor(A), "module.bn.num_batches_tracked": tensor(5, "Long"), "step": 3}
    root = {"epoch": 3, wrap: state, "optimizer": {"state": defaultdict(int, {0: {"m": tensor(A)}})}, "size": {1, 2}}
    same(read(write(root)), {"a.weight": A})
    same(read(write({"model": {"state_dict": state}})), {"a.weight": A})


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_pickles_of_every_protocol(read, protocol):
    arrays = {
        "c": A,
        "fortran": np.asfortranarray(A),
        "view": A[:, 1],
        "f64": np.array([0.1, 0.2]),
        "big": A.astype(">f4"),
    }
    arrays |= {"scalar": np.float64(0.5), "flag": np.array([True]), "half": A.astype(np.float16), "empty": A[:0]}
    root = OrderedDict(arrays, epoch=3, names=["x"], text=np.array(["label"]), best=np.str_("b"))
    expected = {name: np.asarray(array) for name, array in arrays.items()}
    expected |= {"half": expected["half"].astype(np.float32), "big": A}
    same(read(pickle.dumps(root, protocol)), expected)
    same(read(pickle.dumps({"state_dict": root}, protocol)), expected)


def test_jittor_files_with_checksum_and_variables(read, names):
    data = pickle.dumps({"a": Call(names("jittor", "Var"), A), "b": A + 1}, 3)
    same(read(data, "x.pkl"), {"a": A, "b": A + 1})
    assert b"cjittor\nVar\n" in data  # Jittor 1.3.11 names it by another path
    same(read(data.replace(b"cjittor\nVar\n", b"cjittor\njittor_core.Var\n")), {"a": A, "b": A + 1})
    same(read(jittor_file({"a": A})), {"a": A})
    damaged = bytearray(jittor_file({"a": A}))
    damaged[-60] ^= 1
    with pytest.raises(CheckpointError, match="its checksum differs"):
        read(bytes(damaged))


def test_numpy_2_pickles(read, names):
    data = pickle.dumps({"a": A}, 2).replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    assert b"numpy._core.multiarray" in data
    same(read(data), {"a": A})


def test_safetensors_without_our_own_sections(read, tmp_path):
    arrays = {"a": A, "h": A.astype(np.float16), "i": np.array([2**40]), "s": np.array(3, np.float32), "m": A > 3}
    others = {"optimizer/a": A, "train/step": A, "ema/a": A, "bn.num_batches_tracked": A}
    save_file(arrays | others, tmp_path / "weights.anything")
    found = read_weights(str(tmp_path / "weights.anything"))
    same(found, dict(sorted((arrays | {"h": A}).items())))


def test_safetensors_bfloat16(read):
    header = b'{"a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}'
    same(read(struct.pack("<Q", len(header)) + header + b"\xc0\x3f\x00\xc0"), {"a": np.float32([[1.5, -2]])})


# --- hostile files


class Call:
    def __init__(self, function, *args):
        self.made = function, args

    def __reduce__(self):
        return self.made


def hostile(tmp_path):
    mark = str(tmp_path / "executed")
    return mark, {
        "system": Call(os.system, f"touch {mark}"),
        "eval": Call(eval, f"open({mark!r}, 'w')"),
        "getattr": Call(getattr, dict, "clear"),
        "in_tensor": {"a": tensor(A), "b": [{"c": (Call(os.mkdir, mark),)}]},
    }


@pytest.mark.parametrize("kind", ["system", "eval", "getattr", "in_tensor"])
@pytest.mark.parametrize("form", ["zip", "stream", "jittor", "text"])
def test_anything_else_is_refused_and_not_executed(read, tmp_path, kind, form):
    mark, files = hostile(tmp_path)
    refused = {"system": "posix.system", "eval": "eval", "getattr": "getattr", "in_tensor": "posix.mkdir"}[kind]
    if form in ("jittor", "text") and kind == "in_tensor":
        files[kind] = {"a": A, "b": files[kind]["b"]}
    write = {
        "zip": torch_zip,
        "stream": torch_stream,
        "jittor": jittor_file,
        "text": lambda root: pickle.dumps(root, 0),
    }
    data = write[form](files[kind])
    with pytest.raises(
        CheckpointError, match=rf"bin asks for `\w*\.?{refused}`.*nothing was executed.*save its weights"
    ):
        read(data)
    assert not os.path.exists(mark)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93.",  # a path through an allowed module
        b"\x80\x04\x8c\x08builtins\x8c\x0edict.__class__\x93.",
        b"(ios\nsystem\n.",
        b"\x80\x02cargparse\nNamespace\n)\x81.",
        b"\x80\x02ctorch.storage\n_load_from_bytes\nX\x01\x00\x00\x00a\x85R.",
    ],
)
def test_other_ways_to_name_something_are_refused(read, data):
    with pytest.raises(CheckpointError, match=r"asks for `[\w.]+`"):
        read(data)


def test_copyreg_extensions_are_refused(read, tmp_path):
    copyreg.add_extension("os", "system", 250)
    try:
        copyreg._extension_cache[250] = os.system  # as if something had loaded it before
        with pytest.raises(CheckpointError, match="asks for `copyreg extension 250`"):
            read(b"\x80\x02\x82\xfaX\x05\x00\x00\x00exit \x85R.")
    finally:
        copyreg.remove_extension("os", "system", 250)
        copyreg._extension_cache.pop(250, None)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02ccollections\nOrderedDict\nN}X\x03\x00\x00\x00getK\x01s\x86b.",  # sets attributes on the type
        b"\x80\x02c__builtin__\ndict\n}X\x03\x00\x00\x00getK\x01sb.",
        b"\x80\x02cnumpy\ndtype\n}X\x04\x00\x00\x00nameK\x01sb.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",  # shadows a method
        b"\x80\x02r\xff\xff\xff\xff.",  # a memo of 32 GB
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0fabc.",  # 2^60 bytes
        b"\x80\x04X\xff\xff\xff\x7fabc.",
    ],
)
def test_tampering_ends_in_an_error_and_leaves_no_trace(read, data):
    with pytest.raises(CheckpointError, match=r"is damaged|holds no weights"):
        read(data)
    same(read(torch_zip(OrderedDict(a=tensor(A)))), {"a": A})


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (Tensor(Storage(range(6)), 3, (2, 2), (2, 1)), r"a: it ends at value 7 of a storage of 6"),
        (Tensor(Storage(range(6)), -1, (2,), (1,)), "whole and not negative"),
        (Tensor(Storage(range(6)), 0, (-2,), (1,)), "whole and not negative"),
        (Tensor(Storage(range(6)), 5, (2,), (-1,)), "whole and not negative"),
        (Tensor(Storage(range(6)), 0, (2.0,), (1,)), "whole and not negative"),
        (Tensor(Storage(range(6)), 0, (2, 2), (1,)), "a: zip"),
        (Tensor(Storage(range(6)), 0, (2**40,), (0,)), r"a: shape \(1099511627776,\) is absurd"),
        (Tensor("none", 0, (2,), (1,)), "a: 'str' object has no attribute 'args'"),
    ],
)
@pytest.mark.parametrize("write", [torch_zip, torch_stream])
def test_a_tensor_outside_its_storage_is_refused(read, write, bad, text):
    with pytest.raises(CheckpointError, match=rf"is damaged or no weights file \(.*{text}"):
        read(write({"a": bad}))


def test_storages_and_archives_of_wrong_sizes(read):
    with pytest.raises(CheckpointError, match=r"a: its storage holds 11 values, not 12: the file is truncated"):
        read(torch_zip({"a": tensor(A)}, cut=4))
    with pytest.raises(CheckpointError, match="unpacks to an absurd size"):
        read(torch_zip({"a": tensor(np.zeros(2**25))}, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="written on a big-endian machine, which is not supported"):
        read(torch_zip({"a": tensor(A)}, order=b"big"))
    array = pickle.dumps({"a": A}, 2).replace(b"K\x03K\x04\x86", b"K\x03K\x05\x86")
    with pytest.raises(CheckpointError, match="a: cannot reshape array of size 12"):
        read(array)


# --- files that are none


def test_missing_empty_and_folder(tmp_path, read):
    with pytest.raises(CheckpointError, match=r"nope.pth cannot be read \(No such file or directory\); check the path"):
        read_weights(tmp_path / "nope.pth")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory\)"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"weights.bin is empty; copy or download it again"):
        read(b"")


@pytest.mark.parametrize(
    "text",
    [b"404: Not Found", b"<!DOCTYPE html>", b"version https://git-lfs", b"create table\nx y\n", b"\x80", b"PK\x03\x04"],
)
def test_text_is_no_weights_file(read, text):
    with pytest.raises(CheckpointError, match=r"weights.bin is damaged or no weights file .* download it again"):
        read(text, "weights.bin")


@pytest.mark.parametrize("form", ["zip", "stream", "pickle", "jittor", "safetensors"])
def test_truncated_files(read, form):
    write = {
        "zip": torch_zip,
        "stream": torch_stream,
        "pickle": pickle.dumps,
        "jittor": jittor_file,
        "safetensors": save,
    }
    data = write[form]({"weight": A if form in ("pickle", "jittor", "safetensors") else tensor(A)})
    read(data)
    for size in range(1, len(data), 7):
        if form == "jittor" and size >= len(data) - 28:
            continue  # only the checksum is cut, the pickle is whole
        with pytest.raises(CheckpointError, match=r"is damaged|asks for `\w+\."):
            read(data[:size])


def test_a_zip_of_something_else(read):
    out = io.BytesIO()
    np.savez(out, a=A)
    with pytest.raises(CheckpointError, match=r"no item named 'a\.npy/data\.pkl'"):
        read(out.getvalue())


def test_no_weights_inside(read):
    with pytest.raises(CheckpointError, match=r"holds no weights but 2 other entries \(epoch, args\); expected arrays"):
        read(pickle.dumps({"epoch": 3, "args": []}))
    with pytest.raises(CheckpointError, match=r"holds no weights but one list; expected .*: save model.state_dict\(\)"):
        read(pickle.dumps([A]))
    with pytest.raises(CheckpointError, match=r"holds both a and module\.a: save the weights of one network only"):
        read(pickle.dumps({"a": A, "module.a": A}))


# --- matching


def test_needs_neither_jittor_nor_torch():
    code = "import sys, pfseg.weights.reading; assert not {'jittor', 'torch', 'cv2'} & set(sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


def test_paths_may_be_text(tmp_path: Path):
    save_file({"a": A}, tmp_path / "a.safetensors")
    same(read_weights(str(tmp_path / "a.safetensors")), {"a": A})


# --- bombs: few bytes, no end

NESTED = (
    b")" + b"q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(50))
)  # tuples of twice the one before
HUGE = b"](" + b"N" * 20_000 + b"eq\x00"


@pytest.mark.parametrize(
    "content",
    [
        b"}" + NESTED + b"Ns.",
        b"}(" + NESTED + b"Nu.",
        b"(" + NESTED + b"Nd.",
        b"\x8f(" + NESTED + b"\x90.",
        b"(" + NESTED + b"\x91.",
        NESTED + b"c__builtin__\nset\n(h\x32\x85tR.",
        NESTED + b"ccollections\nOrderedDict\n(](h\x32N\x86etR.",
        NESTED + b"cnumpy\ndtype\n(h\x32tR.",
        HUGE + b"".join(b"c__builtin__\nlist\n(h\x00tR" for _ in range(2000)) + b".",
    ],
)
@pytest.mark.timeout(20)
def test_bombs_are_damaged_files(read, content):
    with pytest.raises(CheckpointError, match=r"is damaged or no weights file|holds no weights"):
        read(b"\x80\x04" + content)


@pytest.mark.timeout(20)
def test_an_archive_that_lies_about_its_sizes_takes_no_memory(read):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 28))
    data = bytearray(packed.getvalue())
    place = data.rindex(b"PK\x01\x02") + 24  # size in the directory at the end
    data[place : place + 4] = (100).to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="is damaged or no weights file"):
            read(bytes(data))
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()
