"""Optimizers follow their model's edits, or the edit says why they cannot."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckpt_surgery as ckpt
from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Storage, Tensor
from ckpt_surgery.compute.elements import load_elements
from ckpt_surgery.fileio import Bytes
from ckpt_surgery.pickles import Dict, Object
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.training.optimizers import find, keep_in_step


def net(*widths: int) -> nn.Sequential:
    """Linear layers of these widths, one after another."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


def stepped(*models: nn.Module, kind: Any = torch.optim.Adam, named: bool = False) -> Any:
    """An optimizer over these models, after one step."""
    pairs = [pair for model in models for pair in model.named_parameters()]
    optimizer = kind(pairs if named else [p for _, p in pairs], lr=0.1)
    for _, parameter in pairs:
        parameter.grad = parameter.detach() * 2 + 1
    optimizer.step()
    return optimizer


def save(path: Path, **entries: Any) -> Path:
    torch.save(entries, path)
    return path


def prefixed(prefix: str) -> ckpt.Selection:
    return ckpt.selection(prefix=prefix)


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """A model of which an optimizer holds half, in a way that two halves would fit."""
    model = net(4, 4, 4, 4, 4)
    optimizer = stepped(model[1], model[2])
    return save(tmp_path / "alike.pth", model=model.state_dict(), optimizer=optimizer.state_dict())


def test_doubt_refuses_and_names_the_choices(alike: Path, tmp_path: Path) -> None:
    with pytest.raises(ckpt.PlanError, match=r"'optimizer' .* may be any of '\d") as refused:
        ckpt.strip(alike, tmp_path / "out.pth", prefixed("3"))
    assert "--optimizer drop" in (refused.value.hint or "")
    assert "--optimizer keep" in (refused.value.hint or "")
    assert not (tmp_path / "out.pth").exists()


def test_doubt_about_nothing_that_goes_is_no_doubt(tmp_path: Path) -> None:
    """Only what is removed has to be certain."""
    model = net(4, 4, 4, 4, 9)
    optimizer = stepped(model[1], model[2])
    path = save(tmp_path / "a.pth", model=model.state_dict(), optimizer=optimizer.state_dict())
    report = ckpt.strip(path, tmp_path / "out.pth", prefixed("3"))
    assert report.optimizers == ()
    left = torch.load(tmp_path / "out.pth")["optimizer"]
    assert len(left["state"]) == 4


@pytest.mark.parametrize("choice", ["keep", "drop"])
def test_the_choice_is_carried_out(alike: Path, tmp_path: Path, choice: Any) -> None:
    report = ckpt.strip(alike, tmp_path / "out.pth", prefixed("3"), optimizer=choice)
    out = torch.load(tmp_path / "out.pth")
    before = torch.load(alike)
    if choice == "drop":
        assert "optimizer" not in out
        assert report.dropped == ("optimizer",)
        assert {"edit": "drop-entry", "path": "optimizer"} in report.plan
    else:
        assert len(out["optimizer"]["state"]) == len(before["optimizer"]["state"])
        assert any("out of step" in warning for warning in report.warnings)
    assert [c.action for c in report.optimizers] == ["dropped" if choice == "drop" else "kept"]


def test_a_model_that_does_not_change_leaves_optimizers_alone(alike: Path, tmp_path: Path) -> None:
    report = ckpt.rename(alike, tmp_path / "out.pth", [ckpt.AddPrefix("x")])
    assert report.optimizers == ()
    before, after = torch.load(alike)["optimizer"], torch.load(tmp_path / "out.pth")["optimizer"]
    assert before["param_groups"] == after["param_groups"]
    for key, state in before["state"].items():
        assert all(torch.equal(value, after["state"][key][name]) for name, value in state.items())


def test_each_model_of_two_has_its_own_optimizer(tmp_path: Path) -> None:
    one, two = net(4, 5, 6), net(7, 8, 9)
    path = save(
        tmp_path / "gan.pth",
        generator=one.state_dict(),
        discriminator=two.state_dict(),
        optimizer_g=stepped(one).state_dict(),
        optimizer_d=stepped(two).state_dict(),
    )
    report = ckpt.strip(path, tmp_path / "out.pth", prefixed("1"), at=["discriminator"])
    assert [change.path for change in report.optimizers] == ["optimizer_d"]
    out = torch.load(tmp_path / "out.pth")
    assert list(out["optimizer_d"]["state"]) == [0, 1]
    assert list(out["optimizer_g"]["state"]) == [0, 1, 2, 3]


