"""Activations of one run put into another: whole streams, heads, patterns, paths."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal, get_args

import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.activations import record
from interp.anatomy import Anatomy, Site
from interp.errors import InputError, NotCapturedError
from interp.heads import HeadSet
from interp.interventions.activations import Change, check_layer, stream_hooks
from interp.interventions.edges import Tokens, is_of, own_heads
from interp.interventions.intervention import (
    Composed,
    Intervention,
    check_heads,
    heads_at,
)
from interp.interventions.positions import keys_of, queries_of, tokens_of
from interp.kernels.edits import Block, Edit
from interp.kernels.rules import AttentionCall
from interp.models import Model

HeadPart = Literal["head_output", "q", "k", "v", "pattern"]
StreamPart = Literal["stream", "attention", "mlp"]


@dataclass(frozen=True, eq=False)
class PatchHeads(Intervention):
    """Heads get what they had in another run, token by token.

    Tokens are matched by their place in their text. `pattern` is remade from the other
    run's queries and keys, and weighs this run's values.

    Source: activation patching (Meng et al. 2022, arXiv:2202.05262; Zhang and Nanda
    2023, arXiv:2309.16042).

    Attributes:
        source: What `interp.activations.record` gave for the other run.
        heads: Which; whole KV groups for `k` and `v`.
        part: `head_output` (before the output projection), `q`, `k`, `v`, `pattern`.
        tokens: Places of the tokens to patch (queries, for a pattern); None for all.
    """

    source: xr.DataTree
    heads: HeadSet
    part: HeadPart = "head_output"
    tokens: Tokens = None

    def __post_init__(self) -> None:
        """Refuse parts that there are not, or that were not recorded."""
        if self.part not in get_args(HeadPart):
            raise InputError(
                f"Heads are patched at {', '.join(get_args(HeadPart))}; got "
                f"{self.part!r}. Choose one of them."
            )
        for name in ("q", "k") if self.part == "pattern" else (self.part,):
            recorded(self.source, self.heads.grid.site, name)
        if self.part in ("k", "v") and self.heads.as_kv_groups() != self.heads:
            raise InputError(
                f"Heads {self.heads} share their keys and values with other heads. "
                "Pass heads.as_kv_groups()."
            )

    def __str__(self) -> str:
        """Name and knobs, the source by its input and what it ran under."""
        return (
            f"PatchHeads(heads={self.heads}, part={self.part!r}, tokens={self.tokens}, "
            f"source={_told(self.source)})"
        )

    @property
    def uses_keys(self) -> bool:
        """Unless values or outputs are patched."""
        return self.part in ("q", "k", "pattern")

    def inputs(self, site: Site, call: AttentionCall) -> AttentionCall:
        """Other queries, keys or values."""
        heads = heads_at(self.heads, site)
        if not heads or self.part not in ("q", "k", "v"):
            return call
        if self.part == "q":
            return replace(call, query=self._put(site, call, call.query, heads, "head"))
        kv_heads = sorted({head // call.group_size for head in heads})
        old = call.key if self.part == "k" else call.value
        new = self._put(site, call, old, kv_heads, "kv_head")
        return replace(call, **{"key" if self.part == "k" else "value": new})

    def weights(self, site: Site, call: AttentionCall) -> Sequence["OtherScores"]:
        """The other run's pattern."""
        heads = heads_at(self.heads, site)
        if not heads or self.part != "pattern":
            return ()
        q, k = (
            recorded(self.source, site.name, name).isel(layer=site.layer)
            for name in ("q", "k")
        )
        return (OtherScores(tuple(heads), q, k, call, self.tokens),)

    def output(self, site: Site, call: AttentionCall, output: Tensor) -> Tensor:
        """Other outputs."""
        heads = heads_at(self.heads, site)
        if not heads or self.part != "head_output":
            return output
        return self._put(site, call, output, heads, "head")

    def _put(
        self, site: Site, call: AttentionCall, old: Tensor, heads: list[int], dim: str
    ) -> Tensor:
        """A copy of `[batch, head, token, channel]` with the other run's heads."""
        values = recorded(self.source, site.name, self.part)
        values = values.isel({"layer": site.layer, dim: heads})
        new = old.clone()
        for sample, span, place in (queries_of if dim == "head" else keys_of)(call):
            chosen = is_of(place, self.tokens)
            at = span.start + chosen.nonzero().flatten()
            own = _of_sample(values, sample)
            put = tokens_of(own, place[chosen]).transpose(0, 1).to(new)
            new[sample, torch.tensor(heads)[:, None], at] = put
        return new


