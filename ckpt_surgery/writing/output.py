"""Where an edited checkpoint goes, as a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import field
from pathlib import Path
from typing import Final

from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.distinct import INPUT, OUTPUT, Role, require_distinct
from ckpt_surgery.fileio.sink import Progress
from ckpt_surgery.formats import registry
from ckpt_surgery.formats.base import Format, LayoutOptions
from ckpt_surgery.startup.lazy_dataclass import dataclass

_HASH_IN_NAME: Final = re.compile(r"-([a-f0-9]*)\.")
"""Where `torch.hub.load_state_dict_from_url` looks for the hash in a name: the first match."""


HASH_DIGITS: Final = 8
_OWN_HASH: Final = re.compile(r"-[a-f0-9]{8,64}$")


ProgressBar = Callable[[int], AbstractContextManager[Progress]]
"""Called with the bytes that will be written; gives what is called with those that were."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where an edited checkpoint goes: to the file `path`, the descriptor `stream`, or `in_place`.

    `force` replaces an existing file, `if_changed` only one that holds something else; without
    either an existing file must hold the same already. `fsync` None forces the bytes to the disk
    only where a file is replaced; `dry_run` writes nothing. `format` None lets the suffix of `path`
    speak. What the format cannot hold is left out with `allow_loss`, and refused without; plain
    values among it go into the JSON file `sidecar`. `options` are for the format's layout. With
    `hash_name` the first eight digits of the file's SHA-256 go into its name, as torch.hub expects:
    ``resnet18.pth`` becomes ``resnet18-f37072fd.pth``; a hash that the name has is renewed.
    `beside` are other files that are written with it, such as a record. With `plain` numpy scalars,
    Namespaces and paths are written as plain values; `device` (``cpu``) is said of all tensors,
    wherever they were saved. With `verify` what is copied is compared with the checksums of its
    file, also in a dry run; None does so where a digest of the output is taken: for `hash_name`,
    and if it is `recorded`. With `provenance` the file keeps how it came about.
    """

    path: PathLike | None = None
    stream: int | None = None
    in_place: bool = False
    force: bool = False
    if_changed: bool = False
    fsync: bool | None = None
    dry_run: bool = False
    format: str | None = None
    progress: ProgressBar | None = None
    hash_name: bool = False
    allow_loss: bool = False
    sidecar: PathLike | None = None
    options: LayoutOptions = field(default_factory=LayoutOptions)
    beside: tuple[Role, ...] = ()
    plain: bool = False
    device: str | None = None
    verify: bool | None = None
    recorded: bool = False
    provenance: bool = False

    @property
    def verifies(self) -> bool:
        """Whether what is copied is compared with its checksums."""
        return self.hash_name or self.recorded if self.verify is None else self.verify

    def check(self) -> None:
        """Raise `UsageError` if it says nothing, too much, or a format that cannot be written."""
        ways = (self.path is not None) + (self.stream is not None) + self.in_place
        if ways > 1:
            raise UsageError("an output and 'in_place' contradict each other", fields=("in_place",))
        if ways == 0 and not self.dry_run:
            raise UsageError(
                "there is no output", hint="give -o FILE, or --in-place to replace the input"
            )
        if self.device not in (None, "cpu"):
            raise UsageError(
                f"'device {self.device}': only 'cpu' can be said of tensors", fields=("device",)
            )
        if self.hash_name:
            self._check_hash_name()
        self.chosen_format()

    def chosen_format(self) -> Format | None:
        """Return the format that is asked for, or that the name of the output says; else None.

        Raises `UsageError` if it cannot be written.
        """
        if self.format is not None:
            chosen = self._format_asked_for(self.format)
            if not chosen.is_writable:
                raise UsageError(
                    f"'format {self.format}': {chosen.title} can only be read",
                    fields=("format",),
                    hint=f"these can be written: {', '.join(registry.writable())}",
                )
            return chosen
        if self.path is None:
            return None
        try:
            return registry.of_suffix(Path(self.path).suffix.lower())
        except UsageError as error:
            error.name_file(self.path)
            raise

    def _format_asked_for(self, name: str) -> Format:
        try:
            return registry.get(name)
        except UsageError as error:
            raise UsageError(
                f"'format {name}': there is no such format", hint=error.hint, fields=("format",)
            ) from error

    @property
    def replaces(self) -> bool:
        """Whether an existing file that holds something else is replaced."""
        return self.force or self.if_changed

    def refuse_inputs(
        self, inputs: Iterable[Source], read: Iterable[Role] = (), *, may_replace: bool = True
    ) -> None:
        """Raise `WriteError` if anything that is written is one of `inputs` or of what else was
        `read`, also in a dry run. Without `may_replace` no hint speaks of replacing an input.

        Only the input that is replaced in place may be; it is not told apart from the others here.
        A name that a hash is yet to be put into is not that of the output.
        """
        place = self.path if self.path is not None else self.stream
        if self.hash_name:
            place = None
        own = [] if place is None else [Role(OUTPUT, place)]
        sidecar = [] if self.sidecar is None else [Role("'--sidecar'", self.sidecar)]
        require_distinct(
            [*own, *sidecar, *self.beside],
            [*(Role(INPUT, file) for file in inputs), *read],
            may_replace=may_replace,
        )

    def _check_hash_name(self) -> None:
        if self.path is None:
            raise UsageError(
                "'hash_name' needs a name to put the hash into",
                hint="give -o FILE",
                fields=("hash_name",),
            )
        name = Path(self.path).name
        if _HASH_IN_NAME.search(without_hash(Path(self.path).stem)):
            raise UsageError(
                f"'hash_name': torch.hub would take a part of '{name}' for the hash",
                fields=("hash_name",),
                hint="use a name without a dash before hexadecimal digits and a dot",
            )


def without_hash(stem: str) -> str:
    """Return a file's name, without its suffix, without a hash at its end."""
    return _OWN_HASH.sub("", stem) or stem
