"""The files that say what a model is, none of which may be written over."""

from __future__ import annotations

import sys
from typing import Any

from ckpt_surgery.fileio.distinct import Role
from ckpt_surgery.models.sources import configuration_of
from ckpt_surgery.models.specs import ModelSpec


def code_of(spec: ModelSpec, model: Any) -> tuple[Role, ...]:
    """Return the code of a model that was built, and the configuration that it was built from.

    The code is that of the module which `spec` names, and that of the classes of its layers.
    """
    named = {spec.source, *(type(layer).__module__ for layer in model.modules())}
    loaded = (sys.modules.get(name) for name in sorted(named))
    code = [getattr(module, "__file__", None) for module in loaded]
    configuration = [configuration_of(spec)] if spec.source == "hf" else []
    return (
        *(Role("the code of '--model'", file) for file in code if file),
        *(Role("the configuration of '--model'", file) for file in configuration),
    )