def test_one_optimizer_of_two_models_is_followed_through_both(tmp_path: Path) -> None:
    one, two = net(4, 5, 6), net(7, 8, 9)
    path = save(
        tmp_path / "cycle.pth",
        a=one.state_dict(),
        b=two.state_dict(),
        optimizer=stepped(one, two).state_dict(),
    )
    report = ckpt.strip(path, tmp_path / "out.pth", prefixed("0"), at=["b"])
    assert report.optimizers[0].removed == ("b/0.weight", "b/0.bias")
    state = torch.load(tmp_path / "out.pth")["optimizer"]["state"]
    assert [tuple(s["exp_avg"].shape) for s in state.values()] == [
        (5, 4), (5,), (6, 5), (6,), (9, 8), (9,),
    ]  # fmt: skip


def test_two_models_that_an_optimizer_fits_alike(tmp_path: Path) -> None:
    student, teacher = net(4, 5, 6), net(4, 5, 6)
    path = save(
        tmp_path / "distil.pth",
        student=student.state_dict(),
        teacher=teacher.state_dict(),
        optimizer=stepped(student).state_dict(),
    )
    with pytest.raises(
        ckpt.PlanError, match="not certain which of 'student', 'teacher' the optimizer"
    ):
        ckpt.strip(path, tmp_path / "one.pth", prefixed("1"), at=["teacher"])
    ckpt.strip(path, tmp_path / "both.pth", prefixed("1"))  # it does not matter which
    assert len(torch.load(tmp_path / "both.pth")["optimizer"]["state"]) == 2


def test_an_optimizer_of_no_model_in_the_file_blocks_every_edit(tmp_path: Path) -> None:
    one, two = net(4, 5, 6), net(7, 8, 9)
    path = save(
        tmp_path / "o.pth",
        a=one.state_dict(),
        b=two.state_dict(),
        optimizer=stepped(net(3, 3)).state_dict(),
    )
    for at in ("a", "b"):
        with pytest.raises(ckpt.PlanError, match="the optimizer in 'optimizer'"):
            ckpt.strip(path, tmp_path / "out.pth", prefixed("1"), at=[at])
    ckpt.rename(path, tmp_path / "out.pth", [ckpt.AddPrefix("m")])


def test_among_very_many_models_none_is_guessed(tmp_path: Path) -> None:
    models = {f"m{i}": net(2, 3).state_dict() for i in range(40)}
    path = save(tmp_path / "many.pth", optimizer=stepped(net(2, 3)).state_dict(), **models)
    facts = ckpt.inspect(path).training["optimizer"].optimizers[0]
    assert (facts.certainty, facts.reason) == ("none", "there are 40 models that it may belong to")
    with pytest.raises(ckpt.PlanError, match=r"not certain which of 'm0', .*, … the optimizer"):
        ckpt.strip(path, tmp_path / "out.pth", ckpt.selection(pattern="bias"), at=["m39"])


def test_names_that_no_honest_file_has_leave_an_optimizer_without_a_model(tmp_path: Path) -> None:
    model = {"x" * 2000: torch.zeros(2, 2)}
    path = save(tmp_path / "n.pth", model=model, optimizer=stepped(net(2, 2)).state_dict())
    facts = ckpt.inspect(path).training["optimizer"].optimizers[0]
    assert (facts.certainty, facts.state_dicts) == ("none", ())


def test_the_nearest_model_is_the_optimizer_s_own(tmp_path: Path) -> None:
    student, teacher = net(4, 5, 6), net(4, 5, 6)
    path = save(
        tmp_path / "nested.pth",
        student={"model": student.state_dict(), "optimizer": stepped(student).state_dict()},
        teacher={"model": teacher.state_dict(), "optimizer": stepped(teacher).state_dict()},
    )
    ckpt.strip(path, tmp_path / "out.pth", prefixed("1"), at=["teacher/model"])
    out = torch.load(tmp_path / "out.pth")
    assert len(out["teacher"]["optimizer"]["state"]) == 2
    assert len(out["student"]["optimizer"]["state"]) == 4


