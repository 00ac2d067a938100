"""The devices that tensors were saved on, and are loaded to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Final

from ckpt_surgery.checkpoint.description import Checkpoint, Storage
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.errors import PlanError
from ckpt_surgery.pickles import Global, Node, Object, PersistentId, own_text, walk
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.calls import device_name

# Which argument of a call that rebuilds a tensor is its device; all others have a storage.
_DEVICE_AT: Final = {
    "torch._utils._rebuild_wrapper_subclass": 6,
    "torch._utils._rebuild_device_tensor_from_numpy": 2,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": 2,
    "torch._utils._rebuild_xla_tensor": 2,
}
_NOWHERE: Final = frozenset({"cpu", "meta", "unknown"})


@dataclass(frozen=True, slots=True)
class SetDevice(Edit):
    """Say of everything that was saved on the device `old` that it was on `new`.

    Objects beside the tensors that name a device (a configuration) stay as they are.
    """

    kind: ClassVar[str] = "set-device"
    old: str
    new: str

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with the other device in its place.

        Raises `PlanError` if nothing was saved on the device: the plan is another file's.
        """
        found = _devices(checkpoint)
        if self.old not in found:
            listed = ", ".join(f"'{name}'" for name in found)
            raise PlanError(
                f"nothing in it was saved on '{self.old}', which is to be '{self.new}'",
                path=checkpoint.file.name,
                hint=f"it was saved on: {listed}" if found else None,
            )
        moved = {
            here: self.new if there == self.old else there
            for here, there in checkpoint.devices.items()
        }
        return replace(
            checkpoint,
            devices={self.old: self.new, **moved},
            replaced={**checkpoint.replaced, **dict(self._arguments(checkpoint))},
        )

    def _arguments(self, checkpoint: Checkpoint) -> Iterator[tuple[int, Node]]:
        """Yield what takes the place of calls' arguments that name the device."""
        for node in walk(checkpoint.root, replaced=checkpoint.replaced):
            device = _argument(node)
            if device is None or device_name(device) != self.old:
                continue
            new = own_text(self.new)
            if isinstance(device, Object):
                yield id(device), Object("REDUCE", Global("torch", "device"), (new,))
            elif isinstance(node, Object) and isinstance(node.args, tuple):
                yield id(node.args), tuple(new if arg is device else arg for arg in node.args)


def plan_device(checkpoint: Checkpoint, device: str) -> list[SetDevice]:
    """Say of every tensor that it was saved on `device`, wherever it was."""
    return [
        SetDevice(name, device) for name in _devices(checkpoint) if name not in _NOWHERE | {device}
    ]


def _devices(checkpoint: Checkpoint) -> dict[str, None]:
    """Return the devices that tensors were saved on, by what is said of them by now."""
    found: dict[str, None] = {}
    for node in walk(checkpoint.root, replaced=checkpoint.replaced):
        if isinstance(node, PersistentId) and isinstance(node.target, Storage):
            found.setdefault(node.target.device)
        elif (argument := _argument(node)) is not None:
            found.setdefault(device_name(argument))
    for tensor in checkpoint.all_tensors:  # those of another file among them
        for part in tensor.strided_parts():
            if part.storage is not None:
                found.setdefault(part.storage.device)
    return dict.fromkeys(checkpoint.devices.get(name, name) for name in found)


def _argument(node: Node) -> Node | None:
    """Return the device among the arguments of a call that rebuilds a tensor."""
    if not isinstance(node, Object) or not isinstance(node.args, tuple):
        return None
    place = _DEVICE_AT.get(node.name)
    return node.args[place] if place is not None and place < len(node.args) else None
