"""The tap: sees every attention call of a model, and leaves the model as it was.

A private name is registered in transformers' attention registry and in its mask
registry, the configs point at it for the length of a `with` block, and each call then
arrives here with query and key after rotary embedding and normalization, grouped
heads unexpanded, and the mask as a rule. The output comes from a fused kernel, or from
row blocks where a change of the weights is in force; gradients pass it as they pass
the model's own attention, and statistics have none. Modules that compute attention by
themselves are seen in the functions of torch instead.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from interp.adapters import torch_function
from interp.anatomy import Anatomy, Site
from interp.editing import AttentionEdit, in_force
from interp.errors import InputError, UnsupportedModelError
from interp.kernels import fused, statistics, weighted
from interp.kernels.backward import differentiable
from interp.kernels.definitions import Statistic
from interp.kernels.edits import Edit
from interp.kernels.masks import MaskRule
from interp.kernels.reweight import Reweight
from interp.kernels.reweighting import reweighted
from interp.kernels.rules import AttentionCall, ScoreRule
from interp.masks import lazy_mask
from interp.recognition import calls_interface

_names = (f"interp_tap_{n}" for n in itertools.count())


@dataclass(frozen=True)
class Visit:
    """One attention call, seen.

    Attributes:
        site: Which module made it.
        call: Its tensors and rules, with every change that is in force.
        output: What the model goes on with, `[batch, head, query, d_value]`; where
            gradients are recorded, a part of the graph, as the tensors of `call` are.
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
    padding: Tensor | None = None,
) -> Iterator[None]:
    """Calls `visit` for each attention call of forwards inside the block.

    Args:
        module: A transformers model whose attention reaches the interface.
        visit: Called after each attention call, in order.
        anatomy: The module's, if at hand.
        wanted: Statistics to compute at a site.
        impl: Implementation of the statistics, as `interp.kernels.statistics` names it.
        padding: `[batch, query]`, True for real decoder tokens; needed only where
            the queries' padding is not the keys', as in cross-attention.

    Raises:
        UnsupportedModelError: No attention of this model can be reached.
        InputError: In a forward that records gradients, where attention has dropout.
    """
    anatomy = anatomy or Anatomy.of(module)
    attention = seen_attention(module, visit, anatomy, wanted, impl, padding)
    by_hand = computed_by_hand(module, anatomy)
    with ExitStack() as stack:
        # A compiled graph would go on as it was; the model's own code is run instead.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if by_hand:
            stack.enter_context(torch_function.watching(module, by_hand, attention))
        if len(by_hand) < len(anatomy.sites):
            answering = answered_by(module, attention, lazy_mask)
            stack.enter_context(answering)
        try:
            yield
        except (AttributeError, TypeError) as error:
            if MaskRule.__name__ not in str(error):
                raise
            raise UnsupportedModelError(
                f"{type(module).__name__} computes with its mask, where a rule stands "
                f"instead of a tensor ({error}). Its attention cannot be traced."
            ) from error


