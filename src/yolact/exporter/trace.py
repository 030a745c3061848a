"""Fold batch normalization into the convolutions of a model copy, before it is traced.

In evaluation mode BN(conv(x)) = (gamma / std) * conv(x) + (beta - mean * gamma / std), which is a
convolution again. A weight that is zero stays exactly zero.

Fewer than 8 bits, said in 8: ONNX quantizes to int8 and uint8 only.

Rounding a value to one of 16 levels is the same as first limiting it to the range of those levels
and then rounding it to one of 256 with the same step. Weights are limited in the copy that is
traced, activations by a Clip in the graph.

Other ranges for weights than they were trained with: one per channel, or of seven bits.

From a prepared PyTorch model to a bare ONNX graph with the right names and shapes.

The images that a graph is checked on.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.ao.nn import qat
from torch.ao.nn.intrinsic import qat as intrinsic_qat
from torch.ao.nn.intrinsic.qat import ConvBn2d
from torch.ao.quantization import FakeQuantize, MinMaxObserver, PerChannelMinMaxObserver
from torch.nn.utils.fusion import fuse_conv_bn_eval

from yolact.types import RawOutputs


def fold_batch_norms(model: nn.Module) -> None:
    """Fold every Conv2d followed by a BatchNorm2d inside one Sequential, in place."""
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            conv, norm = module[index], module[index + 1]
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                module[index] = _positive_zeros(fuse_conv_bn_eval(conv, norm))
                module[index + 1] = nn.Identity()


@torch.no_grad()
def _positive_zeros(conv: nn.Conv2d) -> nn.Conv2d:
    """Zeros times a negative scale are -0.0: as good to compute with, but not to compress."""
    conv.weight.add_(0.0)
    return conv


def fold_quantized_batch_norms(model: nn.Module) -> None:
    """Turn quantization-aware Conv+BN modules into quantization-aware convolutions, in place.

    During training torch computes BN(conv(x, fake_quant(w * gamma / std)) / (gamma / std)), so
    that the batch statistics stay those of the unscaled convolution. With frozen statistics the
    division and the BN cancel: a convolution with the same fake-quantized weight and one bias
    gives the same result, and is what runtimes have integer kernels for.
    """
    for name, child in model.named_children():
        if isinstance(child, intrinsic_qat.ConvBn2d):
            setattr(model, name, _folded(child))
        else:
            fold_quantized_batch_norms(child)


def freeze_observers(model: nn.Module) -> None:
    """Stop fake-quantization modules from adapting their ranges to what they are fed."""
    model.apply(torch.ao.quantization.disable_observer)


def _folded(fused: intrinsic_qat.ConvBn2d) -> nn.Module:
    relu = isinstance(fused, intrinsic_qat.ConvBnReLU2d)
    plain = fused.to_float()  # type: ignore[no-untyped-call]
    plain.qconfig = fused.qconfig
    kind: Any = intrinsic_qat.ConvReLU2d if relu else qat.Conv2d
    conv = kind.from_float(plain)
    scale, shift = _scale_and_shift(fused)
    with torch.no_grad():
        # In the order of operations of the training graph: the last bit decides roundings.
        conv.weight.copy_(fused.weight * scale.reshape(-1, 1, 1, 1))
        conv.bias.copy_(shift)
    conv.weight_fake_quant = fused.weight_fake_quant
    if hasattr(fused, "activation_post_process"):  # an output observer is attached as a hook
        conv.activation_post_process = fused.activation_post_process
        conv._forward_hooks = fused._forward_hooks
    folded: nn.Module = conv.train(fused.training)
    return folded


def _scale_and_shift(fused: intrinsic_qat.ConvBn2d) -> tuple[Tensor, Tensor]:
    """Per output channel: BN(y + conv bias) = y * scale + shift."""
    norm = fused.bn
    assert norm.running_mean is not None and norm.running_var is not None
    scale: Tensor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if fused.bias is None else norm.running_mean - fused.bias
    return scale, norm.bias - mean * scale


_WIDE = ((-128, 127), (0, 255), (0, 127))
"""Ranges of integers that ONNX knows."""


def widen_quantizers(model: nn.Module) -> None:
    """Give every fake quantizer of fewer bits a range of 8, in place; outputs stay the same.

    Args:
        model: In evaluation mode, with its observers off. Fold what is to be folded before.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, FakeQuantize) or _range(child) in _WIDE:
                continue
            low, high = _limits(child)
            _set_range(child)
            weight = parent.weight if name == "weight_fake_quant" else None
            if isinstance(weight, Tensor) and not isinstance(parent, ConvBn2d):
                with torch.no_grad():
                    weight.copy_(weight.clamp(low, high))
            else:
                setattr(parent, name, _Limited(child, low, high))


