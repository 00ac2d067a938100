"""Building a target model without its weights.

The callable of ``package.module:callable`` is the user's own code, and it runs. Nothing is ever
imported because a checkpoint names it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ckpt_surgery.errors import (
    CkptError,
    ConstructionError,
    MissingDependencyError,
    UsageError,
)
from ckpt_surgery.models.asking import asking
from ckpt_surgery.models.construction import ParametersOnMeta
from ckpt_surgery.models.layers import apply_settings
from ckpt_surgery.models.sources import (
    WOULD_CONNECT,
    is_library,
    library_builder,
    needs_values,
    offline,
    refuse_loading,
)
from ckpt_surgery.models.specs import ModelSpec, Setting, Value
from ckpt_surgery.models.stand_ins import as_description, on_meta_device, with_fakes
from ckpt_surgery.models.target import ModuleSpec, Target, TensorSpec
from ckpt_surgery.models.torchvision_import import beside_torchvision, import_torchvision
from ckpt_surgery.names.suggest import near_hint

_UNEXPECTED = re.compile(
    r"(?P<callee>\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(?P<name>\w+)'"
)
_DOWNLOADING = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")


def torchvision_names() -> list[str]:
    """Return every name that ``torchvision:NAME`` takes."""
    names: list[str] = import_torchvision().models.list_models()
    return names


def build_target(
    spec: str,
    model_args: Mapping[str, Value] | None = None,
    settings: Sequence[Setting] = (),
) -> Target:
    """Describe the model `spec`, built on the meta device; nothing is allocated or downloaded.

    Raises as `build_module` does.
    """
    model_spec = ModelSpec(spec, dict(model_args or {}), tuple(settings))
    return describe(build_module(model_spec), spec)


def build_module(spec: ModelSpec) -> nn.Module:
    """Return the model with its parameters on the meta device and its settings applied.

    Code that does not work there (it runs its network, or computes with values) is tried with its
    parameters alone there, then with fake tensors, then, if the spec permits, for real.

    Raises UsageError for an unknown model, argument, module or attribute, MissingDependencyError
    if torchvision is asked for and absent, ConstructionError for everything that the model's own
    code does wrong.
    """
    factory = find_factory(spec)
    if needs_values(spec.source):
        return as_description(run_factory(spec, factory, contextlib.nullcontext()))
    said: list[ConstructionError] = []
    for context in (on_meta_device, ParametersOnMeta, with_fakes):
        try:
            model = run_factory(spec, factory, context())
        except ConstructionError as error:
            if error.message == WOULD_CONNECT:
                raise
            said.append(error)
            # the same twice is no matter of the device, unless it says so
            if len(said) == 2 and str(said[0]) == str(said[1]) and "meta" not in str(error):
                break
        else:
            return as_description(model) if context is with_fakes else model
    if spec.build == "real":
        return as_description(run_factory(spec, factory, contextlib.nullcontext()))
    if len(said) > 2:
        said[0].hint = (
            "its code needs the values of its tensors: 'build real' makes them, on the CPU; "
            "or save its state dict and use --like"
        )
        said[0].fields = ("build",)
    raise said[0]


def run_factory(
    spec: ModelSpec, factory: Callable[..., Any], context: AbstractContextManager[Any]
) -> nn.Module:
    """Call `factory` and apply the settings inside `context`; raises as `build_module` does."""
    with context, _hospitality(spec):
        try:
            model = beside_torchvision(lambda: factory(**spec.arguments))
        except (Exception, SystemExit) as error:
            raise _construction_error(spec, error) from error
        if not isinstance(model, nn.Module):
            raise ConstructionError(
                f"'{spec}' returned {_a(type(model).__name__)}, not a torch.nn.Module"
            )
        if isinstance(model, torch.jit.ScriptModule):
            raise ConstructionError(
                f"'{spec}' returned a TorchScript module, which cannot be asked what it would load",
                hint="save it, and give the archive, or its state dict, with --like",
            )
        apply_settings(model, spec.settings)
    return model


def find_factory(spec: ModelSpec) -> Callable[..., Any]:
    """Return what to call with the arguments of `spec`; raises as `build_module` does."""
    if is_library(spec.source):
        return _library_factory(spec)
    if spec.is_torchvision:
        return _taking_arguments(spec, _torchvision_builder(spec))
    return _taking_arguments(spec, _import_callable(spec))


def _library_factory(spec: ModelSpec) -> Callable[..., Any]:
    """Return what builds a model of a library, or else the callable of a module so called.

    ``timm:create_model`` is no model of timm, but a function of the package.
    """
    refuse_loading(spec)
    with _hospitality(spec):
        try:
            return library_builder(spec)
        except (UsageError, MissingDependencyError) as error:
            refused = error
        except Exception as error:
            raise _construction_error(spec, error) from error
    try:
        with _working_directory_importable():
            factory = _import_callable(spec)
    except UsageError:
        raise refused from None
    return _working_directory_importable()(_taking_arguments(spec, factory))


def _taking_arguments(spec: ModelSpec, factory: Callable[..., Any]) -> Callable[..., Any]:
    """Return `factory`. Raises UsageError if it does not take the arguments of `spec`."""
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):
        return factory
    try:
        signature.bind(**spec.arguments)
    except TypeError as error:
        unknown = [name for name in spec.arguments if name not in signature.parameters]
        raise UsageError(
            f"'{spec}' does not take these arguments: {error}",
            hint=near_hint(unknown[0], signature.parameters) if unknown else None,
        ) from error
    return factory


def _torchvision_builder(spec: ModelSpec) -> Callable[..., Any]:
    models = import_torchvision().models
    if spec.name not in models.list_models():
        raise UsageError(
            f"torchvision has no model '{spec.name}'",
            hint=near_hint(spec.name, models.list_models())
            or "torchvision.models.list_models() lists those it has",
        )
    for name in _DOWNLOADING:
        if spec.arguments.get(name):
            raise UsageError(
                f"'{name}' would download a file",
                hint="give the checkpoint to take weights from as FILE",
            )
    builder = models.get_model_builder(spec.name)
    known = inspect.signature(builder).parameters
    nothing = {name: None for name in ("weights", "weights_backbone") if name in known}

    def build(**arguments: Any) -> Any:
        return builder(**{**arguments, **nothing})

    build.__signature__ = inspect.signature(builder)  # type: ignore[attr-defined]  # what inspect.signature() reads
    return build


def _import_callable(spec: ModelSpec) -> Callable[..., Any]:
    found: Any = _import_user_module(spec)
    for part in spec.name.split("."):
        found = _attribute(spec, found, part)
    if not callable(found):
        raise UsageError(f"'{spec}' is {_a(type(found).__name__)}, which cannot be called")
    factory: Callable[..., Any] = found
    return factory


def _attribute(spec: ModelSpec, found: Any, part: str) -> Any:
    """Return what a package has under a name; one that imports its parts
    when asked may raise anything.
    """
    with _hospitality(spec):
        try:
            return beside_torchvision(lambda: getattr(found, part))
        except AttributeError as error:
            raise UsageError(
                f"'{spec.source}' has no '{spec.name}'", hint=near_hint(part, dir(found))
            ) from error
        except (Exception, SystemExit) as error:
            raise _construction_error(spec, error) from error


def _import_user_module(spec: ModelSpec) -> Any:
    with _hospitality(spec):
        try:
            return beside_torchvision(lambda: importlib.import_module(spec.source))
        except ModuleNotFoundError as error:
            if error.name is None or not f"{spec.source}.".startswith(f"{error.name}."):
                raise _construction_error(spec, error) from error
            raise UsageError(
                f"there is no module '{error.name}' to import '{spec}' from",
                hint="run ckpt in the folder that holds it, or set PYTHONPATH",
            ) from error
        except (TypeError, ValueError) as error:
            if all(part.isidentifier() for part in spec.source.split(".")):
                raise _construction_error(spec, error) from error
            raise UsageError(f"'{spec.source}' is not the name of a module") from error
        except (Exception, SystemExit) as error:
            raise _construction_error(spec, error) from error


def _construction_error(spec: ModelSpec, error: BaseException) -> CkptError:
    if isinstance(error, CkptError):
        return error
    if isinstance(error, MemoryError):
        return ConstructionError(f"building '{spec}' took all memory")
    detail = str(error).strip().splitlines()
    said = f": {detail[0]}" if detail else ""
    hint = _meant_argument(spec, error)
    return ConstructionError(f"building '{spec}' raised {type(error).__name__}{said}", hint=hint)


def _meant_argument(spec: ModelSpec, error: BaseException) -> str | None:
    """Return what an argument may have meant that a constructor below the factory does not take."""
    refused = _UNEXPECTED.match(str(error)) if isinstance(error, TypeError) else None
    trace = error.__traceback__
    if refused is None or refused["name"] not in spec.arguments or trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    # where the call was made, the callee has its name, or is in a variable
    here = trace.tb_frame
    for callee in (here.f_globals.get(refused["callee"]), *here.f_locals.values()):
        if getattr(callee, "__name__", None) == refused["callee"]:
            with contextlib.suppress(ValueError, TypeError):
                return near_hint(refused["name"], inspect.signature(callee).parameters)
    return None


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    # as with 'python -m': a console script has its own folder first in sys.path instead
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


@contextlib.contextmanager
def _hospitality(spec: ModelSpec) -> Iterator[None]:
    """Run the model's code as it expects, but off standard output, which may carry a checkpoint."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(offline())
        if spec.is_torchvision or is_library(spec.source):
            warnings.simplefilter("ignore")  # GoogLeNet and Inception announce a coming default
        else:
            stack.enter_context(_working_directory_importable())
        yield