@dataclass(frozen=True, eq=False)
class OtherScores(Edit):
    """Logits of another run's queries and keys, under this call's rules.

    Attributes:
        heads: Which heads, ascending.
        q: `(query, head, d_head)` of the other run, perhaps with `sample`.
        k: `(key, kv_head, d_head)`, likewise.
        call: The call that is changed.
        tokens: Places of the queries to change; None for all.
    """

    heads: tuple[int, ...]
    q: xr.DataArray
    k: xr.DataArray
    call: AttentionCall
    tokens: Tokens = None

    keeps_softmax = True

    def narrow(self, sample: int, queries: slice, keys: slice) -> "OtherScores":
        """Of one sample's queries and keys."""
        q, k = (_of_sample(values, sample) for values in (self.q, self.k))
        return replace(self, q=q, k=k, call=self.call.narrow(sample, queries, keys))

    def change_logits(self, logits: Tensor, block: Block) -> None:
        """Puts the other run's logits in their place."""
        rows = is_of(block.query - block.mask.start, self.tokens)
        if not rows.any():
            return
        for head in own_heads(self.heads, block):
            new = self.logits(block, head, rows)
            logits[head, rows, : new.shape[1]] = new.to(logits)

    def logits(
        self, block: Block, head: int, rows: Bool[Tensor, " query"]
    ) -> Float[Tensor, "query key"]:
        """Of some queries of a block's head, up to the last key that they see."""
        index, score = block.heads.start + head, self.call.score
        seen = block.visible[head % len(block.visible), rows].any(0).nonzero()
        n_keys = int(seen.max()) + 1 if len(seen) else 0
        start = block.mask.start
        q = tokens_of(self.q[:, index], block.query[rows] - start)
        kv_head = index // self.call.group_size
        k = tokens_of(self.k[:, kv_head], block.key[:n_keys] - start)
        new = score.scale * q.to(self.call.dtype) @ k.to(self.call.dtype).T
        if score.softcap is not None:
            new = score.softcap * torch.tanh(new / score.softcap)
        if score.position_bias is not None:
            q0, q1, k0, _ = block.box
            own = index if score.position_bias.shape[1] > 1 else 0
            bias = score.position_bias[0, own, q0:q1, k0 : k0 + n_keys]
            new = new + bias[rows]
        return new


@dataclass(frozen=True, eq=False)
class PatchStream(Intervention):
    """The residual stream, or what a half of a block writes to it, from another run.

    Source: as `PatchHeads`.

    Attributes:
        source: What `interp.activations.record` gave for the other run.
        layers: Layers of the stream (0 the embedding, l after block l - 1), or blocks
            where `part` is a half of a block.
        part: `stream`, `attention` or `mlp`.
        tokens: Places of the tokens to patch; None for all.
    """

    source: xr.DataTree
    layers: tuple[int, ...]
    part: StreamPart = "stream"
    tokens: Tokens = None

    def __post_init__(self) -> None:
        """Refuse parts that there are not, or that were not recorded."""
        if self.part not in get_args(StreamPart):
            raise InputError(
                f"The stream is patched at {', '.join(get_args(StreamPart))}; got "
                f"{self.part!r}. Choose one of them."
            )
        recorded(self.source, "residual", self.part)

    def __str__(self) -> str:
        """Name and knobs, the source by its input and what it ran under."""
        return (
            f"PatchStream(layers={self.layers}, part={self.part!r}, "
            f"tokens={self.tokens}, source={_told(self.source)})"
        )

    def check(self, anatomy: Anatomy) -> None:
        """Refuses layers that the model has not."""
        for layer in self.layers:
            check_layer(layer, anatomy, self.part)

    def hooks(
        self, module: nn.Module, anatomy: Anatomy
    ) -> Sequence[AbstractContextManager[None]]:
        """Hooks on the stream or on the modules that write to it."""
        changes = {layer: self._change(layer) for layer in self.layers}
        return stream_hooks(module, anatomy, changes, self.part)

    def _change(self, layer: int) -> Change:
        axis = "layer" if self.part == "stream" else "block"
        values = recorded(self.source, "residual", self.part).isel({axis: layer})

        def change(stream: Tensor, place: Tensor) -> None:
            for sample, places in enumerate(place):
                chosen = is_of(places, self.tokens) & (places >= 0)
                own = tokens_of(_of_sample(values, sample), places[chosen])
                stream[sample, chosen] = own.to(stream)

        return change


