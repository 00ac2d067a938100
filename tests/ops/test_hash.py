"""`digest` and `check_digests` over files of every kind."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint as dcp
from archives import GENERATIONS, generation, read_records, write_records
from safetensors.torch import save_file
from torch.utils.serialization import config
from torch_checks import quiet, save

from ckpt_surgery import ReadError, UsageError, check_digests, convert, digest, selection, strip
from ckpt_surgery.fileio import FileSource
from ckpt_surgery.formats.base import LayoutOptions
from ckpt_surgery.writing.output import Output


def digests(*paths: Path, **options: Any) -> list[str]:
    report = digest(paths, **options)
    assert not report.failures
    return [model.digest for model in report.models]


def weights() -> OrderedDict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    return OrderedDict(
        {
            "conv.weight": torch.arange(48.0).reshape(2, 2, 3, 4).contiguous(),
            "fc.weight": base.clone(),
            "fc.bias": torch.tensor([1, 2, 3], dtype=torch.bfloat16),
            "tied": base.clone(),
            "count": torch.tensor(7),
        }
    )


def rearranged() -> dict[str, torch.Tensor]:
    """The same tensors in another order, in views of larger storages, two of them tied."""
    plain = weights()
    large = torch.zeros(4, 20)
    large[:, 5:11] = plain["fc.weight"]
    fc = large[:, 5:11]
    return {
        "count": plain["count"],
        "tied": fc,
        "fc.weight": fc,
        "conv.weight": plain["conv.weight"].contiguous(memory_format=torch.channels_last),
        "fc.bias": torch.nn.Parameter(plain["fc.bias"]),
    }


def test_containers_order_views_and_ties_do_not_matter(tmp_path: Path) -> None:
    plain = weights()
    paths = [
        save(plain, tmp_path / "zip.pth"),
        save(rearranged(), tmp_path / "views.pth"),
        save({"state_dict": plain, "epoch": 3}, tmp_path / "wrapped.pth"),
    ]
    torch.save(plain, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(plain, tmp_path / "w.safetensors")
    strip(tmp_path / "views.pth", Output(tmp_path / "compact.pth"), compact=True)
    paths += [tmp_path / name for name in ("legacy.pth", "w.safetensors", "compact.pth")]
    assert len(set(digests(*paths))) == 1


def test_the_generation_and_the_byte_order_of_an_archive_do_not_matter(tmp_path: Path) -> None:
    paths = [generation(name, tmp_path / f"{name}.pth") for name in GENERATIONS]
    assert len(set(digests(*paths))) == 1


def test_a_module_has_the_digest_of_its_state_dict(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    with quiet():
        torch.jit.script(net).save(str(tmp_path / "script.pt"))
    paths = [save(net, tmp_path / "m.pkl"), save(net.state_dict(), tmp_path / "w.pth")]
    assert len(set(digests(*paths, tmp_path / "script.pt"))) == 1


def test_number_of_threads_does_not_matter(tmp_path: Path) -> None:
    path = save({f"w{i}": torch.full((1000,), float(i)) for i in range(40)}, tmp_path / "w.pth")
    assert len({*digests(path, threads=1), *digests(path, threads=5)}) == 1


def test_a_file_of_several_state_dicts_has_a_digest_for_each(tmp_path: Path) -> None:
    plain = weights()
    path = save({"state_dict": plain, "ema": {"w": torch.ones(2)}}, tmp_path / "t.pth")
    report = digest([path])
    assert [(m.path, m.kind, m.address) for m in report.models] == [
        ("state_dict", "model", f"{path}#state_dict"),
        ("ema", "ema", f"{path}#ema"),
    ]
    assert digests(path, at=["state_dict"]) == digests(save(plain, tmp_path / "w.pth"))
    assert report.models[0].numel == sum(t.numel() for t in plain.values())
    assert report.to_dict()["models"][1]["nbytes"] == 8


def test_what_is_no_tensor_is_left_out_and_named(tmp_path: Path) -> None:
    with_state = OrderedDict({**weights(), "quant._extra_state": {"scale": 3}})
    path = save(with_state, tmp_path / "x.pth")
    (model,) = digest([path]).models
    assert model.left_out == ("quant._extra_state",)
    assert [model.digest] == digests(save(weights(), tmp_path / "w.pth"))


def test_wrong_bytes_have_no_digest(tmp_path: Path) -> None:
    path = save(weights(), tmp_path / "w.pth")
    data = bytearray(path.read_bytes())
    at = data.index(torch.arange(48.0).numpy().tobytes()) + 5
    data[at] ^= 1
    path.write_bytes(data)
    report = digest([path])
    assert report.exit_code == 2
    (failure,) = report.failures
    assert (failure.file, failure.entry) == (str(path), "conv.weight")
    assert "checksum" in failure.message


def test_an_archive_without_checksums_has_a_digest(tmp_path: Path) -> None:
    path = save(weights(), tmp_path / "w.pth")
    with mock.patch.object(config.save, "compute_crc32", False):
        bare = save(weights(), tmp_path / "bare.pth")
    assert digests(path) == digests(bare)


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    good = save(weights(), tmp_path / "w.pth")
    bad, optimizer = tmp_path / "bad.pth", tmp_path / "o.pth"
    bad.write_bytes(good.read_bytes()[:500])
    save({"epoch": 3}, optimizer)
    report = digest([bad, good, tmp_path / "missing", optimizer])
    assert [model.file for model in report.models] == [str(good)]
    assert [failure.file for failure in report.failures] == [
        str(bad),
        str(tmp_path / "missing"),
        str(optimizer),
    ]
    assert report.exit_code == 2
    assert "no state dict" in report.to_dict()["failures"][2]["message"]
    files = digest([good, tmp_path / "missing"], files=True)
    assert [len(files.files), len(files.failures)] == [1, 1]


def test_whole_files(tmp_path: Path) -> None:
    paths = [save({"w": torch.arange(n)}, tmp_path / f"{n}.pth") for n in (3, 400_000)]
    report = digest(paths, files=True)
    assert [file.digest for file in report.files] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    ]
    assert report.to_dict()["files"][1]["nbytes"] == paths[1].stat().st_size
    with FileSource.open(paths[0]) as file:
        assert digest([file], files=True).files == report.files[:1]


@pytest.mark.parametrize("option", [{"at": ["x"]}, {"per_tensor": True}])
def test_whole_files_have_no_parts(option: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'files' goes with neither"):
        digest([tmp_path], files=True, **option)


# --- lists


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return save({"model": weights(), "ema": {"w": torch.ones(2)}}, tmp_path / "t#1.pth")


def listed(path: Path) -> str:
    """A list of every digest of a file: whole, of models, of tensors."""
    report = digest([path], per_tensor=True)
    lines = [f"{m.digest}  {m.address}" for m in report.models]
    lines += [f"{d}  {path}#{m.path}/{n}" for m in report.models for n, d in m.tensors.items()]
    lines += [f"{f.digest} *{f.file}" for f in digest([path], files=True).files]
    return "\n".join(["# made by a test", "", *lines, ""])


def test_what_has_not_changed_is_right(trained: Path) -> None:
    report = check_digests(listed(trained), list_name="list")
    assert report.exit_code == 0
    assert report.count("ok") == len(report.checked) == 2 + 6 + 1
    assert report.to_dict()["checked"][0]["status"] == "ok"


def test_lines_in_crlf_and_capital_letters(tmp_path: Path) -> None:
    path = save(weights(), tmp_path / "w.pth")
    (model,) = digest([path]).models
    text = f"{model.digest[:6] + model.digest[6:].upper()}  {path}\r\n"
    assert check_digests(text, list_name="list").exit_code == 0


def test_lines_as_sha256sum_writes_them_with_tags(tmp_path: Path) -> None:
    path = save(weights(), tmp_path / "w.pth")
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    for digits, code in ((right, 0), ("0" * 64, 1)):
        line = f"SHA256 ({path}) = {digits}\n"
        assert check_digests(line, list_name="list").exit_code == code


def test_a_changed_tensor_is_found_in_what_holds_it(trained: Path) -> None:
    before = listed(trained)
    changed = weights()
    changed["fc.bias"] += 1
    save({"model": changed, "ema": {"w": torch.ones(2)}}, trained)
    report = check_digests(before, list_name="list")
    wrong = [each.address for each in report.checked if each.status == "differs"]
    assert wrong == [f"{trained}#model", f"{trained}#model/fc.bias", str(trained)]
    assert report.exit_code == 1
    assert all(each.found != each.expected for each in report.checked if each.address in wrong)


def test_a_tensor_that_is_gone_cannot_be_read(trained: Path) -> None:
    before = listed(trained)
    strip(trained, Output(in_place=True), selection(prefix="fc.bias"))
    report = check_digests(before, list_name="list")
    gone = [each.address for each in report.checked if each.status == "unreadable"]
    assert gone == [f"{trained}#model/fc.bias"]
    assert [failure.message for failure in report.failures] == [
        "there is no state dict and no tensor 'model/fc.bias' in it"
    ]
    assert report.exit_code == 2


def test_a_file_that_is_gone_makes_all_its_lines_unreadable(trained: Path) -> None:
    before = listed(trained)
    trained.unlink()
    report = check_digests(before, list_name="list")
    assert report.count("unreadable") == len(report.checked)


def test_a_line_must_say_which_of_several_state_dicts(trained: Path, tmp_path: Path) -> None:
    (digest_of_one,) = digests(save(weights(), tmp_path / "w.pth"))
    report = check_digests(f"{digest_of_one}  {trained}\n", list_name="list")
    assert report.exit_code == 2
    assert "2 state dicts" in report.failures[0].message


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "\n"])
def test_an_empty_list_is_refused(text: str) -> None:
    with pytest.raises(ReadError, match="the list is empty"):
        check_digests(text, list_name="list")


@pytest.mark.parametrize("line", ["abc  w.pth", "f" * 64, "g" * 64 + "  w", "ckpt2:" + "0" * 64])
def test_a_line_of_another_form_is_refused(line: str) -> None:
    with pytest.raises(ReadError, match="is no digest followed by a name") as caught:
        check_digests("0" * 64 + f"  a\n{line}\n", list_name="list")
    assert caught.value.entry == "line 2"


def test_a_damaged_file_is_unreadable_not_different(tmp_path: Path) -> None:
    path = save(weights(), tmp_path / "w.pth")
    before = listed(path)
    records = dict(read_records(path))
    del records["data/0"]
    write_records(path, list(records.items()))
    report = check_digests(before, list_name="list")
    assert {each.status for each in report.checked[:-1]} == {"unreadable"}
    assert report.exit_code == 2


def test_one_model_has_one_digest_in_every_container(tmp_path: Path) -> None:
    """torch.save, safetensors, shards of both, and a distributed checkpoint that torch wrote."""
    torch.manual_seed(0)
    base = torch.randn(40)
    tensors = {"a.w": torch.randn(5, 7), "b": torch.arange(9).to(torch.bfloat16), "n": base.clone()}
    files = [save(tensors, tmp_path / "w.pth"), tmp_path / "w.safetensors", tmp_path / "by_torch"]
    save_file(tensors, files[1])
    with quiet():
        dcp.save(tensors, checkpoint_id=files[2])
    for kind in ("safetensors-index", "torch-index", "dcp"):
        files.append(tmp_path / kind)
        options = LayoutOptions() if kind == "dcp" else LayoutOptions(max_shard_size=150)
        convert(files[0], Output(files[-1], format=kind, options=options))
    found = digest(files)
    assert not found.failures
    assert len({model.digest for model in found.models}) == 1
    assert len(found.models) == len(files)
    # each tensor has one, too, and a bit of one of them changes that and the model's
    assert len({tuple(sorted(model.tensors.items())) for model in found.models}) == 1
    tensors["a.w"].view(torch.int32)[3, 2] ^= 1
    (other,) = digest([save(tensors, tmp_path / "x.pth")]).models
    changed = {n for n, each in other.tensors.items() if each != found.models[0].tensors[n]}
    assert changed == {"a.w"}
    assert other.digest != found.models[0].digest
