"""What a fit says that shapes alone do not: transposed weights, lost filters, other grids."""

from __future__ import annotations

import pytest

from ckpt_surgery.errors import UsageError
from ckpt_surgery.fit.adaptations import parse_adaptations
from ckpt_surgery.fit.checks import check_adaptations
from ckpt_surgery.fit.fills import parse_fills
from ckpt_surgery.fit.grids import parse_grids
from ckpt_surgery.fit.items import FitPlan
from ckpt_surgery.fit.options import FitOptions
from ckpt_surgery.fit.plan import plan_fit
from ckpt_surgery.matching.correspondence import correspond
from ckpt_surgery.models.target import Target, TensorSpec

Shapes = dict[str, tuple[int, ...]]


def plan(source: Shapes, target: Shapes, adapt=(), fill=(), grid=None) -> FitPlan:
    ours, theirs = (
        tuple(TensorSpec(name, shape) for name, shape in shapes.items())
        for shapes in (source, target)
    )
    fills, channels = parse_fills(fill)
    grids = None if grid is None else parse_grids(grid)
    options = FitOptions((*parse_adaptations(adapt, grids), *channels), fills)
    found = plan_fit(ours, Target("t", theirs), correspond(ours, theirs), options)
    check_adaptations(found.items, options.rules)
    return found


GPT = {
    f"h.{i}.{name}.weight": shape
    for i in range(3)
    for name, shape in {
        "attn.c_attn": (4, 12), "attn.c_proj": (4, 4), "mlp.c_fc": (4, 4), "ln": (4,)
    }.items()
}  # fmt: skip


def test_what_looks_transposed_is_said_and_never_overlapped() -> None:
    linear = {name: shape[::-1] for name, shape in GPT.items()}
    found = plan(GPT, linear)
    transposed = [item for item in found.items if item.looks_transposed]
    assert [item.name for item in transposed] == [f"h.{i}.attn.c_attn.weight" for i in range(3)]
    assert all(item.would_adapt == () for item in transposed)
    with pytest.raises(UsageError, match="'--adapt overlap' applies to nothing") as raised:
        plan(GPT, linear, ["overlap"])
    assert raised.value.hint == "what does not fit looks transposed"


def test_square_tensors_beside_transposed_ones_are_named() -> None:
    """No shape tells that GPT-2's attn.c_proj is transposed as well; mlp.c_fc is not beside it."""
    found = plan(GPT, {name: shape[::-1] for name, shape in GPT.items()})
    assert [item.name for item in found.items if item.is_suspect] == [
        f"h.{i}.attn.c_proj.weight" for i in range(3)
    ]
    (note,) = found.notes
    assert note.endswith("looks transposed: 'h.{0..2}.attn.c_proj.weight'")
    assert not plan(GPT, GPT).notes


def test_thousands_of_suspects_are_said_in_one_line() -> None:
    source = {"a.weight": (2, 3)} | {f"s{i}.weight": (2, 2) for i in range(2500)}
    (note,) = plan(source, source | {"a.weight": (3, 2)}).notes
    assert note.endswith("'s7.weight' and 2,492 more")


@pytest.mark.parametrize(
    ("channels", "fill", "advice"),
    [
        (4, (), "--fill conv1=first or zero keeps those of the old ones"),
        (4, ["kaiming"], "--fill conv1=first or zero"),
        (1, (), "has 1 input channel instead of 3: --fill conv1=mean or repeat"),
        (2, (), "has 2 input channels instead of 3: --fill conv1=mean or repeat"),
        (4, ["conv1=kaiming"], None),
        (4, ["conv1=first"], None),
        (3, (), None),
    ],
)
def test_an_input_layer_that_loses_its_filters_is_warned_about(channels, fill, advice) -> None:
    source = {"conv1.weight": (8, 3, 7, 7), "conv2.weight": (8, 8, 3, 3)}
    notes = plan(source, source | {"conv1.weight": (8, channels, 7, 7)}, fill=fill).notes
    assert len(notes) == (advice is not None)
    assert advice is None or advice in notes[0]


def test_an_inner_layer_of_other_width_is_no_input_layer() -> None:
    source = {"conv1.weight": (8, 3, 7, 7), "conv2.weight": (8, 8, 3, 3)}
    assert not plan(source, source | {"conv2.weight": (8, 16, 3, 3)}).notes
    depth = source | {"depth.conv1.weight": (8, 3, 7, 7)}
    (note,) = plan(depth, depth | {"depth.conv1.weight": (8, 1, 7, 7)}).notes
    assert note.startswith("'depth.conv1.weight' loses its filters")


def test_positions_of_an_unknown_grid_are_told_how_to_go_there() -> None:
    source = {"pos_embed": (1, 17, 4), "x": (1,)}
    target = source | {"pos_embed": (1, 25, 4)}
    (note,) = plan(source, target).notes
    assert "--adapt interpolate with --grid HEIGHTxWIDTH" in note
    assert plan(source, target, ["interpolate"], grid="4x6").notes == ()
    assert plan(source, target, fill=["pos_embed=zeros"]).notes == ()
    tables = [f"blocks.{number}.relative_position_bias_table" for number in range(12)]
    wide = dict.fromkeys(tables, (35 * 23, 4))
    (note,) = plan({"x": (1,)} | dict.fromkeys(tables, (9, 4)), {"x": (1,)} | wide).notes
    assert note.startswith("'blocks.{0..11}.relative_position_bias_table' may lie on a grid")


def test_as_many_positions_on_another_grid_are_interpolated_too() -> None:
    source = {"pos_embed": (1, 16, 4), "x": (1,)}
    assert plan(source, source, ["interpolate"], grid="2x8:4x4").items[0].status == "adapted"
    with pytest.raises(UsageError, match="'--adapt interpolate' applies to nothing"):
        plan(source, source, ["interpolate"], grid="4x4:4x4")


@pytest.mark.parametrize(
    ("target", "adapt", "hint"),
    [
        ({"fc.weight": (5, 4)}, ["rows"], "no tensor of the checkpoint differs in shape"),
        ({"fc.weight": (6, 4)}, ["channels"], "would take --adapt rows or overlap"),
        ({"fc.weight": (6, 4)}, ["rows", "overlap"], "is adapted otherwise"),
        ({"fc.weight": (0, 4)}, ["rows"], "no adaptation carries over"),
    ],
)
def test_an_adaptation_of_nothing_is_an_error(target, adapt, hint) -> None:
    with pytest.raises(UsageError, match=f"'--adapt {adapt[-1]}.*' applies to nothing") as raised:
        plan({"x": (1,), "fc.weight": (5, 4)}, {"x": (1,)} | target, adapt)
    assert hint in str(raised.value.hint)