def seen_attention(
    module: nn.Module,
    visit: Callable[[Visit], None],
    anatomy: Anatomy,
    wanted: Callable[[Site], Sequence[Statistic]] = lambda site: (),
    impl: str = "auto",
    padding: Tensor | None = None,
) -> torch_function.Attention:
    """The attention function that visits, changes and computes; arguments as `tap`.

    Raises:
        UnsupportedModelError: No attention of this model can be reached.
    """
    anatomy.require_attention()
    sites = Sites(module, anatomy)

    def attention(
        owner: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: MaskRule | Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        site = sites.of(owner)
        is_cross = site.name == "cross"
        call = attention_call(
            owner, query, key, value, attention_mask, is_cross, options
        )
        call = replace(call, mask=_with_queries(call.mask, is_cross, padding))
        changes = in_force(module)
        for change in changes:
            _require_keys(change, owner, call)
            call = change.inputs(site, call)
        edits = [edit for change in changes for edit in change.weights(site, call)]
        with torch.no_grad():
            output, lse, arrays, used = attend(call, wanted(site), impl, edits)
        output = differentiable(call, output, edits)
        if output.requires_grad and options.get("dropout"):
            raise InputError(
                f"Gradients were asked for of a model that drops "
                f"{options['dropout']:.0%} of its attention weights; traced or edited "
                "attention drops none, and they would be another model's. Call its "
                "eval() first, or run it under torch.no_grad()."
            )
        for change in changes:
            output = change.output(site, call, output)
        visit(Visit(site, call, output, lse, arrays, used))
        return output.transpose(1, 2).contiguous(), None

    return attention


def computed_by_hand(module: nn.Module, anatomy: Anatomy) -> list[Site]:
    """Sites whose modules, as they are now, do not call the attention interface."""
    return [
        site
        for site in anatomy.sites
        if not calls_interface(type(module.get_submodule(site.module_name)))
    ]


def door_of(module: nn.Module, anatomy: Anatomy) -> str:
    """How attention is reached, for the provenance."""
    by_hand = computed_by_hand(module, anatomy)
    if not by_hand:
        return "attention interface"
    kinds = {type(module.get_submodule(site.module_name)).__name__ for site in by_hand}
    return (
        f"torch functions of {', '.join(sorted(kinds))}; "
        "the model itself builds what is of size query x key"
    )


@contextmanager
def answered_by(
    module: nn.Module, attention: Callable[..., Any], mask: Any
) -> Iterator[None]:
    """The model's configs ask two functions, under a name of their own."""
    name = next(_names)
    configs = _configs(module)
    before = [config._attn_implementation_internal for config in configs]
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
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
    edits: Sequence[Edit] = (),
) -> tuple[Tensor, Tensor, dict[str, Tensor], str]:
    """Output, log-sum-exp and statistics of a call, in the fewest passes.

    Statistics of edited weights, and on a CPU all of them, come from the pass that
    makes the output; elsewhere a fused kernel gives output and lse, and one more pass
    the statistics.

    Args:
        call: The attention call.
        wanted: Statistics to compute.
        impl: Their implementation.
        edits: Changes of the weights, in order.

    Returns:
        Output and lse as in `Visit`, the arrays, and the implementation used.
    """
    # Which kernel makes the output must not depend on what is wanted: a resumed run
    # skips statistics, and its later layers have to come out the same.
    match edits:
        case [Reweight() as only] if not wanted:
            return *reweighted(call, only), {}, "weighted"
    chosen = "weighted" if edits else statistics.choose(impl, call)
    done = None if chosen == "weighted" else fused.attend(call)
    if done is None:
        own = wanted if chosen == "weighted" else ()
        output, lse, arrays = weighted.attend(call, own, edits)
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
    is_cross: bool,
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
            query_offset=0 if is_cross else n_key - n_query,
            key_padding=options.get("key_padding"),
            device=query.device,
        )
        if mask is not None and mask.dtype == torch.bool:
            rule = replace(rule, dense=mask[..., :n_key])
        elif mask is not None:
            bias = mask[..., :n_key]
            rule = replace(rule, dense=bias > torch.finfo(bias.dtype).min / 2)
            bias = bias.clamp(min=-1e4)
            own = score.position_bias
            score = replace(score, position_bias=bias if own is None else own + bias)
    return AttentionCall(query, key, value, score, rule, comparable=not is_cross)


def _require_keys(change: AttentionEdit, owner: nn.Module, call: AttentionCall) -> None:
    """Refuses what needs queries and keys, where there are only scores."""
    if change.uses_keys and call.query.shape[-1] == 0:
        raise UnsupportedModelError(
            f"{change} reads or changes queries and keys; {type(owner).__name__} "
            "computes attention by itself, and only its scores can be seen. Change "
            "weights, values or outputs instead."
        )


def _with_queries(rule: MaskRule, is_cross: bool, padding: Tensor | None) -> MaskRule:
    """The rule with its queries' padding; one for all layers that share the rule."""
    real = padding if is_cross else rule.key_padding
    if real is None:
        return rule
    first = 0 if is_cross else rule.query_offset - rule.key_offset
    own = real[:, first : first + rule.query_length]
    return rule.kept(("queries", id(real)), lambda: replace(rule, query_padding=own))


class Sites:
    """Finds the site of a module; a module called again is the next layer (ALBERT)."""

    def __init__(self, module: nn.Module, anatomy: Anatomy) -> None:
        # By name, as one module may stand in another's place (TransformerLens).
        self.known = {
            id(module.get_submodule(site.module_name)): site for site in anatomy.sites
        }
        self.names = {id(each): name for name, each in module.named_modules()}

    def of(self, owner: nn.Module) -> Site:
        """The site of a module.

        Raises:
            UnsupportedModelError: It is in no anatomy.
        """
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
