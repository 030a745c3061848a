"""Which weights become zero: masks from scores, as tensors of ones and zeros.

The weights with the smallest scores go. Which of several equal ones go is arbitrary, and the same
as in sparseml 1.8 as corrected, so that a run may change engines: of those that share the largest
score to go, the last ones; of those that are all of the smallest score, some that a fixed seed
draws.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolact.sparsify.document import NM_TOLERANCE, nm_of

_SEED = 42
"""Of the drawing, as sparseml has it."""


class Pattern:
    """Unstructured masks: every weight by itself. Subclasses treat groups of weights as one."""

    def grouped(self, weight: Tensor) -> Tensor:
        """The mean of each group, in any shape.

        Raises:
            ValueError: Groups do not divide a weight of this shape.
        """
        return weight

    def spread(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """A value for each group, as :meth:`grouped` shapes them, to a tensor of ``shape``."""
        return groups

    def masks(
        self, scores: Sequence[Tensor], sparsities: Sequence[float], *, together: bool = False
    ) -> list[Tensor]:
        """A mask for each tensor, of its shape and type: 0 for weights that go, 1 for the others.

        Args:
            scores: At least 0, not NaN; the smallest go.
            sparsities: What fraction goes of each, 0..1.
            together: The smallest of all tensors go; then all sparsities are one.

        Raises:
            ValueError: Groups do not divide a tensor, or ``sparsities`` are none that can be.
        """
        groups = [self.grouped(score) for score in scores]
        if not together:
            found = [_without_smallest(*pair) for pair in zip(groups, sparsities, strict=True)]
        elif len(set(sparsities)) > 1:
            raise ValueError(f"one global sparsity cannot be several: {sorted(set(sparsities))}")
        else:
            first = groups[0]
            joined = torch.cat([group.reshape(-1).to(first) for group in groups])
            mask = _without_smallest(joined, sparsities[0])
            parts = torch.split(mask, [group.numel() for group in groups])
            found = [p.reshape(g.shape).to(g) for p, g in zip(parts, groups, strict=True)]
        return [self.spread(m, score.shape) for m, score in zip(found, scores, strict=True)]

    def mask_of(self, weight: Tensor) -> Tensor:
        """The mask that a weight has been multiplied by: 0 where its whole group is zero."""
        groups = self.grouped(weight.ne(0).to(weight.dtype))
        return self.spread(groups.ne(0).to(weight.dtype), weight.shape)


@dataclass(frozen=True)
class Blocks(Pattern):
    """Rectangles of output and input channels, at one place of the kernel."""

    rows: int
    """Output channels; -1 for all."""
    columns: int
    """Input channels; -1 for all."""

    def grouped(self, weight: Tensor) -> Tensor:
        """[O / rows, I / columns, h, w] of a weight [O, I, h, w]."""
        rows, columns = self._sides(weight.shape)
        out, into, *kernel = weight.shape
        return weight.reshape(out // rows, rows, into // columns, columns, *kernel).mean((1, 3))

    def spread(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """See :meth:`Pattern.spread`."""
        rows, columns = self._sides(shape)
        return groups.repeat_interleave(rows, 0).repeat_interleave(columns, 1)

    def _sides(self, shape: torch.Size) -> tuple[int, int]:
        if len(shape) > 1:
            rows = shape[0] if self.rows == -1 else self.rows
            columns = shape[1] if self.columns == -1 else self.columns
            if shape[0] % rows == 0 and shape[1] % columns == 0:
                return rows, columns
        raise ValueError(f"blocks of {[self.rows, self.columns]} do not divide {list(shape)}")


class FourBlocks(Pattern):
    """Four neighbouring input channels, at one place of the kernel; the last block may have fewer.

    Of a vector, four neighbours.
    """

    def grouped(self, weight: Tensor) -> Tensor:
        """[number of blocks, 1]."""
        inputs_last = weight.movedim(1, -1) if weight.dim() > 2 else weight
        rest = inputs_last.shape[-1] % 4
        if rest:
            mean = inputs_last[..., -rest:].mean(-1, keepdim=True)
            fill = mean.expand(*mean.shape[:-1], 4 - rest)
            inputs_last = torch.cat([inputs_last, fill], -1)
        return inputs_last.contiguous().view(-1, 4).mean(1, keepdim=True)

    def spread(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """See :meth:`Pattern.spread`."""
        inputs = shape[1] if len(shape) > 2 else shape[-1]
        others = [*shape[:1], *shape[2:]] if len(shape) > 2 else shape[:-1]
        blocks = groups.reshape(*others, -1).repeat_interleave(4, -1)[..., :inputs]
        return blocks.movedim(-1, 1) if len(shape) > 2 else blocks


@dataclass(frozen=True)
class NMPattern(Pattern):
    """Of each M neighbouring input channels, at one place of the kernel, N stay."""

    kept: int
    """N."""
    size: int
    """M."""

    def masks(
        self, scores: Sequence[Tensor], sparsities: Sequence[float], *, together: bool = False
    ) -> list[Tensor]:
        """See :meth:`Pattern.masks`; sparsities are all 0, or all that of the ratio."""
        if not any(sparsities):
            return [torch.ones_like(score) for score in scores]
        own = 1 - self.kept / self.size
        others = [sparsity for sparsity in sparsities if abs(sparsity - own) > NM_TOLERANCE]
        if others:
            raise ValueError(f"{self.kept}:{self.size} masks are {own:g} sparse, not {others[0]:g}")
        return [self._mask(score) for score in scores]

    def _mask(self, score: Tensor) -> Tensor:
        if score.dim() not in (2, 4) or score.numel() % self.size:
            ratio = f"{self.kept}:{self.size}"
            raise ValueError(f"{ratio} masks do not divide a weight of {list(score.shape)}")
        inputs_last = score.permute(0, 2, 3, 1) if score.dim() == 4 else score
        rows = inputs_last.reshape(-1, self.size)
        smallest = rows.argsort(dim=1)[:, : self.size - self.kept]
        mask = torch.ones_like(rows).scatter_(1, smallest, 0).reshape(inputs_last.shape)
        return mask.permute(0, 3, 1, 2) if score.dim() == 4 else mask


def pattern_of(mask_type: str | Sequence[int]) -> Pattern:
    """The pattern of a recipe's ``mask_type``.

    Raises:
        ValueError: It is none of ``unstructured``, ``block4``, ``N:M``, ``tensorrt`` or a block
            such as [1, 4], in which -1 stands for all channels.
    """
    if ratio := nm_of(mask_type):
        return NMPattern(*ratio)
    match mask_type:
        case "unstructured":
            return Pattern()
        case "block4":
            return FourBlocks()
        case [int(rows), int(columns)] if all(n == -1 or n > 0 for n in (rows, columns)):
            return Blocks(rows, columns)
    raise ValueError(f"mask_type is {mask_type!r}")


def _without_smallest(scores: Tensor, sparsity: float) -> Tensor:
    """A mask that is 0 for a fraction of the scores, the smallest ones."""
    count = round(scores.numel() * sparsity)
    if not 0 < sparsity <= 1 or count == 0:
        return torch.ones_like(scores)
    threshold = _smallest(scores.reshape(-1), count)
    mask = scores > threshold
    surplus = scores.numel() - int(mask.count_nonzero()) - count
    if surplus:
        equal = (scores == threshold).nonzero()
        if len(equal) < surplus + count:  # others are smaller
            back = equal[:surplus]
        else:
            order = list(range(len(equal)))
            random.Random(_SEED).shuffle(order)
            back = equal[torch.tensor(order[count:], device=equal.device)]
        mask[back.unbind(1)] = True
    return mask.to(scores.dtype)


def _smallest(values: Tensor, number: int) -> Tensor:
    """The value at place ``number``, from 1, of the sorted ``values`` [n]."""
    if values.is_cuda:  # where sorting is faster
        return values.sort().values[number - 1]
    return values.kthvalue(number).values