def test_lists_of_optimizers_as_lightning_keeps_them(tmp_path: Path) -> None:
    model = net(4, 5, 6, 7)
    path = save(
        tmp_path / "l.ckpt",
        state_dict=model.state_dict(),
        optimizer_states=[stepped(model[0]).state_dict(), stepped(*model[1:]).state_dict()],
        lr_schedulers=[{"last_epoch": 3, "_last_lr": [0.1], "base_lrs": [0.1], "_step_count": 4}],
    )
    report = ckpt.strip(path, tmp_path / "out.ckpt", prefixed("2"))
    assert [c.path for c in report.optimizers] == ["optimizer_states/1"]
    out = torch.load(tmp_path / "out.ckpt")
    assert [len(o["state"]) for o in out["optimizer_states"]] == [2, 2]
    dropped = ckpt.strip(path, tmp_path / "d.ckpt", prefixed("2"), optimizer="drop")
    assert dropped.dropped == ("optimizer_states",)


def test_what_is_kept_is_out_of_step_only_if_it_is(tmp_path: Path) -> None:
    model = net(4, 5, 6, 7)
    path = save(
        tmp_path / "l.ckpt",
        state_dict=model.state_dict(),
        optimizer_states=[stepped(model[0]).state_dict(), stepped(*model[1:]).state_dict()],
    )
    report = ckpt.strip(path, tmp_path / "out.ckpt", prefixed("2"), optimizer="keep")
    assert [change.path for change in report.optimizers] == ["optimizer_states/1"]
    add = [ckpt.AddPrefix("m")]
    assert ckpt.rename(path, tmp_path / "r.ckpt", add, optimizer="keep").optimizers == ()
    one = net(4, 5)
    path = save(
        tmp_path / "n.pth",
        model=one.state_dict(),
        optimizer=stepped(one, named=True).state_dict(),
    )
    renamed = ckpt.rename(path, tmp_path / "named.pth", add, optimizer="keep")
    assert [change.action for change in renamed.optimizers] == ["kept"]


def test_an_optimizer_among_other_things_is_not_dropped_with_them(tmp_path: Path) -> None:
    model = net(4, 5, 6)
    trainer = {"parts": [stepped(model).state_dict(), 3], "best": 3}
    path = save(tmp_path / "t.pth", model=model.state_dict(), trainer=trainer)
    with pytest.raises(ckpt.PlanError, match="'trainer' holds other things too"):
        ckpt.strip(path, tmp_path / "out.pth", prefixed("1"), optimizer="drop")
    ckpt.strip(path, tmp_path / "out.pth", prefixed("1"))
    assert len(torch.load(tmp_path / "out.pth")["trainer"]["parts"][0]["state"]) == 2


def test_an_optimizer_beside_other_things_is_dropped_alone(tmp_path: Path) -> None:
    model = net(4, 5, 6)
    trainer = {"optimizer": stepped(model).state_dict(), "best": 3}
    path = save(tmp_path / "t.pth", model=model.state_dict(), trainer=trainer)
    report = ckpt.strip(path, tmp_path / "out.pth", prefixed("1"), optimizer="drop")
    assert report.dropped == ("trainer/optimizer",)
    assert torch.load(tmp_path / "out.pth")["trainer"] == {"best": 3}
    ckpt.strip(path, tmp_path / "kept.pth", prefixed("1"))
    assert len(torch.load(tmp_path / "kept.pth")["trainer"]["optimizer"]["state"]) == 2


@pytest.mark.parametrize("edit", ["strip", "rename"])
def test_names_of_nothing_in_the_model_are_refused(edit: str, tmp_path: Path) -> None:
    """As sharded training leaves them, whose parameters are all in one."""
    name = "_fsdp_wrapped_module._flat_param"
    state = {"exp_avg": torch.zeros(61), "step": torch.tensor(1.0)}
    sharded = {"state": {name: state}, "param_groups": [{"params": [name], "lr": 0.1}]}
    path = save(tmp_path / "s.pth", model=net(4, 5, 6).state_dict(), optimizer=sharded)
    run: Any = ckpt.strip if edit == "strip" else ckpt.rename
    how = prefixed("1") if edit == "strip" else [ckpt.AddPrefix("m")]
    with pytest.raises(ckpt.PlanError, match="it stores names such as '_fsdp_wrapped_module"):
        run(path, tmp_path / "out.pth", how)


