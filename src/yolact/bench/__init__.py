"""Benchmarks: how fast a model file runs on this machine, and how large it is.

This file is how to measure, as a frozen record; the command reads it without loading an engine.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Literal

from yolact.config import YolactConfig
from yolact.errors import ConfigError
from yolact.host import numa_cpus, physical_cores
from yolact.presets import named_config
from yolact.setting import setting

Scenario = Literal["async", "sync", "elastic"]
Pinning = Literal["none", "core", "numa"]

MOST_STREAMS = 256
"""Each is a thread; more are taken for a mistake."""


def parse_input_shapes(text: str) -> tuple[int, ...] | None:
    """Read ``[1,3,550,550]``, the notation of ``deepsparse.benchmark``; nothing is any shape.

    Raises:
        ConfigError: It is not one shape of four positive numbers.
    """
    if not text:
        return None
    try:
        value = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"cannot read input shapes {text!r}", hint="write them as [1,3,550,550]"
        ) from error
    if isinstance(value, (tuple, list)) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    fits = isinstance(value, list) and len(value) == 4
    if not fits or not all(isinstance(n, int) and n > 0 for n in value):
        raise ConfigError(
            f"input shapes {text!r} do not fit: YOLACT has one input",
            hint="write its shape as [batch,3,height,width], such as [1,3,550,550]",
        )
    return tuple(value)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """How to measure; the defaults are those of ``deepsparse.benchmark``."""

    batch_size: int | None = setting(
        "-b", "--batch_size", default=None, help="Images per batch.  [default: 1]"
    )
    """None for what the file is fixed to, else 1."""
    input_shape: tuple[int, ...] | None = setting(
        "-i",
        "-shapes",
        "--input_shapes",
        default=None,
        words=str,
        read=parse_input_shapes,
        help="Shape of the input: [1,3,550,550]. A .pth checkpoint runs at any size.",
    )
    """[batch, 3, height, width] that an ONNX file must take; None for the file's."""
    num_cores: int | None = setting(
        "-ncores",
        "--num_cores",
        default=None,
        help="Threads to use.  [default: all physical cores]",
    )
    """Those that this process may use."""
    scenario: Scenario = setting(
        "-s",
        "--scenario",
        default="sync",
        help="One batch at a time (sync), or several streams at once.",
    )
    """async: several streams share the engine. elastic: the same as async, as ONNX Runtime has one
    scheduler for both."""
    seconds: float = setting("-t", "--time", default=10, help="Seconds to measure.")
    warmup: float = setting("-w", "--warmup_time", default=2, help="Seconds before that.")
    num_streams: int | None = setting(
        "-nstreams",
        "--num_streams",
        default=None,
        help="Streams of async and elastic.  [default: half the cores]",
    )
    pinning: Pinning = setting(
        "-pin",
        "--thread_pinning",
        default="core",
        help="Stay on one thread per core, on one memory node, or anywhere.",
    )
    engine: str | None = setting(
        "-e",
        "--engine",
        default=None,
        help="onnxruntime, openvino or torch.  [default: by the file's ending]",
    )
    config: YolactConfig | None = setting(
        default=None,
        words=str,
        read=named_config,
        help="Configuration of a .pth file that carries none.",
    )

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name, value in vars(self).items():
            if name in ("batch_size", "num_cores", "num_streams") and value is not None:
                if value < 1:
                    raise ConfigError(f"{name} is {value}", hint="use 1 or more")
                if name == "num_streams" and value > MOST_STREAMS:
                    raise ConfigError(f"{name} is {value}", hint=f"use 1 to {MOST_STREAMS}")
        if self.seconds <= 0 or self.warmup < 0:
            raise ConfigError(
                "time must be above 0 and warm-up time not below 0", hint="they are in seconds"
            )
        if self.input_shape and self.batch_size not in (None, self.input_shape[0]):
            raise ConfigError(
                f"batch size {self.batch_size} contradicts input shape {list(self.input_shape)}",
                hint="give one of them",
            )

    @property
    def cores(self) -> int:
        """Threads of the engine."""
        return self.num_cores or len(physical_cores())

    @property
    def streams(self) -> int:
        """Streams that send batches at the same time."""
        return 1 if self.scenario == "sync" else self.num_streams or max(1, self.cores // 2)

    @property
    def cpus(self) -> list[int] | None:
        """CPUs to stay on: the first of each core, those of one memory node, or any (None)."""
        if self.pinning == "core":
            return [core[0] for core in physical_cores()[: self.cores]]
        return numa_cpus() if self.pinning == "numa" else None
