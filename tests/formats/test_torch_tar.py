"""The tar container of torch up to 0.1.12, read as `torch.load` still reads it.

torch can no longer write it, so `Archive` does, member by member as `legacy_load` reads them.
"""

from __future__ import annotations

import io
import pickle
import random
import struct
import tarfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from legacy_files import THROWN_AWAY
from torch_oracle import assert_same_tensors

from ckpt_surgery.checkpoint.description import Checkpoint, Storage
from ckpt_surgery.errors import CkptError, DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import FileSource
from ckpt_surgery.formats.torch_tar import TorchTar, _looks_like_tar, _read_tar
from ckpt_surgery.pickles import Dict, Global, Limits, PersistentId

MEMBERS = ("sys_info", "pickle", "tensors", "storages")

# torch extracts members without naming a filter
pytestmark = pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")


class Reference:
    """Pickled as a persistent id."""

    def __init__(self, pid: Any) -> None:
        self.pid = pid


class TarPickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Reference) else None


def dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    TarPickler(buffer, 2).dump(value)
    return buffer.getvalue()


def storage(key: Any, count: int, data: bytes, kind: Any = torch.FloatStorage) -> bytes:
    return dumps((key, "cpu", kind)) + struct.pack("<q", count) + data


def tensor(
    key: Any, storage_key: Any, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
) -> bytes:
    head = dumps((key, storage_key, torch.FloatTensor)) + struct.pack("<ii", len(size), 0)
    return (
        head
        + struct.pack(f"<{len(size)}q{len(stride)}q", *size, *stride)
        + struct.pack("<q", offset)
    )


FLOATS = struct.pack("<6f", 1, 2, 3, 4, 5, 6)
FIRST = storage(10, 6, FLOATS)
MATRIX = tensor(1, 10, (2, 3), (3, 1))


@dataclass
class Archive:
    """A correct archive unless told otherwise: two tensors of one storage, one of another."""

    root: Any = field(
        default_factory=lambda: OrderedDict(
            a=Reference("1"), b=Reference("2"), c=Reference("3"), again=Reference("1")
        )
    )
    tensors: tuple[bytes, ...] = (
        MATRIX,
        tensor(2, 10, (3, 2), (1, 3)),
        tensor(3, 20, (3,), (2,), 1),
    )
    storages: tuple[bytes, ...] = (
        FIRST,
        storage(20, 6, bytes(range(48)), torch.LongStorage),
    )
    views: Any = ()
    count: Any = None
    names: tuple[str, ...] = MEMBERS

    def member(self, name: str) -> bytes:
        if name == "tensors":
            return dumps(self._count(self.tensors)) + b"".join(self.tensors)
        if name == "storages":
            views = list(self.views) if isinstance(self.views, tuple) else self.views
            return dumps(self._count(self.storages)) + b"".join(self.storages) + dumps(views)
        return dumps(self.root if name == "pickle" else {"protocol_version": 1000})

    def _count(self, parts: tuple[bytes, ...]) -> Any:
        return len(parts) if self.count is None else self.count

    def write(self, path: Path, **changes: Any) -> FileSource:
        """Write the archive, with `changes` made to the header of each member."""
        with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
            for name in self.names:
                data = self.member(name)
                info = tarfile.TarInfo(name)
                info.size = len(data)
                info.mtime = 1490000000.5  # type: ignore[assignment]  # a fraction needs a header
                for attribute, value in changes.items():
                    setattr(info, attribute, value)
                archive.addfile(info, io.BytesIO(data))
        return FileSource.open(path)


def check(path: Path, archive: Archive) -> Checkpoint:
    """Read what `archive` writes and compare with torch."""
    file = archive.write(path)
    assert _looks_like_tar(file)
    checkpoint = _read_tar(file)
    assert checkpoint.format == "torch-tar"
    assert_same_tensors(checkpoint, torch.load(path, weights_only=False))
    return checkpoint


