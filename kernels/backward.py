"""Gradients through attention: the weights made again, row block by row block.

With the weights P of a block, which are the softmax of its logits S, and the slope dO
of its output:

    dV = P^T dO        dP = dO V^T        dS = P (dP - rowsum(P dP))

and from dS follow the slopes of query, key and bias; a learned sink is one more logit,
whose value is zero. Of the forward pass nothing is kept but what the call was given,
and nothing of size query x key is made: memory is linear under any rule, and it does
not matter which kernel made the output.

Source: FlashAttention (Dao et al. 2022, arXiv:2205.14135), appendix B.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.kernels import row_blocks, workers
from interp.kernels.edits import Block, Edit
from interp.kernels.errors import KernelUnavailableError
from interp.kernels.rules import AttentionCall

ARRAYS = 4
"""Arrays of a block's size in memory at a time, counted in those of a forward pass."""


def differentiable(
    call: AttentionCall,
    output: Float[Tensor, "batch head query d_value"],
    edits: Sequence[Edit] = (),
) -> Float[Tensor, "batch head query d_value"]:
    """The output of a call, with gradients to what the call is made of.

    They reach query, key, value, learned sinks and position bias. Second derivatives,
    and derivatives by what edits are made of, are refused in the backward pass.

    Args:
        call: The attention call; padding may be anywhere.
        output: Its output, by any kernel.
        edits: Changes of logits and weights that it was made under.

    Returns:
        `output` itself where no gradient is wanted.
    """
    given = _parts(call)
    if not torch.is_grad_enabled() or not any(
        part is not None and part.requires_grad for part in given
    ):
        return output
    bare = replace(call.score, sink_logits=None, position_bias=None)
    made: Any = _Attention.apply(output, (bare, call.mask), edits, *given)
    return made


def gradients(
    call: AttentionCall,
    slope: Float[Tensor, "batch head query d_value"],
    edits: Sequence[Edit] = (),
    *,
    of_bias: bool = True,
) -> AttentionCall:
    """The slope of a call's output, carried back to what the call is made of.

    Args:
        call: The attention call; padding may be anywhere.
        slope: Derivative of some number by each output.
        edits: Changes of logits and weights, one after the other.
        of_bias: Whether a position bias gets its slope, which is as large as it is.

    Returns:
        A call of the same shapes, in the type to accumulate in: the derivatives of
        the same number by query, key, value, learned sinks and position bias. Rows
        that see no key add nothing.

    Raises:
        KernelUnavailableError: An edit is itself made of what requires a gradient.
    """
    found = _zeros(call, of_bias)
    with torch.no_grad():
        for sample, queries, keys in call.samples():
            own = [edit.narrow(sample, queries, keys) for edit in edits]
            one, room = (each.narrow(sample, queries, keys) for each in (call, found))
            _Sample(one, sample, own, slope[sample, :, queries], room).run()
    return found


class _Attention(torch.autograd.Function):
    """Hands the output on, and knows the way back from it."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        rules: tuple[Any, Any],
        edits: Sequence[Edit],
        *given: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(*given)
        ctx.rules, ctx.edits = rules, edits
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise KernelUnavailableError(
                "The gradient of a gradient was asked for (create_graph=True), through "
                "attention that is traced or edited; there are first gradients only. "
                "Take it outside the block, or leave out create_graph."
            )
        query, key, value, sinks, bias = given = ctx.saved_tensors
        score, mask = ctx.rules
        score = replace(score, sink_logits=sinks, position_bias=bias)
        call = AttentionCall(query, key, value, score, mask)
        wanted = ctx.needs_input_grad[3:]
        found = _parts(gradients(call, slopes[0], ctx.edits, of_bias=wanted[-1]))
        own = [
            each.to(part.dtype) if wants and each is not None else None
            for each, part, wants in zip(found, given, wanted, strict=True)
        ]
        return None, None, None, *own


class _Sample:
    """The work on one sample: jobs over heads and rows."""

    def __init__(
        self,
        call: AttentionCall,
        sample: int,
        edits: Sequence[Edit],
        slope: Float[Tensor, "head query d_value"],
        found: AttentionCall,
    ) -> None:
        self.call, self.sample, self.edits = call, sample, edits
        self.slope, self.found = slope, found

    def run(self) -> None:
        """Adds the sample's slopes to `found`."""
        jobs, n_workers = row_blocks.jobs(self.call, ARRAYS)
        bias = self.found.score.position_bias
        # What all heads share is added to by one job at a time.
        n_workers = n_workers if bias is None or bias.shape[1] > 1 else 0
        done = workers.run(self._work, jobs, n_workers)
        for (heads, _), (of_key, of_value, of_sinks) in zip(jobs, done, strict=True):
            kv_heads = row_blocks.keys_of(self.call, heads)
            self.found.key[0, kv_heads] += of_key
            self.found.value[0, kv_heads] += of_value
            if self.found.score.sink_logits is not None:
                self.found.score.sink_logits[heads] += of_sinks

    def _work(self, job: row_blocks.Job) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes of the job's keys, values and learned sinks."""
        heads, blocks = job
        call, dtype, scale = self.call, self.call.dtype, self.call.score.scale
        kv_heads = row_blocks.keys_of(call, heads)
        key, value = (t[0, kv_heads].to(dtype) for t in (call.key, call.value))
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        of_sinks = key.new_zeros(heads.stop - heads.start)

        def grouped(rows: Tensor) -> Tensor:
            return row_blocks.of_groups(rows.to(dtype), len(key))

        for q0, q1 in blocks:
            k0, k1 = call.mask.span(q0, q1)
            if k0 == k1:
                continue
            box = q0, q1, k0, k1
            block = Block(self.sample, heads, box, call.mask, key.device)
            query = grouped(call.query[0, heads, q0:q1])
            slope = grouped(self.slope[heads, q0:q1])
            weights = _Weights(call, block, key[:, k0:k1], self.edits)
            of_value[:, k0:k1].baddbmm_(grouped(weights.used).mT, slope)
            slope = (slope @ value[:, k0:k1].mT).view(weights.used.shape)
            slope = weights.back(slope, of_sinks, self.found.score.position_bias)
            slope = grouped(slope)
            of_key[:, k0:k1].baddbmm_(slope.mT, query, alpha=scale)
            of_query = (slope @ key[:, k0:k1]).mul_(scale)
            room = self.found.query[0, heads, q0:q1]
            room.copy_(of_query.view(room.shape))
        return of_key, of_value, of_sinks


