"""Rules of ``ckpt edit`` that fold: from their texts to edits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from ckpt_surgery.checkpoint.description import StateDict
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.folds import Branch, FoldBranches, FoldSpectralNorm, FoldWeightNorm
from ckpt_surgery.edits.rule_texts import captured, selection_rule, target_name
from ckpt_surgery.startup.lazy_dataclass import dataclass

_OPTION: Final = re.compile(r":(?=(?:eps|dim)=)")


@dataclass(frozen=True, slots=True)
class _Block:
    """How the branches of a block are called, and their sum: modules below the block.

    `convolutions` are pairs of a convolution and its batch norm, ``{}`` any number.
    """

    convolutions: tuple[tuple[str, str], ...]
    identity: str
    result: str


# RepVGG and MobileOne, by who writes them so.
_BLOCKS: Final = (
    # github.com/DingXiaoH/RepVGG
    _Block(
        (("rbr_dense.conv", "rbr_dense.bn"), ("rbr_1x1.conv", "rbr_1x1.bn")),
        "rbr_identity",
        "rbr_reparam",
    ),
    # timm, RepVggBlock
    _Block(
        (("conv_kxk.conv", "conv_kxk.bn"), ("conv_1x1.conv", "conv_1x1.bn")),
        "identity",
        "reparam_conv",
    ),
    # timm, MobileOneBlock
    _Block(
        (("conv_kxk.{}.conv", "conv_kxk.{}.bn"), ("conv_scale.conv", "conv_scale.bn")),
        "identity",
        "reparam_conv",
    ),
    # github.com/apple/ml-mobileone
    _Block(
        (("rbr_conv.{}.conv", "rbr_conv.{}.bn"), ("rbr_scale.conv", "rbr_scale.bn")),
        "rbr_skip",
        "reparam_conv",
    ),
    # mmpretrain
    _Block(
        (("branch_3x3.conv", "branch_3x3.norm"), ("branch_1x1.conv", "branch_1x1.norm")),
        "branch_norm",
        "branch_reparam",
    ),
    # ultralytics, RepConv
    _Block((("conv1.conv", "conv1.bn"), ("conv2.conv", "conv2.bn")), "bn", "conv"),
)


def _batch_norm(text: str, state_dict: StateDict) -> Iterator[Edit]:
    """Yield the folds of ``CONV=NORM``: modules, with stars and groups as in other rules."""
    text, options = _options(text)
    source, equals, norm = text.partition("=")
    if not equals:
        raise ValueError("there is no '='")
    known = set(state_dict.names)
    shapes = {name: tensor.shape for name, tensor in state_dict.tensors}
    modules = [n.removesuffix(".weight") for n, s in shapes.items() if _is_kernel(n, s)]
    for module, groups in captured(source, modules):
        target = target_name(module, norm, groups)
        if f"{target}.running_mean" not in known:
            raise ValueError(f"'{target}' is no batch norm, which '{module}' would be folded with")
        bias = f"{module}.bias"
        branch = Branch(f"{module}.weight", bias if bias in known else None, target)
        yield FoldBranches(state_dict.path, f"{module}.weight", bias, (branch,), *_numbers(options))


def _is_kernel(name: str, shape: Sequence[int]) -> bool:
    return name.endswith(".weight") and len(shape) > 1


def _repvgg(text: str, state_dict: StateDict) -> Iterator[Edit]:
    """Yield the folds of all blocks of branches among the modules that the text selects."""
    text, options = _options(text)
    numbers = _numbers(options)
    known = set(state_dict.names)
    blocks = dict(_blocks(state_dict))
    rule = selection_rule(text, list(blocks))
    for block, layout in blocks.items():
        if not rule.matches(block):
            continue
        branches = tuple(_branches(block, layout, known))
        yield FoldBranches(
            state_dict.path,
            f"{block}.{layout.result}.weight" if block else f"{layout.result}.weight",
            f"{block}.{layout.result}.bias" if block else f"{layout.result}.bias",
            branches,
            *numbers,
        )


def _blocks(state_dict: StateDict) -> Iterator[tuple[str, _Block]]:
    """Yield the modules that are a block of several branches."""
    known = set(state_dict.names)
    for layout in _BLOCKS:
        ends = [
            convolution.replace("{}", "0") + ".weight" for convolution, _ in layout.convolutions
        ]
        for name in state_dict.names:
            for end in ends:
                if name != end and not name.endswith(f".{end}"):
                    continue
                block = name[: -len(end)].removesuffix(".")
                if len(list(_branches(block, layout, known))) > 1 and name in known:
                    yield block, layout


def _branches(block: str, layout: _Block, known: set[str]) -> Iterator[Branch]:
    start = f"{block}." if block else ""
    for convolution, norm in layout.convolutions:
        number = 0
        while True:
            module = start + convolution.replace("{}", str(number))
            kernel, bias = f"{module}.weight", f"{module}.bias"
            normed = start + norm.replace("{}", str(number))
            if kernel not in known or f"{normed}.running_mean" not in known:
                break
            yield Branch(kernel, bias if bias in known else None, normed)
            number += 1
            if "{}" not in convolution:
                break
    if f"{start}{layout.identity}.running_mean" in known:
        yield Branch(norm=start + layout.identity)


def _weight_norm(text: str, state_dict: StateDict) -> Iterator[Edit]:
    """Yield the folds of ``NAME_g`` with ``NAME_v``, and of parametrisations of two tensors."""
    known = set(state_dict.names)
    found: dict[str, tuple[str, str]] = {}
    for name in state_dict.names:
        parametrised = _parametrised(name, "original0")
        if parametrised and name[:-1] + "1" in known:
            found[parametrised] = name, name[:-1] + "1"
        elif name.endswith("_g") and f"{name[:-2]}_v" in known:
            found[name[:-2]] = name, f"{name[:-2]}_v"
    rule = selection_rule(text, list(found))
    for name, (magnitude, direction) in found.items():
        if rule.matches(name):
            yield FoldWeightNorm(state_dict.path, name, magnitude, direction)


def _spectral_norm(text: str, state_dict: StateDict) -> Iterator[Edit]:
    """Yield the folds of ``NAME_orig`` with ``NAME_u``, and of parametrisations with ``_u``."""
    text, options = _options(text)
    dim = int(options["dim"]) if "dim" in options else None
    shapes = {name: tensor.shape for name, tensor in state_dict.tensors}
    found: dict[str, tuple[str, str, str]] = {}
    for name in shapes:
        parametrised = _parametrised(name, "original")
        if parametrised:
            start = name.removesuffix("original")
            found[parametrised] = name, f"{start}0._u", f"{start}0._v"
        elif name.endswith("_orig"):
            start = name.removesuffix("_orig")
            found[start] = name, f"{start}_u", f"{start}_v"
    found = {n: each for n, each in found.items() if each[1] in shapes and each[2] in shapes}
    rule = selection_rule(text, list(found))
    for name, (weight, u, v) in found.items():
        if rule.matches(name):
            axis = _rows(shapes[weight], shapes[u]) if dim is None else dim
            yield FoldSpectralNorm(state_dict.path, name, weight, u, v, axis)


def _rows(shape: Sequence[int], vector: Sequence[int]) -> int:
    """Return the axis of the rows: 0, unless only 1 has as many (a transposed convolution)."""
    return int(len(shape) > 1 and shape[0] != vector[0] and shape[1] == vector[0])


def _parametrised(name: str, end: str) -> str | None:
    """Return the parameter that ``M.parametrizations.P.END`` is about: ``M.P``."""
    match = re.fullmatch(rf"(.*\.)?parametrizations\.([^.]+)\.{end}", name)
    return None if match is None else f"{match[1] or ''}{match[2]}"


def _options(text: str) -> tuple[str, dict[str, str]]:
    first, *rest = _OPTION.split(text)
    return first, dict(part.split("=", 1) for part in rest)


def _numbers(options: Mapping[str, str]) -> tuple[float, int]:
    """Return ε of batch norms, and the axis of the outputs."""
    return float(options.get("eps", 1e-5)), int(options.get("dim", 0))


FOLD_RULES: Final[dict[str, Callable[[str, StateDict], Iterator[Edit]]]] = {
    "fold-batch-norm": _batch_norm,
    "fold-weight-norm": _weight_norm,
    "fold-spectral-norm": _spectral_norm,
    "fold-repvgg": _repvgg,
}
"""What each option does with its text and a state dict."""
