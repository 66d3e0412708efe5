"""Where a model attends: layers, heads, widths, windows, and what can be done with it.

Attention modules are recognized by the call they make, not by their name: a module's
`forward` that asks transformers for its attention function is one, and the keywords of
that call say what the scores are made of. Where no module asks for it, those whose
class takes a softmax by itself are. Nothing is run and nothing is changed.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from interp.errors import UnsupportedModelError
from interp.recognition import attends_by_hand, call_keywords, calls_interface, value_of

SiteName = Literal["self", "cross", "encoder"]

_CROSS = re.compile(
    r"encoder_attn|EncDecAttention|crossattention|cross_attn|cross_attention"
    r"|encoder_decoder_attention"
)
_TOWER = re.compile(r"(?:^|[._])(?:vision|visual|image|audio|speech|codec)(?:[._]|$)")
# Keywords that change which pairs exist in a way no mask or score rule states.
_UNMODELED = ("indices", "block_indices", "sinks")


@dataclass(frozen=True)
class Site:
    """One attention module.

    Attributes:
        name: Decoder self-attention, cross-attention, or attention that sees both ways.
        layer: Place among the modules of the same site, from 0.
        module_name: Qualified name, as in `named_modules()`.
        n_heads: Query heads.
        n_kv_heads: Key and value heads; each serves `n_heads / n_kv_heads` query heads.
        d_head: Width of a query and a key.
        d_value: Width of a value, and of a head's output.
        window: Sliding window in tokens as given to the attention call, or None.
        learned_sinks: A learned logit takes a share of every row.
        softcap: Bound of the tanh that caps the scores, or None.
        chunk: Tokens of a chunk beyond whose edge no query looks, or None.
    """

    name: SiteName
    layer: int
    module_name: str
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int
    window: int | None = None
    learned_sinks: bool = False
    softcap: float | None = None
    chunk: int | None = None


@dataclass(frozen=True)
class Capability:
    """Whether something can be done with a model, and the reason why or why not."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True)
class Anatomy:
    """Counts, attention sites and capabilities of a model.

    Attributes:
        model_type: Family, as in the config.
        n_layers: Layers of the stack that writes the output.
        d_model: Width of that stack's residual stream; 0 where its layers differ.
        vocab_size: Number of token ids, or None without a vocabulary.
        max_positions: Tokens the positions were made for, or None without a limit.
        sites: Every attention module that can be reached, in the model's order.
        capabilities: What can be done, with reasons.
    """

    model_type: str
    n_layers: int
    d_model: int
    vocab_size: int | None
    max_positions: int | None
    sites: tuple[Site, ...]
    capabilities: tuple[Capability, ...]

    @classmethod
    def of(cls, module: nn.Module) -> "Anatomy":
        """Read a transformers model's anatomy.

        Args:
            module: A transformers model; it is neither run nor changed.

        Raises:
            UnsupportedModelError: The module has no config to read.
        """
        if not hasattr(module, "config"):
            raise UnsupportedModelError(
                "an anatomy is read from a transformers model; got "
                f"{type(module).__name__}, which has no config. Pass the model itself, "
                "not one of its parts or a wrapper."
            )
        config: Any = module.config
        text = config.get_text_config(decoder=True)
        sites = tuple(_sites(module))
        return cls(
            model_type=config.model_type,
            n_layers=_first_count(text, "num_hidden_layers", "decoder_layers") or 0,
            d_model=_first_count(text, "hidden_size", "d_model", "n_embd") or 0,
            vocab_size=_first_count(text, "vocab_size"),
            max_positions=_first_count(
                text, "max_position_embeddings", "max_target_positions"
            ),
            sites=sites,
            capabilities=_capabilities(module, sites),
        )

    @property
    def site_names(self) -> tuple[SiteName, ...]:
        """Kinds of site that the model has, in order of first appearance."""
        return tuple(dict.fromkeys(site.name for site in self.sites))

    def at(self, name: str) -> tuple[Site, ...]:
        """The modules of one kind of site, layer by layer.

        Raises:
            UnsupportedModelError: The model has no such site.
        """
        found = tuple(site for site in self.sites if site.name == name)
        if not found:
            raise UnsupportedModelError(
                f"attention at the site '{name}' was asked for; this {self.model_type} "
                f"model has {', '.join(self.site_names) or 'none'}. "
                "Choose one that it has."
            )
        return found

    def capability(self, name: str) -> Capability:
        """One capability by its name.

        Raises:
            KeyError: There is no capability of that name.
        """
        return {each.name: each for each in self.capabilities}[name]

    def require_attention(self) -> None:
        """Refuse a model whose attention cannot be reached.

        Raises:
            UnsupportedModelError: With the reason.
        """
        tap = self.capability("tap")
        if not tap.available:
            raise UnsupportedModelError(
                f"tracing needs a model whose attention can be reached; {tap.reason}. "
                "Choose a model whose attention goes through transformers' attention "
                "interface, as Llama, Qwen, Gemma, GPT-2, BERT and Whisper do."
            )


