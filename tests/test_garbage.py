"""The collector is paused while something is made, and only then."""

from __future__ import annotations

import gc

import pytest

from ckpt_surgery.garbage import collector_paused


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
