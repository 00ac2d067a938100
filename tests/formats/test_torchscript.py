"""A TorchScript archive is read as the state dict that ``torch.jit.load`` gives."""

import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from state_dict_oracle import assert_same, load
from torch import nn

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import FileSource, read_zip
from ckpt_surgery.fileio.atomic import atomic_output
from ckpt_surgery.formats import torchscript
from ckpt_surgery.formats.torch_zip import is_torchscript
from ckpt_surgery.formats.torch_zip_layout import _lay_out_torch_zip
from ckpt_surgery.formats.torchscript import read_torchscript
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    file = FileSource.open(path)
    return read_torchscript(file, read_zip(file), limits)


def script(model: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(model), path)
    return path


# A class that was compiled before in this process gets another name.
LINEAR_CODE = r"code/__torch__/torch/nn/modules/linear(/___torch_mangle_\d+)?\.py"
LINEAR_CLASS = r"__torch__\.torch\.nn\.modules\.linear(\.___torch_mangle_\d+)?\.Linear"


def edited(source: Path, target: Path, edit: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive whose records `edit` has gone over; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = edit(name.partition("/")[2], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


class Mixed(nn.Module):
    """Every kind of attribute that a script module can have."""

    optional: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("transient", torch.ones(2), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("optional", torch.ones(1))
        self.register_parameter("none", None)
        self.register_buffer("last", torch.arange(3))
        self.weight = nn.Parameter(torch.ones(2))
        self.plain = torch.ones(5)
        self.listed = [torch.zeros(2), torch.zeros(3)]
        self.shared = nn.Sequential(self.linear, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        optional = self.optional
        if optional is not None:
            x = x + optional
        total = self.weight.sum() + self.plain.sum() + self.transient.sum() + self.listed[0].sum()
        return self.norm(self.linear(x)) + total


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


class Odd(nn.Module):
    """Names that are no identifiers, views, element types."""

    def __init__(self) -> None:
        super().__init__()
        base = torch.arange(24.0).reshape(4, 6)
        self.register_buffer("é-x", torch.ones(1))
        self.register_parameter("q-z", nn.Parameter(torch.ones(1)))
        self.register_buffer("row", base[1])
        self.register_buffer("columns", base[:, 2:4])
        self.register_buffer("turned", base.t())
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("short", torch.ones(2, dtype=torch.bfloat16))
        self.list = nn.ParameterList([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))])
        self.layers = nn.ModuleList([nn.Linear(1, 1)] * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)


SCRIPTED: dict[str, Callable[[], nn.Module]] = {
    "mixed": Mixed,
    "tied": Tied,
    "lstm": lambda: nn.LSTM(2, 3, 2),
    "cnn": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.ReLU())),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8),
}


@pytest.mark.parametrize("name", SCRIPTED)
def test_scripted_model_reads_as_jit_loads_it(name: str, tmp_path: Path) -> None:
    model = SCRIPTED[name]()
    path = script(model, tmp_path / "model.pt")
    loaded = torch.jit.load(path)
    checkpoint = read(path)
    (state_dict,) = checkpoint.state_dicts
    assert_same(state_dict, loaded.state_dict())
    assert (checkpoint.format, state_dict.path, state_dict.kind) == ("torchscript", "", "model")
    assert checkpoint.notes == ()
    parameters = {n for n, _ in loaded.named_parameters(remove_duplicate=False)}
    assert {e.name for e in state_dict.entries if e.role == "parameter"} == parameters
    assert {e.role for e in state_dict.entries} <= {"parameter", "buffer"}


@pytest.mark.parametrize(
    ("make", "example"),
    [
        (Tied, torch.tensor([[1, 2]])),
        (Odd, torch.ones(1, 1)),
        (lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2)), torch.ones(1, 1, 5)),
    ],
)
def test_traced_model_reads_as_jit_loads_it(
    make: Callable[[], nn.Module], example: torch.Tensor, tmp_path: Path
) -> None:
    torch.jit.save(torch.jit.trace(make().eval(), example), tmp_path / "model.pt")
    (state_dict,) = read(tmp_path / "model.pt").state_dicts
    assert_same(state_dict, torch.jit.load(tmp_path / "model.pt").state_dict())