def _sites(module: nn.Module) -> Iterator[Site]:
    counts: dict[str, int] = {}
    parts = dict(module.named_modules())
    found = [name for name, part in parts.items() if calls_interface(type(part))]
    found = found or [n for n, part in parts.items() if attends_by_hand(type(part))]
    for name in found:
        part = parts[name]
        keywords = call_keywords(type(part)) or {}
        config = _config_of(module, name)
        passed = {key: value_of(node, part) for key, node in keywords.items()}
        site = _site_name(module, name, part, passed)
        layer = counts[site] = counts.get(site, -1) + 1
        names = "num_heads", "num_attention_heads", "n_heads", "n_head"
        n_heads = _first_count(part, *names)
        n_heads = n_heads or _first_count(config, "num_attention_heads") or 1
        d_head = _first_count(
            part,
            "qk_head_dim",
            "head_dim",
            "head_size",
            "attention_head_size",
            "key_value_proj_dim",
        )
        d_head = d_head or _first_count(config, "head_dim")
        d_head = d_head or (_first_count(config, "hidden_size") or 0) // n_heads
        yield Site(
            name=site,
            layer=layer,
            module_name=name,
            n_heads=n_heads,
            n_kv_heads=_n_kv_heads(part, n_heads, d_head),
            d_head=d_head,
            d_value=_first_count(part, "v_head_dim") or d_head,
            window=_window(part, config, passed),
            learned_sinks=passed.get("s_aux") is not None,
            softcap=passed.get("softcap"),
            chunk=_chunk(part, config),
        )


def _capabilities(module: nn.Module, sites: tuple[Site, ...]) -> tuple[Capability, ...]:
    parts = dict(module.named_modules())
    kinds = [type(parts[site.module_name]) for site in sites]
    keywords = [call_keywords(kind) or {} for kind in kinds]
    by_hand = sorted({kind.__name__ for kind in kinds if not calls_interface(kind)})
    dense = bool(by_hand) or any("position_bias" in each for each in keywords)
    generates = bool(getattr(module, "can_generate", lambda: False)())
    tap = _tap(module, sites, {key for each in keywords for key in each})
    if not tap.available:
        memory = tap.reason
    elif by_hand:
        what = "computes attention by itself, with masks or scores"
        memory = f"{', '.join(by_hand)} {what} of size query x key"
    elif dense:
        memory = "the model itself builds a bias of size query x key"
    else:
        memory = "nothing of size query x key has to be built"
    return (
        tap,
        Capability("linear_memory", tap.available and not dense, memory),
        Capability(
            "generation",
            generates,
            "the model has a language-model head"
            if generates
            else f"{type(module).__name__} does not generate",
        ),
    )


