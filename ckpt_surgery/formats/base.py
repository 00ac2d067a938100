"""What a format is: how it is recognised, read, laid out and checked, and what it cannot hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, ClassVar, Literal

from ckpt_surgery.errors import LossyEditError
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.checkpoint.description import Checkpoint
    from ckpt_surgery.checkpoint.findings import Finding
    from ckpt_surgery.fileio import ByteRange, Source
    from ckpt_surgery.fileio.sink import Sink
    from ckpt_surgery.pickles import Limits


@dataclass(frozen=True, slots=True)
class Loss:
    """Something of a checkpoint that a format cannot hold.

    `path` names it (``path/name`` of an entry, the path of a state dict or of what lies beside
    them, empty for the file as such), `part` says which of these it is (a module is more than its
    state dict), `what` its kind and `why` the reason. One that is not `refused` is left out and
    reported; for any other, writing is refused unless the loss is allowed.
    """

    path: str
    part: Literal["entry", "other", "state_dict", "module", "file"]
    what: str
    why: str
    refused: bool = True


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """What the user may decide about a layout, as far as the format knows of it.

    `metadata` are texts to be put into the file beside the tensors, `duplicate_ties` says that
    tied tensors are written once for each name. `max_shard_size` is the most bytes of tensors in
    one shard; None keeps the shards of the input, or takes 5 GB. `nameless`: nothing that the
    input was called goes into the file, so that equal weights give equal bytes.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    duplicate_ties: bool = False
    max_shard_size: int | None = None
    nameless: bool = False


@dataclass(frozen=True, slots=True)
class FileLayout:
    """One file of a layout: every offset is known before `write` puts the first byte in a sink.

    `name` is relative to the output's directory, and empty if the file is the whole output.
    `sources` are where its bytes come from, in the order in which they will be read.
    """

    name: str
    nbytes: int
    sources: Sequence[object]
    write: Callable[[Sink], None]


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of an output: one without a name, or several in a directory.

    `owned` are glob patterns of names that an existing directory may have beside those of `files`
    and still be replaced: files of the same format.
    """

    files: tuple[FileLayout, ...]
    owned: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.nbytes for file in self.files)

    @property
    def sources(self) -> list[object]:
        """The sources of all files, in the order in which they will be read."""
        return [source for file in self.files for source in file.sources]

    @property
    def is_directory(self) -> bool:
        """Whether the output is a directory."""
        return any(file.name for file in self.files)


class Format(ABC):
    """A way to keep checkpoints in a file, or in a directory.

    `name` is what reports and ``--format`` call it, `suffixes` (of file names, in lower case)
    choose it for an output, `title` is what messages call a file of it. A format that is only
    read, or written only if asked for, names in `written_as` the one that holds what it gives.
    `of_directories` says that its checkpoints are directories and not files, `honours` which
    `LayoutOptions` it carries out, `keeps_provenance` that it keeps that of a checkpoint,
    `keeps_modules` that a pickled module stays one in it, and `keeps_checksums` that it keeps
    those of storages that are copied, so that damage stays to be seen. `is_flat` says that it is
    one state dict, and has no dictionary around it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    written_as: ClassVar[str] = ""
    of_directories: ClassVar[bool] = False
    honours: ClassVar[frozenset[str]] = frozenset()
    keeps_provenance: ClassVar[bool] = False
    keeps_modules: ClassVar[bool] = False
    keeps_checksums: ClassVar[bool] = False
    is_flat: ClassVar[bool] = False

    @property
    def is_writable(self) -> bool:
        """Whether it can be written: it has a `lay_out` of its own."""
        return type(self).lay_out is not Format.lay_out

    @abstractmethod
    def sniff(self, source: Source) -> bool:
        """Say whether `source` is of this format, from as few bytes as possible; never raises."""

    @abstractmethod
    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the checkpoint in `source` without reading tensor bytes.

        Raises `DamagedFileError` if it breaks the format's rules, and `LimitExceededError`.
        """

    def is_one(self, source: Source) -> bool:
        """Say whether a directory that `sniff` takes is one checkpoint, not a folder of several."""
        del source
        return True

    def losses(self, checkpoint: Checkpoint) -> Sequence[Loss]:
        """Return what of `checkpoint` the format cannot hold."""
        del checkpoint
        return ()

    def lay_out(self, checkpoint: Checkpoint, options: LayoutOptions) -> Layout:
        """Place every byte of `checkpoint`, whose losses are already gone.

        Raises `LossyEditError` if the format is only read.
        """
        del options
        raise LossyEditError(
            f"{self.title} cannot be written", path=checkpoint.file.name, hint="give --format"
        )

    def reread(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Return what reading gives after `checkpoint` is written, if that is known without both.

        The recipe's next step begins with it. None if it is not known.
        """
        del checkpoint
        return None

    def check(self, checkpoint: Checkpoint) -> Iterator[Finding]:
        """Yield what is odd about the file of `checkpoint`, which was read and so is not damaged.

        `verify` asks for it. What is said of every format (checksums of `records`, names in
        pickles, values) is not looked at here.
        """
        del checkpoint
        return iter(())

    def is_around(self, checkpoint: Checkpoint) -> bool:
        """Say whether `checkpoint` is that of a file in an archive of files, which was read."""
        del checkpoint
        return False

    def records(self, checkpoint: Checkpoint) -> Sequence[tuple[str, ByteRange]]:
        """Return the parts of the file that are stored as they are, with their checksums if any.

        These are the storages, for a format that has no names of its own for its parts.
        """
        from ckpt_surgery.fileio import ByteRange

        storages = {
            (id(part.storage.data.source), part.storage.data.offset): part.storage
            for tensor in checkpoint.all_tensors
            for part in tensor.strided_parts()
            if part.storage is not None and isinstance(part.storage.data, ByteRange)
        }
        return [(f"storage {s.key}", s.data) for s in storages.values()]  # type: ignore[misc]
