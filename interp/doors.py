"""What each door into a model gives of one short text, all in the same form."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn
from transformers import AutoTokenizer

from interp.anatomy import Site
from interp.capture import Capture
from interp.errors import InterpError, UnsupportedModelError
from interp.forward import evaluating, lean
from interp.inputs import Inputs
from interp.kernels import reference
from interp.kernels.definitions import Statistic
from interp.kernels.rules import AttentionCall
from interp.models import Model
from interp.tap import Visit, tap
from interp.tracing import trace

LARGEST = 10**9
"""Parameters up to which a copy in float64 is made."""

MAPS = {
    "self": ("decoder_attentions", "attentions"),
    "cross": ("cross_attentions",),
    "encoder": ("encoder_attentions", "attentions"),
}
"""Fields of an eager output that hold a site's maps."""

Arrays = dict[tuple[str, int, str], Tensor]
"""By site, layer and name of the array."""


class Calls:
    """Numbers the calls of each site; one module may attend in many layers (ALBERT)."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def next(self, site: Site) -> int:
        """The layer of a site's next call."""
        self.counts[site.name] += 1
        return self.counts[site.name] - 1


def _fitting(site: Site, wanted: Sequence[Statistic]) -> list[Statistic]:
    """Those that can be asked of a site."""
    return [s for s in wanted if site.name != "cross" or not s.positional]


def ours(model: Model, inputs: Inputs, wanted: Sequence[Statistic]) -> Arrays:
    """The statistics of the tap."""
    found: Arrays = {}
    calls = Calls()

    def keep(visit: Visit) -> None:
        layer = calls.next(visit.site)
        found.update(
            ((visit.site.name, layer, name), values)
            for name, values in visit.arrays.items()
            if values.is_floating_point()
        )

    run(model, inputs, keep, lambda site: _fitting(site, wanted))
    return found


def run(
    model: Model,
    inputs: Inputs,
    visit: Callable[[Visit], None],
    wanted: Callable[[Site], Sequence[Statistic]] = lambda site: (),
) -> None:
    """One forward under the tap."""
    options = {"anatomy": model.anatomy, "padding": inputs.decoder.real}
    tapped = tap(model.module, visit, wanted=wanted, **options)
    with torch.no_grad(), evaluating(model.module), tapped:
        model.module(**inputs.forward, **lean(model.module))


def eager_arrays(
    module: nn.Module,
    inputs: Inputs,
    calls: dict[tuple[str, int], AttentionCall],
    wanted: Sequence[Statistic],
) -> Arrays:
    """The definitions, on the maps that the model's eager attention gives out."""
    maps = _maps(module, inputs)
    found: Arrays = {}
    for (name, layer), call in calls.items():
        own = maps.get(name, ())
        if layer >= len(own):
            raise UnsupportedModelError(
                f"{type(module).__name__} gives out {len(own)} maps of the site "
                f"{name}, fewer than it has layers; nothing can be held against them."
            )
        weights = own[layer].to(call.query.device)[: call.n_batch]
        _require_weights(module, weights, call)
        call = replace(
            call,
            query=call.query.to(weights.dtype),
            key=call.key.to(weights.dtype),
            value=call.value.to(weights.dtype),
        )
        fitting = [s for s in wanted if name != "cross" or not s.positional]
        arrays = reference.statistics(call, tuple(fitting), weights)
        found |= {
            (name, layer, key): values
            for key, values in arrays.items()
            if values.is_floating_point()
        }
    return found


def rounded(module: nn.Module, seed: int) -> nn.Module:
    """The model with each weight moved up or down by one rounding, in its place."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.is_floating_point():
                up = (torch.rand(weight.shape, generator=draw) < 0.5).to(weight.device)
                step = torch.finfo(weight.dtype).eps * weight
                weight += torch.where(up, step, -step)
    return module


def _require_weights(module: nn.Module, maps: Tensor, call: AttentionCall) -> None:
    """Refuses what a model gives out in the place of the weights that it applies."""
    name = type(module).__name__
    shape = (*call.query.shape[:3], call.key.shape[2])
    sums = maps.double().sum(-1)
    if tuple(maps.shape) != shape:
        what = f"of shape {tuple(maps.shape)} instead of {shape}"
    elif (maps < 0).any() or (sums > 1.01).any():
        what = "that are no weights: negative, or rows of more than 1"
    elif call.score.sink_logits is not None and (sums > 1 - 1e-6).all():
        what = "before its learned sink has taken its share"
    else:
        return
    raise UnsupportedModelError(
        f"{name} gives out maps {what}; nothing can be held against them."
    )


def _maps(module: Any, inputs: Inputs) -> dict[str, Sequence[Tensor]]:
    """The model's own eager maps `[sample, head, query, key]`, by site."""
    before = module.config._attn_implementation
    try:
        with torch.no_grad(), evaluating(module):
            module.set_attn_implementation("eager")
            if module.config._attn_implementation != "eager":
                raise ValueError("it cannot be switched to eager")
            options = lean(module) | {"output_attentions": True}
            output = module(**inputs.forward, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{type(module).__name__} was to attend eagerly and give out its maps; it "
            f"does not ({' '.join(str(error).split())[:160]})."
        ) from error
    finally:
        module.set_attn_implementation(before)
    given = {
        site: next((output.get(field) for field in fields if output.get(field)), ())
        for site, fields in MAPS.items()
    }
    return {
        site: [each for each in maps if isinstance(each, Tensor)]
        for site, maps in given.items()
    }


