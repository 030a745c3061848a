"""A moving average of the weights of a network that trains, which is what its run saves.

After every step the average of each parameter moves towards its value: ``average = d * average +
(1 - d) * value``. In the first steps d is small, (1 + t) / (10 + t) after t steps, so that the
weights a run begins with are soon forgotten; then it is what the settings say (as in TensorFlow's
``ExponentialMovingAverage`` with ``num_updates``).

The statistics of batch norms are averaged too, since those of the training network are of its own
weights. Ranges of quantizers and counters are the training network's: they follow weights slowly by
themselves, and a zero point between two integers means nothing.

The average has the structure of the network. Parameters keep their places when layers are fused or
wrapped; what is new begins with its value. Weights that are zero in the network, pruned ones above
all, are zero in the average. When channels are removed, all of it begins again: an average over
networks of different widths there is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")


class WeightAverage:
    """The average of the weights of one network; without a decay, the weights themselves.

    Args:
        model: The network, whose weights it begins with.
        decay: What stays of the average in a step, above 0 and below 1; None for no average.

    Attributes:
        updates: Steps that it has been averaged over.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        """Begin with the weights as they are."""
        self.decay = decay
        self.updates = 0
        self._model = model
        self._values: dict[Tensor, Tensor] = {}
        self._begin()

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        if self.decay is None:
            return
        self.follow()
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for tensor, value in self._values.items():
            value.lerp_(tensor, 1 - decay)

    @torch.no_grad()
    def follow(self) -> None:
        """Take over the structure of the network, and its zeros, without averaging."""
        if self.decay is None:
            return
        before, self._values = self._values, {}
        for tensor in _averaged(self._model):
            value = before.get(tensor)
            if value is not None and value.shape != tensor.shape:
                self._begin()
                return
            self._values[tensor] = tensor.detach().clone() if value is None else value
            if isinstance(tensor, nn.Parameter):
                self._values[tensor].mul_(tensor != 0)

    def weights(self) -> dict[str, Tensor]:
        """The state dict of the network with the average in it, which is what is saved."""
        state = self._model.state_dict(keep_vars=True)
        return {name: self._values.get(tensor, tensor).detach() for name, tensor in state.items()}

    def state(self) -> tuple[int, dict[str, Tensor]] | None:
        """What :meth:`load_state` needs besides :meth:`weights`; None without an average."""
        if self.decay is None:
            return None
        state = self._model.state_dict(keep_vars=True)
        return self.updates, {n: t.detach() for n, t in state.items() if t in self._values}

    @torch.no_grad()
    def load_state(self, state: tuple[int, Mapping[str, Tensor]]) -> None:
        """Give the network, whose weights are an average's, those that it trained.

        Args:
            state: What :meth:`state` returned.

        Raises:
            KeyError: It has weights that the network has not.
            RuntimeError: They have other shapes.
        """
        self.updates, weights = state
        known = self._model.state_dict(keep_vars=True)
        for name, value in weights.items():
            known[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the average's weights inside, to be validated and reported on."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for tensor, value in self._values.items():
            live = tensor.detach().clone()
            tensor.copy_(value)
            value.copy_(live)

    @torch.no_grad()
    def _begin(self) -> None:
        self.updates = 0
        if self.decay is not None:
            self._values = {t: t.detach().clone() for t in _averaged(self._model)}


def _averaged(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, and the statistics of batch norms."""
    yield from model.parameters()
    for name, buffer in model.named_buffers():
        if name.endswith(_STATISTICS):
            yield buffer