def test_every_tensor_equals_what_torch_loads(tmp_path: Path) -> None:
    checkpoint = check(tmp_path / "a.tar", Archive())
    a, b, c, again = (ours for _, ours in checkpoint.tensors)
    assert a.storage is b.storage
    assert a.storage is not c.storage
    assert a.node is again.node
    assert [ours.dtype.name for ours in (a, c)] == ["float32", "int64"]


@pytest.mark.parametrize("order", [MEMBERS[::-1], ("pickle", "storages", "sys_info", "tensors")])
def test_the_order_of_members_is_free(tmp_path: Path, order: tuple[str, ...]) -> None:
    check(tmp_path / "a.tar", Archive(names=order))


@pytest.mark.parametrize(
    "views",
    [
        [(11, 10, 2, 3)],
        [(11, 10, 0, 6), (12, 11, 3, 2)],
        [(11, 10, 1, 5), (12, 11, 1, 4), (13, 12, 1, 2)],
        [[11, 10, 6, 0]],
    ],
)
def test_tensors_of_views_equal_what_torch_loads_and_share(tmp_path: Path, views: Any) -> None:
    tensors = [MATRIX]
    tensors += [tensor(5 + n, view[0], (view[3],), (1,)) for n, view in enumerate(views)]
    root = {str(n): Reference(str(key)) for n, key in enumerate((1, *range(5, 5 + len(views))))}
    archive = Archive(root=root, tensors=tuple(tensors), storages=(FIRST,), views=tuple(views))
    checkpoint = check(tmp_path / "a.tar", archive)
    assert len({id(ours.storage) for _, ours in checkpoint.tensors}) == 1


def test_a_bare_storage_is_the_bytes_that_torch_loads(tmp_path: Path) -> None:
    root = [Reference("10"), Reference("11")]
    archive = Archive(root=root, views=((11, 10, 2, 3),))
    checkpoint = _read_tar(archive.write(tmp_path / "a.tar"))
    assert isinstance(checkpoint.root, list)
    for node, loaded in zip(
        checkpoint.root, torch.load(tmp_path / "a.tar", weights_only=False), strict=True
    ):
        assert isinstance(node, PersistentId)
        assert isinstance(node.target, Storage)
        assert node.target.data.read() == bytes(loaded._untyped_storage.tolist())
        assert isinstance(node.pid, tuple)
        assert node.pid[2:] == (node.target.key, "cpu", loaded._size())


def test_a_tensor_without_dimensions_is_empty_as_it_was_then(tmp_path: Path) -> None:
    # torch 2.13 makes a scalar of uninitialised memory of it; 0.1.12 had no scalars
    archive = Archive(root={"w": Reference("1")}, tensors=(tensor(1, 10, (), ()),))
    ((_, ours),) = _read_tar(archive.write(tmp_path / "a.tar")).tensors
    assert (ours.shape, ours.stride) == ((0,), (1,))


def test_a_module_class_is_its_name(tmp_path: Path) -> None:
    root = {"kind": Reference((torch.nn.Linear, "linear.py", "class Linear: ..."))}
    checkpoint = _read_tar(Archive(root=root).write(tmp_path / "a.tar"))
    assert isinstance(checkpoint.root, Dict)
    ((_, node),) = checkpoint.root.pairs()
    assert isinstance(node, Global)
    assert node.qualified == "torch.nn.modules.linear.Linear"


def test_many_small_storages_are_read_through_small_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = bytes(1 << 20)
    count = 6
    archive = Archive(
        root={str(n): Reference(str(n)) for n in range(count)},
        tensors=tuple(tensor(n, 100 + n, (1 << 18,), (1,)) for n in range(count)),
        storages=tuple(storage(100 + n, 1 << 18, big) for n in range(count)),
    )
    file = archive.write(tmp_path / "a.tar")
    read_at, sizes = FileSource.read_at, []

    def counting(self: FileSource, offset: int, nbytes: int) -> bytes:
        sizes.append(nbytes)
        return read_at(self, offset, nbytes)

    monkeypatch.setattr(FileSource, "read_at", counting)
    _read_tar(file)
    assert sum(sizes) < 100_000


