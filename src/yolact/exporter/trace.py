"""From a prepared network to a bare ONNX graph with the right names and shapes.

Also what tracing needs besides: the picture that the sample is made of, and a way to look at the
convolutions of the network by the names that their weights have in the graph.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from yolact.data.images import RgbImage, read_rgb
from yolact.data.transforms import preprocess
from yolact.sizes import ImageSize
from yolact.types import RawOutputs

_INPUT = "input"
OUTPUTS = RawOutputs._fields
_BATCH = "batch"
"""Label of the dynamic axis. The priors do not have it: they are the same for every image."""
MODEL_PREFIX = "model."
"""Of the network's modules inside the wrapper that is traced; weights in the graph lack it."""


def trace(network: nn.Module, images: Tensor, *, opset: int, static: bool) -> onnx.ModelProto:
    """Trace an :class:`~yolact.model.yolact.InferenceModel`.

    Args:
        network: In evaluation mode; not changed.
        images: [B, 3, H, W] sample input.
        opset: One of :data:`yolact.exporter.options.OPSETS`.
        static: Fix the batch size to B; otherwise the graph takes any.

    Returns:
        A graph with the input ``input``, outputs :data:`OUTPUTS` in that order, and weights named
        as in the model's state dict.
    """
    batched = [_INPUT, *(name for name in OUTPUTS if name != "priors")]
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # The TorchScript exporter: the newer one refuses quantizers and opsets before 18. Only this
        # call knows which of the two there is; DECISIONS.md says what changing it takes.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", "Constant folding")  # passes do what it leaves undone
        torch.onnx.export(
            _Traced(network).eval(),
            (images,),
            buffer,  # type: ignore[arg-type]  # declared for paths; buffers work as well
            dynamo=False,
            opset_version=opset,
            input_names=[_INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes=None if static else {name: {0: _BATCH} for name in batched},
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
                dim.dim_param = _BATCH
            else:
                dim.dim_value = size


def compute_priors(model: onnx.ModelProto) -> None:
    """Let the output ``priors``, a constant, be the result of a computation; in place.

    OpenCV keeps constants to itself: a network there has an output for each node that nobody
    uses. So the priors are added to zero times the boxes of the first image. They stay the same
    to the last bit, but for those of boxes that are infinite, which nobody can use.

    Args:
        model: With its outputs labelled; ``priors`` is an initializer.
    """
    graph = model.graph
    (priors,) = (tensor for tensor in graph.initializer if tensor.name == "priors")
    priors.name = "priors/values"
    count, numbers = priors.dims
    constants = {
        "zero": np.zeros((), np.float32),
        "first": np.zeros(1, np.int64),
        "second": np.ones(1, np.int64),
        "shape": np.array([count, numbers], np.int64),
    }
    graph.initializer.extend(
        onnx.numpy_helper.from_array(value, f"priors/{name}") for name, value in constants.items()
    )
    steps = [
        ("Slice", ["loc", "priors/first", "priors/second", "priors/first"], "priors/boxes"),
        ("Mul", ["priors/boxes", "priors/zero"], "priors/zeros"),
        ("Reshape", ["priors/zeros", "priors/shape"], "priors/flat"),
        ("Add", ["priors/flat", "priors/values"], "priors"),
    ]
    graph.node.extend(
        onnx.helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in steps
    )


def sample_images(path: Path | None, size: ImageSize, batch_size: int) -> Tensor:
    """The network input made from one picture.

    Args:
        path: An image file; None for a generated picture.
        size: Of the network input.
        batch_size: How often the picture is repeated.

    Returns:
        [batch_size, 3, H, W] float32 RGB, 0..1.

    Raises:
        DataError: The file cannot be read as an image.
    """
    picture = generated_picture() if path is None else read_rgb(path)
    return torch.stack([preprocess(picture, size)] * batch_size)


def generated_picture(height: int = 480, width: int = 640) -> RgbImage:
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
    rows: RgbImage = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return rows.transpose(1, 2, 0)


@contextmanager
def watched(network: nn.Module, note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``note`` with the name and the output of each convolution that runs inside the block.

    Args:
        network: What is traced; the names are those of its modules in the model's state dict.
        note: Must not keep the output, which activations may overwrite.
    """

    def hook_of(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: note(name, output)

    hooks = [
        module.register_forward_hook(hook_of(name.removeprefix(MODEL_PREFIX)))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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


def _strip_prefix(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.removeprefix(_Traced.PREFIX)
    for node in model.graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = name.removeprefix(_Traced.PREFIX)
