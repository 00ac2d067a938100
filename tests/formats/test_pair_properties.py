"""Any names, shapes, ties and views go from any format to any other and stay what they were."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_every_pair import KINDS, SORTED, read_by_its_library, write
from torch_checks import bits

from ckpt_surgery import convert, digest, inspect

NAMES = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.lists(
        st.sampled_from(["a", "0", "weight", "", "ß", "层", "\x00", "\n", "'", "~"]), max_size=4
    ).map(".".join),
).filter(lambda name: name not in {"format", "__metadata__"})  # what safetensors cannot be asked
DTYPES = st.sampled_from(
    [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64,
     torch.float8_e4m3fn, torch.uint16]
)  # fmt: skip
HUGE = 70_000


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """Return a view of a storage of its own: of 0 to 4 axes, empty, repeated, in huge steps."""
    dtype = draw(DTYPES)
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    strides = [draw(st.sampled_from([0, 1, 2, 5, HUGE])) for _ in shape]
    offset = draw(st.integers(0, 3))
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True) if n)
    elements = (torch.arange(min(last + 2, 4 * HUGE * 4)) % 2).to(torch.uint8)
    if dtype is not torch.bool:
        elements = (torch.arange(len(elements)) * 7 % 251).to(torch.uint8)
    base = elements.repeat_interleave(dtype.itemsize).view(dtype)
    return base.as_strided(shape, strides, offset)


@st.composite
def states(draw: st.DrawFn) -> OrderedDict[str, torch.Tensor]:
    """Return tensors of any names, some tied, some views that overlap."""
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        before = list(state.values())
        how = draw(st.sampled_from(["own", "own", "tie", "overlap"])) if before else "own"
        if how == "own":
            state[name] = draw(views())
        else:
            tied = draw(st.sampled_from(before))
            state[name] = tied if how == "tie" or not tied.dim() else tied[:1]
    return state


def groups(state: dict[str, torch.Tensor]) -> set[frozenset[str]]:
    """Return the names that are the same elements of one storage."""
    found: dict[object, set[str]] = {}
    for name, value in state.items():
        if value.numel():
            strides = tuple(s for n, s in zip(value.shape, value.stride(), strict=True) if n > 1)
            key = value.data_ptr(), value.dtype, value.shape, strides
            found.setdefault(key, set()).add(name)
    return {frozenset(names) for names in found.values() if len(names) > 1}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@example(  # the product of such strides has more than 64 bits
    state=OrderedDict(a=torch.ones(1).as_strided((0, 1, 1, 1), (HUGE,) * 4)),
    first="torch-zip",
    second="safetensors",
)
@given(state=states(), first=st.sampled_from(list(KINDS)), second=st.sampled_from(list(KINDS)))
def test_everything_stays_the_same(state, first, second):
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.save(state, folder / "source.pth")
        one = write(folder / "source.pth", first, folder / "1")
        out = write(one, second, folder / "2")
        convert(out, folder / "back.pth")
        ties = {frozenset(group) for group in inspect(out).ties}
        found = read_by_its_library(out, second, folder / "x.pth")
        back = torch.load(folder / "back.pth", weights_only=True)
        digests = {m.digest for m in digest([folder / "source.pth", out]).models}
        for loaded in (found, back):
            written_once = second in SORTED and loaded is found
            assert set(state) - set(loaded) <= (
                set().union(*groups(state)) if written_once else set()
            )
            for name, value in loaded.items():
                expected = state[name]
                assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
                assert bits(value) == bits(expected)
        assert len(digests) == 1
        if "dcp" not in {first, second}:
            assert ties == groups(state)
            assert groups(back) == groups(state)
        if first == second == "torch-zip":
            assert list(found) == list(back) == list(state)