@pytest.mark.parametrize(
    ("changes", "message", "entry"),
    [
        ({"names": MEMBERS[:3]}, "the member is missing", "storages"),
        ({"names": (*MEMBERS, "pickle")}, "the member is there twice", "pickle"),
        ({"names": (*MEMBERS, "else")}, "the member is not one of torch's", "else"),
        ({"names": ("./pickle",)}, "the member is not one of torch's", "./pickle"),
        ({"count": -1}, "the number of storages is none", "storages"),
        ({"count": "1"}, "the number of storages is none", "storages"),
        ({"count": True}, "the number of storages is none", "storages"),
        ({"count": 5}, "a storage is not described by key, location and class", "storages"),
        ({"storages": (storage("10", 6, FLOATS),)}, "a storage is not described by", "storages"),
        ({"storages": (FIRST, FIRST)}, "the storage 10 is there twice", "storages"),
        ({"storages": (storage(10, -1, b""),)}, "the storage 10 has a negative size", "storages"),
        ({"storages": (storage(10, 2**60, b""),)}, "needs 4611686018427387904", "storage 10"),
        ({"storages": (storage(10, 6, FLOATS, dict),)}, "unknown storage class", "storage 10"),
        ({"storages": (dumps((10, 5, torch.FloatStorage)),)}, "location of a storage", "storages"),
        ({"storages": (dumps((10, "cpu")),)}, "a storage is not described by", "storages"),
        ({"views": {}}, "the views are not a list", "storages"),
        ({"views": (5,)}, "a view is not described by four numbers", "storages"),
        ({"views": ((11, 10, 0),)}, "a view is not described by four numbers", "storages"),
        ({"views": ((11, 10, 0, 1.0),)}, "a view is not described by four numbers", "storages"),
        ({"views": ((10, 20, 0, 1),)}, "the storage 10 is there twice", "storages"),
        ({"views": ((11, 12, 0, 1),)}, "a view is one of the unknown storage 12", "storages"),
        ({"views": ((11, 10, -1, 1),)}, "a view reaches outside the storage 10", "storages"),
        ({"views": ((11, 10, 0, -1),)}, "a view reaches outside the storage 10", "storages"),
        ({"views": ((11, 10, 5, 2),)}, "a view reaches outside the storage 10", "storages"),
        ({"tensors": (MATRIX, MATRIX)}, "the tensor 1 is there twice", "tensors"),
        ({"tensors": (dumps([1, 10, 0]),)}, "a tensor is not described by", "tensors"),
        ({"tensors": (dumps((1, 10)),)}, "a tensor is not described by", "tensors"),
        ({"tensors": (tensor("1", 10, (), ()),)}, "a tensor is not described by", "tensors"),
        ({"tensors": (tensor(1, 30, (), ()),)}, "is in an unknown storage", "tensors"),
        ({"tensors": (tensor(1, [], (), ()),)}, "is in an unknown storage", "tensors"),
        ({"root": [Reference("9")]}, "names no tensor and no storage", "pickle"),
        ({"root": [Reference("x")]}, "names no tensor and no storage", "pickle"),
        ({"root": [Reference("1" * 5000)]}, "names no tensor and no storage", "pickle"),
        ({"root": [Reference(1)]}, "names no tensor and no storage", "pickle"),
        ({"root": [Reference((1, 2))]}, "names no tensor and no storage", "pickle"),
    ],
)
def test_a_contradiction_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, entry: str
) -> None:
    with pytest.raises(DamagedFileError, match=message) as caught:
        _read_tar(Archive(**changes).write(tmp_path / "a.tar"))
    assert caught.value.entry == entry


@pytest.mark.parametrize("name", ["pickle", "tensors", "storages"])
def test_what_a_member_has_beside_its_content_is_reported(tmp_path: Path, name: str) -> None:
    class Longer(Archive):
        extra = b"x"

        def member(self, which: str) -> bytes:
            return super().member(which) + (self.extra if which == name else b"")

    assert check(tmp_path / "a.tar", Archive()).unwritable == ""
    checkpoint = check(tmp_path / "b.tar", Longer())
    assert checkpoint.unwritable == "1 bytes of a member have no meaning"


