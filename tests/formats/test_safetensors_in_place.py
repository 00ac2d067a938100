"""The safetensors library does with our reader and writer behind it what it does with its own.

What its Python tests ask (``bindings/python/tests``) is asked here case by case, of both; their own
text is run by `scripts/safetensors_suite`.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch as library
import safetensors_shim
import torch
from safetensors import SafetensorError, TensorSpec
from torch_checks import bits, quiet

F4 = torch.float4_e2m1fn_x2
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz,
       torch.float8_e5m2fnuz)  # fmt: skip
HALF = torch.arange(6.0).reshape(1, 2, 3)
FRAME = {"framework": "pt"}


class Shared(torch.nn.Module):
    """One layer under two names, as the project's tests have it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Linear(4, 4)
        self.b = self.a


class Apart(Shared):
    """The same names, and nothing shared."""

    def __init__(self) -> None:
        super().__init__()
        self.b = torch.nn.Linear(4, 4)


def plain(value: Any) -> Any:
    """Return what can be compared: bits of tensors and arrays, with their types."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), bits(value)
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def round_trip(tensors: dict[str, torch.Tensor], metadata: Any = None) -> Any:
    library.save_file(tensors, "a.safetensors", metadata)
    saved = library.save(tensors, metadata)
    both = library.load_file("a.safetensors"), library.load(saved)
    pread = library.load_file("a.safetensors", backend="pread")
    return Path("a.safetensors").read_bytes(), saved, both, pread


def in_a_file(tensors: dict[str, torch.Tensor]) -> Any:
    """Of types that the library does not load from bytes."""
    library.save_file(tensors, "a.safetensors")
    return library.save(tensors), library.load_file("a.safetensors")


def of_numpy(tensors: dict[str, np.ndarray], metadata: Any = None) -> Any:
    safetensors.numpy.save_file(tensors, "a.safetensors", metadata)
    saved = safetensors.numpy.save(tensors, metadata)
    return saved, safetensors.numpy.load(saved), safetensors.numpy.load_file("a.safetensors")


def opened(framework: str = "pt", of: Callable[[Any], Any] = lambda f: f.get_tensors()) -> Any:
    library.save_file({"t": HALF, "s": torch.tensor(1.5)}, "a.safetensors", {"Some": "more"})
    with safetensors.safe_open("a.safetensors", framework=framework) as f:
        return of(f)


def sliced(*index: Any, framework: str = "pt") -> Any:
    library.save_file({"t": torch.arange(50.0).reshape(10, 5)}, "a.safetensors")
    with safetensors.safe_open("a.safetensors", framework=framework) as f:
        part = f.get_slice("t")
        return part.get_shape(), part.get_dtype(), [plain(part[each]) for each in index]


def model(fresh: type[Shared] = Shared, saved: type[Shared] = Shared) -> Any:
    library.save_model(saved(), "m.safetensors")
    with safetensors.safe_open("m.safetensors", framework="pt") as f:
        texts = f.metadata()
    target = fresh()
    library.load_model(target, "m.safetensors")
    return texts, sorted(Path("m.safetensors").read_bytes()), dict(target.state_dict())


def other_names() -> Any:
    state = Shared().state_dict()
    library.save_file({name: state[name] for name in ("b.weight", "b.bias")}, "m.safetensors")
    target = Shared()
    return library.load_model(target, "m.safetensors"), dict(target.state_dict())


def non_contiguous() -> Any:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3)
    layer.weight = torch.nn.Parameter(torch.arange(9.0).view(3, 3).t())
    library.save_model(layer, "m.safetensors", force_contiguous=True)
    library.save_model(layer, "m.safetensors", force_contiguous=False)


def after_closing() -> Any:
    library.save_file({"t": HALF}, "a.safetensors")
    with safetensors.safe_open("a.safetensors", framework="pt") as f:
        pass
    Path("a.safetensors").write_text("something")
    return f.keys()


def from_handle() -> Any:
    safetensors.numpy.save_file({"a": np.ones((2, 2))}, "a.safetensors")
    with (
        Path("a.safetensors").open("rb") as file,
        safetensors._safe_open_handle(file, framework="np", device="cpu") as f,
    ):
        return f.keys(), f.get_tensor("a")


def damaged(header: bytes, data: bytes = b"") -> Any:
    Path("a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return library.load_file("a.safetensors")


def in_threads() -> Any:
    arrays = {"1": np.arange(125.0), "2": np.ones(5000), "3": np.array(5.0)}
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        for _ in range(5):
            safetensors.numpy.save_file(arrays, f"{number}.safetensors")
            found[number] = safetensors.numpy.load_file(f"{number}.safetensors")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(sorted(found.items()))


def specified() -> Any:
    array = np.arange(6, dtype=np.int8)
    spec = TensorSpec(dtype="int8", shape=[2, 3], data_ptr=array.ctypes.data, data_len=6)
    return safetensors.serialize({"a": spec}), safetensors.deserialize(
        safetensors.serialize({"a": spec})
    )


def shared() -> dict[str, torch.Tensor]:
    whole = torch.zeros(10, 10)
    return {"A": whole, "B": whole[:1]}


LIAR = b'{"liar":{"dtype":"F32","shape":[1024,1024],"data_offsets":[0,4194304]}}'
CASES: dict[str, Callable[[], Any]] = {
    "serialization": lambda: round_trip({"test": torch.eye(2, dtype=torch.int32)}),
    "bfloat16": lambda: round_trip({"test": torch.tensor([2.25, 1], dtype=torch.bfloat16)}),
    "odd types": lambda: round_trip(
        {str(d): torch.eye(2).to(d) for d in (torch.half, torch.bool, torch.complex64)}
    ),
    "complex": lambda: round_trip({"test": torch.complex(torch.tensor([-1.0]), torch.ones(1))}),
    "float8": lambda: in_a_file({str(d): torch.tensor([0.5]).to(d) for d in FP8}),
    "float4": lambda: in_a_file({"test": torch.zeros(2, 2, dtype=torch.uint8).view(F4)}),
    "zero sized": lambda: round_trip({"a": torch.zeros(2, 0), "b": torch.zeros(2, 0)}),
    "scalar": lambda: round_trip({"a": torch.tensor(7.5)}),
    "disjoint views": lambda: round_trip({"a": HALF[:, 1:], "b": HALF[:, :1]}),
    "metadata": lambda: round_trip({"a": HALF}, FRAME),
    "nothing": lambda: round_trip({}),
    "numpy": lambda: of_numpy({"a": np.zeros((2, 2)), "b": np.zeros((2, 3), np.uint8)}),
    "numpy bool": lambda: of_numpy({"a": np.asarray(False)}),
    "order": lambda: of_numpy({"z": np.ones(2), "a": np.ones(2, np.int8), "b": np.ones(2)}),
    "alignment": lambda: of_numpy({"1": np.ones(4, np.int32), "22": np.ones(3, np.float16)}),
    "big endian": lambda: of_numpy({"a": np.arange(4, dtype=">i4")}, FRAME),
    "unaligned header": lambda: damaged(
        b'{"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}}', bytes(16)
    ),
    "path": lambda: library.save_file({"a": HALF}, Path("p.safetensors")),
    "metadata read": lambda: opened(of=lambda f: (f.metadata(), f.keys())),
    "tensors": opened,
    "tensors of numpy": lambda: opened("np", lambda f: f.get_tensor("t")),
    "slices": lambda: sliced(
        *(slice(None), (), slice(2), (slice(None), slice(2)), (0, slice(2)), (slice(2, None), -1)),
        *((slice(2, None), 0), (slice(None), slice(1, 3)), []),
    ),
    "slice of a list": lambda: sliced([0, 1], framework="np"),
    "index below": lambda: sliced((slice(2, None), -6), framework="np"),
    "index beyond": lambda: sliced((slice(2, None), 20), framework="np"),
    "slice beyond": lambda: sliced((slice(None), slice(20)), framework="np"),
    "tied model": model,
    "tied model, other names": other_names,
    "saved tied, loaded apart": lambda: model(Apart, Shared),
    "saved apart, loaded tied": lambda: model(Shared, Apart),
    "not contiguous": non_contiguous,
    "a view alone": lambda: library.save({"a": HALF[:, :, 1]}),
    "shared": lambda: library.save(shared()),
    "meta": lambda: library.save({"a": torch.zeros(2, device="meta")}),
    "sparse": lambda: library.save({"a": torch.eye(2).to_sparse()}),
    "no tensor": lambda: library.save({"a": {"some": "thing"}}),
    "no dictionary": lambda: library.save("no"),
    "no file": lambda: library.load_file("notafile"),
    "closed": after_closing,
    "no backend": lambda: opened(of=lambda _: library.load_file("a.safetensors", backend="x")),
    "no spec": lambda: safetensors.serialize({"a": {"dtype": "float32"}}),
    "spec": specified,
    "handle": from_handle,
    "truncated header": lambda: damaged(b'{"a":{"dty'),
    "beyond the file": lambda: damaged(LIAR, b"\0"),
    "threads": in_threads,
}
OWN_WORDS = {"truncated header", "beyond the file", "no spec", "no backend"}
"""Cases whose error is of the same class, and says what is wrong in words of ours."""


def outcome(case: Callable[[], Any]) -> Any:
    try:
        with quiet():
            return plain(case())
    except (ValueError, RuntimeError, OSError, TypeError, SafetensorError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("name", CASES)
def test_case_of_the_projects_tests(name, tmp_path, monkeypatch):
    for place in ("theirs", "ours"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "theirs")
    theirs = outcome(CASES[name])
    with monkeypatch.context() as patched:
        safetensors_shim.put_in_place(patched.setattr)
        patched.chdir(tmp_path / "ours")
        ours = outcome(CASES[name])
    assert ours[0] == theirs[0] if name in OWN_WORDS else ours == theirs
    files = {
        place: {p.name: p.read_bytes() for p in (tmp_path / place).iterdir()}
        for place in ("theirs", "ours")
    }
    if "tied" not in name:  # the library puts several texts in any order
        assert files["ours"] == files["theirs"]


def test_it_is_ours_that_is_called(tmp_path, monkeypatch):
    before = dict(safetensors_shim.calls)
    with monkeypatch.context() as patched:
        safetensors_shim.put_in_place(patched.setattr)
        patched.chdir(tmp_path)
        round_trip({"a": HALF})
    assert all(safetensors_shim.calls[name] > before[name] for name in before)