class _Weights:
    """The weights of a block, and the way back from them.

    Attributes:
        used: What the values were multiplied with, `[head, query, key]`.
    """

    def __init__(
        self,
        call: AttentionCall,
        block: Block,
        key: Float[Tensor, "kv_head key d"],
        edits: Sequence[Edit],
    ) -> None:
        self.block, self.softcap = block, call.score.softcap
        q0, q1, k0, k1 = block.box
        heads = call.group_size * len(key)
        logits = key.new_empty(heads, q1 - q0, k1 - k0)
        row_blocks.products(call, block, key, logits)
        self.capped = None if self.softcap is None else logits.clone()
        if call.score.position_bias is not None:
            logits.add_(row_blocks.of_pairs(call.score.position_bias, block))
        changes = [edit.change_logits for edit in edits]
        logits, self.through_logits = _changed(logits, block, changes)
        may_be_blind = row_blocks.hide(block, logits, edits)
        sinks = call.score.sink_logits
        self.sinks = None if sinks is None else sinks[block.heads].to(logits)
        self.weights = torch.empty_like(logits)
        normalize = row_blocks.normalize
        self.lse = normalize(logits, self.sinks, may_be_blind, self.weights)
        changes = [edit.change_weights for edit in edits]
        self.used, self.through_weights = _changed(self.weights, block, changes)

    def back(
        self,
        slope: Float[Tensor, "head query key"],
        of_sinks: Float[Tensor, " head"],
        of_bias: Float[Tensor, "1 #heads queries keys"] | None,
    ) -> Float[Tensor, "head query key"]:
        """From the slope of the weights used to that of the scaled products.

        Args:
            slope: Is overwritten.
            of_sinks: Added to.
            of_bias: Added to.
        """
        slope = self.through_weights(slope)
        total = torch.linalg.vecdot(self.weights, slope)
        if self.sinks is not None:
            shares = torch.sigmoid(self.sinks[:, None] - self.lse)
            of_sinks.sub_(torch.linalg.vecdot(shares, total))
        slope = self.through_logits(slope.sub_(total[..., None]).mul_(self.weights))
        if of_bias is not None:
            own = row_blocks.of_pairs(of_bias, self.block)
            own.add_(slope if len(own) > 1 else slope.sum(0))
        if self.capped is not None and self.softcap is not None:
            slope.mul_(self.capped.div_(self.softcap).square_().neg_().add_(1))
        return slope


def _changed(
    before: Tensor, block: Block, changes: Sequence[Callable[[Tensor, Block], None]]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A block after edits, and what carries a slope back to what it was before.

    Raises:
        KernelUnavailableError: The edits are themselves made of what requires a
            gradient, which would be lost.
    """
    if not changes:
        return before, lambda slope: slope
    with torch.enable_grad():
        start = before.detach().requires_grad_()
        after, alone = start.clone(), before.clone()
        for change in changes:
            change(after, block)
            change(alone, block)
    if alone.requires_grad:
        raise KernelUnavailableError(
            "A gradient was asked for through an edit of attention that is itself made "
            "of what requires a gradient: of queries and keys, or of parameters. That "
            "part is not computed. Take the gradient without it, or detach it."
        )
    return after.detach(), lambda slope: torch.autograd.grad(after, start, slope)[0]


def _parts(call: AttentionCall) -> tuple[Tensor | None, ...]:
    """The tensors that gradients reach."""
    score = call.score
    return call.query, call.key, call.value, score.sink_logits, score.position_bias


def _zeros(call: AttentionCall, of_bias: bool) -> AttentionCall:
    """A call of the same shapes, to add to."""

    def zeros(part: Tensor | None) -> Any:
        return None if part is None else torch.zeros_like(part, dtype=call.dtype)

    query, key, value, sinks, bias = _parts(call)
    bias = bias if of_bias else None
    query, key, value, sinks, bias = map(zeros, (query, key, value, sinks, bias))
    score = replace(call.score, sink_logits=sinks, position_bias=bias)
    return replace(call, query=query, key=key, value=value, score=score)
