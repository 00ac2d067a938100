"""The comparisons that `diff` is made of: tensors, names, ties, metadata, what lies beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final

from ckpt_surgery.checkpoint.description import (
    Checkpoint,
    Entry,
    StateDict,
    Tensor,
    find_ties,
)
from ckpt_surgery.errors import ReadError
from ckpt_surgery.fileio.parallel import in_threads, shown
from ckpt_surgery.matching.pairs import Paired, Seen
from ckpt_surgery.names.suggest import ancestors
from ckpt_surgery.pickles import Node
from ckpt_surgery.reports.difference import (
    Change,
    Facts,
    Kind,
    Plain,
    StateDictDiff,
    Status,
    TensorChange,
    TreeChange,
)
from ckpt_surgery.torch_objects.equality import Advance, equal_bytes, fingerprint, known_equal
from ckpt_surgery.torch_objects.leaves import Leaf, leaves, leaves_of
from ckpt_surgery.writing.output import ProgressBar

if TYPE_CHECKING:
    from ckpt_surgery.compute.distances import Distance

_META: Final = "meta"
_Tree = Mapping[str, "Leaf | Tensor"]


@dataclass(slots=True)
class _Compared:
    """Two tensors of one name: what is known of their values, if anything can be."""

    name: str
    a: Tensor
    b: Tensor
    status: Status = "unknown"
    by_checksum: bool = False
    distance: Distance | None = None

    @property
    def has_one_form(self) -> bool:
        """Whether they have one shape, type and layout, so that their bytes can be compared."""
        return _form(self.a) == _form(self.b)


@dataclass(slots=True)
class Comparer:
    """Compares pairs of tensors; `warnings` are about those that could not be.

    With `structure` no tensor is read, with `values` numbers are measured.
    """

    structure: bool
    values: bool
    rtol: float
    atol: float
    threads: int | None
    progress: ProgressBar | None
    warnings: list[str] = field(default_factory=list)

    def compare(self, pairs: Sequence[Paired]) -> list[StateDictDiff]:
        """Return the differences of every pair of state dicts."""
        matched = [list(_matched(pair)) for pair in pairs]
        self.decide(list(chain.from_iterable(matched)))
        return [self._state_dict(pair, each) for pair, each in zip(pairs, matched, strict=True)]

    def decide(self, found: Sequence[_Compared]) -> None:
        """Find out of each pair whether the values are equal, as far as that is wanted.

        Numbers may be equal whose bits are not, zeros and NaN: if no tolerance is asked for, bytes
        decide of these, as they do without `values`.
        """
        if self.structure:
            return
        for each in found:
            if each.has_one_form and each.a.device == each.b.device == _META:
                each.status = "equal"
            elif each.has_one_form:
                known = known_equal(each.a, each.b)
                if known is not None:
                    each.by_checksum = known
                    each.status = "equal" if known else "differs"
        if self.values:
            self._measure([each for each in found if not each.by_checksum])
        self._read([e for e in found if e.has_one_form and e.status == "unknown"])

    def _read(self, found: Sequence[_Compared]) -> None:
        """Compare bytes, in threads."""
        total = sum(each.a.nbytes + each.b.nbytes for each in found)
        with shown(self.progress, total) as tally:

            def compare(each: _Compared) -> Status:
                return self._equal_bytes(each, tally)

            for each, status in zip(
                found, in_threads(compare, found, threads=self.threads), strict=True
            ):
                each.status = status

    def _equal_bytes(self, each: _Compared, advance: Advance) -> Status:
        try:
            return "equal" if equal_bytes(each.a, each.b, advance) else "differs"
        except ReadError as error:
            if each.a.storage is not None and each.b.storage is not None:
                raise
            self.warnings.append(f"'{each.name}' was not compared: {error.message}")
            return "unknown"

    def _measure(self, found: Sequence[_Compared]) -> None:
        """Measure how far numbers are apart where the shapes allow it."""
        from ckpt_surgery.compute.distances import distances

        wanted = {str(i): e for i, e in enumerate(found) if e.a.shape == e.b.shape}
        total = sum(each.a.nbytes + each.b.nbytes for each in wanted.values())
        with shown(self.progress, total) as tally:
            measured = distances(
                {key: (each.a, each.b) for key, each in wanted.items()},
                rtol=self.rtol,
                atol=self.atol,
                threads=self.threads,
                advance=tally,
            )
        for key, distance in measured.items():
            if distance is None:
                continue
            wanted[key].distance = distance
            exact = not (self.rtol or self.atol)
            if distance.changed or not exact or not wanted[key].has_one_form:
                wanted[key].status = _status(distance, exact=exact)

    def _state_dict(self, pair: Paired, found: Sequence[_Compared]) -> StateDictDiff:
        entries_a, entries_b = pair.entries()
        removed = {n: e for n, e in entries_a.items() if n not in entries_b}
        added = {n: e for n, e in entries_b.items() if n not in entries_a}
        renamed = [] if self.structure else self._renamed(removed, added)
        for old, new in renamed:
            del removed[old], added[new]
        ties = _ties(entries_a, entries_b), _ties(entries_b, entries_a)
        nodes = [each is not None and each.node is not None for each in (pair.a, pair.b)]
        changes = [_change(each, attributes=all(nodes), structure=self.structure) for each in found]
        return StateDictDiff(
            path_a=None if pair.a is None else pair.a.path,
            path_b=None if pair.b is None else pair.b.path,
            prefix_a=pair.seen_a.prefix,
            prefix_b=pair.seen_b.prefix,
            wrappers=pair.seen_a.without_wrappers,
            added=tuple((n, _facts(e.tensor)) for n, e in added.items() if e.tensor is not None),
            removed=tuple(
                (n, _facts(e.tensor)) for n, e in removed.items() if e.tensor is not None
            ),
            renamed=tuple(renamed),
            changed=tuple(change for change in changes if change is not None),
            entries=tuple(self._entries(entries_a, entries_b)),
            metadata=tuple(self._metadata(pair, removed, added, renamed)),
            ties_added=tuple(sorted(ties[1] - ties[0])),
            ties_removed=tuple(sorted(ties[0] - ties[1])),
            equal=sum(change is None for change in changes),
            by_checksum=sum(
                change is None and each.by_checksum
                for change, each in zip(changes, found, strict=True)
            ),
        )

    def _renamed(
        self, removed: Mapping[str, Entry], added: Mapping[str, Entry]
    ) -> list[tuple[str, str]]:
        """Pair what is only in one file each and has the same elements, in order."""
        forms = {_form(e.tensor) for e in removed.values()} & {
            _form(e.tensor) for e in added.values()
        }
        by_content: dict[object, list[str]] = {}
        for name, content in self._fingerprints(removed, forms):
            by_content.setdefault(content, []).append(name)
        pairs = []
        for name, content in self._fingerprints(added, forms):
            if by_content.get(content):
                pairs.append((by_content[content].pop(0), name))
        return pairs

    def _fingerprints(
        self, entries: Mapping[str, Entry], forms: set[object]
    ) -> Iterator[tuple[str, object]]:
        wanted = [
            (name, entry.tensor)
            for name, entry in entries.items()
            if entry.tensor is not None and _form(entry.tensor) in forms
        ]
        with shown(self.progress, sum(tensor.nbytes for _, tensor in wanted)) as tally:
            found = in_threads(
                lambda item: fingerprint(item[1], tally), wanted, threads=self.threads
            )
            for (name, _), content in zip(wanted, found, strict=True):
                if content is not None:
                    yield name, content

    def _entries(
        self, entries_a: Mapping[str, Entry], entries_b: Mapping[str, Entry]
    ) -> Iterator[TreeChange]:
        """Yield the differences of entries that are no tensors, or in one of the files are none."""
        trees: list[dict[str, Leaf | Tensor]] = [{}, {}]
        for name in dict.fromkeys((*entries_a, *entries_b)):
            both = [entries.get(name) for entries in (entries_a, entries_b)]
            if all(entry is None or entry.tensor is not None for entry in both):
                continue
            for entry, tree in zip(both, trees, strict=True):
                if entry is not None:
                    tree.update({name: entry.tensor} if entry.tensor else leaves(entry.node, name))
        yield from self.tree(*trees)

    def _metadata(
        self,
        pair: Paired,
        removed: Mapping[str, Entry],
        added: Mapping[str, Entry],
        renamed: Sequence[tuple[str, str]],
    ) -> Iterator[TreeChange]:
        """Yield the differences of ``_metadata``, without those that follow from entries that
        differ.
        """
        if pair.a is None or pair.b is None or None in (pair.a.metadata, pair.b.metadata):
            return
        a, b = _modules(pair.a, pair.seen_a), _modules(pair.b, pair.seen_b)
        for old, new in renamed:
            a = _follow(a, b, old, new)
        kept = [*pair.entries()[0].keys() & pair.entries()[1].keys(), *(new for _, new in renamed)]
        gone = _emptied(removed, kept), _emptied(added, kept)
        trees: list[dict[str, Leaf | Tensor]] = [{}, {}]
        for modules, other, empty, tree in ((a, b, gone[0], trees[0]), (b, a, gone[1], trees[1])):
            for module, node in modules.items():
                if module in other or not {module, *ancestors(module)} & empty:
                    tree.update(leaves(node, module))
        yield from self.tree(*trees)

    def others(self, a: Checkpoint, b: Checkpoint) -> list[TreeChange]:
        """Return the differences of what lies beside the state dicts."""
        by_path = {other.path: other for other in b.others}
        trees: list[dict[str, Leaf | Tensor]] = [{}, {}]
        for other in a.others:
            trees[0] |= leaves_of(other)
        for other in by_path.values():
            trees[1] |= leaves_of(other)
        return list(self.tree(*trees))

    def tree(self, a: _Tree, b: _Tree) -> Iterator[TreeChange]:
        """Yield the differences of two trees, of what is only in one of them only the top."""
        pairs = {
            path: _Compared(path, leaf, other)
            for path, leaf in a.items()
            if isinstance(leaf, Tensor) and isinstance(other := b.get(path), Tensor)
        }
        self.decide(list(pairs.values()))
        tops = {path for path in a.keys() | b.keys() if _is_top(a.get(path), b.get(path))}
        for path in dict.fromkeys((*a, *b)):
            old, new = a.get(path), b.get(path)
            if _is_below_one(path, tops) or not (old is None or new is None or old != new):
                continue
            if path in pairs:
                is_same = self.structure or pairs[path].status in {"equal", "close"}
                if not (is_same and pairs[path].has_one_form):
                    yield TreeChange(path, "changed", _shown(old), _shown(new))
            else:
                change: Change = "added" if old is None else "removed" if new is None else "changed"
                yield TreeChange(path, change, _shown(old), _shown(new))


def _is_top(old: Leaf | Tensor | None, new: Leaf | Tensor | None) -> bool:
    """Return whether what is below goes without saying: in one file only, or of another
    container.
    """
    if old is None or new is None:
        return True
    kinds = [isinstance(each, Leaf) and each.value is None for each in (old, new)]
    return old != new and any(kinds)


def _is_below_one(path: str, tops: set[str]) -> bool:
    at = path.rfind("/")
    while at > 0:
        if path[:at] in tops:
            return True
        at = path.rfind("/", 0, at)
    return False


def _shown(leaf: Leaf | Tensor | None) -> Plain:
    """Return a value for a report: a plain one, or the type of what is none; of a tensor its
    form.
    """
    if leaf is None:
        return None
    if isinstance(leaf, Tensor):
        return f"{leaf.dtype.name} {list(leaf.shape)}"
    return leaf.shown


def _matched(pair: Paired) -> Iterator[_Compared]:
    """Yield the tensors that both have under one name."""
    entries_a, entries_b = pair.entries()
    for name, entry in entries_a.items():
        other = entries_b.get(name)
        if entry.tensor is not None and other is not None and other.tensor is not None:
            yield _Compared(name, entry.tensor, other.tensor)


def _status(distance: Distance, *, exact: bool) -> Status:
    if not distance.changed:
        return "equal"
    return "close" if not exact and not distance.outside else "differs"


def _facts(tensor: Tensor) -> Facts:
    """Return what a report says of a tensor."""
    return Facts(
        tensor.shape,
        tensor.dtype.name,
        tensor.layout,
        tensor.device,
        tensor.requires_grad,
        tensor.is_parameter,
    )


def _change(each: _Compared, *, attributes: bool, structure: bool) -> TensorChange | None:
    """Return what differs of two tensors of one name; None if nothing does.

    `attributes` says that both files hold more than names and numbers.
    """
    a, b = _facts(each.a), _facts(each.b)
    kinds: list[Kind] = []
    if a.shape != b.shape:
        kinds.append("shape")
    if a.dtype != b.dtype:
        kinds.append("dtype")
    if a.layout != b.layout:
        kinds.append("layout")
    if attributes and a.device != b.device:
        kinds.append("device")
    if attributes and a.requires_grad != b.requires_grad:
        kinds.append("requires_grad")
    if attributes and a.is_parameter != b.is_parameter:
        kinds.append("class")
    compared = each.has_one_form and not structure
    if (compared or each.distance is not None) and each.status != "equal":
        kinds.append("values")
    if not kinds:
        return None
    return TensorChange(each.name, tuple(kinds), a, b, each.status, each.distance)


def _form(tensor: Tensor | None) -> object:
    return None if tensor is None else (tensor.layout, tensor.dtype.name, tensor.shape)


def _ties(entries: Mapping[str, Entry], others: Mapping[str, Entry]) -> set[tuple[str, ...]]:
    """Groups of tied names, of those that both files have."""
    common = [(n, e.tensor) for n, e in entries.items() if n in others and e.tensor is not None]
    return {tuple(sorted(names)) for names in find_ties(common)}


def _modules(state_dict: StateDict, seen: Seen) -> dict[str, Node]:
    """Return the paths of ``_metadata`` as names are read: without prefix and wrappers."""
    found: dict[str, Node] = {}
    for path, node in (state_dict.metadata or {}).items():
        if not seen.prefix or f"{path}.".startswith(seen.prefix):
            found.setdefault(seen.name(f"{path}.").removesuffix("."), node)
    return found


def _follow(a: dict[str, Node], b: Mapping[str, Node], old: str, new: str) -> dict[str, Node]:
    """Return the modules of the first file, renamed as the entry `old` of one of them is."""
    before, after = old.split("."), new.split(".")
    while before and after and before[-1] == after[-1]:
        before.pop()
        after.pop()
    if not before or not after:
        return a
    start, end = ".".join(before), ".".join(after)

    def renamed(path: str) -> str:
        if path != start and not path.startswith(f"{start}."):
            return path
        target = end + path[len(start) :]
        return target if path not in b and target in b else path

    return {renamed(path): node for path, node in a.items()}


def _emptied(gone: Iterable[str], kept: Iterable[str]) -> set[str]:
    """Return the modules above names that are in one file only, and above no other."""
    return {m for name in gone for m in ancestors(name)} - {m for n in kept for m in ancestors(n)}
