"""What the benchmarks need torch for: a large checkpoint, and the time that unpicklers take.

python scripts/benchmark_torch.py make GIGABYTES FILE [DTYPE]
python scripts/benchmark_torch.py parse TENSORS ROUNDS
"""

from __future__ import annotations

import gc
import io
import json
import math
import pickle
import pickletools
import sys
import time
import zipfile
from collections.abc import Callable

import torch
from torch._weights_only_unpickler import Unpickler as WeightsOnlyUnpickler

from ckpt_surgery.pickles import parse, walk
from ckpt_surgery.pickles.emit import emit

LAYERS = 36


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


def large_state_dict(
    gigabytes: float, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """290 tensors named and shaped like a transformer's, of 10**9 bytes a gigabyte."""
    width = math.isqrt(int(gigabytes * 1e9) // (dtype.itemsize * 12 * LAYERS))
    shapes = {f"self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
    shapes |= {"up.weight": (4 * width, width), "down.weight": (width, 4 * width)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    names = {f"layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}
    names = {"embed.weight": (width, width), **names, "head.weight": (width, width)}
    return {name: torch.rand(shape).to(dtype) for name, shape in names.items()}


def state_dict_pickle(tensors: int) -> bytes:
    """The pickle of a state dict like that of a large language model."""
    shapes = {"q_proj.weight": (2, 300), "q_proj.bias": (300,), "norm.weight": (4,)}
    state_dict = {
        f"model.layers.{i}.{name}": torch.zeros(shape)
        for i in range(tensors // len(shapes))
        for name, shape in shapes.items()
    }
    file = io.BytesIO()
    torch.save(state_dict, file)
    with zipfile.ZipFile(file) as archive:
        return archive.read("archive/data.pkl")


def seconds(job: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor for `job`; freeing the result is not counted."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = job()
    spent = time.perf_counter() - wall, time.process_time() - cpu
    del result
    return spent


def time_unpicklers(tensors: int, rounds: int) -> dict[str, object]:
    """Seconds of every round for each way to read a pickle, after a round that is left out."""
    data = state_dict_pickle(tensors)
    root = parse(data).root
    if emit(root) != data:
        raise ValueError("what is parsed and emitted is not the same")
    jobs: dict[str, Callable[[], object]] = {
        "C unpickler, stubs": lambda: StubUnpickler(io.BytesIO(data)).load(),
        "torch, weights_only": lambda: weights_only(data),
        "parse": lambda: parse(data),
        "walk": lambda: sum(1 for _ in walk(root)),
        "emit": lambda: emit(root),
    }
    gc.disable()  # as in reading a checkpoint; what it costs depends on what else is in memory
    taken = [{name: seconds(job) for name, job in jobs.items()} for _ in range(rounds + 1)][1:]
    return {
        "operations": sum(1 for _ in pickletools.genops(data)),
        "seconds": {name: [of_round[name] for of_round in taken] for name in jobs},
    }


def main() -> None:
    what, size, more, *dtypes = sys.argv[1:]
    if what == "make":
        dtype = getattr(torch, dtypes[0] if dtypes else "float32")
        torch.save(large_state_dict(float(size), dtype), more)
    else:
        print(json.dumps(time_unpicklers(int(size), int(more))))


if __name__ == "__main__":
    main()