def test_an_optimizer_inside_of_another_s_state_is_dropped_with_it(tmp_path: Path) -> None:
    """As DeepSpeed keeps it: what is called an optimizer is one as a whole."""
    model = net(4, 5, 6)
    inner = {"base_optimizer_state": stepped(model).state_dict(), "partition": [torch.ones(3)]}
    path = save(tmp_path / "d.pth", model=model.state_dict(), optimizer=inner, epoch=3)
    report = ckpt.strip(path, tmp_path / "out.pth", prefixed("1"), optimizer="drop")
    assert report.dropped == ("optimizer",)
    assert list(torch.load(tmp_path / "out.pth")) == ["model", "epoch"]


@pytest.mark.parametrize("edit", ["strip", "rename"])
def test_an_unknown_layout_is_carried_over_and_said_so(edit: str, tmp_path: Path) -> None:
    model = net(4, 5, 6)
    unknown = {"momenta": [torch.ones(5, 4), torch.ones(5)], "hyper": {"lr": 0.1}}
    path = save(tmp_path / "u.pth", model=model.state_dict(), optimizer=unknown)
    out = tmp_path / "out.pth"
    if edit == "strip":
        report = ckpt.strip(path, out, prefixed("1"))
    else:
        report = ckpt.rename(path, out, [ckpt.AddPrefix("m")])
    assert [c.action for c in report.optimizers] == ["unknown"]
    assert any("a layout that ckpt does not know" in warning for warning in report.warnings)
    after = torch.load(out)["optimizer"]
    assert after["hyper"] == unknown["hyper"]
    assert all(map(torch.equal, after["momenta"], unknown["momenta"]))


def test_an_unknown_optimizer_can_be_dropped(tmp_path: Path) -> None:
    unknown = {"momenta": [torch.ones(5, 4)]}
    path = save(tmp_path / "u.pth", model=net(4, 5, 6).state_dict(), optimizer=unknown)
    report = ckpt.strip(path, tmp_path / "out.pth", prefixed("1"), optimizer="drop")
    assert report.dropped == ("optimizer",)


def test_a_state_that_shows_no_shapes_is_refused(tmp_path: Path) -> None:
    model = net(4, 5, 6)
    adafactor = stepped(model, kind=torch.optim.Adafactor)
    path = save(tmp_path / "f.pth", model=model.state_dict(), optimizer=adafactor.state_dict())
    with pytest.raises(ckpt.PlanError, match="kind that shows no shapes"):
        ckpt.strip(path, tmp_path / "out.pth", prefixed("1"))


def test_stored_names_of_wrapped_models_follow(tmp_path: Path) -> None:
    model = net(4, 5, 6)
    wrapper = nn.Module()
    wrapper.module = model
    optimizer = stepped(model, named=True)
    path = save(tmp_path / "w.pth", model=wrapper.state_dict(), optimizer=optimizer.state_dict())
    report = ckpt.rename(path, tmp_path / "out.pth", [ckpt.Replace("module.1", "module.head")])
    assert report.optimizers[0].renamed == 2
    names = torch.load(tmp_path / "out.pth")["optimizer"]["param_groups"][0]["param_names"]
    assert names[:2] == ["0.weight", "0.bias"]
    assert names[2:] == ["module.head.weight", "module.head.bias"]


def test_emptied_groups_are_reported(tmp_path: Path) -> None:
    model = net(4, 5, 6)
    groups = [{"params": list(layer.parameters())} for layer in model]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = save(tmp_path / "g.pth", model=model.state_dict(), optimizer=optimizer.state_dict())
    report = ckpt.strip(path, tmp_path / "out.pth", prefixed("1"))
    assert report.optimizers[0].emptied == (1,)
    assert "group 1 of the optimizer in 'optimizer' has no parameter left" in report.warnings
    fresh = net(4, 5)
    again = torch.optim.SGD([{"params": list(fresh.parameters())}, {"params": []}], lr=0.1)
    again.load_state_dict(torch.load(tmp_path / "out.pth")["optimizer"])


