"""Merge checkpoints: entries of several files in one, or numbers computed from all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckpt_surgery.compute.jobs import Computing
from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio import Source
from ckpt_surgery.merge.files import Sources
from ckpt_surgery.merge.request import MergeRequest, require_several
from ckpt_surgery.merge.scope import MergeScope
from ckpt_surgery.writing.output import Output

if TYPE_CHECKING:
    from ckpt_surgery.merge.layered import LayeredRecipe
    from ckpt_surgery.merge.planner import Policies
    from ckpt_surgery.merge.policies import KeyPolicy, ShapePolicy
    from ckpt_surgery.merge.recipe import MergeRecipe
    from ckpt_surgery.reports.merging import MergeReport


def merge(
    sources: Sequence[PathLike | Source],
    output: Output | PathLike,
    request: MergeRequest | str = "overlay",
    **choices: Any,
) -> MergeReport:
    """Write one checkpoint made from all `sources`, as `request` says.

    ``merge(files, output, "linear", weights=[0.7, 0.3])`` is short for
    ``merge(files, output, MergeRequest("linear", weights=[0.7, 0.3]))``: a name is the method's,
    and `choices` are the other fields of a `MergeRequest`.

    Raises `UsageError` for choices that do not fit, `MismatchError` and `NonFiniteError` for
    numbers that do not, `ReadError` for a bad input and `WriteError` for a bad output.
    """
    target = output if isinstance(output, Output) else Output(output)
    target.check()
    if isinstance(request, str):
        request = MergeRequest(**{"method": request, **choices})
    elif choices:
        raise TypeError("the request says it all; make another with dataclasses.replace")
    files = request.sources(sources)
    if request.is_structural:
        from ckpt_surgery.merge.overlay import merge_structure

        return merge_structure(request, files, target)
    if request.is_fold:
        from ckpt_surgery.merge.lora.fold import fold

        return fold(request, files, target)
    from ckpt_surgery.merge.arithmetic import merge_numbers
    from ckpt_surgery.merge.planner import Policies

    policies = Policies(request.keys, request.on_shape, request.allow_nonfinite)
    recipe = request.recipe(files)
    return merge_numbers(recipe, files, target, request.scope, policies, request.computing)


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
    from ckpt_surgery.merge.planner import Policies
    from ckpt_surgery.merge.recipe import MergeRecipe
    from ckpt_surgery.merge.recipe_file import read_recipe

    target = output if isinstance(output, Output) else Output(output)
    target.check()
    read = recipe if isinstance(recipe, MergeRecipe) else read_recipe(recipe)
    policies = Policies(keys, on_shape, allow_nonfinite)
    computing = Computing(threads, memory)
    known = read.vocabularies
    if known is None:
        return _carried_out(read, target, scope or MergeScope(), policies, computing)
    from ckpt_surgery.ops import tokenizer_files as beside

    files = known.tokenizer_files()
    beside.require_room(known, files, target)
    read = replace(read, notes=(*read.notes, beside.said_of(known, files, target)))
    report = _carried_out(read, target, scope or MergeScope(), policies, computing)
    if report.output is not None and target.path is not None:
        beside.write_tokenizer(files, report.output, target)
    return report


def _carried_out(
    read: MergeRecipe | LayeredRecipe,
    target: Output,
    scope: MergeScope,
    policies: Policies,
    computing: Computing,
) -> MergeReport:
    from ckpt_surgery.merge.arithmetic import merge_numbers
    from ckpt_surgery.merge.recipe import MergeRecipe

    if not isinstance(read, MergeRecipe):
        from ckpt_surgery.merge.layered_plan import merge_layers

        return merge_layers(read, target, scope, policies, computing)
    inputs = [entry.file for entry in read.inputs]
    count = len(inputs) + (read.base is not None and read.base not in inputs)
    require_several(count, least=1 if read.method.max_inputs == 1 else 2)
    files = Sources(inputs, read.base, base_apart=read.method.needs_base)
    return merge_numbers(read, files, target, scope, policies, computing)
