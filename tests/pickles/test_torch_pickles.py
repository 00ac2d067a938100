"""What torch saves is written again byte for byte."""

from __future__ import annotations

import argparse
import collections
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ckpt_surgery.errors import CkptError
from ckpt_surgery.pickles import Global, PersistentId, parse, walk
from ckpt_surgery.pickles.emit import emit


def zip_pickle(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    with zipfile.ZipFile(file) as archive:
        return archive.read("archive/data.pkl")


def _model() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.LSTM(2, 2), nn.Embedding(3, 2)
    )
    model[2].bias = model[1].bias  # type: ignore[assignment] (tied)
    return model


def _trained(kind: type[torch.optim.Optimizer], **options: object) -> dict[str, Any]:
    model = _model()
    optimizer = kind(model.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(
            lr=0.1, layers=[1, 2], name=None, device=torch.device("cuda", 1)
        ),
    }


def _deep() -> list[object]:
    deep: list[object] = []
    for level in range(80):
        deep = [deep, level]
    return deep


def _recursive() -> dict[str, object]:
    record: dict[str, object] = {"weight": torch.zeros(2)}
    record["self"] = record
    record["pair"] = (record, [record])
    return record


def saved() -> dict[str, object]:
    torch.manual_seed(0)
    weight = torch.randn(4, 4)
    return {
        "state dict": _model().state_dict(),
        "module": _model(),
        "SGD": _trained(torch.optim.SGD, momentum=0.9),
        "Adam": _trained(torch.optim.Adam),
        "AdamW": _trained(torch.optim.AdamW, amsgrad=True),
        "digits": {str(i): torch.zeros(1) for i in range(12)}
        | {"5": str(5), "6": "6", "a": "A".lower()},
        "many": {f"layer.{i}.weight": torch.zeros(1) for i in range(1001)},
        "views": {"a": weight, "b": weight.t(), "c": weight[1:], "p": nn.Parameter(weight)},
        "types": [torch.zeros(2, dtype=t) for t in (torch.bool, torch.int8, torch.complex64)],
        "new types": [torch.zeros(2, dtype=t) for t in (torch.uint16, torch.float8_e5m2)],
        "special": [
            torch.zeros(2, 2).to_sparse(),
            torch.zeros(2, 2).to_sparse_csr(),
            torch.zeros(2, device="meta"),
            torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.quint8),
            torch.Size([1, 2]),
            torch.float16,
            torch.device("cpu"),
            torch.strided,
        ],
        "numpy": [
            np.arange(6).reshape(2, 3),
            np.float32(1.5),
            np.int64(3),
            np.array(["a"], object),
        ],
        "random state": [torch.get_rng_state(), np.random.get_state()],
        "containers": [
            {1, 2},
            frozenset("ab"),
            b"",
            b"bytes",
            bytearray(b"array"),
            collections.Counter("aab"),
            collections.defaultdict(list, {"a": [1]}),
            collections.deque([1], 3),
            2**100,
            -(2**3000),
            1 + 2j,
            float("nan"),
            float("-inf"),
        ],
        "deep": _deep(),
        "recursive": _recursive(),
        "nothing": None,
        "tensor": weight,
        "long list": list(range(2001)),
    }


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_pickle_of_torch_is_written_byte_for_byte() -> None:
    for name, value in saved().items():
        data = zip_pickle(value)
        parsed = parse(data)
        assert emit(parsed.root) == data, name
        assert parsed.end == len(data), name
        assert parsed.lost == (), name
        walked = {n.qualified for n in walk(parsed.root) if isinstance(n, Global)}
        assert walked == {n.qualified for n in parsed.globals}, name


@pytest.mark.parametrize(
    "name", ["state dict", "Adam", "views", "module", "recursive", "containers"]
)
@pytest.mark.filterwarnings("ignore")
def test_pickles_of_a_legacy_file_are_written_byte_for_byte(name: str) -> None:
    file = io.BytesIO()
    torch.save(saved()[name], file, _use_new_zipfile_serialization=False)
    data, end = file.getvalue(), 0
    storages = set()
    for _ in range(5):  # magic number, protocol, system, object, storage keys
        start = end
        parsed = parse(data, start=start)
        end = parsed.end
        assert emit(parsed.root) == data[start:end]
        for node in walk(parsed.root):
            pid = node.pid if isinstance(node, PersistentId) else None
            if isinstance(pid, tuple) and pid[0] == "storage":
                storages.add(pid[2])
    assert parsed.root == sorted(storages, key=str)


def test_pickles_of_published_archives_are_written_byte_for_byte(shared_dir: Path) -> None:
    seen = 0
    for path in sorted((shared_dir / "real").rglob("*")):
        if not zipfile.is_zipfile(path):
            continue
        with zipfile.ZipFile(path) as archive:
            if any(n.endswith("/constants.pkl") for n in archive.namelist()):
                continue  # TorchScript, which torch's C++ pickler wrote
            names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            if not names:
                continue  # an archive of other files
            (name,) = names
            data = archive.read(name)
        assert emit(parse(data).root) == data, path.name
        seen += 1
    assert seen >= 5


def test_published_legacy_pickles_are_written_so_that_torch_reads_the_same(
    shared_dir: Path,
) -> None:
    """Python 2 wrote some: other opcodes, the same graph."""
    seen = 0
    for path in sorted((shared_dir / "real").rglob("*.*th")):
        data = path.read_bytes()
        if zipfile.is_zipfile(path):
            continue
        parts, end = [], 0
        for _ in range(5):
            parsed = parse(data, start=end)
            end = parsed.end
            parts.append(emit(parsed.root))
        again = io.BytesIO(b"".join(parts) + data[end:])
        expected = torch.load(path, weights_only=True, map_location="cpu")
        found = torch.load(again, weights_only=True, map_location="cpu")
        assert _equal(found, expected)
        seen += 1
    assert seen >= 5


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected) and found.stride() == expected.stride()
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(
            _equal(found[key], expected[key]) for key in expected
        )
    return bool(found == expected)


def test_truncated_pickle_of_torch_is_refused_at_every_byte() -> None:
    data = zip_pickle(_model().state_dict())
    for length in range(len(data)):
        with pytest.raises(CkptError, match="truncated"):
            parse(data[:length])
