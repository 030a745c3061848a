"""Settings of the optimizer and its learning rates over a run: a frozen dataclass, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, get_args

from yolact.errors import ConfigError
from yolact.setting import setting

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["steps", "cosine"]

_HINT = "the published values are --lr 0.001 --momentum 0.9 --decay 0.0005 --gamma 0.1"


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its learning-rate schedule, counted in iterations at batch size 8.

    The defaults are the published SGD, with steps, for all parameters alike, without an average.
    """

    lr: float = setting("--lr", "--learning_rate", default=1e-3, help="Learning rate.")
    backbone_lr: float = setting(
        default=1.0, help="Factor of the learning rate for the backbone's parameters."
    )
    """Whatever sets the rate, the schedule or a recipe. Below 1, the backbone keeps more of what
    it has learned from ImageNet."""
    schedule: ScheduleName = setting(
        default="steps", help="After the warm-up: steps of --gamma, or a cosine down to zero."
    )
    optimizer: OptimizerName = setting(
        default="sgd", help="SGD with --momentum, or AdamW, which needs a lower --lr."
    )
    """``sgd`` decays all parameters, as published. ``adamw`` (betas 0.9 and 0.999) decays weights
    only: no biases, and nothing of batch norms."""
    momentum: float = setting(default=0.9, help="Momentum of SGD.")
    weight_decay: float = setting("--decay", "--weight_decay", default=5e-4, help="Weight decay.")
    gamma: float = setting(default=0.1, help="Factor at each lr step.")
    max_iter: int = 800_000
    lr_steps: tuple[int, ...] = (280_000, 600_000, 700_000, 750_000)
    warmup_init: float = 1e-4
    warmup_until: int = 500
    max_grad_norm: float | None = setting(
        "--clip_grad", default=None, help="Largest gradient norm."
    )
    """Longer gradients are scaled down to this L2 norm; None, as published, leaves them."""
    ema_decay: float | None = setting(
        default=None,
        help="Validate and save a moving average of the weights; this much of it, such as 0.999, "
        "stays in every step. 0 for none.",
    )
    """None, which 0 becomes, for none. See :mod:`yolact.training.average`."""

    def __post_init__(self) -> None:
        """Refuse what no optimizer can use with a ConfigError."""
        for what, wanted, known in (
            ("optimizer", self.optimizer, get_args(OptimizerName)),
            ("schedule", self.schedule, get_args(ScheduleName)),
        ):
            if wanted not in known:
                raise ConfigError(
                    f"no {what} is called {wanted!r}", hint=f"try: {', '.join(known)}"
                )
        positive = {
            "learning rate": self.lr,
            "factor of the backbone's learning rate": self.backbone_lr,
            "gamma": self.gamma,
            "number of steps": self.max_iter,
        }
        if self.max_grad_norm is not None:
            positive["largest gradient norm"] = self.max_grad_norm
        for name, value in positive.items():
            if not 0 < value < math.inf:  # NaN is neither
                raise ConfigError(f"the {name} must be above 0, got {value}", hint=_HINT)
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"the weight decay must be at least 0, got {self.weight_decay}", hint=_HINT
            )
        if not 0 <= self.momentum < 1:
            raise ConfigError(
                f"the momentum must be at least 0 and below 1, got {self.momentum}", hint=_HINT
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(
                "what stays of the average of weights must be at least 0 and below 1, "
                f"got {self.ema_decay}",
                hint="for instance --ema_decay 0.999; 0 for no average",
            )
        object.__setattr__(self, "ema_decay", self.ema_decay or None)

    def lr_at(self, iteration: int) -> float:
        """Learning rate of step ``iteration`` (from 0): linear warm-up, then the schedule.

        The warm-up ends at ``warmup_until`` inclusive, and lasts through a step that falls into it.
        A cosine falls from there to zero, which it would reach in the step after the last.
        """
        if self.warmup_until > 0 and iteration <= self.warmup_until:
            done = iteration / self.warmup_until
            return (self.lr - self.warmup_init) * done + self.warmup_init
        if self.schedule == "cosine":
            begin = max(self.warmup_until, 0)
            passed = (iteration - begin) / max(self.max_iter - begin, 1)
            return self.lr * (1 + math.cos(math.pi * min(passed, 1.0))) / 2
        steps = sum(iteration >= step for step in self.lr_steps)
        return self.lr * self.gamma**steps

    def fitted(self, max_iter: int) -> OptimConfig:
        """The same schedule for a run of ``max_iter`` steps.

        The learning-rate steps stay at the same fractions of the run, and the warm-up takes at most
        a tenth of it. (Upstream leaves both alone, so that a short run is all warm-up.)
        """
        return replace(
            self,
            max_iter=max_iter,
            # Rounded up: no step of the schedule comes before the first step of the run.
            lr_steps=tuple(
                math.ceil(Fraction(step * max_iter, self.max_iter)) for step in self.lr_steps
            ),
            warmup_until=min(self.warmup_until, max_iter // 10),
        )

    def autoscaled(self, batch_size: int) -> OptimConfig:
        """The same schedule for another batch size: lr times, iterations divided by, size / 8.

        Warm-up is left alone, as upstream leaves it.
        """
        factor = batch_size / 8
        return replace(
            self,
            lr=self.lr * factor,
            max_iter=max(1, int(self.max_iter // factor)),
            lr_steps=tuple(int(step // factor) for step in self.lr_steps),
        )
