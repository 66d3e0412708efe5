"""The door for attention that a module computes by itself, seen in torch's functions.

While an attention module runs, its calls of torch pass by here. A call of
`scaled_dot_product_attention` is an attention call as it stands. Where the softmax is
written by hand, the scores that it is given exist anyway: they become the bias of a
call whose queries and keys have no width, and the product of the weights with the
values is what the call gives out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.anatomy import Site
from interp.errors import UnsupportedModelError

Attention = Callable[..., tuple[Tensor, None]]
"""Called as transformers calls attention; gives `[batch, query, head, d]` first."""

HIDDEN = -5e3
"""Scores below are masks: the smallest in use is OpenAI GPT's -10,000."""

PRODUCTS = ("matmul", "bmm", "__matmul__")

_innermost: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()


@contextmanager
def watching(
    module: nn.Module, sites: Sequence[Site], attention: Attention
) -> Iterator[None]:
    """Sends what the modules of some sites compute to `attention`, within the block.

    Args:
        module: The model. Of nested blocks on it, the innermost sees.
        sites: Sites whose modules compute attention by themselves.
        attention: Called with the module, query, key, value, mask and the options of
            the call; its result takes the place of the module's own.

    Raises:
        UnsupportedModelError: In a forward, where a module computes no attention that
            can be recognized.
    """
    door = object()
    before = _innermost.get(module)
    given: dict[str, Any] = {}
    with ExitStack() as stack:
        _innermost[module] = door
        stack.callback(_put_back, module, before)
        handle = module.register_forward_pre_hook(
            lambda _module, inputs, options: given.update(_given(inputs, options)),
            with_kwargs=True,
        )
        stack.callback(handle.remove)
        # A part may be called by itself afterwards, of which nothing is known.
        handle = module.register_forward_hook(
            lambda *_: given.clear(), always_call=True
        )
        stack.callback(handle.remove)
        for site in sites:
            owner = module.get_submodule(site.module_name)
            padding = padding_name(module, site)
            modes: list[_Watch] = []

            def enter(
                owner: nn.Module,
                _inputs: Any,
                site: Site = site,
                padding: str = padding,
                modes: list[_Watch] = modes,
            ) -> None:
                if _innermost.get(module) is door:
                    n_batch, real = given.get("batch"), given.get(padding)
                    watch = _Watch(owner, site, attention, n_batch, real)
                    modes.append(watch.__enter__())

            def leave(
                _owner: nn.Module, _inputs: Any, output: Any, modes: Any = modes
            ) -> None:
                if modes:
                    watch = modes.pop()
                    watch.__exit__(None, None, None)
                    if output is not None:  # None where the module has failed
                        watch.check()

            for handle in (
                owner.register_forward_pre_hook(enter),
                owner.register_forward_hook(leave, always_call=True),
            ):
                stack.callback(handle.remove)
        yield


def _put_back(module: nn.Module, before: object | None) -> None:
    if before is None:
        _innermost.pop(module, None)
    else:
        _innermost[module] = before


