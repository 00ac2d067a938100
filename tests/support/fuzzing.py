"""Mutated checkpoints: only refusals, nothing endless, and never another answer than torch's.

torch is asked with ``weights_only=True``, which runs nothing of a file, then, if that refuses, with
an unpickler that knows torch's own classes alone (`restricted`), or as TorchScript; safetensors'
library is asked about its own format. A process that asks should be one that may crash
(`scripts/fuzz` sees to that). Where both read a file they must agree in every name, shape, type,
stride and bit, and so must torch about what `ckpt` writes of it.
What is permitted to differ:

- `ckpt` refuses and torch reads: damage that does not reach torch's result (a wrong CRC field, a
  name that is in the archive twice, bytes after the end, storages that nobody uses and whose size
  lies, a state dict that has a name twice). Nothing wrong can come of refusing.
- a tensor without a dimension in a tar file is empty for `ckpt`, as it was when it was written.
- torch refuses and `ckpt` reads: names of classes and functions outside torch's list, opcodes that
  it does not know, a protocol other than 2. `ckpt` has nothing to run, so it can carry them.
  Never permitted is a tensor that torch finds to be outside its storage (`OUT_OF_BOUNDS`),
  unless the pickle throws that tensor away, and `ckpt` does not write such a file again.
"""

from __future__ import annotations

import functools
import io
import random
import re
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import restricted
import torch
from opcode_mutations import mutate_opcodes, tar_of

from ckpt_surgery.checkpoint.description import Checkpoint, Tensor
from ckpt_surgery.errors import CkptError, LossyEditError
from ckpt_surgery.fileio.atomic import atomic_output
from ckpt_surgery.formats import read, registry
from ckpt_surgery.formats.torch_zip_layout import _lay_out_torch_zip
from ckpt_surgery.ops.inspect import inspect
from ckpt_surgery.pickles import Limits
from ckpt_surgery.torch_objects.math_bits import math_bits

# Small, so that a mutation that would go on for long is refused soon.
LIMITS = Limits(operations=1 << 22, depth=2_000)
LARGEST_GROWTH = 1 << 20  # bytes that a rewritten file may be larger than 64 times the input

# What torch says of a tensor that is not inside its storage.
OUT_OF_BOUNDS = re.compile(
    r"not resizable|out of bounds(?! access to globals)|record size|"
    r"negative (size|dimension|stride)|storage_offset.*>= 0|exceeds|overflow",
    re.IGNORECASE,
)


def prepare() -> None:
    """Let this process ask once for what never changes, and takes most of the time of a case.

    That is which packages add formats, and the source code of torch's modules, which a legacy file
    of a module has with it.
    """
    torch.serialization.get_source_lines_and_file = functools.cache(  # type: ignore[attr-defined]
        torch.serialization.get_source_lines_and_file  # type: ignore[attr-defined]
    )
    registry._added = functools.cache(registry._added)


