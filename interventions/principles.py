"""Small interventions, each of which takes one design principle out of attention.

What they are for is told by `interp.interventions.deconstruction`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
import xarray as xr
from torch import Tensor, nn

from interp.anatomy import Anatomy, Site
from interp.errors import InputError
from interp.heads import HeadSet
from interp.interventions.activations import check_layer, stream_hooks
from interp.interventions.edges import own_heads
from interp.interventions.intervention import Intervention, heads_at
from interp.interventions.patching import OtherScores, PatchHeads
from interp.kernels.edits import Block, Edit
from interp.kernels.reweight import Reweight
from interp.kernels.rules import AttentionCall


@dataclass(frozen=True)
class MixerOff(Intervention):
    """Attention that adds nothing to the residual stream: no bias either.

    Attributes:
        layers: Which, of the stack that writes the output.
    """

    layers: tuple[int, ...]

    def check(self, anatomy: Anatomy) -> None:
        """Refuses layers that the model has not."""
        for layer in self.layers:
            check_layer(layer, anatomy, "attention")

    def hooks(
        self, module: nn.Module, anatomy: Anatomy
    ) -> Sequence[AbstractContextManager[None]]:
        """Hooks on what attention writes."""

        def change(written: Tensor, place: Tensor) -> None:
            written.zero_()

        changes = dict.fromkeys(self.layers, change)
        return stream_hooks(module, anatomy, changes, "attention")


@dataclass(frozen=True, eq=False)
class TaylorExp(Intervention):
    """Weights in proportion to 1 + s + s^2/2, which is above 0, instead of exp(s).

    That is logits of log(1 + s + s^2/2); a learned sink's is changed likewise.

    Attributes:
        heads: Which heads.
    """

    heads: HeadSet

    def inputs(self, site: Site, call: AttentionCall) -> AttentionCall:
        """The learned sinks."""
        heads, sinks = heads_at(self.heads, site), call.score.sink_logits
        if not heads or sinks is None:
            return call
        sinks = sinks.to(call.dtype, copy=True)
        sinks[heads] = _log_taylor(sinks[heads])
        return replace(call, score=replace(call.score, sink_logits=sinks))

    def weights(self, site: Site, call: AttentionCall) -> Sequence[Edit]:
        """The other logits."""
        heads = heads_at(self.heads, site)
        return (_Taylor(tuple(heads)),) if heads else ()


@dataclass(frozen=True)
class _Taylor(Edit):
    heads: tuple[int, ...]

    hides = False
    keeps_softmax = True

    def change_logits(self, logits: Tensor, block: Block) -> None:
        for head in own_heads(self.heads, block):
            logits[head] = _log_taylor(logits[head])


def _log_taylor(score: Tensor) -> Tensor:
    """log(1 + s + s^2/2); a pair that was taken away (-inf) stays away."""
    score = score.clone()  # the way back of a gradient needs it when it is overwritten
    changed = torch.log1p(score * (1 + score / 2))
    return changed.masked_fill(score == -torch.inf, -torch.inf)


@dataclass(frozen=True, eq=False)
class KeyScores(Intervention):
    """Every query sees a key with the score that the key's own query gives it.

    Only where queries and keys are the same tokens: with a cache the earlier queries
    are gone, and a decoding step is refused. Generate with use_cache=False. A bias
    that the model puts on pairs is dropped, as it depends on the query.

    Attributes:
        heads: Which heads.
    """

    heads: HeadSet

    @property
    def uses_keys(self) -> bool:
        """Always: the scores are made of them."""
        return True

    def weights(self, site: Site, call: AttentionCall) -> Sequence[Edit]:
        """All logits zero, and a bias on each key."""
        heads, mask, score = heads_at(self.heads, site), call.mask, call.score
        if not heads:
            return ()
        queries, keys = mask.query_offset, mask.key_offset
        queries = range(queries, queries + mask.query_length)
        keys = range(keys, keys + mask.key_length)
        if queries != keys or not call.comparable:
            raise InputError(
                f"Scores of keys alone need the query of every key; got queries "
                f"{queries.start} to {queries.stop - 1} for keys {keys.start} to "
                f"{keys.stop - 1}. Run without a cache: use_cache=False."
            )
        key = call.key.to(call.dtype).repeat_interleave(call.group_size, 1)
        own = (call.query.to(call.dtype) * key).sum(-1) * score.scale
        if score.softcap is not None:
            own = score.softcap * torch.tanh(own / score.softcap)
        scale = torch.ones(call.n_heads, device=own.device, dtype=call.dtype)
        bias = torch.zeros_like(own)
        scale[heads], bias[:, heads] = 0.0, own[:, heads]
        return (Reweight(scale=scale, key_bias=bias),)


@dataclass(frozen=True, eq=False)
class MeanPattern(Intervention):
    """The mean of the patterns that heads had in several other runs.

    In linear memory: the patterns are remade block by block, in as many products of
    queries and keys as there are runs.

    Attributes:
        sources: What `interp.activations.record` gave, with `q` and `k`.
        heads: Which heads.
    """

    sources: tuple[xr.DataTree, ...]
    heads: HeadSet

    def __post_init__(self) -> None:
        """Refuse a mean of nothing, and runs without queries or keys."""
        if not self.sources:
            raise InputError(
                "A mean pattern was asked for of no run. Record at least one."
            )
        self._patches()

    def __str__(self) -> str:
        """Name and knobs, each source as `PatchHeads` tells it."""
        return f"MeanPattern({', '.join(map(str, self._patches()))})"

    def weights(self, site: Site, call: AttentionCall) -> Sequence[Edit]:
        """The mean pattern."""
        heads = heads_at(self.heads, site)
        edits = [e for patch in self._patches() for e in patch.weights(site, call)]
        return (_Mean(tuple(heads), tuple(edits), call),) if heads else ()

    def _patches(self) -> list[PatchHeads]:
        return [PatchHeads(each, self.heads, "pattern") for each in self.sources]


@dataclass(frozen=True, eq=False)
class _Mean(Edit):
    heads: tuple[int, ...]
    scores: tuple[OtherScores, ...]
    call: AttentionCall

    hides = False

    def narrow(self, sample: int, queries: slice, keys: slice) -> "_Mean":
        scores = (each.narrow(sample, queries, keys) for each in self.scores)
        return replace(self, scores=tuple(scores))

    def change_weights(self, weights: Tensor, block: Block) -> None:
        """The mean of softmaxes, each with the model's learned sink."""
        rows = torch.ones_like(block.query, dtype=torch.bool)
        sinks = self.call.score.sink_logits
        for head in own_heads(self.heads, block):
            visible = block.visible[head % len(block.visible)]
            total = torch.zeros_like(weights[head])
            for each in self.scores:
                logits = each.logits(block, head, rows)
                n_keys = logits.shape[1]
                logits = logits.masked_fill(~visible[:, :n_keys], -torch.inf)
                norm = logits.logsumexp(-1, keepdim=True)
                if sinks is not None:
                    sink = sinks[block.heads.start + head].to(norm)
                    norm = torch.logaddexp(norm, sink)
                total[:, :n_keys] += (logits - norm).exp().nan_to_num(0.0).to(total)
            weights[head] = total / len(self.scores)


