"""Pickles changed opcode by opcode, in any container, and headers of safetensors field by field.

What is put in is what a liar would: states, items and elements for things that have none, arguments
beside items, changes of what was used before, other memo entries, frames.
"""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence

from ckpt_surgery.pickles import parse
from ckpt_surgery.pickles.scan import _next

Opcodes = list[bytes]
_MADE = b"R\x81Q"  # calls and persistent ids, whose results something can be done to
_GETS = b"hj"


def split(pickle: bytes) -> Opcodes:
    """The opcodes of a pickle, each with its argument."""
    found: Opcodes = []
    at = 0
    while at < len(pickle):
        following = _next(pickle, at)
        found.append(pickle[at:following])
        at = following
    return found


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _places(opcodes: Opcodes, which: bytes) -> list[int]:
    return [at for at, opcode in enumerate(opcodes) if opcode[0] in which]


def _got(rng: random.Random, opcodes: Opcodes) -> bytes:
    """An opcode that gets something of the memo, mostly of what is there."""
    puts = [opcode for opcode in opcodes if opcode[0] in b"qr"]
    if not puts or rng.random() < 0.1:
        return b"h" + bytes([rng.randrange(80)])
    chosen = rng.choice(puts)
    return (b"h" if chosen[0] == ord("q") else b"j") + chosen[1:]


def _value(rng: random.Random, opcodes: Opcodes) -> bytes:
    """Opcodes that push some value."""
    got = _got(rng, opcodes)
    storage = _places(opcodes, b"Q")
    place = b"(" + got + b"K\0K\1\x85K\1\x85t"
    if storage:
        at = rng.choice(storage)
        start = max((i for i in range(at) if opcodes[i] == b"("), default=at)
        place = b"(" + b"".join(opcodes[start : at + 1]) + b"K\0K\1\x85K\1\x85t"
    return rng.choice(
        (
            *(b"N", b"\x88", b"\x89", b"K\1", b")", b"}", b"]", got, got, place, place),
            b"}" + _text(rng.choice(_NAMES)) + got + b"s",
            b"}(" + _text("a") + got + _text("a") + got + b"u",
            got + b"\x85",
            got + got + b"\x86",
            b"N}" + _text(rng.choice(_NAMES)) + got + b"s\x86",
        )
    )


_NAMES = (
    *("data", "grad", "requires_grad", "_metadata", "_parameters", "_modules", "_buffers", "neg"),
    *("conj", "items", "weight", "bias", "training", "shape", "names", "_backward_hooks", ""),
)


