"""Merge checkpoints: entries of several files in one, or numbers computed from all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ckpt_surgery.compute.jobs import Computing
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.merge.files import Sources, label_of
from ckpt_surgery.merge.result import MergeScope
from ckpt_surgery.writing.output import Output

if TYPE_CHECKING:
    from ckpt_surgery.merge.method import Method
    from ckpt_surgery.merge.policies import IntegerPolicy, KeyPolicy, ShapePolicy
    from ckpt_surgery.merge.recipe import MergeRecipe, Override
    from ckpt_surgery.reports.merging import MergeReport

__all__ = ["STRUCTURAL", "MergeScope", "merge", "merge_recipe", "methods"]

STRUCTURAL: Final = ("overlay", "fill")
"""Methods that compute nothing: later files win, and earlier files win."""


def methods() -> tuple[str, ...]:
    """The names of all methods."""
    from ckpt_surgery.merge.method import catalogue

    return (*STRUCTURAL, *catalogue())


def merge(
    sources: Sequence[PathLike | Source],
    output: Output | PathLike,
    method: str = "overlay",
    *,
    base: PathLike | Source | None = None,
    scope: MergeScope | None = None,
    only_existing: bool = False,
    same_shape: bool = False,
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, object] | None = None,
    overrides: Sequence[Override] = (),
    seed: int = 0,
    dtype: str | None = None,
    integers: IntegerPolicy = "auto",
    keys: KeyPolicy = "strict",
    on_shape: ShapePolicy = "error",
    allow_nonfinite: bool = False,
    threads: int | None = None,
    memory: int | None = None,
) -> MergeReport:
    """Write one checkpoint made from all `sources`.

    Everything that is not merged comes from the base: the file `base`, by default the first.
    ``overlay`` puts the entries of later files over it, ``fill`` adds those that are missing; both
    copy bytes and import no torch. `only_existing` and `same_shape` narrow what they take to names
    that the base has, and tensors of its shape. Every other method computes each tensor from the
    tensors of its name: with `weights` and `parameters` for all of them, `overrides` for some,
    `dtype` for the result, `integers`, `keys` and `on_shape` where files differ. With a method that
    needs a base, the base is not among the files that are merged into it.

    Numbers are computed while they are written, in `threads` (default: one a processor, at most 8),
    with at most `memory` bytes of results waiting.

    Raises `UsageError` for choices that do not fit, `MismatchError` and `NonFiniteError` for
    numbers that do not, `ReadError` for a bad input and `WriteError` for a bad output.
    """
    scope = scope or MergeScope()
    target = output if isinstance(output, Output) else Output(output)
    target.check()
    count = len(sources) + (base is not None and base not in sources)
    if method in STRUCTURAL:
        _require_several(count, least=2)
        _require_unused(
            method,
            {
                "--weight": weights,
                "--weight-for": overrides,
                "--set": parameters,
                "--seed": seed,
                "--dtype": dtype,
                "--int": integers != "auto",
                "--keys": keys != "strict",
                "--on-shape": on_shape != "error",
                "--allow-nonfinite": allow_nonfinite,
                "--threads": threads,
                "--memory": memory,
            },
        )
        files = Sources(sources, base)
        from ckpt_surgery.merge.overlay import merge_structure

        return merge_structure(method, files, target, scope, only_existing, same_shape)
    chosen = _find(method)
    _require_several(count, least=1 if chosen.max_inputs == 1 else 2)
    structural = {
        "--only-existing": only_existing,
        "--same-shape": same_shape,
        "--compact": scope.compact,
    }
    _require_unused(method, structural)
    files = Sources(sources, base, base_apart=chosen.needs_base)
    from ckpt_surgery.merge.arithmetic import merge_numbers
    from ckpt_surgery.merge.planner import Policies
    from ckpt_surgery.merge.recipe import WEIGHT, MergeInput, MergeRecipe

    labels = [label_of(source) for source in files.inputs]
    own: Sequence[Mapping[str, object]] = [{}] * len(labels)
    if weights is not None:
        chosen.bind(len(labels), has_base=chosen.needs_base, weights=weights, values=parameters)
        own = [{WEIGHT: weight} for weight in weights]
    recipe = MergeRecipe(
        method=chosen,
        inputs=tuple(MergeInput(f, v) for f, v in zip(labels, own, strict=True)),
        base=label_of(files.base),
        values=parameters or {},
        overrides=tuple(overrides),
        dtype=dtype,
        seed=seed,
        integers=integers,
    )
    policies = Policies(keys, on_shape, allow_nonfinite)
    return merge_numbers(recipe, files, target, scope, policies, Computing(threads, memory))


def merge_recipe(
    recipe: MergeRecipe | PathLike,
    output: Output | PathLike,
    *,
    scope: MergeScope | None = None,
    keys: KeyPolicy = "strict",
    on_shape: ShapePolicy = "error",
    allow_nonfinite: bool = False,
    threads: int | None = None,
    memory: int | None = None,
) -> MergeReport:
    """Carry out a recipe: a TOML file, mergekit's YAML, or a `MergeRecipe`; otherwise `merge`."""
    from ckpt_surgery.merge.arithmetic import merge_numbers
    from ckpt_surgery.merge.planner import Policies
    from ckpt_surgery.merge.recipe import MergeRecipe, read_recipe

    target = output if isinstance(output, Output) else Output(output)
    target.check()
    read = recipe if isinstance(recipe, MergeRecipe) else read_recipe(recipe)
    inputs = [entry.file for entry in read.inputs]
    count = len(inputs) + (read.base is not None and read.base not in inputs)
    _require_several(count, least=1 if read.method.max_inputs == 1 else 2)
    files = Sources(inputs, read.base, base_apart=read.method.needs_base)
    policies = Policies(keys, on_shape, allow_nonfinite)
    return merge_numbers(
        read, files, target, scope or MergeScope(), policies, Computing(threads, memory)
    )


def _find(method: str) -> Method:
    from ckpt_surgery.merge.method import catalogue, find
    from ckpt_surgery.merge.parameters import near_names

    if method.replace("_", "-") not in catalogue():
        hint = near_names(method, methods()) or "the methods are " + ", ".join(methods())
        raise UsageError(f"unknown method '{method}'", hint=hint)
    return find(method)


def _require_several(count: int, *, least: int) -> None:
    """Refuse what is no merge; a few methods are about one file."""
    if count < least:
        what = "one file" if count else "no file"
        raise UsageError(
            f"{what} is nothing to merge", hint="name at least two checkpoints, the base first"
        )


def _require_unused(method: str, given: Mapping[str, object]) -> None:
    """Refuse what another kind of method would use, instead of ignoring it."""
    for option, value in given.items():
        if value:
            raise UsageError(f"'{option}' has no meaning with method '{method}'")
