"""Write a checkpoint to its output: lay out, then copy or compute each byte once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.errors import LossyEditError, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.atomic import atomic_output, stream_output
from ckpt_surgery.fileio.sink import Digest, Progress, Sink
from ckpt_surgery.formats.torch_zip_layout import lay_out_torch_zip
from ckpt_surgery.writing.output import HASH_DIGITS, Output


def named_by_content(checkpoint: Checkpoint, output: Output) -> Output:
    """`output` with the hash in its name, if that is wanted; everything is read once for it."""
    if not output.hash_name or output.dry_run or output.path is None:
        return output
    digest = Digest()
    lay_out_torch_zip(checkpoint).write(digest)
    path = Path(output.path)
    name = f"{path.stem}-{digest.hexdigest()[:HASH_DIGITS]}{path.suffix}"
    return replace(output, path=path.with_name(name), hash_name=False)


def write(
    checkpoint: Checkpoint,
    output: Output,
    *,
    inputs: Sequence[Source] = (),
    prepare: Callable[[Sequence[object]], object] | None = None,
) -> int:
    """Write `checkpoint`; the number of bytes that it takes, also if nothing is written.

    `inputs` are the files that bytes come from beside its own. `prepare` is given the sources of
    all bytes in the order in which they will be read, before the first is.
    """
    if checkpoint.unwritable:
        name = checkpoint.file.name
        raise LossyEditError(
            f"writing it again would lose something: {checkpoint.unwritable}",
            path=name,
            hint=f"take the weights alone: ckpt convert --state-dict-only {name} -o weights.pth",
        )
    layout = lay_out_torch_zip(checkpoint)
    if not output.dry_run:
        bar = output.progress
        if prepare is not None:
            prepare([record.source for record in layout.records])
        with (
            nullcontext(None) if bar is None else bar(layout.nbytes) as progress,
            _opened(checkpoint.file, output, [*checkpoint.sources, *inputs], progress) as sink,
        ):
            layout.write(sink)
    return layout.nbytes


@contextmanager
def _opened(
    file: Source, output: Output, inputs: Sequence[Source], progress: Progress | None
) -> Iterator[Sink]:
    if output.stream is not None:
        with stream_output(output.stream, inputs=inputs, progress=progress) as sink:
            yield sink
        return
    path = file.path if output.in_place else output.path
    if path is None:
        raise UsageError(
            f"'{file.name}' is no file of its own and cannot be edited in place",
            hint="give -o FILE",
        )
    with atomic_output(
        path,
        force=output.force,
        replacing=file if output.in_place else None,
        inputs=inputs,
        fsync=output.fsync,
        progress=progress,
    ) as sink:
        yield sink


def left_out(before: Checkpoint, after: Checkpoint) -> tuple[str, ...]:
    """The paths of the other entries that `after` does not have."""
    kept = {other.path for other in after.others}
    return tuple(other.path for other in before.others if other.path not in kept)


def destination(checkpoint: Checkpoint, output: Output) -> str | None:
    """The output's name for a report; None if nothing is written."""
    if output.dry_run:
        return None
    if output.stream is not None:
        return "<stdout>"
    return checkpoint.file.name if output.in_place else str(output.path)