def exact(
    model: Model,
    inputs: Inputs,
    calls: dict[tuple[str, int], AttentionCall],
    wanted: Sequence[Statistic],
) -> tuple[Arrays, str]:
    """Every statistic in float64, and what of."""
    n_parameters = sum(p.numel() for p in model.module.parameters())
    if n_parameters <= LARGEST:
        exactly: Any = copy.deepcopy(model.module).double()
        exactly.config._experts_implementation = "eager"  # the other has no float64
        forward = {
            name: value.double()
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for name, value in inputs.forward.items()
        }
        try:
            found = eager_arrays(
                exactly, replace(inputs, forward=forward), calls, wanted
            )
            return found, "the model's eager attention in float64"
        except InterpError:
            pass
    return defined(calls, wanted, torch.float64), SEEN


SEEN = "the definitions in float64 on the queries and keys that were seen"


def defined(
    calls: dict[tuple[str, int], AttentionCall],
    wanted: Sequence[Statistic],
    dtype: torch.dtype | None = None,
) -> Arrays:
    """The definitions on the queries and keys that were seen, in a precision."""
    found: Arrays = {}
    for (name, layer), call in calls.items():
        if dtype is not None:
            tensors = {n: getattr(call, n).to(dtype) for n in ("query", "key", "value")}
            call = replace(call, **tensors)
        fitting = tuple(s for s in wanted if name != "cross" or not s.positional)
        arrays = reference.statistics(call, fitting)
        found |= {
            (name, layer, key): values
            for key, values in arrays.items()
            if values.is_floating_point()
        }
    return found


def _of_trace(trace: xr.DataTree) -> Arrays:
    """A trace of one text, as the doors give their arrays."""
    found: Arrays = {}
    for site in trace.children.values():
        for name, array in site.to_dataset().data_vars.items():
            if array.dtype.kind == "f" and name != "edges":
                for layer, values in enumerate(array.values):
                    found[str(site.name), layer, str(name)] = torch.tensor(values)[None]
    return found


def in_nnsight(model: Model, inputs: Inputs, wanted: Sequence[Statistic]) -> Arrays:
    """What interp.trace gives within an nnsight trace of a copy of the model."""
    _require("nnsight")
    import nnsight

    capture = Capture(tuple(wanted), edges=None, residual=False)
    with _peer("nnsight", model):
        wrapper = nnsight.NNsight(twin(model))
        traced = trace(wrapper, dict(inputs.forward), door="nnsight", capture=capture)
    return _of_trace(traced)


def in_bridge(
    model: Model, inputs: Inputs, wanted: Sequence[Statistic], door: Any
) -> Arrays:
    """What interp.trace gives of a bridge around a copy of the model."""
    _require("transformer_lens")
    capture = Capture(tuple(wanted), edges=None, residual=False)
    with _peer("TransformerLens", model):
        bridge = bridged(twin(model), model.tokenizer, model.name)
        traced = trace(bridge, dict(inputs.forward), door=door, capture=capture)
    return _of_trace(traced)


def bridged(module: Any, tokenizer: Any, name: str) -> Any:
    """TransformerLens' bridge around a model, which it changes."""
    from transformer_lens.model_bridge import TransformerBridge

    module.config.architectures = [type(module).__name__]
    with _kept(tokenizer) as kept:
        bridge = TransformerBridge.boot_transformers(
            name, hf_model=module, tokenizer=kept, device=str(module.device)
        )
    bridge.eval()
    return bridge


def twin(model: Model) -> Any:
    """A copy, for those who leave their hooks on a model or change it.

    Raises:
        UnsupportedModelError: The model is too large to be copied unasked.
    """
    n_parameters = sum(p.numel() for p in model.module.parameters())
    if n_parameters > LARGEST:
        raise UnsupportedModelError(
            f"It would be given a copy of the model; this one has {n_parameters:,} "
            f"parameters, more than {LARGEST:,}. Wrap it by hand and trace that."
        )
    return copy.deepcopy(model.module)


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise UnsupportedModelError(
            f"{package} is not installed. Install it to hold it against the others."
        )


@contextmanager
def _peer(name: str, model: Model) -> Iterator[None]:
    """Whatever another package raises is its answer."""
    try:
        yield
    except InterpError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnsupportedModelError(
            f"{name} does not take {type(model.module).__name__}: {said}"
        ) from error


@contextmanager
def _kept(tokenizer: Any) -> Iterator[Any]:
    """The tokenizer as it is read from a folder, where a bridge looks for it again."""
    if tokenizer is None or tokenizer.init_kwargs.get("name_or_path"):
        yield tokenizer
        return
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        yield AutoTokenizer.from_pretrained(folder)
