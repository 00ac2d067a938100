"""A bill of materials of models, in the form of CycloneDX, by its library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.errors import MissingDependencyError, PathLike, about_file
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.distinct import INPUT, OUTPUT, Role, require_distinct
from ckpt_surgery.formats import read
from ckpt_surgery.ops.hash import file_digest, model_digests
from ckpt_surgery.ops.lineage import EditRecord, require_output
from ckpt_surgery.torch_objects.digest import PREFIX

if TYPE_CHECKING:
    from ckpt_surgery.checkpoint.description import Checkpoint
    from ckpt_surgery.writing.output import ProgressBar

_PREFIX: Final = "ckpt:"
"""What the names of our properties begin with, as CycloneDX wants a namespace."""


def bill_of_materials(
    sources: Sequence[PathLike | Source],
    *,
    record: PathLike | None = None,
    output: PathLike | None = None,
    progress: ProgressBar | None = None,
) -> str:
    """Return the JSON document of CycloneDX 1.6 about models, one component each.

    It has SHA-256 of each file, and the digest of each model in it, its format, element types and
    counts as properties. With `record`, which an edit wrote as ``--record``, the only one of
    `sources` is its output: the inputs are ancestors in its pedigree, the plan is a note there.
    `output` is where the document will be written, which is not done here.

    Raises `ReadError` for what cannot be read, `WriteError` if that is the output, and
    `MissingDependencyError` without the library.
    """
    edits = None if record is None else EditRecord.read(record)
    outputs = [] if output is None else [Role(OUTPUT, output)]
    components: list[Any] = []
    for source in sources:
        with read(source) as checkpoint, about_file(checkpoint.file.name):
            require_distinct(
                outputs, [Role(INPUT, file) for file in checkpoint.sources], may_replace=False
            )
            if edits is not None:
                require_output(checkpoint.file.name, edits.outputs.values())
            components.append(_component(checkpoint, edits, progress))
    return _document(components)


def _document(components: Sequence[Any]) -> str:
    model, made = _library("cyclonedx.model.bom"), _library("cyclonedx.output.json")
    bom = model.Bom()
    bom.metadata.tools.components.add(_tool())
    if len(components) == 1:
        bom.metadata.component = components[0]
    else:
        bom.components.update(components)
    text: str = made.JsonV1Dot6(bom).output_as_string(indent=2)
    return text


def _tool() -> Any:
    from ckpt_surgery.startup.version import __version__

    component = _library("cyclonedx.model.component")
    kind = component.ComponentType.APPLICATION
    return component.Component(type=kind, name="ckpt-surgery", version=__version__)


def _component(
    checkpoint: Checkpoint, edits: EditRecord | None, progress: ProgressBar | None
) -> Any:
    component = _library("cyclonedx.model.component")
    name = Path(checkpoint.file.name).name
    whole = checkpoint.file.size > 0  # a directory has no bytes but those of its files
    hashes = [file_digest(checkpoint.file, progress)] if whole else []
    return component.Component(
        type=component.ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        bom_ref=name,
        hashes=_hashes(hashes),
        properties=_properties(checkpoint, progress),
        pedigree=None if edits is None else _pedigree(edits),
    )


def _hashes(digests: Sequence[str]) -> list[Any]:
    model = _library("cyclonedx.model")
    kind = model.HashAlgorithm.SHA_256
    return [model.HashType(alg=kind, content=digest) for digest in digests]


def _properties(checkpoint: Checkpoint, progress: ProgressBar | None) -> list[Any]:
    model = _library("cyclonedx.model")
    tensors = [tensor for _, tensor in checkpoint.tensors]
    types = Counter(tensor.dtype.name for tensor in tensors)
    digests = model_digests(checkpoint, progress=progress)
    paths = [each.path for each in checkpoint.state_dicts if not each.missing]
    said = {
        "format": checkpoint.format,
        "tensors": str(len(tensors)),
        "elements": str(sum(tensor.numel for tensor in tensors)),
        "types": ", ".join(f"{name}: {n}" for name, n in sorted(types.items())),
    }
    single = len(digests) == 1
    for path, digest in zip(paths, digests, strict=True):
        said["digest" if single else f"digest:{path}"] = PREFIX + digest.removeprefix(PREFIX)
    return [model.Property(name=_PREFIX + name, value=value) for name, value in said.items()]


def _pedigree(edits: EditRecord) -> Any:
    component = _library("cyclonedx.model.component")
    ancestors = [
        component.Component(
            type=component.ComponentType.MACHINE_LEARNING_MODEL,
            name=Path(name).name,
            hashes=_hashes([digest]),
        )
        for name, digest in edits.inputs.items()
    ]
    return component.Pedigree(ancestors=ancestors, notes=edits.words)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            "a bill of materials needs 'cyclonedx-python-lib', which is not installed",
            hint="pip install 'ckpt-surgery[sign]'",
        ) from error
