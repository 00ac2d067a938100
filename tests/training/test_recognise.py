from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_helpers import describe, run, shapes, to_nodes, understood
from torch import nn

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.formats import read
from ckpt_surgery.pickles import ByteString, Dict, Node
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.torch_objects.training_state import TrainingStates
from ckpt_surgery.training.optimizers import correspond, find_optimizers, read_optimizer

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "Adam (amsgrad)": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(1, 1, bias=False))


def trained(make: Any, steps: int = 2) -> dict[str, Any]:
    model = net()
    optimizer = make(model.parameters())
    run(model, optimizer, range(steps))
    state: dict[str, Any] = optimizer.state_dict()
    return state


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_elementwise_optimizer_of_torch_is_understood(kind: str) -> None:
    optimizer = understood(trained(OPTIMIZERS[kind]))
    assert optimizer.understood
    assert optimizer.layout == kind
    assert [s.shape for s in optimizer.states.values()] == [shape for _, shape in shapes(net())]
    assert optimizer.learning_rates == (0.1,)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"capturable": False}])
def test_kernels_leave_the_same_state(options: dict[str, bool]) -> None:
    optimizer = understood(trained(lambda p: torch.optim.AdamW(p, lr=0.1, **options)))
    assert optimizer.understood
    assert optimizer.layout == "Adam"


def test_bytes_and_steps_are_those_of_the_tensors() -> None:
    state = trained(OPTIMIZERS["Adam"])
    optimizer = understood(state)
    held = sum(v.nbytes for entry in state["state"].values() for v in entry.values())
    assert optimizer.nbytes == held
    step = describe(optimizer.states[0].step)
    assert step is not None
    assert step.tensor.item() == 2


def test_a_step_that_is_a_number_is_given_as_one() -> None:
    state = {"state": {0: {"step": 7}}, "param_groups": [{"params": [0]}]}
    assert understood(state).states[0].step == 7


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "SGD"),
        (lambda p: torch.optim.AdamW(p, lr=0.1), "Adam"),
        (lambda p: torch.optim.RMSprop(p, lr=0.1), "RMSprop"),
        (lambda p: torch.optim.Adadelta(p, lr=0.1), "Adadelta"),
        (lambda p: torch.optim.Adagrad(p, lr=0.1), "unknown"),
    ],
)
def test_without_state_the_options_tell(make: Any, layout: str) -> None:
    state = make(net().parameters()).state_dict()
    state["state"] = {}
    assert understood(state).layout == layout


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adafactor(p, lr=0.1),
                                  torch.optim.LBFGS])  # fmt: skip
def test_other_layouts_are_not_claimed_to_be_understood(make: Any) -> None:
    model = net()
    optimizer = make(model.parameters())
    give = {name: torch.ones_like(p) for name, p in model.named_parameters()}

    def closure() -> float:
        for name, parameter in model.named_parameters():
            parameter.grad = give[name].clone()
        return 1.0

    optimizer.step(closure)
    read_back = understood(optimizer.state_dict())
    assert not read_back.understood
    assert correspond(read_back, shapes(model)).certainty == "none"


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        3,
        {"state": {}},
        {"state": [], "param_groups": []},
        {"state": {}, "param_groups": {}},
        {"state": {}, "param_groups": [3]},
        {"state": {}, "param_groups": [{}]},
        {"state": {}, "param_groups": [{"params": 3}]},
        {"state": {}, "param_groups": [{"params": [1.5]}]},
        {"state": {}, "param_groups": [{"params": [True]}]},
        {"state": {}, "param_groups": [{"params": [0, 0]}]},
        {"state": {}, "param_groups": [{"params": [0]}, {"params": [0]}]},
        {"state": {}, "param_groups": [{"params": [0]}, {"params": ["a"]}]},
        {"state": {}, "param_groups": [{"params": [0], "param_names": []}]},
        {"state": {}, "param_groups": [{"params": [0], "param_names": [3]}]},
        {"state": {0: 3}, "param_groups": [{"params": [0]}]},
    ],
)
def test_another_form_is_no_optimizer(state: object) -> None:
    assert read_optimizer(to_nodes(state), describe) is None


def test_a_state_given_twice_is_refused() -> None:
    groups: Node = to_nodes([{"params": [0]}])
    states = Dict([0, Dict(), 0, Dict()])
    with pytest.raises(DamagedFileError, match="two keys of one dictionary are the same"):
        read_optimizer(Dict(["state", states, "param_groups", groups]), describe)


def test_state_of_no_parameter_does_not_count() -> None:
    state = {"state": {0: {}, 9: {}, "global": 3}, "param_groups": [{"params": [0]}]}
    assert list(understood(state).states) == [0]


def test_python_2_spells_its_keys_in_bytes() -> None:
    node = Dict([ByteString(b"state"), Dict(), ByteString(b"param_groups"),
                 [Dict([ByteString(b"params"), [0], ByteString(b"lr"), 0.5])]])  # fmt: skip
    optimizer = read_optimizer(node, describe)
    assert optimizer is not None
    assert optimizer.learning_rates == (0.5,)


def test_optimizers_are_found_in_real_files(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["Adam"](model.named_parameters())
    run(model, optimizer, range(1))
    state = optimizer.state_dict()
    path = tmp_path / "train.pth"
    torch.save(
        {"model": model.state_dict(), "deep": {"optims": [state, defaultdict(dict, state)]}}, path
    )
    with read(path) as checkpoint:
        found = list(find_optimizers(checkpoint.root, TensorReader().describe))
        (model_dict,) = checkpoint.state_dicts
    assert [p for p, _ in found] == ["deep/optims/0", "deep/optims/1"]
    read_back = found[0][1]
    assert read_back.layout == "Adam"
    assert correspond(read_back, shapes(model)).certainty == "stored"
    assert [e.name for e in model_dict.entries] == [name for name, _ in shapes(model)]


def test_a_cycle_does_not_hang_the_search() -> None:
    loop: list[Node] = []
    loop.append(loop)
    assert list(find_optimizers(loop, describe)) == []
    assert TrainingStates().form(loop) is None


def test_the_lightning_checkpoint_is_understood(shared_dir: Path) -> None:
    folder = shared_dir / "real" / "chemprop"
    path = folder / "tests_data_example_model_v2_regression_mol.ckpt"
    with read(path) as checkpoint:
        kinds = {other.path: TrainingStates().form(other.node) for other in checkpoint.others}
        ((place, optimizer),) = find_optimizers(checkpoint.root, TensorReader().describe)
        entries = [e for e in checkpoint.state_dicts[0].entries if e.role != "buffer"]
        parameters = [(e.name, e.tensor.shape) for e in entries if e.tensor is not None]
    assert place == "optimizer_states/0"
    assert kinds["optimizer_states"] == "optimizers"
    assert kinds["lr_schedulers"] == "schedulers"
    assert kinds["callbacks"] == "callbacks"
    found = correspond(optimizer, parameters)
    assert found.certainty == "order"
    assert [found.names[key] for key in optimizer.keys] == [name for name, _ in parameters[:10]]
