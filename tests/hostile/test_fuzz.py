"""A few hundred mutated files; `scripts/fuzz` tries as many thousand as one likes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import Case, WrongAnswerError, _Refusal, _require_same_objects, check, seeds

FUZZ = Path(__file__).resolve().parents[2] / "scripts" / "fuzz"

TO_HAPPEN = ("both refuse", "both read, and agree", "only torch reads")


def test_untouched_files_are_read_alike(tmp_path: Path) -> None:
    for name, data in seeds().items():
        assert check(data, tmp_path) == "both read, and agree", name


def test_mutated_files_are_refused_or_read_as_torch_reads_them() -> None:
    """In a process of its own, since torch may crash on one."""
    line = [sys.executable, str(FUZZ), "--cases", "3000", "--seed", "7", "--processes", "1"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes.pop("wrong") == 0
    assert outcomes.pop("cases") == 3000 == sum(outcomes.values())
    only_ckpt = sum(n for outcome, n in outcomes.items() if outcome.startswith("only ckpt reads: "))
    for count in (*(outcomes[each] for each in TO_HAPPEN), only_ckpt):
        assert count > 50, "the mutations have become too weak or too strong"


def test_a_case_is_made_again_from_its_number() -> None:
    originals = seeds()
    for number in range(40):
        assert Case.make(3, number, originals) == Case.make(3, number, originals)


@pytest.mark.parametrize("what", ["bytes", "shape", "names"])
def test_fuzzing_notices_a_wrong_answer(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tests above could not fail."""
    data = seeds()["state dict"]
    (tmp_path / "other.pth").write_bytes(data)
    other = torch.load(tmp_path / "other.pth", weights_only=True)
    match what:
        case "bytes":
            other["0.weight"][0, 0] += 1
        case "shape":
            other["0.weight"] = other["0.weight"].t()
        case _:
            other["1.extra"] = other.pop("0.bias")
    monkeypatch.setattr("fuzzing._ask_torch", lambda _: other)
    with pytest.raises(WrongAnswerError):
        check(data, tmp_path)


def test_fuzzing_notices_a_tensor_outside_its_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = _Refusal("Trying to resize storage that is not resizable")
    monkeypatch.setattr("fuzzing._ask_torch", lambda _: refusal)
    monkeypatch.setattr("fuzzing._ask_restricted", lambda *_: refusal)
    with pytest.raises(WrongAnswerError, match="a tensor that torch refuses"):
        check(seeds()["state dict"], tmp_path)


def test_fuzzing_notices_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise IndexError

    monkeypatch.setattr("fuzzing._lay_out_torch_zip", broken)
    with pytest.raises(IndexError):
        check(seeds()["state dict"], tmp_path)


def test_what_contains_itself_is_compared_to_the_end() -> None:
    def ring(last: int) -> list[Any]:
        found: list[Any] = [{"a": (1, 2)}]
        found += [found, {"b": found, "last": last}]
        return found

    _require_same_objects(ring(3), ring(3))
    with pytest.raises(WrongAnswerError, match="'/2/last' is 4 after, 3 before"):
        _require_same_objects(ring(4), ring(3))
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    _require_same_objects(deep, deep)
