"""Suggesting names that may have been meant, whatever names a file has."""

from __future__ import annotations

import tracemalloc

from ckpt_surgery.names import near


def test_near_names_of_deep_names_cost_little_memory():
    """A megabyte of deep names took 585 MB: every dotted prefix of each was a candidate."""
    names = [f"{i}." + "a." * 500 for i in range(1000)]
    tracemalloc.start()
    try:
        assert near("layer3.5.conv2.weigth", names) == []
        assert near("a.a.a.a.a.a.a.a.a.a", names)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_near_names_stop_comparing_at_some_point(monkeypatch):
    monkeypatch.setattr("ckpt_surgery.names.suggest._MOST_COMPARED", 100)
    assert near("weights", ["weight1", "weight2", "weight3"]) == ["weight2", "weight1"]


def test_near_names_end_with_what_is_wanted():
    names = ["backbone.body.layer4.2.conv1.weight", "layer4x.w", "a.layer4"]
    assert near("layer4", names)[:2] == ["backbone.body.layer4", "a.layer4"]


def test_no_name_is_suggested_twice_or_when_far_longer():
    assert near("fc", ["fc1.a", "fc1.b", "fc1.c", "fc1"]) == ["fc1"]
    assert near("ab", ["abcdefghijkl", "ab1"]) == ["ab1"]
