"""Moving averages as those write them who keep them: torch, mmengine, Lightning and others."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def averaged_model(model: nn.Module) -> dict[str, Any]:
    average = AveragedModel(model)
    average.update_parameters(model)
    return average.state_dict()


def mmengine_checkpoint(model: nn.Module, average: dict[str, Any]) -> dict[str, Any]:
    """What mmengine's EMAHook leaves: it swaps the values of the two."""
    own = model.state_dict()
    ema = OrderedDict(steps=torch.tensor(5))
    for name, value in average.items():
        ema[f"module.{name}"], own[name] = own[name], value
    return {"meta": {"epoch": 1}, "state_dict": own, "message_hub": {}, "ema_state_dict": ema}


def lightning_checkpoint(model: nn.Module, average: dict[str, Any]) -> dict[str, Any]:
    """What Lightning's WeightAveraging and EMAWeightAveraging leave."""
    return {
        "epoch": 1,
        "state_dict": average,
        "current_model_state": model.state_dict(),
        "averaging_state": {"n_averaged": torch.tensor(4)},
    }


def swa_state(average: Any) -> dict[str, Any]:
    """The state of Lightning's StochasticWeightAveraging."""
    return {"n_averaged": 2, "latest_update_epoch": 3, "scheduler_state": None,
            "average_model_state": average}  # fmt: skip


def shadows(model: nn.Module) -> dict[str, Any]:
    """The state of torch_ema's ExponentialMovingAverage."""
    params = [p.detach().clone() for p in model.parameters()]
    return {"decay": 0.9, "num_updates": 2, "shadow_params": params, "collected_params": None}


def wrapped(prefix: str, model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in model.state_dict().items()}


def ema_pytorch_state(
    model: nn.Module, average: nn.Module | None = None, *, online: bool = True
) -> dict[str, Any]:
    """The state dict of ema_pytorch's EMA."""
    return {
        **(wrapped("online_model.", model) if online else {}),
        **wrapped("ema_model.", average or model),
        "initted": torch.tensor(True),
        "step": torch.tensor(3),
    }


class LitEma(nn.Module):
    """The average of latent diffusion: its buffers' names are the parameters' without dots."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("decay", torch.tensor(0.9999))
        self.register_buffer("num_updates", torch.tensor(7))
        for name, parameter in model.named_parameters():
            self.register_buffer(name.replace(".", ""), parameter.detach().clone())


class LatentDiffusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = net()
        self.first_stage_model = nn.Linear(2, 2)
        self.model_ema = LitEma(self.model)