@pytest.mark.parametrize("zeros", [0, 10_240])
def test_what_follows_the_end_of_the_archive_is_reported(tmp_path: Path, zeros: int) -> None:
    path = tmp_path / "a.tar"
    check(path, Archive())
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(zeros))
    assert _read_tar(FileSource.open(path)).unwritable == ""
    assert not [*TorchTar().check(_read_tar(FileSource.open(path)))]
    path.write_bytes(whole + bytes(zeros) + b"more\0")
    found = _read_tar(FileSource.open(path))
    assert found.unwritable == "5 bytes follow the archive's end"
    assert found.notes == (f"an edit would lose something: {found.unwritable}",)
    assert not [*TorchTar().check(found)]  # it has an end


@pytest.mark.parametrize("name", ["pickle", "tensors", "storages"])
def test_a_call_that_leaves_no_trace_in_the_graph_is_reported(tmp_path: Path, name: str) -> None:
    class Hostile(Archive):
        def member(self, which: str) -> bytes:
            data = super().member(which)
            if which != name:
                return data
            return THROWN_AWAY + data[2:]

    checkpoint = _read_tar(Hostile().write(tmp_path / "a.tar"))
    assert checkpoint.unwritable == "a pickle calls 'posix.system' and throws the result away"
    assert "posix.system" in checkpoint.globals


@pytest.mark.parametrize("dimensions", [-1, 1001, 2**31 - 1])
def test_a_wrong_number_of_dimensions_is_refused(tmp_path: Path, dimensions: int) -> None:
    head = dumps((1, 10, torch.FloatTensor)) + struct.pack("<ii", dimensions, 0)
    archive = Archive(root=[], tensors=(head + bytes(64),))
    with pytest.raises(DamagedFileError, match=f"the tensor 1 has {dimensions} dimensions"):
        _read_tar(archive.write(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    "wrong", [tensor(1, 10, (7,), (1,)), tensor(1, 10, (2,), (1,), 5), tensor(1, 10, (-1,), (1,))]
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, wrong: bytes) -> None:
    with pytest.raises(DamagedFileError):
        _read_tar(Archive(root={"w": Reference("1")}, tensors=(wrong,)).write(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "the member is no plain file"),
        ({"type": tarfile.LNKTYPE, "linkname": "pickle"}, "the member is no plain file"),
        ({"type": tarfile.DIRTYPE}, "the member is no plain file"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "the member is no plain file"),
        ({"pax_headers": {"size": "1"}}, "renames or resizes a member"),
        ({"pax_headers": {"path": "pickle"}}, "renames or resizes a member"),
        ({"pax_headers": {"hdrcharset": "BINARY"}}, "renames or resizes a member"),
        ({"pax_headers": {"GNU.sparse.major": "1"}}, "renames or resizes a member"),
        ({"pax_headers": {"comment": "x" * (1 << 16)}}, "the extended tar header is too long"),
    ],
)
def test_a_member_that_is_no_plain_file_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DamagedFileError, match=message):
        _read_tar(Archive().write(tmp_path / "a.tar", **changes))


def test_a_comment_of_several_lines_changes_nothing(tmp_path: Path) -> None:
    file = Archive().write(tmp_path / "a.tar", pax_headers={"comment": "a\n15 path=pickle\n"})
    assert_same_tensors(_read_tar(file), torch.load(tmp_path / "a.tar", weights_only=False))


