"""ZeRO checkpoints give the weights that DeepSpeed's own script would give.

The script is `deepspeed/utils/zero_to_fp32.py`; what it does is written here once more in torch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_surgery import DamagedFileError, ReadError, UsageError, consolidate

RANKS = 3
GROUPS = (
    {"embed.weight": (7, 5), "fc.weight": (4, 5)},
    {"fc.bias": (4,), "norm.weight": (5,), "scale": ()},
)


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for group in GROUPS for name, shape in group.items()}


def model_state(stage: int, rank: int, frozen: dict[str, torch.Tensor]) -> dict[str, Any]:
    half = {name: value.bfloat16() for name, value in weights().items()}
    buffers = {"norm.mean": torch.full((5,), 1.25).half(), "norm.scale": torch.ones(3).bfloat16()}
    buffers["norm.steps"] = torch.tensor(7)
    fragments = {
        name: value if stage < 3 else padded(value.view(-1)).chunk(RANKS)[rank].clone()
        for name, value in frozen.items()
    }
    return {
        "module": OrderedDict(half | buffers),
        "buffer_names": list(buffers),
        "param_shapes": [
            OrderedDict((name, torch.Size(shape)) for name, shape in group.items())
            for group in GROUPS
        ],
        "frozen_param_shapes": {name: value.shape for name, value in frozen.items()} or None,
        "frozen_param_fragments": fragments or None,
        "shared_params": {"head.weight": "embed.weight", "gone": "missing"},
        "ds_version": "0.15",
        "optimizer": None,
        "global_steps": 5,
    }


def padded(flat: torch.Tensor, to: int = RANKS) -> torch.Tensor:
    return torch.cat([flat, torch.full((-len(flat) % to,), 99.0, dtype=flat.dtype)])


def vectors(stage: int) -> list[list[torch.Tensor]]:
    """Return each rank's vectors of float32 weights, padded as DeepSpeed pads them."""
    state = weights()
    if stage < 3:
        groups = [
            padded(torch.cat([state[name].view(-1) for name in group]), 2 * RANKS).chunk(RANKS)
            for group in GROUPS
        ]
        return [[group[rank].clone() for group in groups] for rank in range(RANKS)]
    parts = [padded(value.view(-1)).chunk(RANKS) for value in state.values()]
    groups = (parts[:2], parts[2:3], parts[3:])  # sub-groups of whole parameters
    return [[torch.cat([p[rank] for p in group]) for group in groups] for rank in range(RANKS)]


def save(
    folder: Path, stage: int, frozen: dict[str, torch.Tensor] | None = None, mp: int = 0
) -> Path:
    step = folder / "global_step5"
    step.mkdir(parents=True, exist_ok=True)
    (folder / "latest").write_text("global_step5\n")
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    for rank in range(RANKS):
        own = vectors(stage)[rank]
        optimizer = {
            "zero_stage": stage,
            "partition_count": RANKS if stage == 3 else [RANKS, RANKS],
            key: own,
            "optimizer_state_dict": {"state": {0: {"exp_avg": own[0].clone()}}},
        }
        prefix = "bf16_" if stage == 1 else ""
        name = f"{prefix}zero_pp_rank_{rank}_mp_rank_{mp:02}_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer, "ds_version": "0.15"}, step / name)
        model = model_state(stage, rank, frozen or {})
        if stage == 3:
            torch.save(model, step / f"zero_pp_rank_{rank}_mp_rank_{mp:02}_model_states.pt")
        elif rank == 0:
            torch.save(model, step / f"mp_rank_{mp:02}_model_states.pt")
    return folder


def zero_to_fp32(step: Path) -> dict[str, torch.Tensor]:
    """Return what the script returns: buffers, frozen parameters, trained ones, shared ones."""
    optimizers = [
        torch.load(path)["optimizer_state_dict"] for path in sorted(step.glob("*_optim_states.pt"))
    ]
    models = [torch.load(path) for path in sorted(step.glob("*_model_states.pt"))]
    model, stage, world = models[0], optimizers[0]["zero_stage"], len(optimizers)
    buffers = {k: v for k, v in model["module"].items() if k in model["buffer_names"]}
    state = {k: v.float() if v.is_floating_point() else v for k, v in buffers.items()}
    for name, shape in (model["frozen_param_shapes"] or {}).items():
        fragments = [each["frozen_param_fragments"][name] for each in models]
        state[name] = fragments[0]
        if stage == 3:
            state[name] = torch.cat(fragments)[: shape.numel()].view(shape)
    if stage < 3:
        groups = [each["single_partition_of_fp32_groups"] for each in optimizers]
        for number, shapes in enumerate(model["param_shapes"]):
            full, offset = torch.cat([each[number] for each in groups]), 0
            for name, shape in shapes.items():
                state[name] = full.narrow(0, offset, shape.numel()).view(shape)
                offset += shape.numel()
    else:
        flat, offset = [torch.cat(each["fp32_flat_groups"]) for each in optimizers], 0
        for name, shape in {k: v for d in model["param_shapes"] for k, v in d.items()}.items():
            length = math.ceil(shape.numel() / world)
            full = torch.cat([each[offset : offset + length] for each in flat])
            state[name] = full[: shape.numel()].view(shape)
            offset += length
    for name, source in model["shared_params"].items():
        if source in state:
            state[name] = state[source]
    return state


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("frozen", [{}, {"frozen.weight": torch.arange(7.0).view(1, 7)}])
def test_weights_are_those_of_the_script(stage, frozen, tmp_path):
    folder = save(tmp_path / "saved", stage, frozen)
    report = consolidate(folder, tmp_path / "whole.pth")
    found = torch.load(tmp_path / "whole.pth", weights_only=True)
    expected = zero_to_fp32(folder / "global_step5")
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    for name, value in weights().items():
        assert torch.equal(found[name], value), name
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert report.writer == "deepspeed"
    assert "global_steps" in report.dropped
    assert len(report.inputs) == (RANKS + (RANKS if stage == 3 else 1))


