"""Models by the names that their libraries give them: ``timm:NAME``, ``hf:DIR`` and others.

Nothing is downloaded: what would be is refused by the name of its argument, and while a model
is built no connection is made.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from ckpt_surgery.errors import ConstructionError, MissingDependencyError, UsageError
from ckpt_surgery.models.specs import ModelSpec
from ckpt_surgery.models.torchvision_import import import_torchvision
from ckpt_surgery.names.suggest import near_hint

_Builder = Callable[..., Any]

_LOADING: Final = (
    *("pretrained", "weights", "encoder_weights", "checkpoint_path", "pretrained_backbone"),
    "use_pretrained_backbone",
)
"""Arguments that fetch weights, or load them from a file."""
_PLAIN: Final = re.compile(r"[\w.-]+")
_PACKAGES: Final = {
    "timm": "timm",
    "hf": "transformers",
    "smp": "segmentation_models_pytorch",
    "ultralytics": "ultralytics",
}
WOULD_CONNECT: Final = "building the model would reach for the network"
_NETWORK: Final = (socket.AF_INET, socket.AF_INET6)


def is_library(source: str) -> bool:
    """Return whether the word before the colon stands for a library of models."""
    return source in _PACKAGES


def needs_values(source: str) -> bool:
    """Return whether models of a library cannot be built without values: theirs are small."""
    return source == "ultralytics"


def refuse_loading(spec: ModelSpec) -> None:
    """Raise `UsageError` for arguments that would load weights."""
    for name in _LOADING:
        if spec.arguments.get(name):
            raise UsageError(
                f"'{name}' would load weights, which a description needs none of",
                hint="give the checkpoint to take weights from as FILE",
            )


def library_builder(spec: ModelSpec) -> _Builder:
    """Return what builds the model that `spec` names in a library.

    Raises `MissingDependencyError` without the library, `UsageError` for a name that it does not
    have.
    """
    find = {"timm": _timm, "hf": _transformers, "smp": _smp, "ultralytics": _ultralytics}
    with offline():
        return find[spec.source](spec)


def _would_connect() -> ConstructionError:
    return ConstructionError(
        WOULD_CONNECT,
        hint="an argument, the model's configuration or its code asks for weights; "
        "give the checkpoint to take them from as FILE",
    )


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let no connection be made inside the block: libraries are told so, and sockets refuse."""
    hub: Any = None
    with contextlib.suppress(ImportError):
        hub = importlib.import_module("huggingface_hub.constants")
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    hub_before = getattr(hub, "HF_HUB_OFFLINE", None)
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family not in _NETWORK:
            connect(self, address)
            return
        self.close()  # who called may close it after an OSError alone
        raise _would_connect()

    def find_nothing(*_: Any, **__: Any) -> NoReturn:
        raise _would_connect()

    os.environ.update(dict.fromkeys(names, "1"))
    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = find_nothing
    if hub is not None:
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]
        socket.getaddrinfo = look_up
        if hub is not None:
            hub.HF_HUB_OFFLINE = hub_before
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _imported(spec: ModelSpec, module: str = "") -> Any:
    """Return a library's module. Raises `MissingDependencyError` if it is not installed."""
    package = _PACKAGES[spec.source]
    with contextlib.suppress(MissingDependencyError):
        import_torchvision()  # which they import on their own, later and less carefully
    try:
        return importlib.import_module(module or package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingDependencyError(
            f"'{spec}' needs '{package}', which is not installed",
            hint=f"install it with 'pip install {package.replace('_', '-')}'",
        ) from error


def _timm(spec: ModelSpec) -> _Builder:
    timm = _imported(spec)
    if not timm.is_model(spec.name):
        raise UsageError(
            f"timm has no model '{spec.name}'",
            hint=near_hint(spec.name, timm.list_models()) or "timm.list_models() lists its models",
        )

    def build(**arguments: Any) -> Any:
        return timm.create_model(spec.name, **{**arguments, "pretrained": False})

    return build


def configuration_of(spec: ModelSpec) -> Path:
    """Return the file of a configuration of transformers, which may stand for its directory."""
    file = Path(spec.name)
    return file / "config.json" if file.is_dir() else file


def _transformers(spec: ModelSpec) -> _Builder:
    """Return what builds the model of a ``config.json``, of the class that it names.

    The argument `architecture` names another class; all others are fields of the configuration.
    """
    file = configuration_of(spec)
    try:
        said = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"'{spec}': there is no configuration to read at '{file}'",
            hint="hf:DIR is a directory with a config.json; it needs no weights",
        ) from error
    if not isinstance(said, dict) or "model_type" not in said:
        raise UsageError(f"'{file}' is no configuration of transformers: it has no 'model_type'")
    transformers = _imported(spec)
    arguments = dict(spec.arguments)
    listed = said.get("architectures") or [None]
    wanted = arguments.pop("architecture", None) or listed[0]
    if said["model_type"] not in transformers.CONFIG_MAPPING:
        raise UsageError(
            f"transformers has no model of the type '{said['model_type']}'",
            hint="its own code is not run; build it yourself: --model package.module:callable"
            if "auto_map" in said
            else near_hint(said["model_type"], list(transformers.CONFIG_MAPPING)),
        )
    config_class = transformers.CONFIG_MAPPING[said["model_type"]]
    model_class = transformers.AutoModel if wanted is None else _named(transformers, str(wanted))

    def build(**arguments: Any) -> Any:
        arguments.pop("architecture", None)
        config = config_class.from_dict({**said, **arguments})
        return model_class.from_config(config) if wanted is None else model_class(config)

    return build


def _named(package: Any, name: str) -> Any:
    """Return the class of a library. Raises `UsageError` with near names if there is none."""
    found = getattr(package, name, None) if name.isidentifier() else None
    if not isinstance(found, type):
        raise UsageError(
            f"'{package.__name__}' has no '{name}'", hint=near_hint(name, _public(package))
        )
    return found


def _public(package: Any) -> list[str]:
    return [name for name in dir(package) if name[:1].isupper()]


def _smp(spec: ModelSpec) -> _Builder:
    model_class = _named(_imported(spec), spec.name)

    def build(**arguments: Any) -> Any:
        return model_class(**{**arguments, "encoder_weights": None})

    return build


def _ultralytics(spec: ModelSpec) -> _Builder:
    package = _imported(spec)
    tasks = _imported(spec, "ultralytics.nn.tasks")
    folder = Path(package.__file__).parent / "cfg" / "models"
    name = spec.name.removesuffix(".yaml")
    known = {file.stem for file in folder.rglob("*.yaml")}
    unscaled = re.sub(r"(\d)[nsmlx](?=-|$)", r"\1", name)
    if not _PLAIN.fullmatch(name) or not {name, unscaled} & known:
        raise UsageError(
            f"ultralytics has no model '{spec.name}'", hint=near_hint(name, sorted(known))
        )
    classes: Mapping[str, str] = {
        "detect": "DetectionModel",
        "segment": "SegmentationModel",
        "classify": "ClassificationModel",
        "pose": "PoseModel",
        "obb": "OBBModel",
    }

    def build(**arguments: Any) -> Any:
        logging.getLogger("ultralytics").setLevel(logging.ERROR)
        config = tasks.yaml_model_load(f"{name}.yaml")
        task = tasks.guess_model_task(config)
        if task not in classes:
            raise UsageError(f"'{spec}' is for the task '{task}', which is not built")
        return getattr(tasks, classes[task])(config, verbose=False, **arguments)

    return build
