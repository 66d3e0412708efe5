"""Trains the gates of two streams, step by step; an interruption costs little."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError, UnsupportedModelError
from interp.heads import HeadGrid
from interp.probes.memo import remembered
from interp.probes.two_streams import TwoStreams
from interp.probes.vault import Vault

FILES = 100
"""Files that a training leaves at most, each with the state after some steps."""

Entry = dict[str, Any]
"""What a step gave: `loss`, `penalty`, `tokens`, and the gates after it, `path`."""


@dataclass(frozen=True)
class GateTraining:
    """How gates are trained: AdamW on the distance of the streams plus a penalty."""

    streams: TwoStreams
    vault: Vault
    lengths: tuple[int, ...]
    """Tokens of the haystacks; in each round all of them, in an order drawn anew."""
    steps: int
    """One text each."""
    rate: float
    """Learning rate at its highest."""
    penalty: float
    """Weight of the mean gate."""

    def log(
        self, seed: int, folder: Path | None, tell: Callable[[int], None]
    ) -> list[Entry]:
        """Trains from gates of 1, or from where an earlier run was interrupted.

        Each stretch of steps begins from what is kept of the one before: it makes no
        difference who made that.

        Args:
            seed: Of the texts.
            folder: Where states are kept; None keeps none.
            tell: Told how many steps are done.

        Returns:
            An entry for each step.
        """
        streams = self.streams
        decides = {
            "gates": [seed, self.lengths, self.steps, self.rate, self.penalty],
            "streams": [streams.first, streams.recent],
            "vault": asdict(self.vault)
            | {"haystack": sha256(self.vault.haystack.encode()).hexdigest()},
        }
        state = {"gates": self._gated().float().tolist()}
        log: list[Entry] = []
        size = -(-self.steps // FILES)
        for begin in range(0, self.steps, size):
            tell(begin)
            end = min(begin + size, self.steps)
            run = partial(self._stretch, seed, state, range(begin, end), tell)
            state = remembered(folder, streams.model, {**decides, "end": end}, run)
            log += state["log"]
        tell(self.steps)
        return log

    def _gated(self) -> Tensor:
        """Which gates there are, `[layer, kv_head]`."""
        anatomy = self.streams.model.anatomy
        gated = torch.tensor([self.streams.is_gated(s) for s in anatomy.at("self")])
        return gated[:, None].expand(-1, HeadGrid.of(anatomy).n_kv_heads)

    def _stretch(
        self, seed: int, state: Entry, steps: range, tell: Callable[[int], None]
    ) -> Entry:
        """The state after some steps, from the one before."""
        device = self.streams.model.device
        floats = partial(torch.tensor, dtype=torch.float32, device=device)
        gates, gated = floats(state["gates"]).requires_grad_(), self._gated().to(device)
        optimizer = torch.optim.AdamW([gates], lr=self.rate, weight_decay=0.0)
        if steps.start:
            moments = {name: floats(state[name]) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[gates] = {
                "step": torch.tensor(float(steps.start)),
                **moments,
            }
        log = []
        for step in steps:
            if step > steps.start:
                tell(step)
            optimizer.param_groups[0]["lr"] = self.rate * rate_factor(step, self.steps)
            log.append(self._step(seed, step, gates, gated, optimizer))
        moments = optimizer.state[gates]
        return {
            "gates": gates.tolist(),
            "exp_avg": moments["exp_avg"].tolist(),
            "exp_avg_sq": moments["exp_avg_sq"].tolist(),
            "log": log,
        }

    def _step(
        self,
        seed: int,
        step: int,
        gates: Tensor,
        gated: Tensor,
        optimizer: torch.optim.Optimizer,
    ) -> Entry:
        """One step on one text."""
        ids, labelled = self.text(seed, step)
        with torch.no_grad():
            gates.clamp_(0, 1)
        distance, slope = self.streams.slope(gates, ids, torch.from_numpy(labelled))
        if not distance.isfinite():
            model = self.streams.model
            raise UnsupportedModelError(
                f"Gates are trained on the distance of two streams; of {model.name} in "
                f"{model.dtype} it is {float(distance)} at step {step + 1}. Load it in "
                "float32."
            )
        with torch.enable_grad():
            penalty = self.penalty * gates[gated].abs().mean()
            (own,) = torch.autograd.grad(penalty, gates)
        gates.grad = own + slope
        optimizer.step()
        return {
            "loss": float(distance),
            "penalty": float(penalty.detach()),
            "tokens": len(ids),
            "path": gates.detach().clamp(0, 1).tolist(),
        }

    def text(self, seed: int, step: int) -> tuple[tuple[int, ...], np.ndarray]:
        """The text of a step, whatever the steps before."""
        turn, place = divmod(step, len(self.lengths))
        order = np.random.default_rng([seed, turn]).permutation(self.lengths)
        rng = np.random.default_rng([seed, turn, place])
        ids, labelled = self.vault.text(self.streams.model, int(order[place]), rng)
        shown = self.streams.first + self.streams.recent
        if len(ids) <= shown:
            raise InputError(
                f"Gates tell what is missed of a long text; one of {len(ids)} tokens "
                f"has nothing that the first {self.streams.first} and the recent "
                f"{self.streams.recent} leave out. Take longer texts, or less recent."
            )
        return ids, labelled


def rate_factor(step: int, steps: int) -> float:
    """What a step's learning rate is multiplied with.

    It rises over the first fifth of the steps and falls over the last, never below a
    tenth.
    """
    up, down = (step + 1) / (steps / 5), (steps - step) / (steps / 5)
    return min(1.0, max(up, 0.1), max(down, 0.1))
