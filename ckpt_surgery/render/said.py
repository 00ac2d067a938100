"""What is said of single edits of a plan, where a report's lists of names do not show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ckpt_surgery.render.text import nbytes, printable

# Edits of what tensors hold: each is said, since its names say nothing of it.
_OF_VALUES: Final = frozenset(
    {
        *("transpose", "permute", "reshape", "squeeze", "unsqueeze", "take-indices", "flip"),
        *("slice", "pad", "repeat", "scale", "add", "fill", "split", "concat", "tie", "untie"),
        *("fold-weight-norm", "fold-spectral-norm"),
    }
)
# What is done to the file as a whole, whatever the verb.
OF_FILES: Final = frozenset(
    {"compact", "plain", "set-device", "set-metadata", "set-provenance", "convert"}
)


def said_of(
    plan: Sequence[Mapping[str, Any]], kinds: frozenset[str] | None = None
) -> Iterator[str]:
    """Yield a line for each edit (of these `kinds`) that is not an entry of a list of names."""
    chosen = (edit for edit in plan if kinds is None or edit["edit"] in kinds)
    yield from filter(None, map(_said, chosen))


def _said(edit: Mapping[str, Any]) -> str:
    """Return what is said of an edit that the lists do not show."""
    match edit:
        case {"edit": "compact", "unused_nbytes": unused}:
            return _compacted(int(unused), edit)
        case {"edit": "only-tensors"}:
            return "tensors only: each is rebuilt; metadata, attributes and all else are gone"
        case {"edit": "set-provenance"}:
            return "provenance: kept in the file; 'ckpt inspect' shows it"
        case {"edit": "convert", "from": old, "to": new}:
            return f"converted: {old} -> {new}" if old != new else ""
        case {"edit": "set-metadata", "values": values}:
            return f"metadata: {printable(', '.join(f'{k}={v}' for k, v in values.items()))}"
        case {"edit": "take-weights", "state_dict": path}:
            return f"weights of {printable(edit['from'])} put into {printable(path)}"
        case {"edit": "rename-entry"}:
            return f"called otherwise: {printable(edit['from'])} -> {printable(edit['to'])}"
        case {"edit": "plain", "path": path}:
            return f"made plain: {printable(path)} ({printable(edit['from'])})"
        case {"edit": "set-device"}:
            return f"device: {printable(edit['from'])} -> {printable(edit['to'])}"
        case {"edit": "wrap", "key": key}:
            return f"wrapped: everything is under '{printable(key)}'"
        case {"edit": "unwrap", "key": key}:
            return f"unwrapped: what was under '{printable(key)}' is the whole file"
        case {"edit": "fold-branches", "weight": weight, "branches": branches}:
            return f"folded: {printable(', '.join(map(_branch, branches)))} -> {printable(weight)}"
        case {"edit": "layers", "prefix": prefix, "order": order}:
            return f"layers: {printable(str(prefix))} has {len(order):,} by now"
        case {"edit": "copy"}:
            return f"copy: {printable(edit['from'])} -> {printable(edit['to'])}"
        case {"edit": kind, "name": name} if kind in _OF_VALUES:
            return f"{kind}: {printable(str(name))}"
    return ""


def _compacted(unused: int, edit: Mapping[str, Any]) -> str:
    """Return what a compaction does, with what it keeps and copies where it does."""
    kept, copied = int(edit.get("kept_nbytes", 0)), int(edit.get("copied_nbytes", 0))
    said = f"compacted: {nbytes(unused)} that no tensor uses"
    if kept:
        said += f", of which {nbytes(kept)} inside overlapping views stay"
    if copied:
        said += f"; views broken: {nbytes(copied)} more"
    return said


def _branch(branch: Mapping[str, Any]) -> str:
    """Return a branch of a fold as its modules: ``conv1 and bn1``."""
    parts = [str(branch.get("kernel", "")).removesuffix(".weight"), str(branch.get("norm", ""))]
    return " and ".join(part for part in parts if part)
