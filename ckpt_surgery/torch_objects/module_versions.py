"""What a pickled module does not say of its class; made by ``scripts/make_module_versions.py``.

Read from torch 2.13.0 and torchvision 0.28.0.
"""

from __future__ import annotations

from typing import Final

_DEFAULT_VERSION: Final = 1
"""``torch.nn.Module._version``."""

_MOVED: Final = (
    ("torch.nn.intrinsic.", "torch.ao.nn.intrinsic."),
    ("torch.nn.qat.", "torch.ao.nn.qat."),
    ("torch.nn.quantizable.", "torch.ao.nn.quantizable."),
    ("torch.nn.quantized.", "torch.ao.nn.quantized."),
    ("torch.quantization.", "torch.ao.quantization."),
)
"""Packages that older releases of torch name otherwise."""


def version_of(class_name: str) -> int:
    """Return the class's ``_version``, which ``state_dict()`` puts
    into ``_metadata``; 1 if unknown.
    """
    return _VERSIONS.get(_current(class_name), _DEFAULT_VERSION)


def saves_itself(class_name: str) -> bool:
    """Return whether the class replaces what ``torch.nn.Module`` would put into a state dict."""
    return _current(class_name) in _SAVE_THEMSELVES


def _current(class_name: str) -> str:
    for old, new in _MOVED:
        if class_name.startswith(old):
            return new + class_name.removeprefix(old)
    return class_name


