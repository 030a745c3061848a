"""Memory while training: what a step needs at most, and how running out of it looks.

Quantization-aware training keeps several copies of every activation for the backward pass, so a
batch that fitted for days may not fit when it begins. What it takes is measured and told.
"""

from __future__ import annotations

import resource
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

STEPS = 3
"""Steps looked at before quantization begins, and after."""

_MESSAGES = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)
"""How libraries below torch say it, which has an exception of its own for CUDA's allocator only."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that a tensor did not fit into memory.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"))
    True
    >>> is_out_of_memory(RuntimeError("shapes differ"))
    False
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


class PeakMemory:
    """The most memory that was in use since the last :meth:`reset`.

    On CUDA, what torch has allocated on the device. On the CPU, the resident memory of this
    process, without those of loader workers; where Linux does not let its high-water mark be
    reset, the mark of the whole process so far.
    """

    def __init__(self, device: torch.device) -> None:
        """Nothing is measured before the first :meth:`reset`."""
        self._device = device

    def reset(self) -> None:
        """Begin a new measurement."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # see proc_pid_clear_refs(5)
        except OSError:  # not Linux, or not allowed in this container
            return

    def bytes(self) -> int:
        """The peak since then, in bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        try:
            lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
            mark = next(line for line in lines if line.startswith("VmHWM:"))
            return int(mark.split()[1]) * 1024
        except (OSError, StopIteration, ValueError):
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True, kw_only=True)
class MemoryRecord:
    """Peak memory of a step before and with quantization-aware training, in bytes."""

    iteration: int
    """Steps done when it was measured."""
    device: str
    before: int | None
    """None when the run began with quantization."""
    quantized: int

    def line(self) -> str:
        """In words.

        >>> MemoryRecord(iteration=9, device="cpu", before=10**9, quantized=25 * 10**8).line()
        'peak memory of a step on cpu: 2.50 GB with quantization-aware training, 1.00 GB before'
        """
        before = "" if self.before is None else f", {self.before / 1e9:.2f} GB before"
        return (
            f"peak memory of a step on {self.device}: {self.quantized / 1e9:.2f} GB "
            f"with quantization-aware training{before}"
        )


class QuantizationMemory:
    """Compares the steps right before quantization begins with those right after.

    Call :meth:`begin` and :meth:`end` around every step.

    Args:
        device: Where the steps are taken.
        expected: Whether quantization will begin at all; nothing is measured otherwise.
    """

    def __init__(self, device: torch.device, *, expected: bool = True) -> None:
        """No step seen yet."""
        self._device = device
        self._expected = expected
        self._peak = PeakMemory(device)
        self._before: deque[int] = deque(maxlen=STEPS)
        self._quantized: list[int] = []

    @property
    def done(self) -> bool:
        """Whether everything has been seen: further steps need not be measured."""
        return not self._expected or len(self._quantized) >= STEPS

    def begin(self) -> None:
        """A step begins."""
        if not self.done:
            self._peak.reset()

    def end(self, *, quantized: bool) -> bool:
        """It has ended; say whether the comparison is now complete."""
        if self.done:
            return False
        if not quantized:
            self._before.append(self._peak.bytes())
            return False
        self._quantized.append(self._peak.bytes())
        return self.done

    def record(self, iteration: int) -> MemoryRecord | None:
        """The comparison so far; None before the first quantized step."""
        if not self._quantized:
            return None
        return MemoryRecord(
            iteration=iteration,
            device=str(self._device),
            before=max(self._before, default=None),
            quantized=max(self._quantized),
        )
