"""Make ckpt_surgery/models/signatures.bin from the torchvision, timm and transformers installed.

    python scripts/make_signatures.py [--keep FOLDER]

Every model is built on the meta device, which takes an hour for the models of timm; run it after a
new version of a library, and commit what it writes. FOLDER keeps the descriptions, one line of
JSON each, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ckpt_surgery.errors import CkptError
from ckpt_surgery.models.building import build_target, torchvision_names
from ckpt_surgery.models.signature_table import (
    Head,
    Known,
    OpenRow,
    encode_table,
    folded,
    make_table,
)
from ckpt_surgery.models.specs import Value
from ckpt_surgery.models.target import Shape, Target
from ckpt_surgery.models.torchvision_import import import_torchvision
from ckpt_surgery.names.spellings import unwrapped

DESTINATION = Path(__file__).resolve().parents[1] / "ckpt_surgery" / "models" / "signatures.bin"
FEW, MANY = 11, 18
"""Two numbers of classes; the rows of a head are linear in it, so two say which line."""
TIMM_CLASSES = 1000
FEWEST_ROWS = 8
"""Names, without numbers, below which a model of transformers could be anything."""
COUNTER = "num_batches_tracked"
LIBRARIES = ("torchvision", "timm", "transformers")
Described = dict[str, Any]
Shapes = dict[str, Shape]


@dataclass(frozen=True)
class Model:
    """A model to describe: its name in the table, and what describes it."""

    name: str
    describe: Callable[[], Described]


def torchvision() -> Iterator[Model]:
    for name in torchvision_names():
        spec = f"torchvision:{name}"
        yield Model(spec, lambda spec=spec: _of_sizes(spec, {"few": FEW, "many": MANY}))  # type: ignore[misc]  # bound


def timm() -> Iterator[Model]:
    import timm

    for name in timm.list_models():
        spec = f"timm:{name}"
        yield Model(spec, lambda spec=spec: _of_sizes(spec, {"few": FEW}))  # type: ignore[misc]  # bound


def transformers() -> Iterator[Model]:
    """Yield a model of every class that an Auto class leads to, in its default configuration."""
    from transformers.models.auto import modeling_auto as auto

    listed = [
        getattr(auto, name) for name in dir(auto) if re.fullmatch(r"MODEL.*_MAPPING_NAMES", name)
    ]
    pairs = {
        (kind, each): None
        for mapping in listed
        for kind, found in mapping.items()
        for each in ([found] if isinstance(found, str) else found)
    }
    for kind, name in pairs:
        yield Model(f"{kind}/{name}", lambda kind=kind, name=name: _of_class(kind, name))  # type: ignore[misc]  # bound


def _of_sizes(spec: str, sizes: Mapping[str, int]) -> Described:
    """Describe a model as it is, and with other numbers of classes if it has any."""
    found = _described(build_target(spec))
    for key, classes in sizes.items():
        with contextlib.suppress(CkptError):  # optical flow has no classes
            found[key] = _described(build_target(spec, {"num_classes": classes}))["shapes"]
    return found


def _of_class(kind: str, name: str) -> Described:
    from transformers import CONFIG_MAPPING

    config: dict[str, Value] = {**CONFIG_MAPPING[kind]().to_dict(), "architectures": [name]}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config, default=str))
        return _described(build_target(f"hf:{folder}"))


def _described(target: Target) -> Described:
    shapes = [[spec.name, list(spec.shape)] for spec in target.tensors]
    return {"shapes": shapes, "ties": [list(names) for names in target.ties]}


def describe_all(library: str, keep: Path) -> list[Described]:
    """Return the descriptions of a library's models that could be built, kept ones first."""
    file = keep / f"{library}.jsonl"
    file.touch()
    kept = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    done = {each["name"] for each in kept}
    with file.open("a", encoding="utf-8") as lines:
        for model in {"torchvision": torchvision, "timm": timm, "transformers": transformers}[
            library
        ]():
            if model.name in done:
                continue
            started = time.monotonic()
            try:
                found = {"name": model.name, **model.describe()}
            except Exception as error:  # noqa: BLE001 a library's own code, which may raise anything
                found = {"name": model.name, "error": f"{type(error).__name__}: {error}"[:200]}
            print(
                f"{model.name}: {time.monotonic() - started:.1f} s {found.get('error', '')}",
                flush=True,
            )
            kept.append(found)
            lines.write(json.dumps(found) + "\n")
            lines.flush()
    return [each for each in kept if "error" not in each]