class _Limited(nn.Module):
    """A quantizer behind a limit."""

    def __init__(self, quantizer: nn.Module, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.limits = low, high
        self.single = (float(low), float(high)) if low.numel() == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        limited = x.clamp(*self.limits) if self.single is None else x.clamp(*self.single)
        quantized: Tensor = self.quantizer(limited)
        return quantized


def _range(quantizer: FakeQuantize) -> tuple[int, int]:
    return int(quantizer.quant_min), int(quantizer.quant_max)


def _limits(quantizer: FakeQuantize) -> tuple[Tensor, Tensor]:
    """Smallest and largest value it can represent, shaped like what it broadcasts with."""
    first, last = _range(quantizer)
    scale, zero = quantizer.scale, quantizer.zero_point
    low, high = scale * (first - zero), scale * (last - zero)
    shape = (-1, 1, 1, 1) if scale.numel() > 1 else ()  # several are one per output channel
    return low.reshape(shape), high.reshape(shape)


def _set_range(quantizer: FakeQuantize) -> None:
    wide = (-128, 127) if _range(quantizer)[0] < 0 else (0, 255)
    for holder in (quantizer, quantizer.activation_post_process):
        holder.quant_min, holder.quant_max = wide


SEVEN_BITS = (-64, 63)
"""Two products of such a weight with a uint8 fit into 16 bits: 2 * 255 * 64 < 2**15."""


@torch.no_grad()
def requantize_weights(
    model: nn.Module, *, per_channel: bool = False, reduce_range: bool = False
) -> None:
    """Round weights anew, in place; zeros stay zero.

    Args:
        model: In evaluation mode, its observers off, its batch norms folded.
        per_channel: Give each output channel the finest range that holds its weights. The largest
            weight of all limits how finely a tensor with one range is rounded; most channels have
            none as large.
        reduce_range: Use 7 of the 8 bits. CPUs with AVX2 or AVX-512 but without VNNI add pairs of
            products in 16 bits, where those of full 8 bits may overflow.
    """
    for module in model.modules():
        quantizer = getattr(module, "weight_fake_quant", None)
        if not isinstance(quantizer, FakeQuantize):
            continue
        before = (quantizer.scale.numel() > 1, int(quantizer.quant_min), int(quantizer.quant_max))
        channels, low, high = before
        if reduce_range:
            low, high = max(low, SEVEN_BITS[0]), min(high, SEVEN_BITS[1])
        wanted = (channels or per_channel, low, high)
        if wanted != before:
            weight: Any = module.weight
            module.weight_fake_quant = _quantizer(weight, quantizer.dtype, *wanted)


def _quantizer(
    weight: Tensor, dtype: torch.dtype, channels: bool, low: int, high: int
) -> FakeQuantize:
    kind: Any = FakeQuantize  # torch leaves it untyped
    own: dict[str, Any] = {
        "observer": MinMaxObserver,
        "qscheme": torch.per_tensor_symmetric,
    }
    if channels:
        own = {
            "observer": PerChannelMinMaxObserver,
            "qscheme": torch.per_channel_symmetric,
            "ch_axis": 0,
        }
    made: FakeQuantize = kind(quant_min=low, quant_max=high, dtype=dtype, **own)
    made(weight)
    made.disable_observer()
    return made.to(weight.device).eval()


INPUT = "input"
OUTPUTS = RawOutputs._fields
BATCH = "batch"
"""Label of the dynamic axis. The priors do not have it: they are the same for every image."""

MODEL_PREFIX = "model."
"""Of the network's modules inside the wrapper that is traced; weights in the graph lack it."""


class _Traced(nn.Module):
    """Names what is traced, so that weights can be given their state-dict names afterwards."""

    PREFIX = f"network.{MODEL_PREFIX}"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> RawOutputs:
        outputs: RawOutputs = self.network(images)
        # The priors may come out of a cache that was filled before the trace began; the tracer
        # accepts only outputs that were computed inside it.
        return outputs._replace(priors=outputs.priors.clone())


def trace(network: nn.Module, images: Tensor, *, opset: int, static: bool) -> onnx.ModelProto:
    """Trace an :class:`~yolact.model.yolact.InferenceModel`.

    Args:
        network: In evaluation mode; not changed.
        images: [B, 3, S, S] sample input.
        opset: One of :data:`yolact.exporter.options.OPSETS`.
        static: Fix the batch size to B; otherwise the graph takes any.

    Returns:
        A graph with input :data:`INPUT`, outputs :data:`OUTPUTS` in that order, and weights named
        as in the model's state dict.
    """
    batched = [INPUT, *(name for name in OUTPUTS if name != "priors")]
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # The TorchScript exporter: the newer one rewrites the Q/DQ pairs that INT8 rests on, and
        # wants an onnx release that sparseml cannot live with.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # Whether a quantizer is on is meant to be a constant.
        warnings.filterwarnings(
            "ignore",
            category=torch.jit.TracerWarning,  # type: ignore[attr-defined]
            module=r"torch\.ao\.quantization",
        )
        torch.onnx.export(
            _Traced(network).eval(),
            (images,),
            buffer,  # type: ignore[arg-type]  # declared for paths; buffers work as well
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes=None if static else {name: {0: BATCH} for name in batched},
        )
    model = onnx.load_model_from_string(buffer.getvalue())
    _strip_prefix(model)
    return model


def label_outputs(model: onnx.ModelProto, shapes: Sequence[Sequence[int]], *, static: bool) -> None:
    """Write the true output shapes into the graph; the tracer leaves unknown or wrong ones.

    Args:
        model: Edited in place.
        shapes: One per output of :data:`OUTPUTS`, first axis the sample's batch size.
        static: Whether that batch size is fixed.
    """
    for output, shape in zip(model.graph.output, shapes, strict=True):
        dims = output.type.tensor_type.shape.dim
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            dim.Clear()
            if axis == 0 and output.name != "priors" and not static:
                dim.dim_param = BATCH
            else:
                dim.dim_value = size


def _strip_prefix(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.removeprefix(_Traced.PREFIX)
    for node in model.graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = name.removeprefix(_Traced.PREFIX)


def sample_images(path: Path | None, size: int, batch_size: int) -> Tensor:
    """The network input made from one picture.

    Args:
        path: An image file; None for :func:`test_card`.
        size: Side of the network input, in pixels.
        batch_size: How often the picture is repeated.

    Returns:
        [batch_size, 3, size, size] float32 RGB, 0..1.

    Raises:
        DataError: The file cannot be read as an image.
    """
    from yolact.data.images import read_rgb
    from yolact.data.transforms import preprocess

    picture = test_card() if path is None else read_rgb(path)
    return torch.stack([preprocess(picture, size)] * batch_size)


def test_card(height: int = 480, width: int = 640) -> npt.NDArray[np.uint8]:
    """A picture that needs no file: gradients, edges, discs and fine texture, always the same.

    Returns:
        [height, width, 3] uint8 RGB.
    """
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack(
        [255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)]
    )
    for index, colour in enumerate([(230, 40, 40), (40, 200, 60), (50, 60, 220), (240, 220, 60)]):
        centre_y, centre_x = height * (0.3 + 0.4 * (index // 2)), width * (0.3 + 0.4 * (index % 2))
        inside = np.hypot(y - centre_y, x - centre_x) < height * (0.1 + 0.03 * index)
        picture[:, inside] = np.array(colour)[:, None]
    noise = np.random.PCG64(0).random_raw(height * width).reshape(height, width) >> np.uint64(59)
    rows: npt.NDArray[np.uint8] = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return rows.transpose(1, 2, 0)
