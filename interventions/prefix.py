"""Forwards that begin in the middle: what lies before an edit is computed once."""

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp import hooks
from interp.anatomy import Site
from interp.errors import UnsupportedModelError
from interp.evaluation import forward
from interp.interventions.intervention import Intervention
from interp.kernels.rules import AttentionCall
from interp.models import Model
from interp.tap import tap
from interp.tasks.items import Item

LIMIT = 1 << 30
"""Bytes of the residual stream that are kept of one text, at most."""


@dataclass(frozen=True, eq=False)
class Rows(Intervention):
    """Another intervention for each sample of a batch; each changes only outputs."""

    parts: tuple[Intervention, ...]

    def output(self, site: Site, call: AttentionCall, output: Tensor) -> Tensor:
        """Each sample's output by its own intervention."""
        rows = output.split(1)
        edited = [
            part.output(site, _one(call, index), row)
            for index, (part, row) in enumerate(zip(self.parts, rows, strict=True))
        ]
        if all(new is row for new, row in zip(edited, rows, strict=True)):
            return output
        return torch.cat(edited)


@dataclass(frozen=True, eq=False)
class Streams:
    """What blocks were given in one run, where another run may begin.

    Attributes:
        given: By block, the residual stream that it is given.
        in_tuples: Blocks that give their stream in a tuple.
    """

    given: dict[int, Float[Tensor, "batch token d_model"]] = field(default_factory=dict)
    in_tuples: set[int] = field(default_factory=set)

    @contextmanager
    def keeping(self, model: Model, wanted: Collection[int]) -> Iterator[None]:
        """Forwards leave here what the wanted blocks are given."""

        def keep(index: int) -> hooks.Hook:
            def hook(stream: Tensor) -> None:
                self.given[index] = stream

            return hook

        def look(index: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                if isinstance(output, tuple):
                    self.in_tuples.add(index)

            return hook

        with ExitStack() as stack:
            for index, block in enumerate(_blocks(model)):
                handle = block.register_forward_hook(look(index))
                stack.callback(handle.remove)
                if index in wanted:
                    stack.enter_context(hooks.on_input(block, keep(index)))
            yield

    @contextmanager
    def beginning_at(self, model: Model, first: int) -> Iterator[None]:
        """Forwards begin at the last kept block up to `first`, on what it was given."""
        begin = max(index for index in self.given if index <= first)
        blocks = _blocks(model)
        with ExitStack() as stack:
            for index, block in enumerate(blocks[:begin]):
                stack.enter_context(_skipped(block, index in self.in_tuples))
            if begin:
                put = self.given[begin].expand_as
                stack.enter_context(hooks.on_input(blocks[begin], put))
            yield


@dataclass(frozen=True, eq=False)
class Prefix:
    """The untouched run of one item, from which edited runs begin.

    Attributes:
        item: The prompt and its answer.
        streams: The residual stream, one sample.
        logits: `[scored, vocab]`, of the rows that predict the scored tokens.
    """

    item: Item
    streams: Streams
    logits: Float[Tensor, "scored vocab"]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, item: Item, limit: int = LIMIT) -> "Prefix":
        """Runs the model once, untouched.

        Args:
            model: A decoder-only language model, or a `twin`.
            item: What it reads.
            limit: Bytes of the stream to keep; where the streams of all blocks are
                more, every second, third, ... block's is kept.
        """
        n_blocks, streams = len(_blocks(model)), Streams()
        each = len(item.ids) * model.anatomy.d_model * model.dtype.itemsize
        step = max(-(-n_blocks * each // max(limit, 1)), 1)
        tapped = tap(model.module, lambda visit: None)
        with tapped, streams.keeping(model, range(0, n_blocks, step)):
            logits = forward(model, item)[0]
        return cls(item, streams, logits.clone())

    @torch.no_grad()
    def run(
        self, model: Model, interventions: Sequence[Intervention], share: bool = True
    ) -> Float[Tensor, "intervention scored vocab"]:
        """Logits under each intervention, from the first block that one changes.

        Args:
            model: A `twin` of the model that made the prefix.
            interventions: One, or several that only change outputs of heads.
            share: Begin there; otherwise at the first token.
        """
        first = min(each.first_block(model.anatomy) for each in interventions)
        first = first if share else 0
        n = len(interventions)
        edit = interventions[0] if n == 1 else Rows(tuple(interventions))
        with self.streams.beginning_at(model, first), edit(model):
            return forward(model, self.item, n)

    @torch.no_grad()
    def require_shared(self, model: Model) -> None:
        """Refuse a model whose blocks take more from those before than a stream.

        Raises:
            UnsupportedModelError: With the remedy.
        """
        tapped = tap(model.module, lambda visit: None)
        with self.streams.beginning_at(model, max(self.streams.given)), tapped:
            logits = forward(model, self.item)[0]
        if not torch.allclose(logits, self.logits, rtol=1e-3, atol=1e-3):
            raise UnsupportedModelError(
                "Runs were to begin in the middle; blocks of this "
                f"{model.anatomy.model_type} model take more from those before than "
                "the residual stream. Pass share=False."
            )


def twin(model: Model) -> Model:
    """A model of the same weights, in modules of its own: changed alone, run alone.

    Modules whose `forward` was replaced (as accelerate does, to spread a model over
    devices) may run others than their own when copied; such a model is given back
    itself.
    """
    module = model.module
    if any("forward" in vars(part) for part in module.modules()):
        return model
    kept = [*module.parameters(), *module.buffers()]
    own = copy.deepcopy(module, {id(tensor): tensor for tensor in kept})
    own.eval()
    head = own.get_output_embeddings()
    if type(head) is nn.Linear and not head._forward_hooks:
        head.forward = _Reusing(head)  # type: ignore[method-assign]
    return replace(model, module=own)


class _Reusing:
    """A linear layer that writes to the same memory in every forward without gradients.

    Logits are by far the largest activation; fresh memory for them costs as much as
    the product itself.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.linear, self.room = linear, torch.empty(0)

    def __call__(self, states: Tensor) -> Tensor:
        weight, bias = self.linear.weight, self.linear.bias
        if torch.is_grad_enabled():
            return nn.functional.linear(states, weight, bias)
        flat = states.flatten(0, -2)
        size = len(flat) * len(weight)
        if self.room.numel() < size or self.room.dtype != flat.dtype:
            self.room = flat.new_empty(size)
        out = self.room[:size].view(len(flat), len(weight))
        if bias is None:
            torch.mm(flat, weight.T, out=out)
        else:
            torch.addmm(bias, flat, weight.T, out=out)
        return out.view(*states.shape[:-1], len(weight))


def _blocks(model: Model) -> list[nn.Module]:
    return hooks.blocks(model.module, model.anatomy, "self")


@contextmanager
def _skipped(block: nn.Module, gives_tuple: bool) -> Iterator[None]:
    """The block gives what it is given."""

    def forward(*inputs: Any, **options: Any) -> Any:
        stream = hooks.first_tensor(inputs or options["hidden_states"])
        return (stream,) if gives_tuple else stream

    own = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own


def _one(call: AttentionCall, sample: int) -> AttentionCall:
    """The call of one sample."""
    queries, keys = slice(0, call.mask.query_length), slice(0, call.mask.key_length)
    return call.narrow(sample, queries, keys)