def seeds() -> dict[str, bytes]:
    """Small files of every format."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    training = _training(model)
    kinds = {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "sparse": torch.eye(3).to_sparse(),
        "bool": torch.tensor([True, False]),
        "complex": torch.ones(2, dtype=torch.complex64).conj(),
        "float8": torch.ones(4).to(torch.float8_e4m3fn),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(1.5),
    }
    found = {
        "state dict": _saved(model.state_dict()),
        "training": _saved(training),
        "kinds": _saved(kinds),
        "module": _saved(model),
        "tensor": _saved(torch.arange(6.0).reshape(2, 3).t()),
        "nothing": _saved(None),
        "legacy state dict": _saved(model.state_dict(), legacy=True),
        "legacy training": _saved(training, legacy=True),
        "legacy module": _saved(model, legacy=True),
    }
    from safetensors.torch import save

    found["safetensors"] = save({n: t.clone() for n, t in model.state_dict().items()})
    found["attributes"] = _saved(_attributes())
    found["legacy views"] = _legacy_views()
    found["tar"] = _tar()
    found["TorchScript"] = _scripted(model)
    return found


def _attributes() -> dict[str, Any]:
    """Tensors that are rebuilt with a state, in mappings of several classes."""
    marked = torch.ones(2)
    marked.note = [1, 2]  # type: ignore[attr-defined]
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.scale = torch.ones(1)  # type: ignore[attr-defined]
    weights: Any = OrderedDict(marked=marked, parameter=parameter, plain=torch.arange(3.0))
    weights._metadata = OrderedDict({"": {"version": 1}})
    return {"model": weights, "counts": Counter(a=1), "size": torch.Size([2, 3])}


def _legacy_views() -> bytes:
    """A legacy file of views of one storage, as torch 0.3 wrote them."""
    from legacy_files import FLOATS, legacy, reference, tensor

    items = {
        "root": tensor(reference(), 0, (4,), (1,)),
        "view": tensor(reference(view=("8", 1, 3)), 1, (2,), (1,)),
        "whole": tensor(reference(view=("9", 0, 4)), 0, (2, 2), (2, 1)),
    }
    return legacy(items, ["7"], (4, FLOATS))


def _tar() -> bytes:
    """An archive of torch 0.1.12, of a storage and a view of it."""
    from bombs import name, number, text, whole
    from lies import ordered

    def keyed(*parts: bytes) -> bytes:
        return whole(b"(" + b"".join(parts) + b"t")

    def placed(key: int, storage: int, size: int, offset: int) -> bytes:
        head = keyed(number(key), number(storage), name("torch", "FloatTensor"))
        return head + struct.pack("<iiqqq", 1, 0, size, 1, offset)

    entries = (("w", text("11") + b"Q"), ("v", text("12") + b"Q"), ("same", text("11") + b"Q"))
    return tar_of(
        {
            "sys_info": whole(b"}"),
            "storages": whole(number(1))
            + keyed(number(1), text("cpu"), name("torch", "FloatStorage"))
            + struct.pack("<qffff", 4, 1, 2, 3, 4)
            + whole(b"](" + b"(" + b"".join(map(number, (2, 1, 1, 2))) + b"te"),
            "tensors": whole(number(2)) + placed(11, 1, 4, 0) + placed(12, 2, 1, 1),
            "pickle": whole(ordered(*entries)),
        }
    )


def _scripted(model: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(model), buffer)
    return buffer.getvalue()


def _training(model: torch.nn.Module) -> dict[str, Any]:
    weights = OrderedDict(model.state_dict())
    weights["tied"] = weights["0.weight"]
    weights["view"] = torch.arange(20.0)[3:9].reshape(2, 3).t()
    weights["half"] = torch.ones(3, dtype=torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "epoch": 3,
        "state_dict": weights,
        "ema": OrderedDict((name, tensor.clone()) for name, tensor in weights.items()),
        "optimizer": optimizer.state_dict(),
        "note": "text",
        "numbers": [1, 2.5, None, True, (1, 2)],
    }


def _saved(value: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


# --- Mutations -------------------------------------------------------------------------------

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
_OPCODES = (
    b"().012FIJKLMNPQRSTUVX]abcdeghijloprstuq}\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d"
)


def flip_bits(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    out = bytearray(data)
    for _i in range(rng.randint(1, 4)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def truncate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data))]


def splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    start, at = rng.randrange(len(other)), rng.randrange(len(data))
    piece = other[start : start + rng.randint(1, 200)]
    return data[:at] + piece + data[at + rng.choice((0, len(piece))) :]


def delete(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randint(1, 64) :]


def repeat(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.randint(1, 64)]
    return data[:at] + piece * rng.randint(2, 4) + data[at + len(piece) :]


def edit_length(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Overwrite what may be a length, an offset or a count of 1, 2, 4 or 8 bytes."""
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, len(data) - width))
    old = int.from_bytes(data[at : at + width], "little")
    value = rng.choice((*INTERESTING, old + 1, old - 1, old * 2, old + 64)) % (1 << 8 * width)
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def edit_structure(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The same, in a header of a zip archive; elsewhere anywhere."""
    places = [match.start() for match in re.finditer(rb"PK[\1-\7][\2-\10]", data)]
    if not places:
        return edit_length(rng, data, others)
    at = rng.choice(places) + rng.randrange(4, 46)
    width = rng.choice((2, 4))
    value = rng.choice(INTERESTING) % (1 << 8 * width)
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def swap_records(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    records = _records(data)
    if len(records) < 2:
        return repeat(rng, data, others)
    names = list(records)
    first, second = rng.choice(names), rng.choice(names)
    match rng.randrange(4):
        case 0:
            records[first], records[second] = records[second], records[first]
        case 1:
            del records[first]
        case 2:
            records[first] += b"\0" * rng.randint(1, 9)
        case _:
            rng.shuffle(names)
            records = {name: records[name] for name in names}
    return _zipped(records)


def edit_pickle(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Mutate the pickle, and let sizes and checksums of its record be right or stay."""
    records = _records(data)
    name = next((name for name in records if name.endswith("data.pkl")), None)
    if name is None:
        head = min(len(data), 4000)
        return _edited_pickle(rng, data[:head]) + data[head:]
    old = records[name]
    new = _edited_pickle(rng, old)
    if len(new) == len(old) and rng.random() < 0.3:
        return data.replace(old, new)
    return _zipped(records | {name: new})


def _edited_pickle(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2))):
        if not out:
            break
        at = rng.randrange(len(out))
        match rng.choice((0, 1, 2, 3, 4, 4, 4, 5, 5, 6, 6, 7, 7)):
            case 0:
                out[at] = rng.choice(_OPCODES)
            case 1:
                out.insert(at, rng.choice(_OPCODES))
            case 2:
                del out[at : at + rng.randint(1, 6)]
            case 3:
                out[at] = rng.randrange(256)
            case 4:  # another small number: a size, a stride, an offset, a storage's count
                places = [m.start() + 1 for m in re.finditer(rb"K.", bytes(out), re.DOTALL)]
                if places:
                    out[rng.choice(places)] = rng.choice((0, 1, 2, 3, 6, 255))
            case 5:  # another memo entry
                places = [m.start() + 1 for m in re.finditer(rb"h.", bytes(out), re.DOTALL)]
                if places:
                    out[rng.choice(places)] = rng.randrange(64)
            case 6:  # another text of the same length: a name, a key, a class
                places = [*re.finditer(rb"X(.)\0\0\0", bytes(out), re.DOTALL)]
                if places:
                    place = rng.choice(places)
                    start, size = place.end(), place[1][0]
                    alike = [p.end() for p in places if p[1][0] == size]
                    other = rng.choice(alike)
                    out[start : start + size] = out[other : other + size]
            case _:  # a number of another width
                places = [m.start() for m in re.finditer(rb"K.", bytes(out), re.DOTALL)]
                if places:
                    at = rng.choice(places)
                    value = rng.choice((-1, 2**31 - 1, -(2**31), 1 << 20))
                    out[at : at + 2] = b"J" + struct.pack("<i", value)
    return bytes(out)


