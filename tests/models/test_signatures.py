"""Architectures are recognised from names and shapes, and nothing is claimed that would mislead."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache

import pytest
from architectures import architecture

from ckpt_surgery.models.building import build_target, torchvision_names
from ckpt_surgery.models.signature_table import (
    Head,
    Known,
    OpenRow,
    Table,
    _decode_table,
    encode_table,
    load_table,
    make_table,
)
from ckpt_surgery.models.signatures import Recognition, recognise
from ckpt_surgery.models.target import Shape

Shapes = list[tuple[str, Shape]]


@cache
def shapes_of(name: str, **arguments: int) -> Shapes:
    spec = f"torchvision:{name}"
    target = build_target(spec, dict(arguments)) if arguments else architecture(name)
    return [(spec.name, spec.shape) for spec in target.tensors]


def recognised(shapes: Shapes) -> Recognition:
    found = recognise(shapes)
    assert found is not None
    return found


@pytest.mark.slow
def test_every_architecture_is_recognised_as_itself() -> None:
    for name in torchvision_names():
        found = recognised(shapes_of(name))
        assert f"torchvision:{name}" in (found.name, *found.also), name
        assert found.is_exact
        assert found.fraction == 1
        assert found.prefix == ""


def test_a_head_of_another_size_is_recognised() -> None:
    found = recognised([(f"module.{n}", s) for n, s in shapes_of("resnet34", num_classes=5)])
    assert str(found).startswith(
        "torchvision resnet34, every key, 5-class head, prefix 'module.'; timm "
    )
    assert found.classes == 5
    detector = recognised(shapes_of("fasterrcnn_resnet50_fpn", num_classes=3))
    assert (detector.name, detector.classes, detector.is_exact) == (
        "torchvision:fasterrcnn_resnet50_fpn",
        3,
        True,
    )
    assert recognised(shapes_of("ssd300_vgg16", num_classes=7)).classes == 7


def test_optical_flow_has_no_classes() -> None:
    found = recognised(shapes_of("raft_small"))
    assert found.classes is None
    assert str(found) == "torchvision raft_small, every key"


def test_counters_of_batches_are_counted_nowhere() -> None:
    without = [(n, s) for n, s in shapes_of("resnet18") if not n.endswith("num_batches_tracked")]
    assert recognised(without) == recognised(shapes_of("resnet18"))
    assert recognised(without).found == len(without)


def test_equal_architectures_are_all_named() -> None:
    found = recognised(shapes_of("quantized_resnet50"))
    assert found.name == "torchvision:resnet50"
    assert {"torchvision:quantized_resnet50", "timm:resnet50"} <= set(found.also)
    assert f"; {found.also[0].replace(':', ' ')} and {len(found.also) - 1} more have" in str(found)


def test_a_changed_stem_is_nearest() -> None:
    shapes = [(n, (64, 4, 7, 7) if n == "conv1.weight" else s) for n, s in shapes_of("resnet50")]
    found = recognised(shapes)
    assert not found.is_complete
    assert (found.agreeing, found.wanted, found.found) == (266, 267, 267)
    assert str(found).startswith(
        "nearest to torchvision resnet50, 266 of its 267 keys and shapes, 1000-class head; "
    )
    assert str(found).endswith(" more are as near")


def test_a_backbone_with_a_missing_head_is_nearest() -> None:
    shapes = [(f"net.{n}", s) for n, s in shapes_of("resnet50") if not n.startswith("fc.")]
    found = recognised([*shapes, ("net.up.weight", (3, 3))])
    assert (found.name, found.prefix, found.classes) == ("torchvision:resnet50", "net.", None)
    assert 0.98 < found.fraction < 1


def test_added_layers_are_counted_as_more() -> None:
    found = recognised([*shapes_of("resnet18"), ("neck.weight", (3, 3))])
    assert found.is_complete
    assert not found.is_exact
    assert str(found).startswith("contains torchvision resnet18, and 1 more key, 1000-class head; ")


def test_old_spellings_and_wrappers_are_seen_through() -> None:
    old = [
        (f"module._orig_mod.{n.replace('norm1', 'norm.1').replace('conv1', 'conv.1')}", s)
        for n, s in shapes_of("densenet121")
        if "transition" not in n
    ]
    found = recognised(old)
    assert found.name == "torchvision:densenet121"
    assert found.agreeing == found.wanted - 15
    inside = [(n.replace("layer1.", "layer1._orig_mod."), s) for n, s in shapes_of("resnet18")]
    assert recognised(inside).is_exact


@pytest.mark.parametrize(
    "shapes",
    [
        [],
        [("weight", (3, 3)), ("bias", (3,))],
        [(f"layers.{i}.weight", (8, 8)) for i in range(50)],
        [(n, (1, *s)) for n, s in shapes_of("resnet18")],
        [(f"x{n}", s) for n, s in shapes_of("resnet18")],
        shapes_of("resnet18")[:30],
        shapes_of("resnet18")[:100],
        [*shapes_of("resnet18"), *((f"other.{i}", (2,)) for i in range(103))],
        [(f"layers.{i}.{kind}", (8,)) for i in range(50) for kind in ("weight", "bias")],
        [(f"x{i}", (2,)) for i in range(9000)],
        [("x" * 600, (2,)), *shapes_of("resnet18")],
    ],
    ids=[
        *("empty", "tiny", "other", "other shapes", "other names", "a quarter"),
        *("less than nine tenths", "less than half", "blocks", "enormous", "endless names"),
    ],
)
def test_nothing_is_claimed_of_what_is_not_near(shapes: Shapes) -> None:
    assert recognise(shapes) is None


def known(name: str, count: int, heads: tuple[Head, ...] = ()) -> Known:
    return Known(name, tuple((f"l{i}.weight", (i + 1,)) for i in range(count)), heads=heads)


def table_of(*architectures: Known) -> Table:
    return make_table(architectures, {"torchvision": "1.2"})


def test_two_equally_near_architectures_are_both_told() -> None:
    shapes: Shapes = [(f"l{i}.weight", (i + 1,)) for i in range(10)]
    heads = tuple(Head(f"head{i}", 1, 0, ()) for i in range(2))
    table = table_of(known("timm:one", 10, heads[:1]), known("timm:other", 10, heads[1:]))
    both = recognise(shapes, table)
    assert str(both) == "nearest to timm one, 10 of its 11 keys and shapes; timm other is as near"
    one = recognise([*shapes, ("head1", (5,))], table)
    assert str(one) == "timm other, every key, 5-class head"


def rows(*names: str, tied: tuple[str, ...] = ()) -> tuple[OpenRow, ...]:
    return tuple(OpenRow(name, 2, name in tied) for name in names)


LAYERED = Known(
    "transformers:Layered",
    also=("transformers:Other",),
    rows=rows(*(f"layers.#.{i}.w" for i in "abcd"), *"efg", "head", tied=("head",)),
)


def layered(layers: int, *, without: Sequence[str] = ()) -> Shapes:
    names = [f"layers.{n}.{i}.w" for n in range(layers) for i in "abcd"] + ["e", "f", "g"]
    return [(name, (4, layers)) for name in names if name not in without]


@pytest.mark.parametrize("layers", [2, 9])
def test_layers_and_sizes_are_open_where_a_configuration_chooses_them(layers: int) -> None:
    found = recognise(layered(layers), table_of(LAYERED))
    assert str(found) == ("transformers Layered, every key; transformers Other has the same names")
    with_tie = recognise([*layered(layers), ("head", (4, 4))], table_of(LAYERED))
    assert with_tie is not None
    assert with_tie.is_exact
    wrapped = [(f"model.{name}", shape) for name, shape in layered(layers)]
    assert "every key, prefix 'model.'" in str(recognise(wrapped, table_of(LAYERED)))


def test_what_every_layer_lacks_is_counted_in_every_layer() -> None:
    table = table_of(LAYERED)
    assert "42 of its 43 keys;" in str(recognise(layered(10, without=["g"]), table))
    assert recognise(layered(10, without=[f"layers.{n}.a.w" for n in range(10)]), table) is None
    other_axes = [(name, (*shape, 1)) for name, shape in layered(10)]
    assert recognise(other_axes, table) is None


@pytest.mark.parametrize(
    ("shape", "classes"),
    [
        ((12, 8), 3),
        ((4, 8), 1),
        ((11, 8), None),
        ((12, 9), None),
        ((0, 8), None),
        ((12,), None),
        ((), None),
    ],
)
def test_rows_of_a_head_say_how_many_classes(shape: Shape, classes: int | None) -> None:
    assert Head("h", 4, 0, (8,)).classes(shape) == classes


def test_a_background_row_is_no_class() -> None:
    assert Head("h", 1, 1, ()).classes((6,)) == 5
    assert Head("h", 1, 1, ()).classes((1,)) is None


def test_the_table_is_read_back() -> None:
    heads = (Head("fc.weight", 4, 1, (3, 3)),)
    names = ("a.0.weight", "a.1.weight", "a.1.bias", "b", "07.x.2.y", "a.3.weight")
    first = Known("timm:a", tuple((name, (3, 4)) for name in names), ("timm:b",), 10, heads)
    many = [known(f"timm:n{i}", i + 5) for i in range(70)]
    table = table_of(first, LAYERED, *many)
    again = _decode_table(encode_table(table))
    assert again == table
    assert again.versions == {"torchvision": "1.2"}
    for index, each in enumerate([first, LAYERED, *many]):
        assert again.signature(index) == each.signature
    with pytest.raises(ValueError, match="no table of signatures"):
        _decode_table(b"something else")


def test_a_name_that_cannot_be_written_short_is_refused() -> None:
    with pytest.raises(ValueError, match="'timm:odd' has names that cannot be written short"):
        table_of(Known("timm:odd", (("a b.weight", (1,)),)))


def test_the_table_is_byte_order_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(known("timm:a", 30))
    encoded = encode_table(table)
    monkeypatch.setattr(sys, "byteorder", "big" if sys.byteorder == "little" else "little")
    assert _decode_table(encode_table(table)) == table
    assert encode_table(table) != encoded


def test_the_committed_table_is_small_and_holds_this_torchvision() -> None:
    table = load_table()
    names = {name for group in table.names for name in group}
    assert {f"torchvision:{name}" for name in torchvision_names()} <= names
    assert set(table.versions) == {"torchvision", "timm", "transformers"}
    assert len(encode_table(table)) < 900_000


def test_only_what_a_file_may_be_is_decoded() -> None:
    table = _decode_table(encode_table(load_table()))
    assert recognise(shapes_of("alexnet"), table) is not None
    assert len(table._opened) < len(table.blocks) / 4
    assert len(table._known) < 64
    assert json.loads(json.dumps(recognised(shapes_of("alexnet")).to_dict()))["wanted"] == 16


def test_recognising_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from ckpt_surgery.models.signatures import recognise\n"
        "assert recognise([('a', (1,))] * 9) is None\n"
        "recognise([(f'a{i}', (1,)) for i in range(9)])\n"
        "import ckpt_surgery.fit.plan, ckpt_surgery.matching.maps\n"
        "import ckpt_surgery.matching.comparison, ckpt_surgery.names.fold\n"
        "assert not {'torch', 'torchvision', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_package_without_its_table_is_an_error_and_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ckpt_surgery.models.signature_table.__file__", "/nowhere/module.py")
    load_table.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"signatures\.bin"):
        load_table()