def _tap(module: nn.Module, sites: tuple[Site, ...], keywords: set[str]) -> Capability:
    name = type(module).__name__
    reached = {type(module.get_submodule(site.module_name)) for site in sites}
    outside = sorted(
        {
            type(part).__name__
            for part in module.modules()
            if "Attention" in type(part).__name__
            and type(part) not in reached
            and not calls_interface(type(part))
            and any(True for _ in part.parameters())
            and not any("Attention" in type(p).__name__ for p in _below(part))
        }
    )
    by_hand = any(not calls_interface(kind) for kind in reached)
    can_choose = getattr(type(module), "_can_set_attn_implementation", lambda: True)
    unmodeled = [key for key in _UNMODELED if key in keywords]
    if unmodeled:
        reason = (
            f"{name} passes '{unmodeled[0]}' to its attention, which is not modeled"
        )
    elif not sites and outside:
        reason = (
            f"{name} computes attention inside {', '.join(outside)}, which neither "
            "calls transformers' attention interface nor takes one softmax over whole "
            "rows"
        )
    elif not sites:
        reason = f"{name} has no attention"
    elif not by_hand and not can_choose():
        reason = f"{name} does not let its attention implementation be chosen"
    else:
        reach = f"{len(sites)} attention modules can be reached"
        if by_hand:
            reach += ", in the functions of torch that they call"
        if outside:
            reach += f", those of {', '.join(outside)} cannot"
        return Capability("tap", True, reach)
    return Capability("tap", False, reason)


def _below(part: nn.Module) -> Iterator[nn.Module]:
    return (each for each in part.modules() if each is not part)


def _site_name(
    module: nn.Module, name: str, part: nn.Module, passed: dict[str, Any]
) -> SiteName:
    if _CROSS.search(name) or getattr(part, "is_cross_attention", False):
        return "cross"
    if _TOWER.search(name):
        return "encoder"
    # In a pair of stacks the name decides: some decoders leave causality to the mask.
    stacks = [each for each in name.split(".") if each in ("encoder", "decoder")]
    if stacks and getattr(module.config, "is_encoder_decoder", False):
        return "encoder" if stacks[0] == "encoder" else "self"
    causal = passed.get("is_causal")
    if causal is None:
        causal = getattr(part, "is_causal", None)
    if causal is None and not calls_interface(type(part)):
        causal = _looks_back(part, _config_of(module, name))
    return "encoder" if causal is False else "self"


def _looks_back(part: nn.Module, config: Any) -> bool:
    """Whether a module that does not say so is causal, by its family and config."""
    family = vars(sys.modules[type(part).__module__])
    if any(name.endswith("ForMaskedLM") for name in family):
        return bool(getattr(config, "is_decoder", False))
    return bool(getattr(config, "causal", True))


def _n_kv_heads(part: nn.Module, n_heads: int, d_head: int) -> int:
    groups = _first_count(part, "num_key_value_groups")
    if groups:
        return n_heads // groups
    count = _first_count(part, "num_kv_heads")
    if count:
        return count
    for name in ("k_proj", "k", "key"):
        width = getattr(getattr(part, name, None), "out_features", 0)
        if width and width % d_head == 0:
            return width // d_head
    return n_heads


def _window(part: nn.Module, config: Any, passed: dict[str, Any]) -> int | None:
    if "sliding_window" in passed:
        window = passed["sliding_window"]
    else:
        is_sliding = _layer_type(part, config) == "sliding_attention"
        window = _first_count(config, "sliding_window") if is_sliding else None
    return window if isinstance(window, int) and window > 0 else None


def _chunk(part: nn.Module, config: Any) -> int | None:
    if _layer_type(part, config) != "chunked_attention":
        return None
    return _first_count(config, "attention_chunk_size")


def _layer_type(part: nn.Module, config: Any) -> str | None:
    kinds, layer = (
        getattr(config, "layer_types", None),
        getattr(part, "layer_idx", None),
    )
    return kinds[layer] if kinds and layer is not None and layer < len(kinds) else None


def _config_of(module: nn.Module, name: str) -> Any:
    """The config of the part of that name, or of its nearest parent that has one."""
    while name:
        config = getattr(module.get_submodule(name), "config", None)
        if config is not None:
            return config
        name = name.rpartition(".")[0]
    return module.config


def _first_count(holder: Any, *names: str) -> int | None:
    """The first of the attributes that holds a positive whole number."""
    for name in names:
        count = getattr(holder, name, None)
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            return count
    return None