def _records(data: bytes) -> dict[str, bytes]:
    if not data.startswith(b"PK\3\4"):
        return {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _zipped(records: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


MUTATIONS: dict[str, Mutation] = {
    each.__name__: each
    for each in (
        flip_bits,
        truncate,
        splice,
        delete,
        repeat,
        edit_length,
        edit_structure,
        swap_records,
        edit_pickle,
        mutate_opcodes,
    )
}
_WEIGHTS = [{"edit_pickle": 3, "mutate_opcodes": 12}.get(name, 1) for name in MUTATIONS]


@dataclass(frozen=True, slots=True)
class Case:
    """A mutated file; the same `seed` and `number` make the same one."""

    seed: int
    number: int
    origin: str
    mutations: tuple[str, ...]
    data: bytes

    @classmethod
    def make(cls, seed: int, number: int, originals: Mapping[str, bytes]) -> Case:
        rng = random.Random(f"{seed}/{number}")
        origin = rng.choice(list(originals))
        data = originals[origin]
        names = tuple(rng.choices(list(MUTATIONS), _WEIGHTS, k=rng.choice((1, 1, 1, 2))))
        for index, name in enumerate(names):
            try:
                data = MUTATIONS[name](rng, data, list(originals.values())) or b"\0"
            except Exception:
                if not index:
                    raise
                break  # zipfile does not understand what the first one left
        return cls(seed, number, origin, names, data)

    def __str__(self) -> str:
        how = " and ".join(self.mutations)
        return f"seed {self.seed}, case {self.number}: '{self.origin}' by {how}"


# --- What must hold --------------------------------------------------------------------------


class WrongAnswerError(Exception):
    """An answer that must not be."""


@dataclass(slots=True)
class Tally:
    """How many cases ended in which way."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, case: Case, folder: Path) -> None:
        """Try a case; whatever is wrong becomes a problem."""
        try:
            self.outcomes[check(case.data, folder)] += 1
        except Exception as error:
            self.problems.append(f"{case}: {type(error).__name__}: {error}"[:400])


def check(data: bytes, folder: Path) -> str:
    """How the two readers take a file. Raises `WrongAnswerError` for an answer that must not be.

    Anything else but a `CkptError` that `ckpt` raises passes through.
    """
    path, out = folder / "case.pth", folder / "out.pth"
    path.write_bytes(data)
    out.unlink(missing_ok=True)
    theirs = _ask_torch(path)
    if isinstance(theirs, _Refusal):
        theirs = _ask_restricted(path, theirs)
    try:
        with read(path, limits=LIMITS) as checkpoint:
            inspect(path).to_dict()
            if checkpoint.format == "safetensors":
                return _as_the_library(checkpoint, data)
            if not isinstance(theirs, _Refusal):
                theirs = _usable(theirs)
            written = _written(checkpoint, out, len(data))
            return _compared(checkpoint, theirs, out if written else None)
    except CkptError:
        return "both refuse" if isinstance(theirs, _Refusal) else "only torch reads"


def _as_the_library(checkpoint: Checkpoint, data: bytes) -> str:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        theirs = load(data)
    except (SafetensorError, KeyError) as error:  # an element type that torch does not have
        if isinstance(error, KeyError):
            return "only ckpt reads: an element type that torch has not"
        raise WrongAnswerError(f"safetensors refuses it: {error}") from error
    (ours,) = checkpoint.state_dicts
    if sorted(ours.names) != sorted(theirs):
        raise WrongAnswerError("other names than safetensors reads")
    for entry in ours.entries:
        tensor, real = entry.tensor, theirs[entry.name]
        if tensor is None or tensor.storage is None or tensor.shape != tuple(real.shape):
            raise WrongAnswerError(f"'{entry.name}' has another shape for safetensors")
        mine = b"".join(map(bytes, tensor.storage.data.chunks()))
        flat = real.contiguous().reshape(-1)
        if f"torch.{tensor.dtype.name}" != str(real.dtype) or mine != (
            flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
        ):
            raise WrongAnswerError(f"'{entry.name}' is another tensor for safetensors")
    return "both read, and agree"


@dataclass(frozen=True, slots=True)
class _Refusal:
    message: str


def _ask_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:
            return _Refusal(str(error))


def _ask_restricted(path: Path, first: _Refusal) -> Any:
    """What torch loads with its own classes alone; TorchScript as the state dict that it has.

    `first` is what torch said before; that a tensor is outside its storage stays what it says.
    """
    if OUT_OF_BOUNDS.search(first.message):
        return first
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = torch.load(
                path, weights_only=False, map_location="cpu", pickle_module=restricted.module
            )
            return found.state_dict() if isinstance(found, torch.jit.ScriptModule) else found
        except Exception as error:
            return _Refusal(str(error))


_REASONS = {
    "a name that torch has not or that is not asked for": (
        r"is not allowed|Can't get attribute|No module named|ForwardRef"
    ),
    "an opcode, a protocol or a frame that it does not take": (
        r"protocol|opcode|frame|persistent id|load_binpersid|encoding"
    ),
    "code of TorchScript that cannot be compiled": r"[Uu]nknown type|expected .* (here|found)|"
    r"undefined value|variants are available|File \"code/|has no attribute or method|was not in "
    r"the map|INTERNAL ASSERT|Class Namespace|isinstance|Unresolved type|not found in|torchscript",
    "a module that cannot be used": r"^unusable",
    "text of Python 2": r"codec can't decode",
}


def _why(message: str) -> str:
    """Why torch refuses what `ckpt` reads; what is left is a call or an operation that fails.

    Those are of no tensor: what interprets a call refuses it unless torch would make it.
    """
    found = (reason for reason, sign in _REASONS.items() if re.search(sign, message))
    return next(found, "a call or an operation fails, of something else than a tensor")


def _usable(theirs: Any) -> Any:
    """`theirs`, if its modules have state dicts; a refusal otherwise."""
    try:
        _plain(theirs)
    except Exception as error:
        return _Refusal(f"unusable: {error}")
    return theirs


def _written(checkpoint: Checkpoint, out: Path, size: int) -> bool:
    if checkpoint.unwritable:
        return False
    try:
        layout = _lay_out_torch_zip(replace(checkpoint, modules={}))
    except LossyEditError:
        return False
    if layout.nbytes > 64 * size + LARGEST_GROWTH:
        raise WrongAnswerError(f"{size} bytes would become {layout.nbytes}")
    with atomic_output(out) as sink:
        layout.write(sink)
    return True


def _compared(checkpoint: Checkpoint, theirs: Any, out: Path | None) -> str:
    if isinstance(theirs, _Refusal):
        if OUT_OF_BOUNDS.search(theirs.message) and not checkpoint.unwritable:
            raise WrongAnswerError(f"a tensor that torch refuses: {theirs.message[:200]}")
        return f"only ckpt reads: {_why(theirs.message)}"
    _require_tensors(checkpoint, theirs)
    for state_dict in checkpoint.state_dicts:
        mapping = _state(_at(theirs, state_dict.path))
        if not isinstance(mapping, Mapping) or state_dict.names != list(mapping):
            raise WrongAnswerError(f"other names in '{state_dict.path}'")
        for entry in state_dict.entries:
            _require_same(entry.tensor, mapping[entry.name], entry.name)
    if out is not None:
        again = _ask_torch(out)
        if isinstance(again, _Refusal):
            again = _ask_restricted(out, again)
        if isinstance(again, _Refusal):
            raise WrongAnswerError(f"torch does not read what is written: {again.message[:200]}")
        _require_same_objects(again, _plain(theirs))
    return "both read, and agree"


def _state(value: Any) -> Any:
    return value.state_dict() if isinstance(value, torch.nn.Module) else value


def _plain(value: Any) -> Any:
    """`value` as it is written: modules as their state dicts."""
    if isinstance(value, torch.nn.Module):
        return value.state_dict() or value
    if type(value) in {dict, OrderedDict}:
        return type(value)((key, _plain(item)) for key, item in _items(value))
    return [_plain(item) for item in value] if type(value) is list else value


def _require_tensors(checkpoint: Checkpoint, theirs: Any) -> None:
    """What torch finds tensors in is not silently empty."""
    if checkpoint.notes or checkpoint.format == "torchscript":
        return
    count = sum(1 for _ in _tensors_in(_plain(theirs)))
    if count and not any(True for _ in checkpoint.all_tensors):
        raise WrongAnswerError(f"{count} tensors for torch, and none is said")


def _items(mapping: Any) -> list[tuple[Any, Any]]:
    """The items of a mapping, even if one of its attributes is called ``items``."""
    return list(dict.items(mapping) if isinstance(mapping, dict) else mapping.items())


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    waiting, seen = [value], set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, torch.Tensor):
            if found.numel():
                yield found
        elif isinstance(found, Mapping):
            waiting += (value for _, value in _items(found))
        elif isinstance(found, (list, tuple)):
            waiting += found


def _at(value: Any, path: str) -> Any:
    for key in path.split("/") if path else ():
        if isinstance(value, Mapping):
            held = {**getattr(value, "__dict__", {}), **dict(_items(value))}
            named = {type(k).__name__: v for k, v in held.items()}  # as keys of other types appear
            value = {**named, **{str(k): v for k, v in held.items()}}.get(key)
        elif isinstance(value, (list, tuple)):
            value = value[int(key)]
        else:
            value = getattr(value, key, None)
    return value


def _require_same(ours: Tensor | None, theirs: Any, name: str) -> None:
    if ours is None or ours.storage is None:
        return  # not understood, or made of parts: carried over, and compared when written
    if not isinstance(theirs, torch.Tensor):
        raise WrongAnswerError(f"'{name}' is no tensor for torch")
    if _was_empty(ours.shape, theirs):
        return
    told = (ours.shape, ours.stride, f"torch.{ours.dtype.name}")
    real = (tuple(theirs.shape), theirs.stride(), str(theirs.dtype))
    if told != real:
        raise WrongAnswerError(f"'{name}' is {told} for ckpt and {real} for torch")
    if math_bits(ours) != (theirs.is_conj(), theirs.is_neg()):
        raise WrongAnswerError(f"'{name}' is negated or conjugated for one alone")
    size = ours.dtype.nbytes(ours.extent)
    start = ours.dtype.nbytes(ours.offset)
    mine = b"".join(map(bytes, ours.storage.data.chunks()))[start : start + size]
    storage = theirs.untyped_storage()
    # torch cuts views of storages out, so that theirs is another offset than that in the file
    there = theirs.storage_offset() * theirs.element_size()
    other = bytes(storage[there : there + size]) if size else b""
    if mine != other and not ours.storage.big_endian:
        raise WrongAnswerError(f"'{name}' has other bytes")


def _was_empty(shape: Sequence[int], theirs: torch.Tensor) -> bool:
    """Say whether it is an empty tensor of torch 0.1, which had no dimension, as it had no scalars.

    Today's torch makes a scalar of it.
    """
    return tuple(shape) == (0,) and theirs.shape == ()


def _require_same_objects(ours: Any, theirs: Any) -> None:
    """Compare what was loaded after and before, also of what contains itself."""
    waiting = [(ours, theirs, "")]
    compared: dict[tuple[int, int], Any] = {}  # with the objects, so that no other gets their ids
    while waiting:
        pair = waiting.pop()
        known = (id(pair[0]), id(pair[1]))
        if known not in compared:
            compared[known] = pair
            waiting.extend(_pairs_below(*pair))


def _pairs_below(ours: Any, theirs: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    """Yield what is to be compared of two objects, which are alike otherwise."""
    if type(ours) is not type(theirs):
        raise WrongAnswerError(
            f"'{path}' is a {type(ours).__name__} after, a {type(theirs).__name__} before"
        )
    if isinstance(theirs, torch.Tensor):
        if _bits(ours) != _bits(theirs) and not _was_empty(ours.shape, theirs):
            raise WrongAnswerError(f"'{path}' is another tensor after")
    elif isinstance(theirs, Mapping):
        if list(map(repr, ours)) != list(map(repr, theirs)):
            raise WrongAnswerError(f"'{path}' has other keys after")
        for (key, mine), (_, other) in zip(_items(ours), _items(theirs), strict=True):
            yield mine, other, f"{path}/{key}"
    elif isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs):
            raise WrongAnswerError(f"'{path}' has another length after")
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield mine, other, f"{path}/{index}"
    elif isinstance(theirs, (set, frozenset)):  # which have tensors in the order of their places
        yield sorted(ours, key=repr), sorted(theirs, key=repr), path
    elif isinstance(theirs, torch.nn.Module):
        yield vars(ours), vars(theirs), path
    elif _spelled(ours) != _spelled(theirs):
        raise WrongAnswerError(f"'{path}' is {ours!r} after, {theirs!r} before"[:200])


def _spelled(value: Any) -> str:
    """What `repr` says of a value, but for where it is in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _bits(tensor: torch.Tensor) -> tuple[object, ...]:
    about = (tensor.shape, tensor.dtype, tensor.layout, tensor.requires_grad)
    if tensor.layout is not torch.strided:
        return (*about, *_bits(tensor._indices()), *_bits(tensor._values()))
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.numel() > 1 << 16:  # expanded
        return (*about, tensor.stride())
    flat = plain.clone(memory_format=torch.contiguous_format).reshape(-1)
    return (*about, tensor.stride(), flat.view(torch.uint8).numpy().tobytes() if len(flat) else b"")


def run(seed: int, numbers: Iterator[int], folder: Path) -> Tally:
    originals = seeds()
    tally = Tally()
    for number in numbers:
        tally.add(Case.make(seed, number, originals), folder)
    return tally
