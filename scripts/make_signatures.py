"""Make ckpt_surgery/models/signatures.bin from the torchvision that is installed.

Run it after a new torchvision, and commit what it writes: ``python scripts/make_signatures.py``.
"""

from __future__ import annotations

import argparse
from array import array
from collections.abc import Sequence
from pathlib import Path

from ckpt_surgery.errors import CkptError
from ckpt_surgery.models.building import build_target, torchvision_names
from ckpt_surgery.models.signatures import Head, Signature, checksum, encode_table
from ckpt_surgery.models.target import Shape
from ckpt_surgery.models.torchvision_import import import_torchvision

DESTINATION = Path(__file__).resolve().parents[1] / "ckpt_surgery" / "models" / "signatures.bin"
CLASSES = (11, 18)
"""Two numbers of classes; the rows of a head are linear in it, so two say which line."""


def shapes_of(name: str, classes: int | None = None) -> dict[str, Shape]:
    arguments = {} if classes is None else {"num_classes": classes}
    target = build_target(f"torchvision:{name}", arguments)
    return {
        spec.name: spec.shape
        for spec in target.tensors
        if not spec.name.endswith("num_batches_tracked")
    }


def make_signature(name: str) -> Signature:
    shapes = shapes_of(name)
    heads, classes = find_heads(name, shapes)
    named = {head.name for head in heads}
    numbers = sorted(checksum(key, shape) for key, shape in shapes.items() if key not in named)
    return Signature(name, (), classes, heads, array("I", numbers))


def find_heads(name: str, shapes: dict[str, Shape]) -> tuple[tuple[Head, ...], int | None]:
    """The tensors whose rows follow the number of classes, and that number as it is by default."""
    few, many = CLASSES
    try:
        narrow, wide = shapes_of(name, few), shapes_of(name, many)
    except CkptError:  # optical flow has no classes
        return (), None
    heads = []
    defaults = set()
    for key, shape in shapes.items():
        if narrow[key] != wide[key]:
            assert narrow[key][1:] == wide[key][1:] == shape[1:], (name, key)
            per_class, odd = divmod(wide[key][0] - narrow[key][0], many - few)
            assert not odd, (name, key)
            head = Head(key, per_class, narrow[key][0] - per_class * few, shape[1:])
            heads.append(head)
            defaults.add(head.classes(shape))
    assert len(defaults) == 1, (name, defaults)
    return tuple(heads), defaults.pop()


def merge_equal(signatures: Sequence[Signature]) -> list[Signature]:
    """One signature for all architectures with the same tensors, under the plainest name."""
    groups: dict[object, list[Signature]] = {}
    for signature in signatures:
        key = (bytes(signature.checksums), signature.heads)
        groups.setdefault(key, []).append(signature)
    merged = []
    for group in groups.values():
        first, *others = sorted(group, key=lambda s: (s.name.startswith("quantized_"), len(s.name)))
        also = tuple(other.name for other in others)
        merged.append(Signature(first.name, also, first.classes, first.heads, first.checksums))
    return sorted(merged, key=lambda signature: signature.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=DESTINATION)
    output = parser.parse_args().output
    signatures = merge_equal([make_signature(name) for name in torchvision_names()])
    data = encode_table(signatures, import_torchvision().__version__.partition("+")[0])
    output.write_bytes(data)
    print(f"{len(signatures)} architectures, {len(data):,} bytes in {output.name}")


if __name__ == "__main__":
    main()
