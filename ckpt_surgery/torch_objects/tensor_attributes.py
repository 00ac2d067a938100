"""Attributes that a rebuilt tensor is given: what torch keeps, and what would change the tensor."""

from __future__ import annotations

from typing import Final

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import Node, Object
from ckpt_surgery.torch_objects.calls import wrong_form
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.storages import text

PLAIN_CLASSES: Final = frozenset({"torch.Tensor", "torch._tensor.Tensor", "torch.tensor.Tensor"})
"""The class of a tensor that is of none of its own."""


def require_attributes(state: Node, node: Object, *, of_plain: bool) -> None:
    """Refuse the `state` of a tensor that `node` rebuilds if torch would
    do more with it than keep attributes, or would not load it.

    torch takes a dictionary, or a pair of one and another of slots. A tensor that is not
    `of_plain` is of a class that may know what to do with any other state.
    Raises `DamagedFileError`.
    """
    is_pair = isinstance(state, tuple) and len(state) == 2
    for part in state if isinstance(state, tuple) and is_pair else (state,):
        attributes = mapping_pairs(part)
        if attributes is None and part is not None and of_plain:
            raise wrong_form(node)
        for key, _ in attributes or ():
            name = text(key)
            if name in _OWN_ATTRIBUTES or name is None:
                raise DamagedFileError(f"'{node.name}' sets a tensor's own attribute '{name}'")


# Setting one of these changes the tensor or what is read of it; torch writes none of them, since
# it writes a tensor's `__dict__` alone: the data descriptors of its class, of all versions.
_OWN_ATTRIBUTES: Final = frozenset(
    {
        "H", "T", "__class__", "__cuda_array_interface__", "__dict__", "__weakref__",
        "_backward_hooks", "_base", "_cdata", "_grad", "_grad_fn", "_has_symbolic_sizes_strides",
        "_post_accumulate_grad_hooks", "_python_dispatch", "_version", "data", "device", "dtype",
        "grad", "grad_dtype", "grad_fn", "imag", "is_cpu", "is_cuda", "is_ipu", "is_leaf",
        "is_maia", "is_meta", "is_mkldnn", "is_mlc", "is_mps", "is_mtia", "is_nested", "is_ort",
        "is_quantized", "is_sparse", "is_sparse_csr", "is_vulkan", "is_xla", "is_xpu", "itemsize",
        "layout", "mH", "mT", "name", "names", "nbytes", "ndim", "output_nr", "real",
        "requires_grad", "retains_grad", "shape", "volatile",
    }
)  # fmt: skip