def test_a_recorded_plan_does_it_again(alike: Path, tmp_path: Path) -> None:
    model = net(4, 5, 6)
    path = save(tmp_path / "p.pth", model=model.state_dict(), optimizer=stepped(model).state_dict())
    report = ckpt.strip(path, tmp_path / "out.pth", prefixed("1"))
    with ckpt.read(path) as checkpoint:
        edited = ckpt.apply(ckpt.Plan.from_dict(report.plan), checkpoint)
        assert len(find(edited)[0].state.states) == 2
        twice = keep_in_step(edited, edited)
        assert twice.changes == ()
        assert twice.checkpoint.replaced == edited.replaced


def test_compacting_drops_the_bytes_of_removed_state(tmp_path: Path) -> None:
    """State that lies in one flat storage, as sharded training leaves it."""
    model = net(4, 5, 6)
    optimizer = stepped(model, kind=torch.optim.Adagrad).state_dict()
    flat = torch.zeros(sum(p.numel() for p in model.parameters()))
    start = 0
    for state in optimizer["state"].values():
        shape = state["sum"].shape
        state["sum"] = flat[start : start + shape.numel()].view(shape)
        start += shape.numel()
    path = save(tmp_path / "f.pth", model=model.state_dict(), optimizer=optimizer)
    ckpt.strip(path, tmp_path / "out.pth", prefixed("1"), compact=True)
    with ckpt.read(tmp_path / "out.pth") as checkpoint:
        tensors = checkpoint.others[0].tensors
        assert sum(t.nbytes for t in tensors if len(t.shape) > 1) == 4 * 20
        assert {t.storage.nbytes for t in tensors if t.shape == (5, 4) and t.storage} == {4 * 20}


def test_the_published_lightning_optimizer_comes_through_a_rename(
    shared_dir: Path, tmp_path: Path
) -> None:
    folder = shared_dir / "real" / "chemprop"
    for name, optimizers in (
        ("tests_data_example_model_v2_regression_mol.ckpt", 1),
        ("example_model_v1_mve_regression.pt", 0),
        ("tests_data_example_model_v2_regression_mol.pt", 0),
    ):
        out = tmp_path / name
        report = ckpt.rename(folder / name, out, [ckpt.AddPrefix("model")])
        assert not report.optimizers
        with ckpt.read(folder / name) as before, ckpt.read(out) as after:
            assert [o.path for o in before.others] == [o.path for o in after.others]
            assert len(find(before)) == len(find(after)) == optimizers
            for one, other in zip(find(before), find(after), strict=True):
                assert one.state.groups[0].options == other.state.groups[0].options
                assert list(one.state.states) == list(other.state.states)
                assert other.correspondence.certainty == "order"
                assert other.correspondence.names == {
                    key: f"model.{old}" for key, old in one.correspondence.names.items()
                }
            for old, new in zip(before.others, after.others, strict=True):
                for a, b in zip(old.tensors, new.tensors, strict=True):
                    loaded = load_elements(a), load_elements(b)
                    assert loaded[0] is not None
                    assert loaded[1] is not None
                    assert torch.equal(loaded[0], loaded[1])


def resized_head(checkpoint: Checkpoint, classes: int) -> Checkpoint:
    """The checkpoint with a new head, as a fit would describe it."""
    state_dict = checkpoint.state_dicts[0]
    entries = []
    for entry in state_dict.entries:
        tensor = entry.tensor
        assert tensor is not None
        if entry.name.startswith("1."):
            shape = (classes, *tensor.shape[1:])
            entries.append(Entry(entry.name, zeros(shape, tensor)))
        else:
            entries.append(entry)
    return replace(checkpoint, state_dicts=(replace(state_dict, entries=tuple(entries)),))


def zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    stride = tuple(torch.empty(shape).stride())
    data = Bytes(bytes(4 * torch.Size(shape).numel()))
    storage = Storage("new", like.dtype, "cpu", data)
    return Tensor(shape, like.dtype, stride, storage=storage)


class Three:
    """A change that makes any moment zeros for three classes."""

    def apply(self, moment: Tensor, beginning: float) -> Tensor:
        assert beginning == 0
        return zeros((3, *moment.shape[1:]), moment)


