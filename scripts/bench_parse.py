"""How long pickles take: CPython's unpickler with stubs, torch's weights-only one, and ours.

python scripts/bench_parse.py [tensors]
"""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
import time
import zipfile
from collections.abc import Callable

import torch
from torch._weights_only_unpickler import Unpickler as WeightsOnlyUnpickler

from ckpt_surgery.pickles import emit, parse, walk

REPEATS = 5


class Stub:
    """Stands for any class or function, and takes anything."""

    def __new__(cls, *_args: object) -> Stub:
        return object.__new__(cls)

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class StubUnpickler(pickle.Unpickler):
    """The C unpickler, making stubs."""

    def find_class(self, _module: str, _name: str) -> type[Stub]:
        return Stub

    def persistent_load(self, _pid: object) -> None:
        return None


def weights_only(data: bytes) -> object:
    """What `torch.load(weights_only=True)` does, all storages being one."""
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.UntypedStorage(1 << 16), dtype=torch.float32, _internal=True
    )
    unpickler = WeightsOnlyUnpickler(io.BytesIO(data))
    unpickler.persistent_load = lambda _pid: storage
    return unpickler.load()


def state_dict_pickle(tensors: int) -> bytes:
    """The pickle of a state dict like that of a large language model."""
    shapes = {"q_proj.weight": (2, 300), "q_proj.bias": (300,), "norm.weight": (4,)}
    names = [f"model.layers.{i}.{name}" for i in range(tensors // 3) for name in shapes]
    shared = {name: torch.zeros(shape) for name, shape in shapes.items()}
    state_dict = {name: shared[name.split(".", 3)[3]].clone() for name in names}
    file = io.BytesIO()
    torch.save(state_dict, file)
    with zipfile.ZipFile(file) as archive:
        return archive.read("archive/data.pkl")


def fastest(job: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs; freeing the result is not counted."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = job()
        seconds.append(time.perf_counter() - start)
        del result
    return min(seconds)


def main() -> None:
    tensors = int(sys.argv[1]) if len(sys.argv) > 1 else 15_000
    data = state_dict_pickle(tensors)
    root = parse(data).root
    assert emit(root) == data
    operations = sum(1 for _ in pickletools.genops(data))
    print(f"{tensors} tensors, {operations} operations, {len(data)} bytes")
    stubs = fastest(lambda: StubUnpickler(io.BytesIO(data)).load())
    torch_s = fastest(lambda: weights_only(data))
    rows = {
        "C unpickler, stubs": stubs,
        "torch, weights only": torch_s,
        "parse": fastest(lambda: parse(data)),
        "walk": fastest(lambda: sum(1 for _ in walk(root))),
        "emit": fastest(lambda: emit(root)),
    }
    for name, seconds in rows.items():
        print(
            f"{name:20} {seconds:6.3f} s  {seconds / stubs:5.2f} x stubs"
            f"  {seconds / torch_s:5.2f} x torch"
        )


if __name__ == "__main__":
    main()