class _Watch(TorchFunctionMode):
    """Sees the functions of torch that one run of an attention module calls."""

    def __init__(
        self,
        owner: nn.Module,
        site: Site,
        attention: Attention,
        n_batch: int | None,
        padding: Tensor | None,
    ) -> None:
        super().__init__()
        self.owner, self.site, self.attention = owner, site, attention
        self.n_batch, self.padding = n_batch, padding
        self.scores: Tensor | None = None
        self.weights: Tensor | None = None
        self.n_softmax = self.n_calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Takes over what is attention, and leaves the rest alone."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            return self._fused(*args, **kwargs)
        if name in PRODUCTS and self._weighs(args):
            return self._product(*args[:2])
        result = func(*args, **kwargs)
        if name == "softmax" and isinstance(args[0], Tensor) and args[0].dim() > 2:
            self.n_softmax += 1
            dtype = kwargs.get("dtype") or args[0].dtype
            self.scores, self.weights = args[0].to(dtype), result
        return result

    def check(self) -> None:
        """Refuses a module that did not attend once.

        Raises:
            UnsupportedModelError: With what was looked for and what was seen.
        """
        if self.n_calls != 1 or self.n_softmax > 1:
            raise UnsupportedModelError(
                f"{type(self.owner).__name__} was watched for one call of "
                "scaled_dot_product_attention, or one softmax over scores [batch, head,"
                " query, key] whose result is multiplied by the values (matmul, bmm, "
                f"@); seen were {self.n_softmax} softmax and {self.n_calls} products. "
                "Its attention has another form, which cannot be reached."
            )

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        del enable_gqa  # heads are grouped anyway
        return self._attend(
            query,
            self._grouped(key),
            self._grouped(value),
            attn_mask,
            scaling=scale,
            is_causal=is_causal,
            dropout=dropout_p,
        )

    def _weighs(self, args: Any) -> bool:
        """Whether a product is that of the weights with the values."""
        if self.scores is None or len(args) < 2:
            return False
        left, shape = args[0], self.scores.shape
        return left.shape[-2] == shape[-2] and left.shape[-1] in self._widths

    @property
    def _widths(self) -> tuple[int, ...]:
        """Keys, with and without the column of a learned sink."""
        assert self.scores is not None
        n_keys = self.scores.shape[-1]
        return (n_keys - 1,) if self.site.learned_sinks else (n_keys,)

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        assert self.scores is not None
        self._require_own_weights(left)
        scores, value = self._by_head(self.scores), self._by_head(right)
        self.scores = self.weights = None
        sinks = None
        if self.site.learned_sinks:
            sinks = self._sinks().to(scores)
            # The module may have shifted its rows, and the sink with them.
            scores = scores[..., :-1] - scores[..., -1:] + sinks[:, None, None]
        value = self._grouped(value)
        output = self._attend(
            scores[..., :0],
            value[..., :0],
            value,
            _one_for_all(scores > HIDDEN),
            scaling=1.0,
            position_bias=scores,
            s_aux=sinks,
        )
        return output.reshape(*left.shape[:-1], right.shape[-1])

    def _require_own_weights(self, left: Tensor) -> None:
        """Refuses weights that are not the softmax's: the change would be lost."""
        assert self.scores is not None
        assert self.weights is not None
        n_keys = left.shape[-1]
        own = self.weights[..., :n_keys].to(left.dtype).reshape(left.shape)
        if torch.equal(own, left):
            return
        visible = (self.scores[..., :n_keys] > HIDDEN).reshape(left.shape)
        if ((own != left) & visible).any():
            raise UnsupportedModelError(
                f"The attention weights of {type(self.owner).__name__} were changed "
                "between softmax and product, by the module or by a hook on the "
                "pattern; statistics and interventions are of the scores, and would "
                "miss it. Hook the scores, or use an intervention of interp."
            )

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **options: Any,
    ) -> Tensor:
        self.n_calls += 1
        real = self.padding
        if real is not None and real.shape[-1] == key.shape[2]:
            options["key_padding"] = real.bool()
        output, _ = self.attention(self.owner, query, key, value, mask, **options)
        return output.transpose(1, 2)

    def _by_head(self, tensor: Tensor) -> Tensor:
        """`[batch, head, ...]`, of a tensor that may have both in one axis."""
        n_heads, n_batch = self.site.n_heads, self.n_batch
        if n_batch is None:
            n_batch = len(tensor) // n_heads if tensor.dim() == 3 else len(tensor)
        if tensor.dim() == 3 and tensor.shape[0] == n_batch * n_heads:
            return tensor.unflatten(0, (n_batch, n_heads))
        if tensor.dim() != 4 or tensor.shape[0] != n_batch or n_heads % tensor.shape[1]:
            raise UnsupportedModelError(
                f"{type(self.owner).__name__} was watched for scores and values of "
                f"{n_batch} samples and {n_heads} heads, [batch, head, ...]; got "
                f"{tuple(tensor.shape)}. Its attention has another form, which cannot "
                "be reached."
            )
        return tensor

    def _grouped(self, tensor: Tensor) -> Tensor:
        """One head of each group, where the module has repeated it."""
        n_kv_heads = self.site.n_kv_heads
        group = tensor.shape[1] // n_kv_heads
        own = tensor[:, ::group] if group > 1 else tensor
        is_repeated = group > 1 and torch.equal(own.repeat_interleave(group, 1), tensor)
        return own if is_repeated else tensor

    def _sinks(self) -> Tensor:
        for holder in (self.owner, getattr(self.owner, "original_component", None)):
            sinks = getattr(holder, "sinks", None)
            if isinstance(sinks, Tensor):
                return sinks
        raise UnsupportedModelError(
            f"{type(self.owner).__name__} has learned sinks, looked for in its "
            "'sinks'; there are none. Its attention cannot be reached."
        )


def _one_for_all(visible: Tensor) -> Tensor:
    """One head's mask where all heads have the same: what is counted costs less."""
    first = visible[:, :1]
    return first if torch.equal(first.expand_as(visible), visible) else visible


def _given(inputs: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What a forward is given that attention modules are not told: samples, padding."""
    tensors = [each for each in (*inputs, *options.values()) if torch.is_tensor(each)]
    given: dict[str, Any] = {"batch": len(tensors[0]) if tensors else None}
    for name in ("attention_mask", "decoder_attention_mask"):
        mask = options.get(name)
        given[name] = mask if torch.is_tensor(mask) and mask.dim() == 2 else None
    return given


def padding_name(module: nn.Module, site: Site) -> str:
    """Which of a model's inputs says what keys of a site are padding."""
    config: Any = module.config
    is_pair = getattr(config, "is_encoder_decoder", False)
    if site.name == "self":
        return "decoder_attention_mask" if is_pair else "attention_mask"
    return "attention_mask" if is_pair or site.name == "encoder" else ""