@dataclass(frozen=True)
class RandomEmbedding(Intervention):
    """Gaussian noise in the place of the embedding, as large as it is.

    Attributes:
        seed: Of the noise, which depends on the place in the text alone.
    """

    seed: int = 0

    def hooks(
        self, module: nn.Module, anatomy: Anatomy
    ) -> Sequence[AbstractContextManager[None]]:
        """A hook on the first block's input."""

        def change(stream: Tensor, place: Tensor) -> None:
            draw = torch.Generator().manual_seed(self.seed)
            n_tokens = int(place.max()) + 1
            noise = torch.randn(n_tokens, stream.shape[-1], generator=draw)
            noise = noise.to(stream) * stream.std()
            stream.copy_(noise[place.clamp(min=0)])

        return stream_hooks(module, anatomy, {0: change})


@dataclass(frozen=True)
class EmbeddingAlways(Intervention):
    """Every block is given the embedding, whatever the block before it made."""

    def hooks(
        self, module: nn.Module, anatomy: Anatomy
    ) -> Sequence[AbstractContextManager[None]]:
        """Hooks between the blocks."""
        held: list[Tensor] = []

        def keep(stream: Tensor, place: Tensor) -> None:
            held[:] = [stream.clone()]

        def put(stream: Tensor, place: Tensor) -> None:
            stream.copy_(held[0])

        later = dict.fromkeys(range(1, anatomy.n_layers), put)
        return stream_hooks(module, anatomy, {0: keep, **later})
