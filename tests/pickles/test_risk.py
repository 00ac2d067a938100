"""What is known of names that a pickle may hold."""

from __future__ import annotations

import pytest

from ckpt_surgery.pickles import Global
from ckpt_surgery.pickles.risk import _classify, classify_all, classify_path
from ckpt_surgery.pickles.risk_table import DANGEROUS, DOUBTFUL, HARMLESS


@pytest.mark.parametrize(
    ("module", "name", "level"),
    [
        ("os", "system", "dangerous"),
        ("posix", "system", "dangerous"),
        ("subprocess", "Popen", "dangerous"),
        ("builtins", "eval", "dangerous"),
        ("__builtin__", "eval", "dangerous"),
        ("__builtin__", "getattr", "dangerous"),
        ("cPickle", "loads", "dangerous"),
        ("commands", "getoutput", "dangerous"),
        ("urllib.request", "urlopen", "dangerous"),
        ("trace", "Trace.run", "dangerous"),
        ("torch.hub", "load", "dangerous"),
        ("torch", "load", "dangerous"),
        ("types", "CodeType", "dangerous"),
        # a walk through attributes leads where it leads
        ("torch", "serialization.os.system", "dangerous"),
        ("torch.nn.modules.module", "torch.os.system", "dangerous"),
        ("torch.nn.modules.module", "warnings.warn", "unknown"),
        ("torch.nn.modules.linear", "Linear.forward", "unknown"),
        ("functools", "partial", "doubtful"),
        ("torch", "FloatStorage", "harmless"),
        ("torch._utils", "_rebuild_tensor_v2", "harmless"),
        ("torch._utils", "_import_dotted_name", "dangerous"),
        ("collections", "OrderedDict", "harmless"),
        ("__builtin__", "set", "harmless"),
        ("copy_reg", "_reconstructor", "harmless"),
        ("types", "SimpleNamespace", "harmless"),
        ("torch.nn.modules.linear", "Linear", "harmless"),
        ("torch.nn.modules.module", "_load", "unknown"),
        ("torch.nn.modules.module", "os", "unknown"),
        ("torch.nnmodules", "Linear", "unknown"),
        ("my_project.models", "Net", "unknown"),
        ("osx", "system", "unknown"),
    ],
)
def test_levels(module: str, name: str, level: str) -> None:
    risk = _classify(Global(module, name))
    assert (risk.name, risk.level) == (f"{module}.{name}", level)
    assert (risk.what is None) is (level in {"harmless", "unknown"})


def test_each_name_once_the_dangerous_first() -> None:
    names = [Global(*each.rsplit(".", 1)) for each in ("torch.Size", "a.B", "os.system", "a.B")]
    assert [risk.name for risk in classify_all(names)] == ["os.system", "a.B", "torch.Size"]


def test_a_path_of_which_the_module_is_not_known() -> None:
    assert classify_path("os.system").level == "dangerous"
    assert classify_path("system").level == "unknown"


def test_tables_say_nothing_twice() -> None:
    patterns = [
        pattern
        for table in (DANGEROUS, DOUBTFUL)
        for line in table.splitlines()
        if line.startswith(" ")
        for pattern in line.split()
    ]
    patterns += HARMLESS.split()
    assert len(set(patterns)) == len(patterns)
    assert all("." in pattern for pattern in patterns)
    whats = [line for line in DANGEROUS.splitlines() if not line.startswith(" ")]
    assert len(whats) == 10