def give_state(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    at = rng.choice(_places(opcodes, _MADE))
    return [*opcodes[: at + 1], _value(rng, opcodes), b"b", *opcodes[at + 1 :]]


def give_items(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    """Items or elements for what a call made, a list or a dictionary."""
    at = rng.choice(_places(opcodes, _MADE + b"]}"))
    key = rng.choice((_text(rng.choice(_NAMES)), b"K\0", b"\x88", _got(rng, opcodes)))
    value = _value(rng, opcodes)
    given = rng.choice(
        (key + value + b"s", b"(" + key + value + b"u", value + b"a", b"(" + value + value + b"e")
    )
    return [*opcodes[: at + 1], given, *opcodes[at + 1 :]]


def add_arguments(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    """Arguments for a call that has none, such as that of an ``OrderedDict``."""
    calls = [at for at in _places(opcodes, b"R\x81") if opcodes[at - 1] == b")"]
    if not calls:
        return give_state(rng, opcodes)
    at = rng.choice(calls)
    pair = b"(" + _text(rng.choice(_NAMES)) + _value(rng, opcodes) + b"t"
    dictionary = b"}" + _text(rng.choice(_NAMES)) + _value(rng, opcodes) + b"s"
    args = rng.choice(
        (
            *(b"](" + pair + b"e\x85", b"](" + pair + pair + b"e\x85", dictionary + b"\x85"),
            *(_value(rng, opcodes) + b"\x85", b"(" + pair + b"t\x85", b"N\x85"),
        )
    )
    return [*opcodes[: at - 1], args, *opcodes[at:]]


def more_or_fewer_arguments(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    ends = _places(opcodes, b"t\x85\x86\x87")
    if not ends:
        return give_state(rng, opcodes)
    at = rng.choice(ends)
    if opcodes[at] == b"t" and rng.random() < 0.7:
        return [*opcodes[:at], _value(rng, opcodes), *opcodes[at:]]
    return [*opcodes[: at - 1], *opcodes[at:]]


def change_later(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    """A tuple becomes a list, or a dictionary is kept, and gets more when it was used."""
    out = list(opcodes)
    marks: list[int] = []
    tuples: list[tuple[int, int]] = []
    for at, opcode in enumerate(out):
        if opcode == b"(":
            marks.append(at)
        elif opcode[0] in b"tue" and marks:
            start = marks.pop()
            if opcode == b"t":
                tuples.append((start, at))
    small = [at for at in _places(out, b"\x85\x86") if out[at - 1][0] in b"KM"]
    key = b"r" + struct.pack("<I", 5000)
    get = b"j" + struct.pack("<I", 5000)
    if tuples and rng.random() < 0.4:
        start, end = rng.choice(tuples)
        out[start], out[end] = b"](", b"e" + key
        made = end
    elif small and rng.random() < 0.8:
        made = rng.choice(small)
        number = out[made - 1]
        if out[made] == b"\x86" and out[made - 2][0] in b"KM":
            out[made - 2 : made + 1] = [b"](" + out[made - 2] + number + b"e" + key]
            made -= 2
        else:
            out[made - 1 : made + 1] = [b"](" + number + b"e" + key]
            made -= 1
    else:
        made = rng.choice(_places(out, b"]}R") or [0])
        out[made] += key
    value = _value(rng, opcodes)
    change = rng.choice(
        (b"K\1a", value + b"a", _text(rng.choice(_NAMES)) + value + b"s", value + b"b")
    )
    later = [at for at in _places(out, b"us") if at > made]
    at = rng.choice(later) if later else len(out) - 1
    if out[at] == b"u":
        return [*out[:at], _text("z") + get + change, *out[at:]]
    return [*out[: at + 1], get + change + b"0", *out[at + 1 :]]


def other_memo(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    """Another entry is got, or something is filed under an index that is in use."""
    out = list(opcodes)
    gets, puts = _places(out, _GETS), _places(out, b"qr")
    if puts and (not gets or rng.random() < 0.4):
        at, other = rng.choice(puts), rng.choice(puts)
        out[at] = out[other]
        return out
    if gets:
        out[rng.choice(gets)] = _got(rng, opcodes)
    return out


def same_key(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    """A text becomes another one, or bytes of Python 2, or a number."""
    out = list(opcodes)
    texts = _places(out, b"X")
    if not texts:
        return other_memo(rng, opcodes)
    at, other = rng.choice(texts), rng.choice(texts)
    data = out[other][5:]
    short = b"U" + bytes([len(data) % 256]) + data[:255]
    out[at] = rng.choice((out[other], out[other], short, b"K\1", b"\x88", b"G?\xf0" + bytes(6)))
    return out


def duplicate(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    start = rng.randrange(len(opcodes))
    run = opcodes[start : start + rng.randint(1, 12)]
    at = rng.choice((start + len(run), rng.randrange(len(opcodes))))
    return [*opcodes[:at], *run, *opcodes[at:]]


def leave_out(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    at = rng.randrange(len(opcodes))
    return [*opcodes[:at], *opcodes[at + rng.randint(1, 3) :]]


def exchange(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    out = list(opcodes)
    at, other = rng.randrange(len(out)), rng.randrange(len(out))
    if rng.random() < 0.6:
        other = min(at + 1, len(out) - 1)
    out[at], out[other] = out[other], out[at]
    return out


def insert(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    at = rng.randrange(1, len(opcodes))
    new = rng.choice(
        (_value(rng, opcodes), b"0", b"2", b"1", b"(", b"t", b"R", b"b", b"s", b"a", b"Q")
    )
    return [*opcodes[:at], new, *opcodes[at:]]


def other_class(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    """A class or function becomes another of torch's or of the standard library."""
    out = list(opcodes)
    names = _places(out, b"c")
    if not names:
        return exchange(rng, opcodes)
    at = rng.choice(names)
    out[at] = rng.choice(
        (*(out[other] for other in names), b"ccollections\nOrderedDict\n",
         b"ccollections\nCounter\n", b"ctorch._utils\n_rebuild_tensor\n",
         b"ctorch._utils\n_rebuild_tensor_v2\n",
         b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nTensor\n", b"ctorch\nFloatTensor\n",
         b"ctorch.nn.parameter\nParameter\n", b"ctorch\nSize\n", b"c__builtin__\nset\n",
         b"ctorch._utils\n_rebuild_parameter_with_state\n", b"ctorch\nDoubleStorage\n",
         b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
         b"ctorch\ndevice\n", b"c_codecs\nencode\n", b"ccollections\ndefaultdict\n")
    )  # fmt: skip
    return out


def frames(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    """The pickle in protocol 4, a part of it in a frame that ends somewhere."""
    at = rng.randrange(1, len(opcodes))
    inside = sum(map(len, opcodes[at:]))
    exact = sum(map(len, opcodes[at : rng.randrange(at, len(opcodes)) + 1]))
    length = rng.choice((inside, exact, max(0, exact - 1), rng.randrange(inside + 3)))
    return [b"\x80\x04", *opcodes[1:at], b"\x95" + struct.pack("<Q", length), *opcodes[at:]]


def after_the_end(rng: random.Random, opcodes: Opcodes) -> Opcodes:
    return [*opcodes, rng.choice((b"x", b".", b"cos\nsystem\n."))]


PickleMutation = Callable[[random.Random, Opcodes], Opcodes]
PICKLE_MUTATIONS: tuple[PickleMutation, ...] = (
    *(give_state, give_items, add_arguments, more_or_fewer_arguments, change_later, change_later),
    *(other_memo, same_key, duplicate, leave_out, exchange, insert, other_class, frames),
    after_the_end,
)


def mutate_pickle(rng: random.Random, pickle: bytes) -> bytes:
    opcodes = split(pickle)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            opcodes = split(b"".join(rng.choice(PICKLE_MUTATIONS)(rng, opcodes)))
        except (IndexError, ValueError, KeyError):  # nothing of the kind is left
            continue
    return b"".join(opcodes)


# --- Containers ------------------------------------------------------------------------------


def mutate_opcodes(rng: random.Random, data: bytes, _: Sequence[bytes] = ()) -> bytes:
    """A file of any format of torch with another pickle, sizes and checksums being right."""
    if data.startswith(b"PK\3\4"):
        return _in_zip(rng, data)
    if data[:1] == b"\x80":
        return _in_legacy(rng, data)
    if data[257:262] == b"ustar":
        return _in_tar(rng, data)
    return mutate_header(rng, data)


def _in_zip(rng: random.Random, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        records = {info.filename: old.read(info) for info in old.infolist()}
    names = [name for name in records if name.endswith("data.pkl")]
    codes = [name for name in records if name.endswith(".py")]
    if codes and rng.random() < 0.3:
        name = rng.choice(codes)
        records[name] = _edited_code(rng, records[name].decode()).encode()
    else:
        records[names[0]] = mutate_pickle(rng, records[names[0]])
    if rng.random() < 0.05:
        name = rng.choice(list(records))
        root, _, rest = name.partition("/")
        records[f"{root}/{rest.upper()}"] = records.pop(name)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for name, content in records.items():
            new.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _edited_code(rng: random.Random, code: str) -> str:
    lines = code.split("\n")
    at = rng.randrange(len(lines))
    line = lines[at]
    lines[at] = rng.choice(
        (
            *(line.replace('"', "'"), line.replace(" ", "  ", 1), line.replace(" = ", "=")),
            *(line.replace(" : ", ": "), f"{line}  # note", f"# note\n{line}"),
            line.replace(",", ",\n", 1),
            *(line.replace("Tensor", "torch.Tensor"), line.replace("Tensor", "Optional[Tensor]")),
            *(line + "\n" + line, "", line.replace("parameters", "buffers"), "  " + line),
        )
    )  # fmt: skip
    return "\n".join(lines)


def _in_legacy(rng: random.Random, data: bytes) -> bytes:
    start = 0
    for _ in range(3):
        start = parse(data, start=start).end
    end = parse(data, start=start).end
    return data[:start] + mutate_pickle(rng, data[start:end]) + data[end:]


def _in_tar(rng: random.Random, data: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as old:
        members = {}
        for info in old.getmembers():
            content = old.extractfile(info)
            members[info.name] = b"" if content is None else content.read()
    members["pickle"] = mutate_pickle(rng, members["pickle"])
    extended = rng.random() < 0.2
    return tar_of(members, _pax(rng) if extended else b"")


def _pax(rng: random.Random) -> bytes:
    record = rng.choice(
        (b"comment=a", b"path=pickle", b"size=3", b"mtime=1.5", b"a=b\n15 path=pickle")
    )
    length = len(record) + 2
    length += len(str(length))
    found = b"%d %b\n" % (length, record)
    return found[: rng.choice((len(found), len(found) - 1))] + rng.choice((b"", b"x"))


def tar_of(members: Mapping[str, bytes], extended: bytes = b"") -> bytes:
    """A tar archive; `extended` is put as an extended header in front of its last member."""
    out = b""
    for number, (name, content) in enumerate(members.items(), 1):
        parts = [(name, tarfile.REGTYPE, content)]
        if extended and number == len(members):
            parts.insert(0, ("p", tarfile.XHDTYPE, extended))
        for member, kind, held in parts:
            info = tarfile.TarInfo(member)
            info.size, info.type = len(held), kind
            out += info.tobuf(tarfile.USTAR_FORMAT) + held + bytes(-len(held) % 512)
    return out + bytes(1024)


# --- Safetensors -----------------------------------------------------------------------------


def mutate_header(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with another header, its length being right in most."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    if rng.random() < 0.5:
        out = bytearray(header)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(out))
            match rng.randrange(4):
                case 0:
                    out[at] = rng.choice(b'"{}[]:,0123456789-+.eE nulltrfas\\\n\t\0\xff\x7f')
                case 1:
                    out.insert(at, rng.choice(b'"{}[]:,0-1 \\'))
                case 2:
                    del out[at]
                case _:
                    out[at] ^= 1 << rng.randrange(8)
        header = bytes(out)
    else:
        header = json.dumps(_edited_header(rng, json.loads(header))).encode()
    length = rng.choice((len(header), len(header), len(header), len(header) + rng.randint(-2, 9)))
    return struct.pack("<Q", max(0, length)) + header + body


def _edited_header(rng: random.Random, header: dict[str, object]) -> object:
    names = [name for name in header if name != "__metadata__"]
    entry = header[rng.choice(names)]
    assert isinstance(entry, dict)
    numbers = (0, 1, -1, 2, 1.0, True, None, "1", 2**31, 2**63, 2**64, -0.0, [], [1])
    match rng.randrange(6):
        case 0:
            entry["dtype"] = rng.choice(
                ("F32", "F16", "I8", "U64", "f32", "F4", "BOOL", 3, "C64", "F6_E2M3")
            )
        case 1:
            entry["shape"] = [rng.choice(numbers) for _ in range(rng.randint(0, 3))]
        case 2:
            entry["data_offsets"] = [rng.choice(numbers), rng.choice(numbers)]
        case 3:
            entry[rng.choice(("extra", "Dtype", "shape"))] = rng.choice(numbers)
        case 4:
            header["__metadata__"] = rng.choice(({"a": "b"}, {"a": 1}, [], "x", {}, None))
        case _:
            header[rng.choice(("", "new", "é", *names))] = header[rng.choice(names)]
    return header
