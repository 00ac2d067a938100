"""``_metadata``: what becomes of module paths when the keys below them are renamed or removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ckpt_surgery.names.suggest import ancestors

if TYPE_CHECKING:
    from ckpt_surgery.names.rewrite import RewriteRule


def rewrite_metadata(
    modules: Sequence[str],
    old_names: Sequence[str],
    new_names: Sequence[str],
    rules: Sequence[RewriteRule],
) -> dict[str, str]:
    """Return which module path of ``_metadata`` becomes which, after keys were renamed.

    A module goes where the keys below it went, if they all went one way. One that says nothing by
    itself (no keys below it, or keys that parted) follows its nearest ancestor that does, and
    without such an ancestor the rules themselves. A module missing from the result gives way to
    another that lands on its name: what keys tell wins, as when ``module`` takes the place of the
    wrapper's root (torch's ``consume_prefix_in_state_dict_if_present`` does the same), and among
    equals the first. So does one that had keys below it and where it goes has none.
    """
    paths = dict.fromkeys(modules)
    wanted = {path for module in paths for path in (*ancestors(module), module)}
    images = _images(wanted, old_names, new_names)
    told = {module: image for module in paths if (image := images.get(module)) is not None}
    led = {module: _follow(module, images, rules) for module in paths if module not in told}
    filled = _with_keys(set(led.values()), new_names)
    emptied = {m for m in _with_keys(set(led), old_names) if led[m] not in filled}
    moved: dict[str, str] = {}
    taken: set[str] = set()
    for module, image in (*told.items(), *led.items()):
        if image not in taken and module not in emptied:
            taken.add(image)
            moved[module] = image
    return {module: moved[module] for module in paths if module in moved}


def strip_metadata(
    modules: Sequence[str], names_before: Sequence[str], names_after: Sequence[str]
) -> list[str]:
    """Return the module paths of ``_metadata`` that remain after keys were removed, in order.

    A module goes if it, or a module around it, had keys below it and has none left. One that never
    had any (an activation) stays while what is around it does.
    """
    families = {module: (*ancestors(module), module) for module in modules}
    wanted = {path for family in families.values() for path in family}
    emptied = _with_keys(wanted, names_before) - _with_keys(wanted, names_after)
    return [module for module, family in families.items() if emptied.isdisjoint(family)]


def _images(
    modules: set[str], old_names: Sequence[str], new_names: Sequence[str]
) -> dict[str, str | None]:
    """Return where the keys below each module went; None if they do not agree."""
    images: dict[str, str | None] = {}
    for old, new in zip(old_names, new_names, strict=True):
        for module in ancestors(old):
            if module not in modules:
                continue
            image = _image(old[len(module) + 1 :] if module else old, new)
            if images.setdefault(module, image) != image:
                images[module] = None
    return images


def _image(rest: str, new: str) -> str | None:
    """Return the module above `rest` in `new`, if `new` ends with it."""
    if new == rest:
        return ""
    return new[: -len(rest) - 1] if new.endswith(f".{rest}") else None


def _follow(module: str, images: Mapping[str, str | None], rules: Sequence[RewriteRule]) -> str:
    for ancestor in reversed(list(ancestors(module))):
        image = images.get(ancestor)
        if image is not None:
            rest = module[len(ancestor) + 1 :] if ancestor else module
            return f"{image}.{rest}" if image else rest
    path = f"{module}." if module else ""
    for rule in rules:
        path = rule.apply(path)
    return path.removesuffix(".")


def _with_keys(modules: set[str], names: Iterable[str]) -> set[str]:
    return {path for name in names for path in ancestors(name) if path in modules}
