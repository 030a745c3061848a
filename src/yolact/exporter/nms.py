"""Detection inside the graph: boxes, classes and masks instead of raw outputs.

Standard ONNX operators only, and any batch size. The suppression is the classic greedy kind, so
results are those of :func:`yolact.predict.detect.detect` with ``fast_nms=False``.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from yolact.config import DetectConfig
from yolact.engines.onnx_file import DETECTED
from yolact.exporter.graph import Array, Graph
from yolact.ops.boxes import CENTER_VARIANCE, INCLUSIVE_SIDE, SIZE_VARIANCE

_DECODE = """
    prior_center, prior_size = Split <axis = 1> (priors, {two_twos})
    offset, growth = Split <axis = 2> (loc, {two_twos})
    shift = Mul (offset, {center_variance})
    shift_by_size = Mul (shift, prior_size)
    box_center = Add (prior_center, shift_by_size)
    exponent = Mul (growth, {size_variance})
    factor = Exp (exponent)
    box_size = Mul (prior_size, factor)
    half_size = Mul (box_size, {half})
    low = Sub (box_center, half_size)
    high = Add (low, box_size)
    all_boxes = Concat <axis = 2> (low, high)
"""
"""[batch, N, 4] relative xyxy, as :func:`yolact.ops.boxes.decode`."""

_SCORES = """
    foreground = Slice (conf, {one}, {end}, {two})
    nothing = Mul (all_boxes, {zero})
    broken = ReduceSum <keepdims = 1> (nothing, {two})
    whole = Equal (broken, {zero})
    usable = Where (whole, foreground, {zero})
    class_scores = Transpose <perm = [0, 2, 1]> (usable)
"""
"""[batch, classes, N]; 0 where a box overflowed: infinity or NaN times 0 is NaN, not 0."""

_SUPPRESS = """
    pixels = Mul (all_boxes, {pixels})
    inclusive = Add (pixels, {far_side})
    kept = NonMaxSuppression (inclusive, class_scores, {most}, {iou}, {threshold})
    kept_scores = GatherND (class_scores, kept)
    scores_shape = Shape (class_scores)
    no_scores = ConstantOfShape (scores_shape)
    left = ScatterND (no_scores, kept, kept_scores)
    flat = Reshape (left, {flat_shape})
    scores, place = TopK <axis = 1> (flat, {most})
    number = Slice (scores_shape, {two}, {three})
    classes = Div (place, number)
    before = Mul (classes, number)
    row = Sub (place, before)
    rows = Unsqueeze (row, {two})
"""
"""The best of all classes: scores, classes [batch, K] and where their boxes are, [batch, K, 1]."""

_MASKS = """
    boxes = GatherND <batch_dims = 1> (all_boxes, rows)
    coefficients = GatherND <batch_dims = 1> (mask, rows)
    prototypes = Transpose <perm = [0, 3, 1, 2]> (proto)
    columns = Reshape (prototypes, {prototype_rows})
    logits = MatMul (coefficients, columns)
    logit_planes = Reshape (logits, {planes})
    soft = Sigmoid (logit_planes)
    corners = Mul (boxes, {grid})
    grown = Add (corners, {padding})
    edges = Unsqueeze (grown, {three})
    x1, y1, x2, y2 = Split <axis = 2> (edges, {four_ones})
    from_left = GreaterOrEqual ({column}, x1)
    to_right = Less ({column}, x2)
    across = And (from_left, to_right)
    from_top = GreaterOrEqual ({row}, y1)
    to_bottom = Less ({row}, y2)
    down = And (from_top, to_bottom)
    inside = And (down, across)
    real = Greater (scores, {zero})
    real_planes = Unsqueeze (real, {last_two})
    shown = And (inside, real_planes)
    masks = Where (shown, soft, {zero})