_VERSIONS: Final = {
    "torch.ao.nn.intrinsic.qat.modules.conv_fused.ConvBn1d": 2,
    "torch.ao.nn.intrinsic.qat.modules.conv_fused.ConvBn2d": 2,
    "torch.ao.nn.intrinsic.qat.modules.conv_fused.ConvBn3d": 2,
    "torch.ao.nn.intrinsic.qat.modules.conv_fused.ConvBnReLU1d": 2,
    "torch.ao.nn.intrinsic.qat.modules.conv_fused.ConvBnReLU2d": 2,
    "torch.ao.nn.intrinsic.qat.modules.conv_fused.ConvBnReLU3d": 2,
    "torch.ao.nn.intrinsic.qat.modules.conv_fused._ConvBnNd": 2,
    "torch.ao.nn.intrinsic.quantized.dynamic.modules.linear_relu.LinearReLU": 4,
    "torch.ao.nn.intrinsic.quantized.modules.bn_relu.BNReLU2d": 2,
    "torch.ao.nn.intrinsic.quantized.modules.bn_relu.BNReLU3d": 2,
    "torch.ao.nn.intrinsic.quantized.modules.linear_relu.LinearLeakyReLU": 3,
    "torch.ao.nn.intrinsic.quantized.modules.linear_relu.LinearReLU": 3,
    "torch.ao.nn.intrinsic.quantized.modules.linear_relu.LinearTanh": 3,
    "torch.ao.nn.quantized.dynamic.modules.linear.Linear": 4,
    "torch.ao.nn.quantized.dynamic.modules.rnn.GRU": 2,
    "torch.ao.nn.quantized.dynamic.modules.rnn.LSTM": 2,
    "torch.ao.nn.quantized.dynamic.modules.rnn.RNNBase": 2,
    "torch.ao.nn.quantized.modules.batchnorm.BatchNorm2d": 2,
    "torch.ao.nn.quantized.modules.batchnorm.BatchNorm3d": 2,
    "torch.ao.nn.quantized.modules.batchnorm._BatchNorm": 2,
    "torch.ao.nn.quantized.modules.linear.Linear": 3,
    "torch.ao.nn.quantized.modules.linear.LinearPackedParams": 3,
    "torch.ao.nn.quantized.modules.normalization.InstanceNorm1d": 2,
    "torch.ao.nn.quantized.modules.normalization.InstanceNorm2d": 2,
    "torch.ao.nn.quantized.modules.normalization.InstanceNorm3d": 2,
    "torch.ao.quantization.observer.HistogramObserver": 3,
    "torch.ao.quantization.observer.MinMaxObserver": 3,
    "torch.ao.quantization.observer.MovingAverageMinMaxObserver": 3,
    "torch.ao.quantization.observer.MovingAveragePerChannelMinMaxObserver": 3,
    "torch.ao.quantization.observer.PerChannelMinMaxObserver": 3,
    "torch.ao.quantization.observer.UniformQuantizationObserverBase": 3,
    "torch.nn.modules.batchnorm.BatchNorm1d": 2,
    "torch.nn.modules.batchnorm.BatchNorm2d": 2,
    "torch.nn.modules.batchnorm.BatchNorm3d": 2,
    "torch.nn.modules.batchnorm.LazyBatchNorm1d": 2,
    "torch.nn.modules.batchnorm.LazyBatchNorm2d": 2,
    "torch.nn.modules.batchnorm.LazyBatchNorm3d": 2,
    "torch.nn.modules.batchnorm.SyncBatchNorm": 2,
    "torch.nn.modules.batchnorm._BatchNorm": 2,
    "torch.nn.modules.batchnorm._LazyNormBase": 2,
    "torch.nn.modules.batchnorm._NormBase": 2,
    "torch.nn.modules.instancenorm.InstanceNorm1d": 2,
    "torch.nn.modules.instancenorm.InstanceNorm2d": 2,
    "torch.nn.modules.instancenorm.InstanceNorm3d": 2,
    "torch.nn.modules.instancenorm.LazyInstanceNorm1d": 2,
    "torch.nn.modules.instancenorm.LazyInstanceNorm2d": 2,
    "torch.nn.modules.instancenorm.LazyInstanceNorm3d": 2,
    "torch.nn.modules.instancenorm._InstanceNorm": 2,
    "torchvision.models._utils.IntermediateLayerGetter": 2,
    "torchvision.models.densenet._DenseBlock": 2,
    "torchvision.models.detection.mask_rcnn.MaskRCNNHeads": 2,
    "torchvision.models.detection.retinanet.RetinaNetClassificationHead": 2,
    "torchvision.models.detection.retinanet.RetinaNetRegressionHead": 2,
    "torchvision.models.detection.rpn.RPNHead": 2,
    "torchvision.models.mnasnet.MNASNet": 2,
    "torchvision.models.quantization.mobilenetv3.QuantizableSqueezeExcitation": 2,
    "torchvision.models.vision_transformer.MLPBlock": 2,
    "torchvision.ops.feature_pyramid_network.FeaturePyramidNetwork": 2,
}
_SAVE_THEMSELVES: Final = frozenset(
    {
        "torch.ao.nn.intrinsic.quantized.dynamic.modules.linear_relu.LinearReLU",
        "torch.ao.nn.intrinsic.quantized.modules.conv_add.ConvAdd2d",
        "torch.ao.nn.intrinsic.quantized.modules.conv_add.ConvAddReLU2d",
        "torch.ao.nn.intrinsic.quantized.modules.conv_relu.ConvReLU1d",
        "torch.ao.nn.intrinsic.quantized.modules.conv_relu.ConvReLU2d",
        "torch.ao.nn.intrinsic.quantized.modules.conv_relu.ConvReLU3d",
        "torch.ao.nn.intrinsic.quantized.modules.linear_relu.LinearLeakyReLU",
        "torch.ao.nn.intrinsic.quantized.modules.linear_relu.LinearReLU",
        "torch.ao.nn.intrinsic.quantized.modules.linear_relu.LinearTanh",
        "torch.ao.nn.quantized.dynamic.modules.conv.Conv1d",
        "torch.ao.nn.quantized.dynamic.modules.conv.Conv2d",
        "torch.ao.nn.quantized.dynamic.modules.conv.Conv3d",
        "torch.ao.nn.quantized.dynamic.modules.conv.ConvTranspose1d",
        "torch.ao.nn.quantized.dynamic.modules.conv.ConvTranspose2d",
        "torch.ao.nn.quantized.dynamic.modules.conv.ConvTranspose3d",
        "torch.ao.nn.quantized.dynamic.modules.linear.Linear",
        "torch.ao.nn.quantized.dynamic.modules.rnn.GRUCell",
        "torch.ao.nn.quantized.dynamic.modules.rnn.LSTMCell",
        "torch.ao.nn.quantized.dynamic.modules.rnn.PackedParameter",
        "torch.ao.nn.quantized.dynamic.modules.rnn.RNNCell",
        "torch.ao.nn.quantized.dynamic.modules.rnn.RNNCellBase",
        "torch.ao.nn.quantized.modules.conv.Conv1d",
        "torch.ao.nn.quantized.modules.conv.Conv2d",
        "torch.ao.nn.quantized.modules.conv.Conv3d",
        "torch.ao.nn.quantized.modules.conv.ConvTranspose1d",
        "torch.ao.nn.quantized.modules.conv.ConvTranspose2d",
        "torch.ao.nn.quantized.modules.conv.ConvTranspose3d",
        "torch.ao.nn.quantized.modules.conv._ConvNd",
        "torch.ao.nn.quantized.modules.conv._ConvTransposeNd",
        "torch.ao.nn.quantized.modules.embedding_ops.EmbeddingPackedParams",
        "torch.ao.nn.quantized.modules.functional_modules.QFunctional",
        "torch.ao.nn.quantized.modules.linear.Linear",
        "torch.ao.nn.quantized.modules.linear.LinearPackedParams",
        "torch.ao.nn.quantized.reference.modules.conv.Conv1d",
        "torch.ao.nn.quantized.reference.modules.conv.Conv2d",
        "torch.ao.nn.quantized.reference.modules.conv.Conv3d",
        "torch.ao.nn.quantized.reference.modules.conv.ConvTranspose1d",
        "torch.ao.nn.quantized.reference.modules.conv.ConvTranspose2d",
        "torch.ao.nn.quantized.reference.modules.conv.ConvTranspose3d",
        "torch.ao.nn.quantized.reference.modules.conv._ConvNd",
        "torch.ao.nn.quantized.reference.modules.conv._ConvTransposeNd",
        "torch.ao.nn.quantized.reference.modules.linear.Linear",
        "torch.ao.nn.quantized.reference.modules.sparse.Embedding",
        "torch.ao.nn.quantized.reference.modules.sparse.EmbeddingBag",
        "torch.ao.nn.quantized.reference.modules.utils.ReferenceQuantizedModule",
        "torch.ao.nn.sparse.quantized.dynamic.linear.Linear",
        "torch.ao.nn.sparse.quantized.linear.Linear",
        "torch.ao.nn.sparse.quantized.linear.LinearPackedParams",
        "torch.ao.pruning._experimental.pruner.parametrization.FakeStructuredSparsity",
        "torch.ao.pruning.sparsifier.utils.FakeSparsity",
        "torch.ao.quantization.fake_quantize.FakeQuantize",
        "torch.ao.quantization.fake_quantize.FixedQParamsFakeQuantize",
        "torch.ao.quantization.fake_quantize.FusedMovingAvgObsFakeQuantize",
        "torch.ao.quantization.observer.HistogramObserver",
        "torch.distributed.nn.api.remote_module.RemoteModule",
        "torch.distributed.nn.api.remote_module._RemoteModule",
    }
)
