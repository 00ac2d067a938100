"""Architectures are recognised from names and shapes, and nothing is claimed that would mislead."""

from __future__ import annotations

import subprocess
import sys
from array import array
from functools import cache

import pytest
from architectures import architecture

from ckpt_surgery.models.building import build_target, torchvision_names
from ckpt_surgery.models.signatures import (
    Head,
    Recognition,
    Signature,
    _decode_table,
    checksum,
    encode_table,
    load_table,
    recognise,
)
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
        assert name in (found.name, *found.also), name
        assert found.is_exact
        assert found.fraction == 1
        assert found.prefix == ""


def test_a_head_of_another_size_is_recognised() -> None:
    found = recognised([(f"module.{n}", s) for n, s in shapes_of("resnet34", num_classes=5)])
    assert str(found) == "torchvision resnet34, every key, 5-class head, prefix 'module.'"
    assert found.classes == 5
    detector = recognised(shapes_of("fasterrcnn_resnet50_fpn", num_classes=3))
    assert (detector.name, detector.classes, detector.is_exact) == (
        "fasterrcnn_resnet50_fpn",
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
    assert found.name == "resnet50"
    assert "quantized_resnet50" in found.also


def test_a_changed_stem_is_nearest() -> None:
    shapes = [(n, (64, 4, 7, 7) if n == "conv1.weight" else s) for n, s in shapes_of("resnet50")]
    found = recognised(shapes)
    assert not found.is_complete
    assert (found.agreeing, found.wanted, found.found) == (266, 267, 267)
    assert str(found) == (
        "nearest to torchvision resnet50, 266 of its 267 keys and shapes, 1000-class head"
    )


def test_a_backbone_with_a_missing_head_is_nearest() -> None:
    shapes = [(f"net.{n}", s) for n, s in shapes_of("resnet50") if not n.startswith("fc.")]
    found = recognised([*shapes, ("net.up.weight", (3, 3))])
    assert (found.name, found.prefix, found.classes) == ("resnet50", "net.", None)
    assert 0.98 < found.fraction < 1


def test_added_layers_are_counted_as_more() -> None:
    found = recognised([*shapes_of("resnet18"), ("neck.weight", (3, 3))])
    assert found.is_complete
    assert not found.is_exact
    assert str(found) == "contains torchvision resnet18, and 1 more key, 1000-class head"


def test_old_spellings_and_wrappers_are_seen_through() -> None:
    old = [
        (f"module._orig_mod.{n.replace('norm1', 'norm.1').replace('conv1', 'conv.1')}", s)
        for n, s in shapes_of("densenet121")
        if "transition" not in n
    ]
    found = recognised(old)
    assert found.name == "densenet121"
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
    ],
    ids=["empty", "tiny", "other", "other shapes", "other names", "a quarter"],
)
def test_nothing_is_claimed_of_what_is_not_near(shapes: Shapes) -> None:
    assert recognise(shapes) is None


def signature(name: str, count: int, heads: tuple[Head, ...] = ()) -> Signature:
    numbers = sorted(checksum(f"l{i}.weight", (i + 1,)) for i in range(count))
    return Signature(name, (), None, heads, array("I", numbers))


def test_two_equally_near_architectures_are_not_chosen_between() -> None:
    shapes = [(f"l{i}.weight", (i + 1,)) for i in range(10)]
    heads = tuple(Head(f"head{i}", 1, 0, ()) for i in range(2))
    one, other = signature("one", 10, heads[:1]), signature("other", 10, heads[1:])
    assert recognise(shapes, [one, other]) is None
    assert recognise([*shapes, ("head1", (5,))], [one, other]) is not None


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
    table = [
        Signature("a", ("b",), 10, (Head("fc.weight", 4, 1, (3, 3)),), array("I", [1, 2**32 - 1])),
        Signature("c", (), None, (), array("I", [7])),
    ]
    assert _decode_table(encode_table(table, "1.2")) == tuple(table)
    with pytest.raises(ValueError, match="no table of signatures"):
        _decode_table(b"something else")


def test_the_table_is_byte_order_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (signature("a", 3),)
    encoded = encode_table(table, "1")
    monkeypatch.setattr(sys, "byteorder", "big" if sys.byteorder == "little" else "little")
    assert _decode_table(encode_table(table, "1")) == table
    assert encode_table(table, "1") != encoded


def test_the_committed_table_is_small_and_holds_this_torchvision() -> None:
    table = load_table()
    names = {name for s in table for name in (s.name, *s.also)}
    assert set(torchvision_names()) <= names
    for known in table:
        assert list(known.checksums) == sorted(known.checksums)


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
    monkeypatch.setattr("pkgutil.get_data", lambda *_: None)
    load_table.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"signatures\.bin"):
        load_table()
