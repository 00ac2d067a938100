"""What is refused of a plan to fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ckpt_surgery.errors import PlanError, UsageError
from ckpt_surgery.fit.adaptations import AdaptRule, below
from ckpt_surgery.fit.items import FitItem
from ckpt_surgery.fit.options import FitOptions
from ckpt_surgery.names.suggest import near_hint


def check(items: Sequence[FitItem], options: FitOptions) -> None:
    """Refuse a plan that carries nothing over, or that an option had no part in.

    Raises PlanError and UsageError as `plan_fit` does.
    """
    if items and all(item.status == "initial" for item in items):
        raise _nothing_fits(items)
    if options.may_be_initial is not None:
        initial = [i.name for i in items if i.status == "initial" and not i.is_optional]
        _refuse_initial(initial, options.may_be_initial)
    filled = {item.fill for item in items if item.needs_initial}
    names = [item.name for item in items]
    for fill in options.fills:
        if fill.prefix and fill not in filled:
            _refuse_unused(f"fill '{fill.prefix}={fill}'", fill.prefix, names)
    for rule in options.rules:
        if rule.prefix and not any(_applies(rule, item) for item in items):
            how = rule.option.partition(" ")[2]
            _refuse_unused(f"fill '{how}'", rule.prefix, names)
    if options.classes is not None and not any(
        item.adaptation is not None and item.adaptation.kind == "rows" for item in items
    ):
        raise UsageError(
            "the class lists are used by no tensor",
            hint="--classes goes with '--adapt rows', and the head must differ in its rows",
        )


def _nothing_fits(items: Sequence[FitItem]) -> PlanError:
    named = [item for item in items if item.source is not None]
    if not named:
        return PlanError(
            "nothing in the checkpoint fits the target: no name agrees",
            hint="try a bolder --match, or give the names in a map with --map",
        )
    agree = "1 name agrees" if len(named) == 1 else f"{len(named):,} names agree"
    if any(item.source_shape != item.shape for item in named):
        return PlanError(
            f"nothing in the checkpoint fits the target: {agree}, but no shape",
            hint="allow an adaptation with --adapt",
        )
    return PlanError(
        f"nothing in the checkpoint fits the target: {agree}, but {named[0].reason}",
        hint="write plain tensors: to_dense(), dequantize() or full_tensor() make them",
    )


def _applies(rule: AdaptRule, item: FitItem) -> bool:
    how = item.adaptation
    alike = how is not None and (how.kind, how.method, how.scaled) == (
        rule.kind,
        rule.method,
        rule.scaled,
    )
    return alike and below(item.name, rule.prefix)


def check_adaptations(items: Sequence[FitItem], rules: Sequence[AdaptRule]) -> None:
    """Raise UsageError if one of `rules` adapts none of the items, those of all state dicts."""
    for rule in rules:
        if not any(_applies(rule, item) for item in items):
            raise UsageError(f"'{rule.option}' applies to nothing", hint=_of_use(items, rule))


def _of_use(items: Sequence[FitItem], rule: AdaptRule) -> str:
    """Return what adapts the items that `rule` did not."""
    misfits = [i for i in items if i.status == "initial" and i.source_shape not in (None, i.shape)]
    lying = [i for i in misfits if rule.kind == "interpolate" and i.may_lie_on_a_grid]
    if lying:
        return _about_grid(lying[0], rule)
    kinds = dict.fromkeys(kind for item in misfits for kind in item.would_adapt)
    if kinds:
        return f"what does not fit would take --adapt {' or '.join(kinds)}"
    if any(item.looks_transposed for item in misfits):
        return "what does not fit looks transposed"
    if misfits:
        return "no adaptation carries over what does not fit"
    if any(item.adaptation is not None for item in items):
        return "all that differs in shape is adapted otherwise"
    return "no tensor of the checkpoint differs in shape from the target's"


def _about_grid(item: FitItem, rule: AdaptRule) -> str:
    """Say of positions that lie on no square what the grid is to be."""
    if rule.grids is None:
        return f"'{item.name}' may lie on a grid that is not square: add --grid HEIGHTxWIDTH"
    old = (item.source_shape or item.shape)[-2]
    return (
        f"'{item.name}' has {item.shape[-2]} positions and the checkpoint's {old}, class tokens "
        f"and the like among them, which is not the grid {rule.grids}"
    )


def _refuse_initial(initial: Sequence[str], permitted: Callable[[str], bool]) -> None:
    refused = [name for name in initial if not permitted(name)]
    if refused:
        shown = ", ".join(f"'{name}'" for name in refused[:8])
        more = f" and {len(refused) - 8} more" if len(refused) > 8 else ""
        raise PlanError(
            f"{shown}{more} would take {'its' if len(refused) == 1 else 'their'} initial value",
            hint="--initial does not select them; without it the report says what would adapt them",
        )


def _refuse_unused(what: str, prefix: str, names: Sequence[str]) -> None:
    if any(below(name, prefix) for name in names):
        raise UsageError(
            f"{what} applies to nothing", hint=f"'{prefix}' takes its values from the checkpoint"
        )
    children = ", ".join(dict.fromkeys(f"'{name.partition('.')[0]}'" for name in names[:1000]))
    raise UsageError(
        f"{what} applies to nothing: the target has no '{prefix}'",
        hint=near_hint(prefix, names) or f"it has {children}",
    )
