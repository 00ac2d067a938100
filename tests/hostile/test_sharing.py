"""What a small file repeats by references is counted, and refused before it takes the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bombs import ARCHIVES, archive, call, mapping, number, tensor, text, weights, whole
from lying_files import FILES

from ckpt_surgery import Checkpoint, inspect, read, strip
from ckpt_surgery.errors import CkptError, DamagedFileError, LimitExceededError
from ckpt_surgery.pickles import Limits


def written(path: Path, code: bytes) -> Path:
    path.write_bytes(archive(whole(code)))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "in.pth"


REFUSED: dict[str, tuple[type[CkptError], str]] = {
    "one list below many tensors": (LimitExceededError, "made of the same objects"),
    "tensors below many tensors": (LimitExceededError, "made of too many others"),
    "doubling sparse tensors": (LimitExceededError, "made of too many others"),
    "doubling jagged tensors": (LimitExceededError, "made of too many others"),
    "doubling modules": (LimitExceededError, "modules are shared or nested too often"),
    "compiled modules of compiled modules": (LimitExceededError, "shared or nested too often"),
    "parameters of parameters": (DamagedFileError, "made of itself"),
    "long key above a state dict": (LimitExceededError, "names of what it holds are too long"),
    "long key above other entries": (LimitExceededError, "names of what it holds are too long"),
    "long keys nested": (LimitExceededError, "names of what it holds are too long"),
    "long name in many state dicts": (LimitExceededError, "names of what it holds are too long"),
    "long device again and again": (DamagedFileError, "of absurd length"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stands_for_too_much_is_refused(name: str, file: Path) -> None:
    error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        read(written(file, ARCHIVES[name]()), limits=Limits(operations=1 << 24))


def test_limits_leave_honest_sharing_alone(file: Path) -> None:
    """A thousand sparse tensors that share their indices, and paths of usual length."""
    indices = torch.arange(3).reshape(1, 3)
    values = {
        f"layer.{i}.weight": torch.sparse_coo_tensor(
            indices, torch.ones(3), (5,), check_invariants=True
        )
        for i in range(1000)
    }
    torch.save({"outer": {"state_dict": values}}, file)
    with read(file, limits=Limits(operations=1 << 20)) as checkpoint:
        assert len(list(checkpoint.tensors)) == 1000


def described(path: Path) -> Checkpoint:
    with read(path) as checkpoint:
        return checkpoint


def test_wrapping_again_what_is_wrapped_is_carried_but_not_described(file: Path) -> None:
    checkpoint = described(written(file, ARCHIVES["from_type of from_type"]()))
    assert list(checkpoint.tensors) == []
    assert checkpoint.others


def test_long_class_name_is_shown_in_part(file: Path) -> None:
    checkpoint = described(written(file, ARCHIVES["long class name again and again"]()))
    assert {len(other.type) for other in checkpoint.others} == {200}


def test_long_keys_are_no_training_state(file: Path) -> None:
    code = mapping(
        (text("state_dict"), weights()),
        (text("x" * 500 + "_optimizer"), mapping((text("a"), number(1)))),
        (text("my_optimizer"), mapping((text("a"), number(1)))),
    )
    report = strip(written(file, code), file.with_name("out.pth"), training_state=True)
    assert report.dropped == ("my_optimizer",)


def test_keys_that_look_alike_have_paths_of_their_own(file: Path) -> None:
    checkpoint = described(written(file, ARCHIVES["many keys that look alike"]()))
    paths = [other.path for other in checkpoint.others]
    assert len(set(paths)) == len(paths) == 10_000
    assert paths[:3] == ["tuple", "tuple#2", "tuple#3"]


def test_many_entries_are_dropped_at_once(file: Path) -> None:
    out = file.with_name("out.pth")
    report = strip(written(file, ARCHIVES["many optimizers"]()), out, training_state=True)
    assert len(report.dropped) == 5_000
    left = torch.load(out, weights_only=True)
    assert list(left) == ["state_dict"]
    assert left["state_dict"]["w"].tolist() == [1, 2, 3, 4]


def test_optimizers_that_share_one_large_state_are_refused(file: Path) -> None:
    with pytest.raises(LimitExceededError, match="the same object"):
        inspect(written(file, ARCHIVES["one state below many optimizers"]()))


def test_dictionary_of_python_2_is_counted(file: Path) -> None:
    pairs = b"](](" + text("a") + number(1) + b"e](" + text("b") + number(2) + b"ee"
    old = call("collections.OrderedDict", pairs)
    report = inspect(written(file, mapping((text("m"), weights()), (text("old"), old))))
    assert report.details["old"] == {"entries": 2}


def test_record_marked_as_a_folder_is_refused(file: Path) -> None:
    """torch takes its name for all that is to be read, and leaves memory as it found it."""
    file.write_bytes(FILES["zip: storage marked as a folder"]())
    with pytest.raises(DamagedFileError, match="marked as a folder"):
        read(file)
    assert torch.load(file, weights_only=True)["w"].shape == (4,)


def test_empty_first_keys_leave_no_trace_in_a_path(file: Path) -> None:
    """As everywhere paths are joined: the top level is the empty path."""
    code = mapping((text(""), mapping((text(""), mapping((text("a"), weights()))))))
    assert [each.path for each in described(written(file, code)).state_dicts] == ["a"]
    code = mapping((text("a"), mapping((text(""), mapping((text("w"), tensor()))))))
    assert [each.path for each in described(written(file, code)).state_dicts] == ["a/"]
