"""Match and fit the architectures of a library, and let torch itself check the results.

    python scripts/sweep_models.py [--of torchvision|timm|transformers] [PART OF A NAME ...]

For each: `match` of a checkpoint of its own names and shapes says that all keys match; for a
classification model `fit` to 10 classes loads strictly, and every copied tensor equals its source
bit for bit. Of torchvision all models are tried (up to 3 GB of memory and 6 GB in the temporary
folder); of timm a hundred and fifty, of every family some; of transformers a type for each
classifier that it has, with the default configuration and two layers. Models of more than a
thousand million numbers of the latter two are matched, but not fitted (4 GB of memory).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

import ckpt_surgery
from ckpt_surgery.errors import ConstructionError
from ckpt_surgery.models.building import build_module
from ckpt_surgery.models.specs import ModelSpec, Value
from ckpt_surgery.models.torchvision_import import import_torchvision

_CLASSES = 10
_MOST_FITTED = 1_000_000_000  # numbers
_TIMM = 150
_LAYERS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"),
    *("decoder_layers", "num_encoder_layers", "num_decoder_layers"),
)
"""What configurations call the number of their layers, of which two are enough to be fitted."""
_SMALL = ("tiny", "nano", "small", "pico", "_s", "_xs", "_t", "18", "lite", "_b0", "_1_0", "050")


@dataclass(frozen=True)
class Trial:
    """A model, and the arguments that give it ten classes; None if it has no classes."""

    spec: str
    arguments: Mapping[str, Value] = field(default_factory=dict)
    fitted: Mapping[str, Value] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", choices=["torchvision", "timm", "transformers"])
    parser.add_argument("part", nargs="*")
    asked = parser.parse_args()
    library = asked.of or "torchvision"
    count = fitted = 0
    refused: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        trials = {"torchvision": torchvision, "timm": timm, "transformers": transformers}[library]
        for trial in trials(Path(folder)):
            if asked.part and not any(part in trial.spec for part in asked.part):
                continue
            started = time.monotonic()
            source = Path(folder) / "own.pth"
            try:
                numbers = _save_own(trial, source, values=library == "torchvision")
            except ConstructionError as error:
                refused.append(trial.spec)
                print(f"{trial.spec}: {error}", flush=True)
                continue
            report = ckpt_surgery.match(source, model=trial.spec, model_args=trial.arguments)
            assert report.exit_code == 0, (trial.spec, report.to_dict())
            line = f"{trial.spec}: {report.to_dict()['matched']} keys match"
            count += 1
            if trial.fitted and (library == "torchvision" or numbers <= _MOST_FITTED):
                if library != "torchvision":
                    _save_own(trial, source, values=True)
                line += _check_fit(trial, source, Path(folder) / "fitted.pth")
                fitted += 1
            source.unlink()
            print(f"{line}, {time.monotonic() - started:.1f} s", flush=True)
    print(f"{count} models match their own checkpoints; {fitted} fitted to {_CLASSES} classes")
    print(f"not built without values: {', '.join(refused) or 'none'}")


def torchvision(_: Path) -> Iterator[Trial]:
    """All of torchvision."""
    models = import_torchvision().models
    classification = set(models.list_models(module=models))
    for name in models.list_models():
        classes = {"num_classes": _CLASSES} if name in classification else None
        yield Trial(f"torchvision:{name}", {}, classes)


def timm(_: Path) -> Iterator[Trial]:
    """Some models of every family of timm, the small ones first."""
    import_torchvision()
    import timm

    families = [sorted(timm.list_models(module=each), key=_size) for each in timm.list_modules()]
    chosen = [names[at] for at in range(9) for names in families if at < len(names)]
    for name in chosen[:_TIMM]:
        yield Trial(f"timm:{name}", {}, {"num_classes": _CLASSES})


def _size(name: str) -> tuple[bool, int, str]:
    return not any(part in name for part in _SMALL), len(name), name


def transformers(folder: Path) -> Iterator[Trial]:
    """A model of each type that classifies texts or images, from its default configuration."""
    import_torchvision()
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as auto

    names = {
        **auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        **auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    for kind, found in names.items():
        home = folder / kind
        home.mkdir()
        with contextlib.suppress(Exception):  # a configuration that wants another is no trial
            config = CONFIG_MAPPING[kind]().to_dict()
            config["architectures"] = [found if isinstance(found, str) else found[0]]
            few = {k: 2 if k in _LAYERS and config[k] else v for k, v in config.items()}
            few.pop("layer_types", None)
            for each in (config, few):
                (home / "config.json").write_text(json.dumps(each, default=str))
                with contextlib.suppress(ConstructionError):
                    build_module(ModelSpec(f"hf:{home}"))
                    config = each
            (home / "config.json").write_text(json.dumps(config, default=str))
            classes = {str(i): f"class {i}" for i in range(_CLASSES)}
            fitted = {"id2label": classes, "label2id": {v: k for k, v in classes.items()}}
            yield Trial(f"hf:{home}", {}, fitted)


def _save_own(trial: Trial, path: Path, *, values: bool) -> int:
    """Save what the model would: its names and shapes, or with `values` random numbers as well.

    Without them a tensor is one number that stands for all. Return how many numbers there are.
    """
    module = build_module(ModelSpec(trial.spec, trial.arguments))
    state = module.state_dict()
    if values:
        state = _filled(module)
    else:
        state = {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()}
    torch.save(state, path)
    return sum(value.numel() for value in state.values())


def _filled(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a state dict of random numbers, in which what is one tensor stays one."""
    torch.manual_seed(0)
    first: dict[int, str] = {}
    leaders = {k: first.setdefault(id(v), k) for k, v in module.state_dict(keep_vars=True).items()}
    with torch.no_grad():
        state: dict[str, torch.Tensor] = module.to_empty(device="cpu").state_dict()
        for value in state.values():
            value.uniform_(-1, 1) if value.is_floating_point() else value.zero_()
    for name, leader in leaders.items():  # which to_empty makes two
        state[name] = state[leader]
    return state


def _check_fit(trial: Trial, source: Path, output: Path) -> str:
    arguments = {**trial.arguments, **(trial.fitted or {})}
    wanted = ckpt_surgery.Output(output, force=True)
    report = ckpt_surgery.fit(source, wanted, model=trial.spec, model_args=arguments)
    old = torch.load(source, weights_only=True, mmap=True)
    new = torch.load(output, weights_only=True, mmap=True)
    module = build_module(ModelSpec(trial.spec, arguments))
    assert (
        str(module.load_state_dict(new, strict=True, assign=True))
        == "<All keys matched successfully>"
    )
    found = report.to_dict()
    for key in found["copied"]:
        assert new[key].dtype == old[key].dtype, key
        assert torch.equal(
            new[key].view(-1).view(torch.uint8), old[key].view(-1).view(torch.uint8)
        ), key
    assert not found["adapted"]
    assert len(found["copied"]) + len(found["initial"]) == len(new)
    assert all(new[key].isfinite().all() for key in found["initial"])
    return f"; {len(found['copied'])} copied, {len(found['initial'])} initial"


if __name__ == "__main__":
    main()
