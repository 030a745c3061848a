"""The schedule of a recipe as a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact.files import atomic_path

if TYPE_CHECKING:
    from yolact.sparsify.check.curves import Curves

_COLORS = ("#1b6ca8", "#d1495b", "#2a9d8f", "#e09f3e", "#6a4c93", "#577590", "#8c564b", "#4d908e")
_INK = "#333333"
_PHASE_COLORS = {
    "ranges learned": "#9ecae1",
    "ranges fixed": "#3182bd",
    "batch norms frozen": "#756bb1",
}
_WIDTH = 9.0
"""Inches, as all sizes here."""
_HEIGHTS = {"zeros": 2.9, "lr": 1.7, "decay": 1.1}
_LANE = 0.34
"""Inches of one phase's bar."""
_DPI = 150


def plot_schedule(curves: Curves, title: str, path: Path) -> None:
    """Draw what a recipe does over the epochs, as a PNG that is written in one step.

    From top to bottom: what each group of layers loses (if any does), learning rate, weight decay,
    and the phases of quantization (if there are any).

    Raises:
        StorageError: It cannot be written.
    """
    # Not pyplot, which would choose a window system and remember every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lanes = list(dict.fromkeys(phase.name for phase in curves.phases))
    panels = [*(["zeros"] if curves.groups else []), "lr", "decay"]
    heights = [_HEIGHTS[panel] for panel in panels]
    if lanes:
        panels.append("phases")
        heights.append(_LANE * len(lanes) + 0.2)
    layout = ConstrainedLayoutEngine(hspace=0.06, h_pad=0.06, w_pad=0.08)
    figure = Figure(figsize=(_WIDTH, sum(heights) + 1.3), dpi=_DPI, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    draw = {"zeros": _draw_groups, "lr": _draw_lr, "decay": _draw_decay, "phases": _draw_phases}
    for axis, panel in zip(axes, panels, strict=True):
        _prepare(axis)
        draw[panel](axis, curves)
        if curves.phases:
            begin, end = min(p.begin for p in curves.phases), max(p.end for p in curves.phases)
            axis.axvspan(begin, end, color="#3182bd", alpha=0.06, linewidth=0)
    axes[-1].set_xlabel("epoch", color=_INK)
    axes[-1].set_xlim(0, curves.epochs[-1])
    figure.align_ylabels(
        [axis for axis, panel in zip(axes, panels, strict=True) if panel in _HEIGHTS]
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def group_label(names: Sequence[str]) -> str:
    """What a group of parameters is called: stages or blocks of the backbone, or their parts.

    >>> group_label(["backbone.layers.3.0.0.weight", "backbone.layers.4.0.0.weight"])
    'backbone 3-4'
    >>> group_label(["fpn.lat_layers.0.weight", "proto_net.0.weight"])
    'fpn, proto_net'
    """
    stages, parts = set(), []
    for name in names:
        stage = re.match(r"backbone\.(?:layers|blocks)\.(\d+)\.", name)
        if stage:
            stages.add(int(stage[1]))
        parts.append("backbone" if stage else name.split(".")[0])
    labels = dict.fromkeys(parts)
    if stages:
        first, last = min(stages), max(stages)
        whole = len(stages) == last - first + 1
        shown = (
            f"{first}-{last}"
            if whole and first < last
            else ", ".join(str(stage) for stage in sorted(stages))
        )
        labels = dict.fromkeys(f"backbone {shown}" if x == "backbone" else x for x in labels)
    return ", ".join(labels)


def _prepare(axis: Any) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#999999")
    axis.tick_params(colors=_INK, labelsize=9)
    axis.grid(True, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)


def _draw_groups(axis: Any, curves: Curves) -> None:
    alike: dict[tuple[str, tuple[float, ...]], list[str]] = {}
    for group in curves.groups:  # one line for those that would hide each other
        alike.setdefault((group.what, group.levels), []).extend(group.names)
    for index, ((what, levels), names) in enumerate(alike.items()):
        layers = f"{len(names)} layer" + "s" * (len(names) != 1)
        label = f"{group_label(names)} ({layers}): {levels[-1] * 100:.4g} %"
        axis.plot(
            curves.epochs,
            [level * 100 for level in levels],
            color=_COLORS[index % len(_COLORS)],
            linewidth=1.8,
            linestyle="-" if what == "zeros" else "--",
            drawstyle="steps-post",
            label=label,
        )
    kinds = sorted({group.what for group in curves.groups})
    axis.set_ylabel({"zeros": "zeros (%)", "channels": "channels gone (%)"}[kinds[-1]], color=_INK)
    if len(kinds) > 1:
        _note(axis, "dashed: channels gone")
    axis.set_ylim(0, 100)
    axis.legend(
        loc="lower right",
        fontsize=8.5,
        frameon=True,
        framealpha=0.9,
        edgecolor="none",
        labelcolor=_INK,
    )


def _note(axis: Any, text: str) -> None:
    axis.set_title(text, loc="right", fontsize=8.5, color="#777777", pad=4)


def _draw_lr(axis: Any, curves: Curves) -> None:
    axis.plot(curves.epochs, curves.lr, color=_INK, linewidth=1.6, drawstyle="steps-post")
    positive = [value for value in curves.lr if value > 0]
    if positive and max(positive) > 30 * min(positive):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("learning rate", color=_INK)
    if not curves.lr_by_recipe:
        _note(axis, "the configuration's own schedule")


def _draw_decay(axis: Any, curves: Curves) -> None:
    axis.plot(
        curves.epochs, curves.weight_decay, color="#7f7f7f", linewidth=1.6, drawstyle="steps-post"
    )
    top = max(curves.weight_decay) or 1e-4
    axis.set_ylim(-0.06 * top, 1.25 * top)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.locator_params(axis="y", nbins=3)
    axis.set_ylabel("weight\ndecay", color=_INK)


def _draw_phases(axis: Any, curves: Curves) -> None:
    lanes = list(dict.fromkeys(phase.name for phase in curves.phases))
    for phase in curves.phases:
        axis.barh(
            lanes.index(phase.name),
            phase.end - phase.begin,
            left=phase.begin,
            height=0.72,
            color=_PHASE_COLORS[phase.name],
            zorder=2,
        )
    axis.set_yticks(range(len(lanes)), lanes)
    axis.set_ylim(len(lanes) - 0.4, -0.6)
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", length=0)
    _note(axis, "quantization-aware training")