"""
"""[batch, K, h, w] probabilities, as :func:`yolact.predict.detect.low_masks` cuts them."""


def detect_inside(model: onnx.ModelProto, config: DetectConfig) -> None:
    """Append decoding, suppression and mask assembly to a graph of raw outputs, in place.

    The outputs become, with K = ``config.max_detections``:

    - ``boxes`` [batch, K, 4] float32, xyxy relative to the image, not clipped;
    - ``scores`` [batch, K] float32 in descending order, 0 behind the last detection;
    - ``classes`` [batch, K] int64, from 0, without a background;
    - ``masks`` [batch, K, h, w] float32 probabilities at prototype resolution, 0 outside the box.
      Enlarged to the image, bilinearly and with pixel centres aligned, more than 0.5 is inside.

    Rows behind the last detection have score 0, an empty mask, and boxes and classes that mean
    nothing. Shapes are fixed so that every engine takes the file, and batches of images too.

    Args:
        model: With the outputs loc, conf, mask, priors and proto.
        config: ``score_threshold``, ``nms_iou`` and ``max_detections`` become constants.
    """
    graph = Graph(model)
    dims = {output.name: output.type.tensor_type.shape.dim for output in model.graph.output}
    sizes = {name: [dim.dim_value for dim in shape] for name, shape in dims.items()}
    first = dims["loc"][0]
    batch: int | str = first.dim_param or first.dim_value
    height, width = sizes["proto"][1:3]
    count = min(config.max_detections, sizes["priors"][0] * (sizes["conf"][2] - 1))
    for name, value in _constants(config, count, height, width, sizes["mask"][2]).items():
        graph.add_constant(f"detect/constant_{name}", value)
    graph.replace_nodes([*graph.nodes(), *_nodes(model)])
    shapes: dict[str, list[int | str]] = {
        "boxes": [batch, count, 4],
        "scores": [batch, count],
        "classes": [batch, count],
        "masks": [batch, count, height, width],
    }
    del model.graph.output[:]
    for name in DETECTED:
        kind = TensorProto.INT64 if name == "classes" else TensorProto.FLOAT
        model.graph.output.append(helper.make_tensor_value_info(name, kind, shapes[name]))
    graph.commit()


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The text above as nodes; names of values inside get a prefix that no module has."""
    text = (_DECODE + _SCORES + _SUPPRESS + _MASKS).format_map(_Named())
    nodes = list(onnx.parser.parse_graph(f"detect () => () {{{text}}}").node)
    outside = {*DETECTED, *(output.name for output in model.graph.output)}
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name not in outside:
                    names[index] = f"detect/{name}"
        node.name = f"detect/{node.op_type}/{node.output[0].removeprefix('detect/')}"
    return nodes


class _Named(dict[str, str]):
    """Marks constants in the text, so that none is mistaken for a value."""

    def __missing__(self, key: str) -> str:
        return f"constant_{key}"


def _constants(
    config: DetectConfig, count: int, height: int, width: int, prototypes: int
) -> dict[str, Array]:
    # The next smaller number: an equal overlap suppresses here, and only a larger one in ONNX.
    iou = np.nextafter(np.float32(config.nms_iou), np.float32(0))
    whole = {
        "one": [1],
        "two": [2],
        "three": [3],
        "last_two": [2, 3],
        "end": [np.iinfo(np.int64).max],
        "two_twos": [2, 2],
        "four_ones": [1, 1, 1, 1],
        "most": [count],
        "flat_shape": [0, -1],
        "prototype_rows": [0, prototypes, height * width],
        "planes": [0, 0, height, width],
    }
    real = {
        "zero": 0,
        "half": 0.5,
        "center_variance": CENTER_VARIANCE,
        "size_variance": SIZE_VARIANCE,
        "pixels": INCLUSIVE_SIDE,
        "far_side": [0, 0, 1, 1],
        "iou": [iou],
        "threshold": [config.score_threshold],
        "grid": [width, height, width, height],
        "padding": [-1, -1, 1, 1],
        "column": np.arange(width),
        "row": np.arange(height)[:, None],
    }
    return {
        **{name: np.array(value, np.int64) for name, value in whole.items()},
        **{name: np.array(value, np.float32) for name, value in real.items()},
    }