def test_published_model_reads_as_jit_loads_it(shared_dir: Path) -> None:
    path = shared_dir / "real" / "silero-vad" / "silero_vad_2023-04.jit"
    (state_dict,) = read(path).state_dicts
    assert_same(state_dict, torch.jit.load(path).state_dict())
    assert len(state_dict.entries) == 124


def test_tensors_outside_the_state_dict_are_others(tmp_path: Path) -> None:
    checkpoint = read(script(Mixed(), tmp_path / "model.pt"))
    found = {other.path: [t.shape for t in other.tensors] for other in checkpoint.others}
    assert found == {"optional": [(1,)], "plain": [(5,)], "listed": [(2,), (3,)]}
    kinds = {other.path: other.type for other in checkpoint.others}
    assert kinds["plain"] == "torch._utils._rebuild_tensor_v2"


def test_constants_of_the_code_are_others(tmp_path: Path) -> None:
    constant = torch.arange(6.0)

    class Adds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + constant

    torch.jit.save(torch.jit.trace(Adds(), torch.ones(6)), tmp_path / "model.pt")
    (other,) = read(tmp_path / "model.pt").others
    assert (other.path, other.type) == ("constants", "tuple")
    (tensor,) = other.tensors
    assert torch.equal(load(tensor), constant)


def test_tied_tensors_share_their_storage(tmp_path: Path) -> None:
    checkpoint = read(script(Tied(), tmp_path / "model.pt"))
    first, second, _ = (tensor for _, tensor in checkpoint.tensors)
    assert first.storage is second.storage


