"""What torch itself says about a state dict: its ``load_state_dict``, on the meta device.

Every module's own code for loading older versions of itself runs, on tensors without values. So
the verdict is torch's by construction, and no weight memory is used.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ckpt_surgery.errors import ConstructionError
from ckpt_surgery.matching.comparison import (
    Comparison,
    Mismatch,
    dtype_differences,
    split_tied,
    uncopyable,
)
from ckpt_surgery.models.target import Metadata, Target, TensorSpec

_MISMATCH = re.compile(r"size mismatch for (?P<name>.*?): copying a param with shape ", re.DOTALL)
_OTHER_COPY = re.compile(r"While (?:copying|swapping) the parameter named \"(?P<name>.*?)\"")


def judge(
    model: nn.Module,
    target: Target,
    source: Sequence[TensorSpec],
    *,
    metadata: Metadata | None = None,
    extra_state: Sequence[str] = (),
) -> Comparison:
    """Load descriptions of `source` into `model`, which `target` describes.

    `extra_state` names entries of the state dict that are no tensors; the model's
    ``set_extra_state`` is not called. Raises ConstructionError if the model's own code raises.
    """
    upgraded = upgraded_names(model, source, metadata)
    by_new_name = {upgraded.get(spec.name, spec.name): spec for spec in source}
    missing, unexpected, complaints = _run_load(
        _probe(model), _shapes_only(source, metadata), assign=False
    )
    missing = [name for name in missing if name not in extra_state]
    # older spellings are gone once the model's code has renamed them
    extra = [name for name in extra_state if name not in target.extra_state]
    pairs = [(by_new_name[want.name], want) for want in target.tensors if want.name in by_new_name]
    wrong = set(complaints)
    refused = uncopyable((have, want) for have, want in pairs if want.name not in wrong)
    lost = wrong | {each.name for each in refused}
    tied, really_missing = split_tied(missing, target, by_new_name)
    reported = {*missing, *by_new_name}
    return Comparison(
        matched=tuple(want.name for _, want in pairs if want.name not in lost),
        missing=really_missing,
        unexpected=(*unexpected, *extra),
        mismatched=tuple(
            Mismatch(want.name, have.shape, want.shape)
            for have, want in pairs
            if want.name in wrong
        ),
        uncopyable=refused,
        dtype_differences=dtype_differences(pairs),
        tied=tied,
        renamed=tuple(upgraded.items()),
        defaulted=tuple(want.name for want in target.tensors if want.name not in reported),
    )


def upgraded_names(
    model: nn.Module, source: Sequence[TensorSpec], metadata: Metadata | None = None
) -> dict[str, str]:
    """Return the old names that the model's own loading code renames, each with its new one.

    None are known if that code raises (MNASNet's does, for a state dict without ``_metadata``).
    """
    known = {name for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    if all(spec.name in known for spec in source):
        return {}
    probe = _probe(model)
    state = _shapes_only(source, metadata)
    # what tells tensors without bytes apart is their storage object
    origin = {tensor.untyped_storage()._cdata: name for name, tensor in state.items()}  # noqa: SLF001
    try:
        _run_load(probe, state, assign=True)
    except ConstructionError:
        return {}
    renamed = {}
    for name, value in probe.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor):
            old = origin.get(value.untyped_storage()._cdata)  # noqa: SLF001 as above
            if old is not None and old != name:
                renamed[old] = name
    return renamed


def _probe(model: nn.Module) -> nn.Module:
    """Return a copy to load into, which may change a model (MNASNet's
    does), with all buffers on meta.
    """
    return copy.deepcopy(model).to("meta")


def _shapes_only(
    source: Sequence[TensorSpec], metadata: Metadata | None
) -> OrderedDict[str, torch.Tensor]:
    """Return tensors without values, all of one element type: names and
    shapes are what is asked about.
    """
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for spec in source:
        try:
            state[spec.name] = torch.empty(spec.shape, device="meta")
        except (RuntimeError, TypeError) as error:
            raise ConstructionError(
                f"'{spec.name}' has a shape that no tensor can have: {list(spec.shape)}"
            ) from error
    if metadata is not None:
        # copied: torch writes into what it is given
        copied = {module: dict(stored) for module, stored in metadata.items()}
        state._metadata = OrderedDict(copied)  # type: ignore[attr-defined]  # noqa: SLF001 where torch keeps it
    return state


def _run_load(
    model: nn.Module, state: Mapping[str, Any], *, assign: bool
) -> tuple[list[str], list[str], list[str]]:
    found: list[tuple[list[str], list[str]]] = []

    def remember(_module: nn.Module, keys: Any) -> None:
        found.append((list(keys.missing_keys), list(keys.unexpected_keys)))

    handle = model.register_load_state_dict_post_hook(remember)
    complaints = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that copying into meta tensors copies nothing
            model.load_state_dict(state, strict=False, assign=assign)
    except Exception as error:
        complaints = str(error)
        if not found:
            raise ConstructionError(
                f"the model's own loading code raised {type(error).__name__}: {error}"
            ) from error
    finally:
        handle.remove()
    missing, unexpected = found[-1]
    wrong = [m["name"] for p in (_MISMATCH, _OTHER_COPY) for m in p.finditer(complaints)]
    return missing, unexpected, wrong