@pytest.mark.parametrize("how", ["reset", "resize", "initial"])
def test_a_resized_head_gets_its_moments_resized_or_begins_anew(how: str, tmp_path: Path) -> None:
    model = net(4, 5, 6)
    path = save(tmp_path / "h.pth", model=model.state_dict(), optimizer=stepped(model).state_dict())
    with ckpt.read(path) as checkpoint:
        after = resized_head(checkpoint, 3)
        result = keep_in_step(
            checkpoint,
            after,
            sources={"model": {"1.weight": None, "1.bias": None}} if how == "initial" else None,
            moments={"model": {"1.weight": Three(), "1.bias": Three()}}
            if how == "resize"
            else None,
        )
        (change,) = result.changes
        assert change.resized == (("1.weight", "1.bias") if how == "resize" else ())
        assert change.reset == (() if how == "resize" else ("1.weight", "1.bias"))
        from ckpt_surgery.writing.output import Output
        from ckpt_surgery.writing.write import write

        write(result.checkpoint, Output(tmp_path / "out.pth"))
    out = torch.load(tmp_path / "out.pth")
    fresh = net(4, 5, 3)
    fresh.load_state_dict(out["model"])
    optimizer = torch.optim.Adam(fresh.parameters(), lr=0.1)
    optimizer.load_state_dict(out["optimizer"])
    state = optimizer.state_dict()["state"]
    assert list(state) == ([0, 1, 2, 3] if how == "resize" else [0, 1])
    if how == "resize":
        assert state[2]["exp_avg"].shape == (3, 5)
        assert state[2]["step"] == 1
    assert torch.equal(state[0]["exp_avg"], torch.load(path)["optimizer"]["state"][0]["exp_avg"])


def test_the_graph_that_was_read_is_never_changed(tmp_path: Path) -> None:
    model = net(4, 5, 6)
    path = save(tmp_path / "p.pth", model=model.state_dict(), optimizer=stepped(model).state_dict())
    with ckpt.read(path) as checkpoint:
        node = find(checkpoint)[0].source
        before = repr(_plain(node))
        after = replace(
            checkpoint,
            state_dicts=(
                replace(checkpoint.state_dicts[0], entries=checkpoint.state_dicts[0].entries[:2]),
            ),
        )
        assert keep_in_step(checkpoint, after).changes
        assert repr(_plain(node)) == before


def _plain(node: Any) -> Any:
    tensor = TensorReader().describe(node) if isinstance(node, Object) else None
    if tensor is not None:
        return tensor.shape
    if isinstance(node, Dict):
        return [(key, _plain(value)) for key, value in node.pairs()]
    return [_plain(item) for item in node] if isinstance(node, list) else node


def test_numbers_that_dcp_wrote_as_texts_are_numbers(tmp_path: Path) -> None:
    """`dcp_to_torch_save` writes ``'0'``: "kept in step", it was said, and no state was removed."""
    model = net(4, 5, 6)
    state = stepped(model).state_dict()
    moments = {key: dict(value) for key, value in state["state"].items()}
    state["state"] = {str(key): value for key, value in moments.items()}
    path = save(tmp_path / "t.pth", model=model.state_dict(), optimizer=state)
    report = ckpt.strip(path, tmp_path / "out.pth", prefixed("0"))
    assert report.optimizers[0].removed == ("0.weight", "0.bias")
    left = torch.load(tmp_path / "out.pth")["optimizer"]
    assert left["param_groups"][0]["params"] == [0, 1]
    assert list(left["state"]) == ["0", "1"]
    for key, old in (("0", 2), ("1", 3)):
        for name, value in moments[old].items():
            assert torch.equal(left["state"][key][name], value)


def test_a_number_that_stands_as_text_and_as_number_is_no_optimizer(tmp_path: Path) -> None:
    model = net(4, 5, 6)
    state = stepped(model).state_dict()
    state["state"]["0"] = state["state"][0]
    path = save(tmp_path / "t.pth", model=model.state_dict(), optimizer=state)
    report = ckpt.strip(path, tmp_path / "out.pth", prefixed("1"))
    assert any("a layout that ckpt does not know" in warning for warning in report.warnings)
    for text in ("٣", "01", "1" * 40):  # no such numbers
        state["state"] = {text: {}}
        path = save(tmp_path / "odd.pth", model=model.state_dict(), optimizer=state)
        assert ckpt.inspect(path).training["optimizer"].optimizers[0].states == 0