def known_of(library: str, found: Iterable[Described]) -> Iterator[Known]:
    for each in found:
        if library == "transformers":
            rows = open_rows(each)
            if sum(not row.is_optional for row in rows) >= FEWEST_ROWS:
                yield Known(f"transformers:{each['name'].partition('/')[2]}", rows=rows)
            continue
        yield with_heads(each)


def open_rows(described: Described) -> tuple[OpenRow, ...]:
    """Return the names without numbers; of tied tensors all but the first are not always saved."""
    tied = {name for names in described["ties"] for name in names[1:]}
    found: dict[tuple[str, int], bool] = {}
    for name, shape in described["shapes"]:
        if name.endswith(COUNTER):
            continue
        row = unwrapped(folded(name)), len(shape)
        found[row] = found.get(row, True) and name in tied
    return tuple(OpenRow(name, axes, tied) for (name, axes), tied in sorted(found.items()))


def with_heads(described: Described) -> Known:
    """Take apart the tensors whose rows follow the number of classes."""
    shapes = _shapes(described["shapes"])
    few = _shapes(described.get("few", []))
    many, most = (
        (_shapes(described["many"]), MANY) if "many" in described else (shapes, TIMM_CLASSES)
    )
    heads = {}
    for key, shape in shapes.items():
        one, other = few.get(key, shape), many.get(key, shape)
        if not few or not shape or one == other or not one[1:] == other[1:] == shape[1:]:
            continue
        per_class, odd = divmod(other[0] - one[0], most - FEW)
        if odd and one[0] == FEW:  # of a model that has other numbers of classes by default
            per_class = 1
            odd = 0
        head = Head(key, per_class, one[0] - per_class * FEW, shape[1:])
        if not odd and per_class > 0 and head.classes(shape):
            heads[key] = head
    sizes = {head.classes(shapes[key]) for key, head in heads.items()}
    return Known(
        described["name"],
        tuple((key, shape) for key, shape in shapes.items() if key not in heads),
        classes=sizes.pop() if len(sizes) == 1 else None,
        heads=tuple(heads.values()),
    )


def _shapes(listed: Iterable[Sequence[Any]]) -> Shapes:
    """Return shapes by names as files are looked up: without segments that may be a wrapper's."""
    return {unwrapped(name): tuple(shape) for name, shape in listed if not name.endswith(COUNTER)}


def merge_equal(known: Sequence[Known], plainness: Callable[[str], Any]) -> list[Known]:
    """One signature for all architectures with the same tensors, under the plainest name."""
    groups: dict[object, list[Known]] = {}
    for each in known:
        groups.setdefault((frozenset(each.tensors), each.heads, each.rows), []).append(each)
    merged = []
    for group in groups.values():
        first, *also = sorted(dict.fromkeys(each.name for each in group), key=plainness)
        merged.append(replace(group[0], name=first, also=tuple(also)))
    return sorted(merged, key=lambda each: each.name)


def plainness_of(described: Iterable[Described]) -> Callable[[str], Any]:
    """Return a key that is low for names that users know: of torchvision, short, copied a lot."""
    import transformers

    models = Path(transformers.__file__).parent / "models"
    pattern = re.compile(r"(?:from \.\.|Copied from transformers\.models\.)(\w+)\.")
    copied = Counter(
        name
        for file in models.glob("*/mod*_*.py")
        for name in set(pattern.findall(file.read_text("utf-8")))
    )
    kinds = dict(reversed(each["name"].split("/")) for each in described)

    def plainness(name: str) -> Any:
        library, _, plain = name.partition(":")
        fame = copied[kinds.get(plain, "").replace("-", "_")]
        return LIBRARIES.index(library), plain.startswith("quantized_"), -fame, len(plain), plain

    return plainness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=DESTINATION)
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import_torchvision()
    with tempfile.TemporaryDirectory() as folder:
        keep = asked.keep or Path(folder)
        found = {library: describe_all(library, keep) for library in LIBRARIES}
    known = [each for library in LIBRARIES for each in known_of(library, found[library])]
    merged = merge_equal(known, plainness_of(found["transformers"]))
    versions = {library: version(library).partition("+")[0] for library in LIBRARIES}
    data = encode_table(make_table(merged, versions))
    asked.output.write_bytes(data)
    print(f"{len(known)} architectures, {len(merged)} kinds, {len(data):,} bytes")


if __name__ == "__main__":
    main()