@pytest.mark.parametrize(
    "header",
    [
        b"6 a=bX15 path=pickle\n",  # torch takes the second for a record, others do not
        b"21 a=b\n15 path=pickle",
        b"8 a=b\n",
        b"7 a=b\n\0",
        b"a=b\n",
        b"x a=b\n",
        b"7 a b\n",
        b"4 a=b\n",
        b"0 a=b\n",
        b"0000000007 a=b\n",
        b"99 a=b\n",
    ],
)
def test_extended_header_is_read_to_the_byte(tmp_path: Path, header: bytes) -> None:
    info = tarfile.TarInfo("p")
    info.size, info.type = len(header), tarfile.XHDTYPE
    block = info.tobuf(tarfile.USTAR_FORMAT) + header + bytes(-len(header) % 512)
    Archive().write(tmp_path / "a.tar", mtime=1)
    (tmp_path / "b.tar").write_bytes(block + (tmp_path / "a.tar").read_bytes())
    with pytest.raises(DamagedFileError, match="the extended tar header"):
        _read_tar(FileSource.open(tmp_path / "b.tar"))


def test_tensor_outside_its_view_is_refused(tmp_path: Path) -> None:
    inside = Archive(views=((11, 10, 1, 4),), tensors=(tensor(1, 11, (2, 2), (2, 1)),))
    inside.root = {"w": Reference("1")}
    check(tmp_path / "a.tar", inside)
    for wrong in (tensor(1, 11, (5,), (1,)), tensor(1, 11, (4,), (1,), 1)):
        inside.tensors = (wrong,)
        with pytest.raises(DamagedFileError, match="reaches beyond its storage"):
            _read_tar(inside.write(tmp_path / "b.tar"))
        with pytest.raises(RuntimeError):
            torch.load(tmp_path / "b.tar", weights_only=False)


def test_key_of_a_tensor_and_a_storage_is_refused(tmp_path: Path) -> None:
    archive = Archive(root=[Reference("10")], tensors=(tensor(10, 10, (6,), (1,)),))
    with pytest.raises(DamagedFileError, match="the tensor 10 is there twice"):
        _read_tar(archive.write(tmp_path / "a.tar"))


def test_a_member_of_negative_size_is_refused(tmp_path: Path) -> None:
    Archive().write(tmp_path / "a.tar")
    info = tarfile.TarInfo("pickle")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12  # minus one in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(header)
    with pytest.raises(DamagedFileError, match="the tar header is invalid"):
        _read_tar(FileSource.open(tmp_path / "a.tar"))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    Archive().write(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes().rstrip(b"\0")
    for end in range(0, len(data), 37):
        (tmp_path / "b.tar").write_bytes(data[:end])
        with pytest.raises(DamagedFileError):
            _read_tar(FileSource.open(tmp_path / "b.tar"))


def test_a_changed_byte_never_raises_anything_but_our_errors(tmp_path: Path) -> None:
    Archive(views=((11, 10, 2, 3),)).write(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    places = [place for place, byte in enumerate(data) if byte]
    chance = random.Random(0)
    refused = 0
    for _ in range(600):
        changed = bytearray(data)
        changed[chance.choice(places)] = chance.randrange(256)
        (tmp_path / "b.tar").write_bytes(changed)
        try:
            _read_tar(FileSource.open(tmp_path / "b.tar"))
        except CkptError:
            refused += 1
    assert 100 < refused < 600


def test_a_pickle_above_the_limit_is_refused(tmp_path: Path) -> None:
    file = Archive().write(tmp_path / "a.tar")
    with pytest.raises(LimitExceededError):
        _read_tar(file, Limits(pickle_bytes=60))


@pytest.mark.parametrize(
    "data", [b"", bytes(1024), b"\x80\x02", b"x" * 512, b"\x80\x02]q\x00." + bytes(600)]
)
def test_other_content_is_not_taken_for_tar(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert not _looks_like_tar(FileSource.open(tmp_path / "a"))


def test_another_tar_archive_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    assert not _looks_like_tar(Archive(names=("readme",)).write(tmp_path / "a.tar"))


def test_attacks_end_in_our_errors(shared_dir: Path) -> None:
    for path in sorted((shared_dir / "hostile").iterdir()):
        with FileSource.open(path) as file:
            assert not _looks_like_tar(file)
            with pytest.raises(CkptError):
                _read_tar(file)
