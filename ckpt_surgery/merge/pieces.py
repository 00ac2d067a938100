"""Merging the tensors of one name: the loop over pieces, and all of it for tensors in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ckpt_surgery.compute import casting
from ckpt_surgery.compute.casts import CastCount, CastTally
from ckpt_surgery.compute.scheduler import keep_freed_memory
from ckpt_surgery.compute.spans import RUN, spans
from ckpt_surgery.errors import MismatchError
from ckpt_surgery.merge.inputs import Inputs, of_tensors
from ckpt_surgery.merge.method import Method
from ckpt_surgery.merge.parameters import Settings


def _merged_runs(
    method: Method,
    inputs: Inputs,
    dtype: torch.dtype,
    *,
    tally: CastTally | None = None,
    threads: int = 1,
) -> Iterator[Tensor]:
    """Yield the result of merging, run by run in order, flat, in `dtype`.

    Each run has `RUN` elements, the last one fewer. Memory: `threads` + 2 runs, beside what the
    method keeps if its scope is ``Scope.TENSOR``. With more than one thread, ``inputs.read`` is
    called from several at once; the result does not depend on their number.

    Raises `NonFiniteError` at NaN or infinity in an input unless `inputs` allow them, and
    `LossyEditError` if a norm overflows.
    """
    keep_freed_memory()
    if inputs.numel <= RUN:
        measured = method.measure(inputs)
        yield merge_run(method, inputs, (0, inputs.numel), dtype, measured, tally)
        return
    pending: deque[Future[Tensor]] = deque()
    # one thread of torch's in each of ours: its own wait for each other after every operation,
    # which on a busy machine takes longer than the arithmetic
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads, "merge", torch.set_num_threads, (1,)) as pool:
        measured = pool.submit(method.measure, inputs).result()
        try:
            for span in spans(0, inputs.numel, RUN):
                arguments = method, inputs, span, dtype, measured, tally
                pending.append(pool.submit(merge_run, *arguments))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            torch.set_num_threads(before)


def merge_run(
    method: Method,
    inputs: Inputs,
    span: tuple[int, int],
    dtype: torch.dtype,
    measured: Any,
    tally: CastTally | None,
) -> Tensor:
    """Return the elements of one run (begin and end), made piece by
    piece; raises as `_merged_runs`.
    """
    start, stop = span
    result = torch.empty(stop - start, dtype=dtype)
    count = CastCount()
    shows = method.shows_nonfinite(inputs.settings)
    for begin, end in spans(start, stop):
        piece = inputs.piece(begin, end, measured, check=not shows)
        exact = method.combine(piece)
        if shows and not isfinite(float(exact.sum())):
            inputs.piece(begin, end)  # finds the input that holds it, if one does
        rounded = result[begin - start : end - start]
        rounded.copy_(casting.before_rounding(exact, dtype))
        if tally is not None:
            narrow = exact.dtype == torch.float64 and dtype.itemsize < 4
            zeros = narrow or tally.cast.changes_type
            count += casting.count_cast(exact, rounded, zeros=zeros)
    if tally is not None:
        tally.add(count, part=start)
    return result


def merge_tensor(
    method: Method,
    settings: Settings,
    name: str,
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    allow_nonfinite: bool = False,
    tally: CastTally | None = None,
    threads: int = 1,
) -> Tensor:
    """Return the merged tensor: contiguous, of the inputs' shape, in `dtype`.

    `tensors` (and `base`) have one shape and floating or complex element types, complex ones being
    merged as real and imaginary parts. `dtype` is by default the base's, or the first tensor's
    without one. `labels` name the files in errors, the base last; `seed` and `name` decide random
    numbers.

    Raises `MismatchError` if shapes or kinds differ, and what `_merged_runs` raises.
    """
    everything = [*tensors, *(() if base is None else (base,))]
    _require_alike(name, everything)
    dtype = dtype or everything[-1 if base is not None else 0].dtype
    real = [casting.real_view(tensor) for tensor in everything]
    inputs = of_tensors(
        name,
        real[: len(tensors)],
        None if base is None else real[-1],
        work=casting.work_dtype(tensor.dtype for tensor in real),
        settings=settings,
        labels=labels,
        seed=seed,
        allow_nonfinite=allow_nonfinite,
    )
    result = torch.empty(inputs.shape, dtype=casting.real_dtype(dtype))
    flat, start = result.view(-1), 0
    for run in _merged_runs(method, inputs, result.dtype, tally=tally, threads=threads):
        flat[start : start + run.numel()] = run
        start += run.numel()
    return torch.view_as_complex(result) if everything[0].is_complex() else result


def _require_alike(name: str, tensors: Sequence[Tensor]) -> None:
    first = tensors[0]
    for tensor in tensors:
        if tensor.shape != first.shape:
            shapes = " and ".join(str(tuple(t.shape)) for t in (first, tensor))
            raise MismatchError(f"'{name}' has the shapes {shapes}", entry=name)
        if tensor.is_complex() != first.is_complex() or not (
            tensor.is_complex() or tensor.is_floating_point()
        ):
            kinds = " and ".join(str(t.dtype).removeprefix("torch.") for t in (first, tensor))
            raise MismatchError(f"'{name}' cannot be averaged over {kinds}", entry=name)
