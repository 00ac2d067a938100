"""The table of moving averages: how those who keep one write it beside, or among, the weights.

A layout says what stands before the model's names in the average (its `wrapper`), which entries
count its updates (`counters`), and whether saving swaps the two: then the model's own place holds
the average, and the weights in training lie where the average would.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import StateDict, StateDictKind
from ckpt_surgery.startup.lazy_dataclass import dataclass

AVERAGED_MODEL_COUNT: Final = "n_averaged"
"""What torch's ``AveragedModel`` calls the number of models that it averages."""
_DOTLESS_COUNT: Final = "num_updates"


@dataclass(frozen=True, slots=True)
class AverageLayout:
    """How an average is written whose entries carry more than the model's names.

    `beside` is a wrapper under which the same state dict may hold the weights in training.
    """

    title: str
    wrapper: str
    counters: tuple[str, ...]
    beside: str = ""

    def inner_name(self, name: str) -> str | None:
        """Return the model's name for an entry of the average; None for what is only its own."""
        return name.removeprefix(self.wrapper) if name.startswith(self.wrapper) else None

    def fits(self, names: Collection[str]) -> bool:
        """Return whether these are the names of such an average: its counters, all else wrapped."""
        if len(names) == len(self.counters):
            return False
        prefixes = (self.wrapper, self.beside) if self.beside else self.wrapper
        wrapped = [name for name in names if name not in self.counters]
        return all(name.startswith(prefixes) for name in wrapped) and any(
            name.startswith(self.wrapper) for name in wrapped
        )


_LAYOUTS: Final = (
    AverageLayout("torch's AveragedModel", "module.", (AVERAGED_MODEL_COUNT,)),
    AverageLayout("mmengine", "module.", ("steps",)),
    AverageLayout("ema_pytorch", "ema_model.", ("initted", "step"), beside="online_model."),
)
_MMENGINE: Final = _LAYOUTS[1]
_COUNTERS: Final = frozenset({AVERAGED_MODEL_COUNT})
# In one mapping: where the average lies, where the weights in training do, who swaps them.
_SWAPPED: Final = (
    ("state_dict", "ema_state_dict", "mmengine"),
    ("state_dict", "current_model_state", "Lightning's WeightAveraging"),
)
_LIGHTNING_COUNTER: Final = "averaging_state"


def layout_of(names: Collection[str]) -> AverageLayout | None:
    """Return the layout that entries of these names have; None if they are plain weights."""
    for layout in _LAYOUTS:
        if all(counter in names for counter in layout.counters) and layout.fits(names):
            return layout
    return None


def holds_average(names: Collection[str]) -> bool:
    """Return whether an average may be among the entries of these names, or be all of them."""
    return layout_of(names) is not None or any(
        name.endswith(f"ema.{_DOTLESS_COUNT}") for name in names
    )


def are_counters(names: Iterable[str]) -> bool:
    """Return whether entries only count the updates of an average
    that lies elsewhere (Lightning).
    """
    return set(names) <= _COUNTERS


@dataclass(frozen=True, slots=True)
class SwappedPair:
    """Paths of two state dicts that were swapped on saving, and whose doing that is."""

    average: str
    trained: str
    title: str


def swapped_pairs(state_dicts: Iterable[StateDict]) -> list[SwappedPair]:
    """Return the pairs whose model place holds the average.

    mmengine's is known by the counter and the wrapper in it, Lightning's by its unusual name.
    """
    by_path = {state_dict.path: state_dict for state_dict in state_dicts}
    found: list[SwappedPair] = []
    for path, state_dict in by_path.items():
        above, _, last = path.rpartition("/")
        for average, trained, title in _SWAPPED:
            place = f"{above}/{average}" if above else average
            if last != trained or place not in by_path:
                continue
            if title != "mmengine" or layout_of(state_dict.names) is _MMENGINE:
                found.append(SwappedPair(place, path, title))
    return found


def usual_models(state_dicts: Sequence[StateDict]) -> list[StateDict]:
    """Return the state dicts that are loaded as models: no averages; of swapped pairs the average,
    which lies in the model's place. All of them if there is none.
    """
    pairs = swapped_pairs(state_dicts)
    averages, trained = {pair.average for pair in pairs}, {pair.trained for pair in pairs}
    models = [
        s
        for s in state_dicts
        if s.path in averages or (s.kind == "model" and s.path not in trained)
    ]
    return models or list(state_dicts)


