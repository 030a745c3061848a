"""From a prepared PyTorch model to a bare ONNX graph with the right names and shapes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import onnx
import torch
from torch import Tensor, nn

from yolact.types import RawOutputs

INPUT = "input"
OUTPUTS = RawOutputs._fields
BATCH = "batch"
"""Label of the dynamic axis. The priors do not have it: they are the same for every image."""

MODEL_PREFIX = "model."
"""Of the network's modules inside the wrapper that is traced; weights in the graph lack it."""

OPSETS = range(14, 20)
"""Opsets that can be asked for: 14 is SparseML's, 19 the newest that onnx 1.14 checks."""


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
        opset: One of :data:`OPSETS`.
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