def _a(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} '{word}'"


def describe(model: nn.Module, title: str) -> Target:
    """Return the description of `model`; raises ConstructionError if it
    has parameters without a shape, or if its code raises when it is asked.
    """
    with asking(f"'{title}' cannot be described"):
        return _described(model, title)


def _described(model: nn.Module, title: str) -> Target:
    state = read_state_dict(model, title)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ConstructionError(
                f"parameter '{name}' of '{title}' gets its shape only when the model first runs",
                hint="save a state dict after a first run and use --like",
            )
    metadata = getattr(state, "_metadata", None)
    return Target(
        title=title,
        tensors=tuple(
            TensorSpec(
                name,
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                "parameter" if isinstance(tensor, nn.Parameter) else "buffer",
                _layout(tensor),
            )
            for name, tensor in tensors.items()
        ),
        ties=_ties(tensors),
        metadata=None if metadata is None else {k: dict(v) for k, v in metadata.items()},
        extra_state=tuple(name for name in state if name not in tensors),
        parameters=tuple(name for name, _ in model.named_parameters()),
        modules=tuple(_describe_module(name, module) for name, module in model.named_modules()),
    )


def read_state_dict(model: nn.Module, title: str) -> dict[str, Any]:
    """``model.state_dict(keep_vars=True)``; raises ConstructionError if the model's hooks raise."""
    with asking(f"the state dict of '{title}' cannot be taken"):
        state: dict[str, Any] = model.state_dict(keep_vars=True)
    return state


def _describe_module(name: str, module: nn.Module) -> ModuleSpec:
    prefix = f"{name}." if name else ""
    kind = type(module)
    return ModuleSpec(
        name=name,
        kind=f"{kind.__module__}.{kind.__qualname__}",
        parameters=tuple(prefix + key for key, _ in module.named_parameters(recurse=False)),
        buffers=tuple(prefix + key for key, _ in module.named_buffers(recurse=False)),
        tracks_statistics=bool(getattr(module, "track_running_stats", False)),
    )


def _layout(tensor: Any) -> str:
    """Return how a tensor of a model keeps its elements, as `TensorSpec` calls it."""
    if is_traceable_wrapper_subclass(tensor):
        return "dtensor" if type(tensor).__name__ == "DTensor" else "subclass"
    if tensor.is_quantized:
        return "quantized"
    return str(tensor.layout).removeprefix("torch.")


def _ties(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], ...]:
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


__all__ = [
    "build_module",
    "build_target",
    "describe",
    "find_factory",
    "read_state_dict",
    "run_factory",
    "torchvision_names",
]