def patch_paths(
    model: Model,
    clean: Any,
    corrupted: Any,
    senders: HeadSet,
    receivers: HeadSet,
    *,
    parts: Sequence[Literal["q", "k", "v"]] = ("q", "k", "v"),
    freeze_mlp: bool = True,
) -> Intervention:
    """What receivers would be given if only the path from the senders were corrupted.

    The clean text runs once with the senders' outputs from the corrupted text and all
    other heads (and MLPs) frozen to the clean run; what the receivers then read is the
    patch. Run the clean text under it to see the effect of these paths.

    Args:
        model: From `interp.load`.
        clean: Text or token ids.
        corrupted: As long as `clean`.
        senders: Heads whose effect is followed.
        receivers: Heads that read it, in later layers; for `k` and `v` their whole KV
            groups.
        parts: What of the receivers is patched.
        freeze_mlp: Follow direct paths only; otherwise also those through MLPs.

    Raises:
        InputError: No path leads from the senders to each receiver, or a part is none
            that heads read.

    Source: path patching (Wang et al. 2022, arXiv:2211.00593).
    """
    for heads in (senders, receivers):
        check_heads(heads, model.anatomy)
    if min(h.layer for h in receivers) <= min(h.layer for h in senders):
        raise InputError(
            f"Paths were asked for from {senders} to {receivers}, which do not all "
            "come later. Choose receivers in layers behind the senders'."
        )
    if not parts or set(parts) - {"q", "k", "v"}:
        raise InputError(
            f"Receivers read q, k and v; got parts={tuple(parts)}. Choose of them."
        )
    kept = ("head_output", "mlp") if freeze_mlp else ("head_output",)
    base = record(model, clean, kept)
    other = record(model, corrupted, ("head_output",))
    everyone = HeadSet(tuple(senders.grid), senders.grid)
    frozen: list[Intervention] = []
    if everyone - senders:
        frozen.append(PatchHeads(base, everyone - senders))
    if freeze_mlp:
        layers = tuple(range(base["residual"].sizes["block"]))
        frozen.append(PatchStream(base, layers, "mlp"))
    with Composed((*frozen, PatchHeads(other, senders)))(model):
        received = record(model, clean, tuple(parts))
    groups = receivers.as_kv_groups()
    patches = (
        PatchHeads(received, receivers if part == "q" else groups, part)
        for part in parts
    )
    return Composed(tuple(patches))


def recorded(source: xr.DataTree, node: str, name: str) -> xr.DataArray:
    """One recorded array.

    Raises:
        NotCapturedError: It was not recorded.
    """
    if node not in source.children or name not in source[node]:
        held = [f"{n} {sorted(map(str, source[n].data_vars))}" for n in source.children]
        raise NotCapturedError(
            f"A patch needs '{name}' of '{node}'; the run holds {', '.join(held)}. "
            f"Record it with interp.activations.record(model, inputs, ('{name}',))."
        )
    values: Any = source[node][name]
    return values


def _told(source: xr.DataTree) -> str:
    """A digest of a run's input, and one of the interventions that it ran under."""
    told = source.attrs.get("input_hash", "")[:12]
    under = source.attrs.get("interventions", "[]")
    if under == "[]":
        return told
    return f"{told} under {sha256(under.encode()).hexdigest()[:12]}"


def _of_sample(values: xr.DataArray, sample: int) -> xr.DataArray:
    return values.isel(sample=sample) if "sample" in values.dims else values