class Packed(nn.Module):
    """Says itself what is saved of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.packed = torch.zeros(3)

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.packed, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.packed = state[0]
        self.weight = state[0]
        self.training = state[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.packed.sum()


def test_module_restored_by_its_own_code_is_named(tmp_path: Path) -> None:
    path = script(nn.Sequential(Packed(), nn.BatchNorm1d(2)), tmp_path / "model.pt")
    checkpoint = read(path)
    (state_dict,) = checkpoint.state_dicts
    expected = torch.jit.load(path).state_dict()
    assert state_dict.names == [name for name in expected if name.startswith("1.")]
    assert state_dict.metadata is not None
    assert list(state_dict.metadata) == list(expected._metadata)
    assert checkpoint.notes == ("'0' is restored by its own code: its entries are left out",)
    (other,) = checkpoint.others
    assert other.path == "0"
    assert [tensor.shape for tensor in other.tensors] == [(3,)]


def test_packed_weights_are_others(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 3)))
    path = script(model, tmp_path / "model.pt")
    checkpoint = read(path)
    (state_dict,) = checkpoint.state_dicts
    assert_same(state_dict, torch.jit.load(path).state_dict())
    (other,) = checkpoint.others
    assert other.path == "0._packed_params._packed_params"
    assert (3, 2) in [tensor.shape for tensor in other.tensors]


def test_class_without_declared_buffers_has_none(tmp_path: Path) -> None:
    """As archives of torch before 1.6; ``torch.jit.load`` says the same."""

    def edit(name: str, data: bytes) -> bytes:
        return re.sub(rb"  __buffers__.*\n", b"", data) if name.endswith(".py") else data

    path = edited(script(Mixed(), tmp_path / "model.pt"), tmp_path / "old.pt", edit)
    (state_dict,) = read(path).state_dicts
    assert_same(state_dict, torch.jit.load(path).state_dict())
    assert {entry.role for entry in state_dict.entries} == {"parameter"}


def test_archive_is_known_by_its_constants(tmp_path: Path) -> None:
    script(Tied(), tmp_path / "script.pt")
    torch.save(Tied().state_dict(), tmp_path / "plain.pt")
    for name, expected in (("script.pt", True), ("plain.pt", False)):
        with FileSource.open(tmp_path / name) as file:
            assert is_torchscript(read_zip(file)) is expected


@pytest.mark.parametrize("name", SCRIPTED)
def test_written_state_dict_loads_as_that_of_the_script(name: str, tmp_path: Path) -> None:
    path = script(SCRIPTED[name](), tmp_path / "model.pt")
    with read(path) as checkpoint, atomic_output(tmp_path / "plain.pt") as sink:
        _lay_out_torch_zip(checkpoint).write(sink)
    plain = torch.load(tmp_path / "plain.pt", weights_only=True)
    expected = torch.jit.load(path).state_dict()
    assert list(plain) == list(expected)
    assert plain._metadata == expected._metadata
    for key, value in plain.items():
        assert torch.equal(value, expected[key])
        assert not value.requires_grad


def test_globals_are_listed_once(tmp_path: Path) -> None:
    names = read(script(Tied(), tmp_path / "model.pt")).globals
    assert len(set(names)) == len(names)
    assert any(re.fullmatch(LINEAR_CLASS, name) for name in names)


# --- damaged archives ---------------------------------------------------------------------------


def without(wanted: str) -> Callable[[str, bytes], bytes | None]:
    return lambda name, data: None if re.fullmatch(wanted, name) else data


def replaced(wanted: str, content: bytes) -> Callable[[str, bytes], bytes | None]:
    return lambda name, data: content if re.fullmatch(wanted, name) else data


@pytest.mark.parametrize(
    ("edit", "message", "entry"),
    [
        (without("data.pkl"), "the record is missing", "data.pkl"),
        (without("constants.pkl"), "the record is missing", "constants.pkl"),
        (without("data/0"), "'data/0' is missing", "storage 0"),
        (replaced("data/0", b"short"), "has 5 bytes where", "storage 0"),
        (without(LINEAR_CODE), "does not declare", LINEAR_CODE),
        (replaced(LINEAR_CODE, b"class Lin(Module):\n"), "does not declare", LINEAR_CODE),
        (replaced(LINEAR_CODE, b"\xff"), "not UTF-8", LINEAR_CODE),
        (replaced("data.pkl", b"\x80\x02K\x01."), "holds no module", "data.pkl"),
        (replaced("data.pkl", b"\x80\x02}."), "holds no module", "data.pkl"),
        (replaced("data.pkl", b"\x80\x02cos\nsystem\n)\x81."), "does not declare", "code/os.py"),
        (replaced("data.pkl", b"\x80\x02K\x01)\x81."), "holds no module", "data.pkl"),
    ],
)
def test_damaged_archive_is_refused(
    edit: Callable[[str, bytes], bytes | None], message: str, entry: str, tmp_path: Path
) -> None:
    path = edited(script(Tied(), tmp_path / "model.pt"), tmp_path / "bad.pt", edit)
    with pytest.raises(DamagedFileError, match=message) as caught:
        read(path)
    assert caught.value.entry is not None
    assert re.fullmatch(entry, caught.value.entry)


def test_class_that_is_no_module_is_no_root(tmp_path: Path) -> None:
    path = script(Tied(), tmp_path / "model.pt")

    def edit(name: str, data: bytes) -> Any:
        return data.replace(b"(Module):", b":") if name.startswith("code/") else data

    with pytest.raises(DamagedFileError, match="holds no module"):
        read(edited(path, tmp_path / "bad.pt", edit))


def test_module_that_contains_itself_is_refused(tmp_path: Path) -> None:
    path = script(Tied(), tmp_path / "model.pt")
    (linear,) = (name for name in read(path).globals if re.fullmatch(LINEAR_CLASS, name))
    module, _, name = linear.rpartition(".")
    looped = b"\x80\x02c%s\n%s\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb." % (
        module.encode(),
        name.encode(),
    )
    with pytest.raises(DamagedFileError, match="contains itself") as caught:
        read(edited(path, tmp_path / "bad.pt", replaced("data.pkl", looped)))
    assert caught.value.entry == "a"


def test_code_is_read_up_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(nn.Sequential(nn.ReLU()), tmp_path / "model.pt")
    with zipfile.ZipFile(path) as archive:
        code = [info for info in archive.infolist() if "/nn/modules/" in info.filename]
        size = sum(info.file_size for info in code if info.filename.endswith(".py"))
    monkeypatch.setattr(torchscript, "_MAX_CODE", size)
    read(path)
    monkeypatch.setattr(torchscript, "_MAX_CODE", size - 1)
    with pytest.raises(LimitExceededError):
        read(path)


def test_code_is_never_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    line = f"  __import__('pathlib').Path({str(witness)!r}).touch()\n".encode()

    def edit(name: str, data: bytes) -> bytes:
        return b"def f():\n" + line + data + line if name.endswith(".py") else data

    path = edited(script(Tied(), tmp_path / "model.pt"), tmp_path / "bad.pt", edit)
    with pytest.raises(DamagedFileError, match="is not as torch prints it") as caught:
        read(path)
    assert (caught.value.entry or "").startswith("code/__torch__/")
    assert not witness.exists()


@pytest.mark.parametrize("record", ["data.pkl", "constants.pkl"])
def test_what_follows_the_end_of_a_pickle_is_told(record: str, tmp_path: Path) -> None:
    path = script(Tied(), tmp_path / "model.pt")
    longer = edited(path, tmp_path / "bad.pt", lambda n, d: d + b"more" if n == record else d)
    told = "4 bytes follow the end of its pickle"
    assert read(path).unwritable == ""
    assert read(longer).unwritable == told
    assert f"an edit would lose something: {told}" in read(longer).notes


@pytest.mark.parametrize("made", [b")\x81}\x81", b"}\x81", b")\x85\x81"])
def test_objects_that_only_jit_finds_are_refused(made: bytes, tmp_path: Path) -> None:
    """It pops what an object is made of unseen, so that it may as well be another object."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    whole = script(model, tmp_path / "s.pt")

    def edit(name: str, data: bytes) -> bytes:
        if name != "data.pkl":
            return data
        at = data.rindex(b")\x81")  # the batch norm
        return data[:at] + made + data[at + 2 :]

    path = edited(whole, tmp_path / "edited.pt", edit)
    assert [*torch.jit.load(path).state_dict()] == [*model.state_dict()]
    with pytest.raises(DamagedFileError, match="is not made as torch"):
        read(path)


