"""What `import ckpt_surgery` offers, and that it costs nothing before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import module_names
import pytest
import torch
from torch_checks import save

import ckpt_surgery


def test_all_is_what_homes_offer() -> None:
    names = {name for group in ckpt_surgery._HOMES.values() for name in group}
    assert set(ckpt_surgery.__all__) == names
    assert sorted(ckpt_surgery.__all__) == list(ckpt_surgery.__all__)
    assert dir(ckpt_surgery) == sorted(ckpt_surgery.__all__)


@pytest.mark.parametrize("name", sorted(ckpt_surgery._HOME_OF))
def test_name_is_that_of_its_home(name: str) -> None:
    home = import_module(ckpt_surgery._HOME_OF[name])
    assert getattr(ckpt_surgery, name) is getattr(home, name)


def test_type_checkers_are_told_the_same_names() -> None:
    """The imports under TYPE_CHECKING are a copy of `_HOMES`."""
    assert ckpt_surgery.__file__ is not None
    module = ast.parse(Path(ckpt_surgery.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in module.body if isinstance(node, ast.If)]
    told = {
        node.module: tuple(alias.name for alias in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ckpt_surgery")
    }
    assert told == ckpt_surgery._HOMES


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'explode'"):
        ckpt_surgery.explode  # noqa: B018


def test_import_imports_nothing_else() -> None:
    code = (
        "import sys, ckpt_surgery;"
        "found = {n for n in sys.modules if n.startswith('ckpt_surgery.')};"
        "heavy = {'torch', 'numpy', 'rich', 'click', 'pickle'} & set(sys.modules);"
        "assert not found | heavy, found | heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_verbs_do_not_import_torch(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "w.pth")
    code = (
        "import sys, ckpt_surgery as ckpt\n"
        f"ckpt.inspect({str(path)!r})\n"
        f"ckpt.strip({str(path)!r}, {str(tmp_path / 'o.pth')!r}, ckpt.selection(pattern='a'))\n"
        "heavy = {'torch', 'numpy', 'rich', 'click', 'pickle'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_example_of_the_docstring_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import doctest

    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential()
    model.conv1, model.fc = torch.nn.Conv2d(1, 1, 1), torch.nn.Linear(1, 1)  # type: ignore[assignment]
    save(model.state_dict(), tmp_path / "resnet34.pth")
    result = doctest.testmod(ckpt_surgery)
    assert result.attempted == 3
    assert result.failed == 0
    assert (tmp_path / "backbone.pth").exists()


# Names that something else than an import leads to, and tables that others may add to.
_REGISTERED = {
    "ckpt_surgery.cli.commands": None,  # by the group, from `COMMANDS`
    "ckpt_surgery.merge.methods": None,  # by being a subclass of `Method`
    "ckpt_surgery.cli.main": {"COMMANDS", "cli", "main", "run"},
    "ckpt_surgery.edits.registry": {"KINDS", "MOMENT_CHANGES"},
    "ckpt_surgery.formats.registry": {"FORMATS", "GROUP"},
    "ckpt_surgery.fileio.sources": {"MemorySource"},  # of a format that decompresses
    "ckpt_surgery.models.building": {"build_target", "torchvision_names"},  # by the script
    "ckpt_surgery.models.signature_table": {"encode_table", "make_table"},  # by the script
}


def _is_registered(module: str, name: str) -> bool:
    for place, names in _REGISTERED.items():
        if module == place or (names is None and module.startswith(f"{place}.")):
            return names is None or name in names
    return False


def test_no_module_uses_a_private_name_of_another() -> None:
    private = [
        (module.name, place, name)
        for module in module_names.modules().values()
        for place, name in module.imported
        if name.startswith("_") and not name.startswith("__") and place != module.name
    ]
    assert private == []


def test_name_that_only_its_module_uses_is_private() -> None:
    """Unless it is registered, or a class whose instances others get from a public function.

    An alias of types and a protocol are for the readers of one module, so that they are private.
    """
    used = module_names.used_elsewhere()
    alone = [
        f"{module}: {name}"
        for module, name in module_names.public()
        if (module, name) not in used
        and name not in module_names.modules()[module].handed_out()
        and name != "TYPE_CHECKING"
        and not _is_registered(module, name)
    ]
    assert alone == []


def test_public_names_are_few() -> None:
    """0.1 had 25.4 for 1,000 lines of the package that it does not export; here are 21.1."""
    assert len(module_names.public()) / module_names.lines() < 0.0215
