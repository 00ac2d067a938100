"""The files of a merged model's tokenizer, beside its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ckpt_surgery.errors import WriteError
from ckpt_surgery.fileio.unchanged import write_unless_same
from ckpt_surgery.merge.vocabularies import Vocabularies
from ckpt_surgery.writing.output import Output


def said_of(known: Vocabularies, files: Iterable[str], output: Output) -> str:
    """Return what to say of the files: where they go."""
    names = ", ".join(f"'{name}'" for name in files)
    if output.path is None:
        return f"the tokenizer is not written, as the output is no file: {names}"
    more = ", with the tokens of all models" if known.is_union and not known.are_one else ""
    return f"the tokenizer of '{known.donor}'{more}, goes beside the output: {names}"


def require_room(known: Vocabularies, files: Mapping[str, bytes], output: Output) -> None:
    """Raise `WriteError` if a file is there that holds something else, or is one that was read.

    A directory that is not there yet has room.
    """
    if output.path is None or not Path(output.path).suffix:
        return
    folder = _folder(output.path)
    read = {(place / name).resolve() for place in known.folders for name in files}
    for name, data in files.items():
        place = folder / name
        if not place.is_file() or place.read_bytes() == data:
            continue
        if place.resolve() in read or not (output.force or output.if_changed):
            raise WriteError(
                "the merged model has another tokenizer than the one that lies there",
                path=place,
                hint="give the output a folder of its own",
            )


def write_tokenizer(files: Mapping[str, bytes], written: str, output: Output) -> None:
    """Write the files beside what was written."""
    for name, data in files.items():
        place = _folder(written) / name
        write_unless_same(place, data, force=output.force, if_changed=output.if_changed)


def _folder(path: object) -> Path:
    place = Path(str(path))
    return place if place.is_dir() else place.parent