def test_ranks_of_tensor_parallelism_are_joined_by_axes(tmp_path):
    folder = save(tmp_path / "saved", 2)
    save(folder, 2, mp=1)
    with pytest.raises(UsageError, match="do not say how"):
        consolidate(folder / "global_step5", tmp_path / "o.safetensors")
    axes = ["embed.weight=0", "fc.weight=1", "head.weight=0", "**=copies"]
    consolidate(folder / "global_step5", tmp_path / "o.pth", axes=axes)
    found = torch.load(tmp_path / "o.pth")
    assert torch.equal(found["fc.weight"], torch.cat([weights()["fc.weight"]] * 2, 1))
    assert found["fc.bias"].shape == (4,)


def change(path: Path, edit: Any) -> None:
    state = torch.load(path, weights_only=False)
    edit(state)
    torch.save(state, path)


OPTIM, MODEL = "zero_pp_rank_1_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"
FIRST = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        (FIRST, lambda s: s["optimizer_state_dict"].update(zero_stage=7), "no stage of ZeRO"),
        (FIRST, lambda s: s["optimizer_state_dict"].update(partition_count=5), "saved by 5 ranks"),
        (
            OPTIM,
            lambda s: s["optimizer_state_dict"].pop("single_partition_of_fp32_groups"),
            "no vectors",
        ),
        (
            OPTIM,
            lambda s: s["optimizer_state_dict"]["single_partition_of_fp32_groups"].pop(),
            "other groups",
        ),
        (
            OPTIM,
            lambda s: s["optimizer_state_dict"]["single_partition_of_fp32_groups"].__setitem__(
                0, torch.zeros(99)
            ),
            "vectors 1",
        ),
        (
            OPTIM,
            lambda s: s["optimizer_state_dict"]["single_partition_of_fp32_groups"].__setitem__(
                0, torch.zeros(1)
            ),
            "are wanted",
        ),
        (
            OPTIM,
            lambda s: s["optimizer_state_dict"]["single_partition_of_fp32_groups"].__setitem__(
                0, torch.zeros(20).double()
            ),
            "several types",
        ),
        (
            OPTIM,
            lambda s: s["optimizer_state_dict"]["single_partition_of_fp32_groups"].__setitem__(
                0, torch.zeros(5, 4)
            ),
            "more than one axis",
        ),
        (MODEL, lambda s: s.update(autoep_layers=[]), "groups of ranks of their own"),
        (
            MODEL,
            lambda s: s.update(frozen_param_shapes={"f": torch.Size([2])}),
            "frozen parameter has no values",
        ),
    ],
)
def test_files_that_contradict_each_other_are_refused(name, edit, said, tmp_path):
    folder = save(tmp_path / "saved", 2)
    change(folder / "global_step5" / name, edit)
    with pytest.raises(DamagedFileError, match=said):
        consolidate(folder, tmp_path / "whole.pth")
    assert not (tmp_path / "whole.pth").exists()


def test_missing_files_and_a_pointer_elsewhere_are_refused(tmp_path):
    folder = save(tmp_path / "saved", 2)
    (folder / "global_step5" / MODEL).unlink()
    with pytest.raises(ReadError, match="do not belong together"):
        consolidate(folder, tmp_path / "whole.pth")
    for tag in ("../saved", "", "nowhere", "x" * 300):
        (folder / "latest").write_text(tag)
        with pytest.raises(ReadError, match="does not name"):
            consolidate(folder, tmp_path / "whole.pth")


@pytest.mark.parametrize("stage", [2, 3])
def test_a_changed_bit_in_a_vector_is_noticed(stage, tmp_path):
    """Parameters are parts of vectors, whose checksums are of the whole."""
    folder = save(tmp_path / "saved", stage)
    path = folder / "global_step5" / OPTIM
    data = bytearray(path.read_bytes())
    own = vectors(stage)[1][0].numpy().tobytes()
    data[data.index(own) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match="checksum"):
        consolidate(folder, tmp_path / "whole.pth")
    assert not (tmp_path / "whole.pth").exists()
