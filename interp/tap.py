"""The tap: sees every attention call of a model, and leaves the model as it was.

A private name is registered in transformers' attention registry and in its mask
registry, the configs point at it for the length of a `with` block, and each call then
arrives here with query and key after rotary embedding and normalization, grouped
heads unexpanded, and the mask as a rule. The output comes from a fused kernel.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from interp.anatomy import Anatomy, Site
from interp.errors import UnsupportedModelError
from interp.kernels import fused, statistics, weighted
from interp.kernels.definitions import Statistic
from interp.kernels.masks import MaskRule
from interp.kernels.rules import AttentionCall, ScoreRule
from interp.masks import lazy_mask

_names = (f"interp_tap_{n}" for n in itertools.count())


@dataclass(frozen=True)
class Visit:
    """One attention call, seen.

    Attributes:
        site: Which module made it.
        call: Its tensors and rules.
        output: What the model goes on with, `[batch, head, query, d_value]`.
        lse: Row log-sum-exp in nats, learned sink excluded, `[batch, head, query]`.
        arrays: Statistics wanted at the site, `[batch, head, ...]` by name.
        impl: The implementation that made the statistics.
    """

    site: Site
    call: AttentionCall
    output: Tensor
    lse: Tensor
    arrays: dict[str, Tensor]
    impl: str


@contextmanager
def tap(
    module: nn.Module,
    visit: Callable[[Visit], None],
    *,
    anatomy: Anatomy | None = None,
    wanted: Callable[[Site], Sequence[Statistic]] = lambda site: (),
    impl: str = "auto",
    edit: Callable[[Site], weighted.Edit | None] | None = None,
    padding: Tensor | None = None,
) -> Iterator[None]:
    """Calls `visit` for each attention call of forwards inside the block.

    Args:
        module: A transformers model whose attention reaches the interface.
        visit: Called after each attention call, in order.
        anatomy: The module's, if at hand.
        wanted: Statistics to compute at a site.
        impl: Implementation of the statistics, as `interp.kernels.statistics` names it.
        edit: The edit of the weights at a site, or None to leave them.
        padding: `[batch, query]`, True for real decoder tokens; needed only where
            the queries' padding is not the keys', as in cross-attention.

    Raises:
        UnsupportedModelError: No attention of this model can be reached.
    """
    anatomy = anatomy or Anatomy.of(module)
    anatomy.require_attention()
    sites = _Sites(module, anatomy)
    name = next(_names)

    def attention(
        owner: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: MaskRule | Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        site = sites.of(owner)
        call = attention_call(
            owner, query, key, value, attention_mask, site.name, options
        )
        if site.name == "cross" and padding is not None:
            call = replace(call, mask=replace(call.mask, query_padding=padding))
        own_edit = None if edit is None else edit(site)
        seen = attend(call, wanted(site), impl, own_edit)
        visit(Visit(site, call, *seen))
        return seen[0].transpose(1, 2).contiguous(), None

    configs = _configs(module)
    before = [config._attn_implementation_internal for config in configs]
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, lazy_mask)
    try:
        for config in configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


def attend(
    call: AttentionCall,
    wanted: Sequence[Statistic] = (),
    impl: str = "auto",
    edit: weighted.Edit | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor], str]:
    """Output, log-sum-exp and statistics of a call, in the fewest passes.

    Statistics of edited weights, and on a CPU all of them, come from the pass that
    makes the output; elsewhere a fused kernel gives output and lse, and one more pass
    the statistics.

    Returns:
        Output and lse as in `Visit`, the arrays, and the implementation used.
    """
    # Which kernel makes the output must not depend on what is wanted: a resumed run
    # skips statistics, and its later layers have to come out the same.
    chosen = "weighted" if edit is not None else statistics.choose(impl, call)
    done = None if chosen == "weighted" else fused.attend(call)
    if done is None:
        own = wanted if chosen == "weighted" else ()
        output, lse, arrays = weighted.attend(call, edit, own)
    else:
        (output, lse), arrays = done, {}
    if wanted and not arrays:
        arrays = statistics.compute(call, wanted, lse=lse, impl=chosen)
    return output, lse, arrays, chosen


def attention_call(
    owner: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: MaskRule | Tensor | None,
    site: str,
    options: dict[str, Any],
) -> AttentionCall:
    """The call that a model's attention module makes, in our terms."""
    n_query, n_key = query.shape[2], key.shape[2]
    scale = options.get("scaling")
    score = ScoreRule(
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        softcap=options.get("softcap"),
        sink_logits=options.get("s_aux"),
        position_bias=options.get("position_bias"),
    )
    if isinstance(mask, MaskRule):
        rule = mask
        if (rule.query_length, rule.key_length) != (n_query, n_key):
            raise UnsupportedModelError(
                f"{type(owner).__name__} was given a mask for {rule.query_length} "
                f"queries and {rule.key_length} keys, but attends with {n_query} and "
                f"{n_key}. Trace without a static cache."
            )
        if site != "cross" and rule.key_padding is not None:
            first = rule.query_offset - rule.key_offset
            padding = rule.key_padding[:, first : first + n_query]
            rule = replace(rule, query_padding=padding)
    else:
        causal = options.get("is_causal")
        causal = getattr(owner, "is_causal", True) if causal is None else causal
        causal = bool(causal) and mask is None and n_query > 1
        window = options.get("sliding_window") if mask is None else None
        rule = MaskRule(
            n_query,
            n_key,
            ahead=0 if causal else None,
            behind=window - 1 if causal and window else None,
            query_offset=n_key - n_query if causal else 0,
        )
        if mask is not None and mask.dtype == torch.bool:
            rule = replace(rule, dense=mask[..., :n_key])
        elif mask is not None:
            bias = mask[..., :n_key]
            rule = replace(rule, dense=bias > torch.finfo(bias.dtype).min / 2)
            bias = bias.clamp(min=-1e4)
            own = score.position_bias
            score = replace(score, position_bias=bias if own is None else own + bias)
    return AttentionCall(query, key, value, score, rule, comparable=site != "cross")


class _Sites:
    """Finds the site of a module; a module called again is the next layer (ALBERT)."""

    def __init__(self, module: nn.Module, anatomy: Anatomy) -> None:
        names = {id(each): name for name, each in module.named_modules()}
        known = {site.module_name: site for site in anatomy.sites}
        self.known = {i: known[n] for i, n in names.items() if n in known}
        self.names = names

    def of(self, owner: nn.Module) -> Site:
        site = self.known.get(id(owner))
        if site is None:
            name = self.names.get(id(owner), type(owner).__name__)
            raise UnsupportedModelError(
                f"The attention module {name!r} was not found in the model's anatomy. "
                "Report the model's type; its layers cannot be labelled."
            )
        return site


def _configs(module: nn.Module) -> list[Any]:
    """Every config that an attention module of this model reads."""
    found: dict[int, Any] = {}
    for each in module.modules():
        config = getattr(each, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            found.setdefault(id(config), config)
    return list(found.values())
