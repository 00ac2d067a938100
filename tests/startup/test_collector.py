"""The collector is paused while something is made, and only then."""

from __future__ import annotations

import gc

import pytest

from ckpt_surgery.startup.collector import collector_paused, freeze_what_is_made


@pytest.fixture(params=[True, False], ids=["on", "off"])
def before(request):
    was = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if was else gc.disable)()


def test_the_collector_is_afterwards_as_it_was(before):
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled() is before


def test_an_error_leaves_the_collector_as_it_was(before):
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled() is before


def test_in_a_process_of_one_command_what_is_made_is_never_looked_at(monkeypatch):
    monkeypatch.setattr("ckpt_surgery.startup.collector._freezes", False)
    freeze_what_is_made()
    gc.enable()
    before = gc.get_freeze_count()
    try:
        with collector_paused():
            made = [[] for _ in range(1000)]
        assert gc.get_freeze_count() >= before + len(made)
    finally:
        gc.unfreeze()


def test_in_another_process_nothing_is_frozen(monkeypatch):
    monkeypatch.setattr("ckpt_surgery.startup.collector._freezes", False)
    before = gc.get_freeze_count()
    with collector_paused():
        made = [[] for _ in range(1000)]
    assert gc.get_freeze_count() <= before, made
