"""Attention of output tokens to what is read, and the explanations made of it alone."""

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import UnsupportedModelError
from interp.forward import evaluating
from interp.kernels.definitions import Pattern
from interp.probes.crossattn.forced import Forced
from interp.tap import Visit, tap

LONGEST = 2048
"""Positions up to which the encoder's own maps are made, for the rollout."""


class Maps:
    """What the heads of the decoder do at the rows that predict the output tokens.

    Attributes:
        weights: `[layer, head, token, position]`, without padding.
        value_norms: `[layer, head, position]`, L2 norm of what a position gives to a
            head.
        values: Of each layer `[kv_head, position, d]`.
    """

    def __init__(self, forced: Forced) -> None:
        self.forced = forced
        self.site = "self" if forced.is_decoder else "cross"
        self.values: list[Tensor] = []
        found: list[tuple[np.ndarray, np.ndarray]] = []
        n, rows = forced.n_positions, forced.rows

        def visit(visit: Visit) -> None:
            if visit.site.name == self.site:
                pattern = visit.arrays["pattern"][0][:, rows, :n].float()
                values = visit.call.value[0, :, :n]
                repeat = pattern.shape[0] // values.shape[0]
                norms = values.float().norm(dim=-1).repeat_interleave(repeat, 0)
                found.append((pattern.cpu().numpy(), norms.cpu().numpy()))
                self.values.append(values.detach())

        _run(forced, visit, self.site)
        heads = max(len(pattern) for pattern, _ in found)
        shape = len(found), heads, len(rows), n
        self.weights = np.zeros(shape, np.float32)
        self.value_norms = np.zeros((len(found), heads, n), np.float32)
        for layer, (pattern, norms) in enumerate(found):
            self.weights[layer, : len(pattern)] = pattern
            self.value_norms[layer, : len(norms)] = norms

    def mean(self) -> np.ndarray:
        """`[token, position]`, the plain mean over all heads of all layers."""
        return self.weights.mean((0, 1))

    def times_value_norm(self) -> np.ndarray:
        """`[token, position]`, weights times the norm of the value, mean over heads.

        Source:
            Kobayashi et al. 2020, without the output projection.
        """
        return (self.weights * self.value_norms[:, :, None]).mean((0, 1))

    def times_gradient(self) -> np.ndarray:
        """`[token, position]`, positive part of weight x gradient, mean over heads.

        The gradient of the log-probability by a weight is the product of the gradient
        by the head's output and the value.

        Source:
            Chefer et al. 2021, eq. 5, of every layer, with equal shares.
        """
        forced = self.forced
        outputs: list[Tensor] = []

        def see(visit: Visit) -> None:
            if visit.site.name == self.site:
                outputs.append(visit.output)

        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(evaluating(forced.module))
            anatomy = forced.model.anatomy
            stack.enter_context(tap(forced.module, see, anatomy=anatomy))
            states = forced.states.detach().clone().requires_grad_()
            scores = forced.scores(states)[0]
            n_heads = int(np.prod(self.weights.shape[:2]))
            found = []
            for token, score in enumerate(scores):
                slopes = torch.autograd.grad(score, outputs, retain_graph=True)
                total = np.zeros(forced.n_positions)
                for layer, slope in enumerate(slopes):
                    own = self.weights[layer, :, token]
                    total += self._by_weight(layer, slope, token, own)
                found.append(total / n_heads)
        return np.stack(found)

    def _by_weight(
        self, layer: int, slope: Tensor, token: int, own: np.ndarray
    ) -> np.ndarray:
        """Sum over a layer's heads of max(0, weight x gradient) `[position]`."""
        values = self.values[layer].float()
        at = slope[0, :, self.forced.rows[token]].float()
        values = values.repeat_interleave(at.shape[0] // values.shape[0], 0)
        by_weight = torch.einsum("hd,hpd->hp", at, values).cpu().numpy()
        return np.maximum(own[: len(by_weight)] * by_weight, 0).sum(0)

    def rollout(self) -> np.ndarray:
        """`[token, position]`, weights multiplied through all layers of both stacks.

        In each layer a token keeps half of what it is, and takes half from where it
        looks, all heads alike; self- and cross-attention are two such steps.

        Source:
            Abnar and Zuidema 2020, carried over to an encoder and a decoder.

        Raises:
            UnsupportedModelError: Too many positions.
        """
        forced = self.forced
        n = forced.states.shape[1]
        if n > LONGEST:
            raise UnsupportedModelError(
                f"Rollout multiplies the encoder's whole maps; {n:,} positions are "
                f"more than {LONGEST:,}. Give shorter pieces."
            )
        n_rows = int(forced.rows.max()) + 1
        reached: dict[str, Tensor] = {"encoder": torch.eye(n)}
        own, other = torch.eye(n_rows), torch.zeros(n_rows, n)

        def visit(visit: Visit) -> None:
            nonlocal own, other
            weights = visit.arrays["pattern"][0].float().mean(0).cpu()
            if visit.site.name == "encoder":
                before = reached["encoder"]
                reached["encoder"] = (before + weights @ before) / 2
            elif visit.site.name == "cross":
                other = (other + weights[:n_rows] @ reached["encoder"]) / 2
                own = own / 2
            else:
                weights = weights[:n_rows, :n_rows]
                own = (own + weights @ own) / 2
                other = (other + weights @ other) / 2

        _run(forced, visit, "encoder", "self", "cross")
        rows = forced.rows.cpu()
        if forced.is_decoder:
            full = torch.zeros(len(rows), forced.n_positions)
            full[:, :n_rows] = own[rows]
            return full.numpy()
        return other[rows, : forced.n_positions].numpy()


def _run(forced: Forced, visit: Any, *sites: str) -> None:
    """One forward with the patterns of some sites seen."""
    module = forced.module

    def wanted(site: Any) -> tuple[Pattern, ...]:
        return (Pattern(),) if site.name in sites else ()

    def watch(seen: Visit) -> None:
        if seen.site.name in sites:
            visit(seen)

    with torch.no_grad(), evaluating(module):
        tapped = tap(module, watch, anatomy=forced.model.anatomy, wanted=wanted)
        with tapped:
            forced.logits(forced.encode(forced.input))