def with_true_kinds(state_dicts: Sequence[StateDict]) -> list[StateDict]:
    """Return the state dicts with the kind that they are, where a swap makes the place lie."""
    kinds: dict[str, StateDictKind] = {}
    for pair in swapped_pairs(state_dicts):
        kinds[pair.average], kinds[pair.trained] = "ema", "model"
    return [replace(s, kind=kinds.get(s.path, s.kind)) for s in state_dicts]


def counter_of(pair: SwappedPair) -> str | None:
    """Return the path of the mapping with the counters of a swapped pair, if they lie apart."""
    if not pair.title.startswith("Lightning"):
        return None
    above = pair.trained.rpartition("/")[0]
    return f"{above}/{_LIGHTNING_COUNTER}" if above else _LIGHTNING_COUNTER


@dataclass(frozen=True, slots=True)
class DotlessAverage:
    """An average of latent diffusion, in the state dict of its model.

    The average of what lies below `model` lies below `prefix`, under names that have lost their
    dots; beside it stand a ``decay`` and ``num_updates``.
    """

    prefix: str
    model: str
    names: Mapping[str, str]  # the model's to the average's

    @property
    def counters(self) -> tuple[str, str]:
        return f"{self.prefix}decay", f"{self.prefix}{_DOTLESS_COUNT}"

    def average_name(self, name: str) -> str | None:
        """Return what the average calls an entry of the model; None if it would not have it."""
        return self.prefix + _dotless(name, self.model) if name.startswith(self.model) else None

    def renamed(self, new: Mapping[str, str], prefix: str) -> dict[str, str] | None:
        """Return the average's new names by its old ones, of the model's new ones.

        `prefix` is where the average lies by then. None if a name of the model does not lie where
        the average of that place looks for it, and the model as a whole was not moved either.
        """
        rest = {name: name.removeprefix(self.model) for name in self.names}
        roots = {new[name].removesuffix(below) for name, below in rest.items()}
        moved_whole = all(new[name].endswith(below) for name, below in rest.items())
        for model in roots if moved_whole and len(roots) == 1 else _models_beside(prefix):
            moved = DotlessAverage(prefix, model, {})
            names = {flat: moved.average_name(new[name]) for name, flat in self.names.items()}
            if None not in names.values():
                return {old: name for old, name in names.items() if name is not None}
        return None


def dotless_average(names: Iterable[str]) -> DotlessAverage | None:
    """Return the average of latent diffusion that entries of these names hold; None without.

    None also if it has names that no entry of the model explains, or one name for two.
    """
    known = list(names)
    count = next((name for name in known if name.endswith(f"ema.{_DOTLESS_COUNT}")), None)
    if count is None:
        return None
    prefix = count.removesuffix(_DOTLESS_COUNT)
    held = {name for name in known if name.startswith(prefix)} - {count, f"{prefix}decay"}
    for model in _models_beside(prefix):
        own = [n for n in known if n.startswith(model) and not n.startswith(prefix)]
        pairs = {n: flat for n in own if (flat := prefix + _dotless(n, model)) in held}
        if pairs and len(pairs) == len(held) and set(pairs.values()) == held:
            return DotlessAverage(prefix, model, pairs)
    return None


def dotless_names(names: Collection[str], model: Iterable[str]) -> dict[str, str]:
    """Return the names of a model to those of an average of latent diffusion, a state dict of its
    own; none if it is not the average of that model.
    """
    counters = {"decay", _DOTLESS_COUNT}
    held = set(names) - counters
    if not held or not counters <= set(names) or any("." in name for name in held):
        return {}
    found = {name: flat for name in model if (flat := _dotless(name, "")) in held}
    return found if len(found) == len(held) == len(set(found.values())) else {}


def _models_beside(prefix: str) -> tuple[str, str]:
    """Return where the model of an average below `prefix` may lie: ``model.`` of ``model_ema.``,
    or all
    that is beside it.
    """
    above = prefix.removesuffix(".").rpartition(".")[0]
    return prefix.removesuffix("_ema.") + ".", f"{above}." if above else ""


def _dotless(name: str, model: str) -> str:
    return name.removeprefix(model).replace(".", "")