def test_hooks_that_jit_does_not_look_at_are_refused(tmp_path: Path) -> None:
    """``torch.load`` would give them to the tensor that is written."""
    path = script(Tied(), tmp_path / "model.pt")
    hooked = b"}X\1\0\0\0aK\1s\x85R"

    def with_hooks(name: str, data: bytes) -> bytes:
        return data.replace(b")R", hooked, 1) if name == "data.pkl" else data

    bad = edited(path, tmp_path / "bad.pt", with_hooks)
    assert torch.jit.load(bad).state_dict()
    with pytest.raises(DamagedFileError, match="has arguments of the wrong form"):
        read(bad)


# What torch's parser understands like the printed form, and a pattern for that does not.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "a comment": lambda code: code.replace("  __parameters__", "# note\n  __parameters__", 1),
    "a comment behind": lambda code: code.replace("weight : Tensor", "weight : Tensor  # note"),
    "other quotes": lambda code: code.replace('"weight"', "'weight'"),
    "no space": lambda code: code.replace("__parameters__ =", "__parameters__="),
    "two lines": lambda code: code.replace('["weight", ', '["weight",\n  '),
    "a space in front of a colon": lambda code: code.replace("(Module):", "(Module) :"),
    "another name of the type": lambda code: code.replace(": Tensor\n", ": torch.Tensor\n"),
    "brackets around the type": lambda code: code.replace(": Tensor\n", ": (Tensor)\n"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_code_of_another_form_is_refused(name: str, tmp_path: Path) -> None:
    def edit(record: str, data: bytes) -> bytes:
        is_code = re.fullmatch(LINEAR_CODE, record)
        return SPELLINGS[name](data.decode()).encode() if is_code else data

    path = script(nn.Sequential(nn.Linear(2, 2)), tmp_path / "model.pt")
    bad = edited(path, tmp_path / "bad.pt", edit)
    assert list(torch.jit.load(bad).state_dict()) == ["0.weight", "0.bias"]
    with pytest.raises(DamagedFileError, match="is not as torch prints it"):
        read(bad)
