"""An attention call that is kept: with it, any tile of a layer's maps can be rebuilt.

    p = exp(score(q, k) - lse)

What is kept grows with the tokens, not with their square: query and key as attended,
the log-sum-exp of each row, and the rules between them.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.editing import in_force
from interp.errors import InputError, UnsupportedModelError
from interp.forward import evaluating, lean
from interp.inputs import Inputs, prepare
from interp.kernels.rules import AttentionCall
from interp.models import Model, load
from interp.tap import Visit, tap


@dataclass(frozen=True, eq=False)
class KeptCall:
    """One layer's attention call on one text.

    Attributes:
        call: Query, key and rules; values of no width.
        lse: Row log-sum-exp in nats, learned sink excluded.
        query_tokens: Strings of the queries; empty where they are no tokens.
        key_tokens: ... and of the keys.
        attrs: Model, text, site and layer, by name.
    """

    call: AttentionCall
    lse: Float[Tensor, "1 head query"]
    query_tokens: tuple[str, ...]
    key_tokens: tuple[str, ...]
    attrs: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        tensors = self.call.query, self.call.key, self.lse
        return sum(tensor.numel() * tensor.itemsize for tensor in tensors)

    def of_head(self, head: int) -> tuple[AttentionCall, Float[Tensor, "1 1 query"]]:
        """The call and the log-sum-exp of one head.

        Raises:
            InputError: There is no such head.
        """
        call, n_heads = self.call, self.call.n_heads
        require("Head", head, n_heads)
        own = slice(head, head + 1)
        group = slice(head // call.group_size, head // call.group_size + 1)
        sink, bias = call.score.sink_logits, call.score.position_bias
        score = replace(
            call.score,
            sink_logits=None if sink is None else sink[own],
            position_bias=bias if bias is None or bias.shape[1] == 1 else bias[:, own],
        )
        one = replace(
            call,
            query=call.query[:, own],
            key=call.key[:, group],
            value=call.value[:, group],
            score=score,
            mask=call.mask.of_heads(own),
        )
        return one, self.lse[:, own]


class _Seen(Exception):
    """The layer has attended: what ends a forward that is done, and no error."""


def keep(
    model: Any,
    inputs: Any,
    *,
    layer: int,
    site: str = "self",
    tokenizer: Any = None,
    max_tokens: int | None = None,
) -> KeptCall:
    """The attention call of one layer, by a forward that ends there.

    Args:
        model: What `interp.trace` takes.
        inputs: What `interp.trace` takes; one text.
        layer: Which one, from 0.
        site: `self`, `cross` or `encoder`.
        tokenizer: For a module that comes without one.
        max_tokens: Keep at most this many tokens.

    Raises:
        InputError: No such layer or site, several texts, a text that cannot be read, or
            an intervention that edits this layer's weights.
        UnsupportedModelError: The model's attention cannot be reached.
    """
    model = model if isinstance(model, Model) else load(model, tokenizer=tokenizer)
    model.anatomy.require_attention()
    require_site(site, model.anatomy.site_names)
    prepared = prepare(model, inputs, max_tokens)
    if prepared.n_samples > 1:
        raise InputError(
            f"A map is of one text; {prepared.n_samples} were given. Pass one of them."
        )
    found: list[KeptCall] = []
    n_seen = 0

    def visit(visit: Visit) -> None:
        nonlocal n_seen
        if visit.site.name != site:
            return
        if n_seen == layer:
            found.append(_kept(model, prepared, visit, layer))
            raise _Seen
        n_seen += 1

    options = {"anatomy": model.anatomy, "padding": prepared.decoder.real}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(model.module))
        stack.enter_context(tap(model.module, visit, **options))
        try:
            model.module(**prepared.forward, **lean(model.module))
        except _Seen:
            return found[0]
    require(f"Layer of the site {site}", layer, n_seen)
    raise UnsupportedModelError(f"{model.name} made no attention call to be kept.")


def _kept(model: Model, inputs: Inputs, visit: Visit, layer: int) -> KeptCall:
    edits = [
        str(change)
        for change in in_force(model.module)
        if change.weights(visit.site, visit.call)
    ]
    if edits:
        raise InputError(
            f"The map of layer {layer} was asked for while {edits[0]} edits its "
            "weights, which query and key then do not tell. Ask for it outside the "
            "intervention."
        )
    [(sample, queries, keys)] = visit.call.samples()
    call = visit.call.narrow(sample, queries, keys)
    queried, read = (
        side.text[0] if side.text else () for side in inputs.sides(visit.site.name)
    )
    return KeptCall(
        replace(call, value=call.value[..., :0]),
        visit.lse[:, :, queries],
        queried,
        read,
        {
            "model": model.name,
            "model_hash": model.content_hash,
            "input_hash": inputs.content_hash,
            "site": visit.site.name,
            "layer": layer,
        },
    )


def require_site(site: str, known: Sequence[str]) -> None:
    """Refuses a kind of site that there is not."""
    if site not in known:
        raise InputError(
            f"The site {site!r} was asked for; there are {', '.join(known)}. Choose "
            "one of them."
        )


def require(what: str, index: int, count: int) -> None:
    """Refuses an index that there is not."""
    if not 0 <= index < count:
        raise InputError(
            f"{what} {index} was asked for; there are 0 to {count - 1}. Choose one."
        )
