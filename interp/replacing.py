"""Lets a function compute the attention of a model; gradients pass if it lets them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from interp.anatomy import Anatomy, Site
from interp.errors import UnsupportedModelError
from interp.kernels.masks import MaskRule
from interp.kernels.rules import AttentionCall
from interp.masks import lazy_mask
from interp.tap import Sites, answered_by, attention_call, computed_by_hand

Attend = Callable[[Site, AttentionCall], Tensor]
"""What the model goes on with at a site, `[batch, head, query, d_value]`."""


@contextmanager
def computed_by(module: nn.Module, anatomy: Anatomy, attend: Attend) -> Iterator[None]:
    """Hands every attention call of forwards inside the block to a function.

    Args:
        module: A transformers model.
        anatomy: The module's.
        attend: Computes attention; interventions in force are left to it.

    Raises:
        UnsupportedModelError: Attention of this model does not come from an interface.
    """
    anatomy.require_attention()
    if by_hand := computed_by_hand(module, anatomy):
        kind = type(module.get_submodule(by_hand[0].module_name)).__name__
        raise UnsupportedModelError(
            f"Attention was to be computed in another way; {kind} does not call "
            "transformers' attention interface, where it can be replaced. Choose a "
            "model that does."
        )
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
        return attend(site, call).transpose(1, 2).contiguous(), None

    with answered_by(module, attention, lazy_mask):
        yield
