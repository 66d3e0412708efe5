"""The neurons of an MLP: the matrix with which they write to the residual stream."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp import hooks
from interp.anatomy import Anatomy
from interp.errors import InputError, UnsupportedModelError


@dataclass(frozen=True, eq=False)
class DownProjection:
    """The last map of a block's MLP, from its neurons to the stream.

    Attributes:
        block: Place among the blocks of the stack that writes the output.
        name: Name of the module within its block, such as `mlp.down_proj`.
        module: A linear map, or GPT-2's transposed one.
    """

    block: int
    name: str
    module: nn.Module

    @property
    def weight(self) -> Float[Tensor, "channel neuron"]:
        """What each neuron writes to each channel; the parameter itself, in a view."""
        weight = self.module.get_parameter("weight")
        return weight.T if isinstance(self.module, Conv1D) else weight

    @property
    def bias(self) -> Float[Tensor, " channel"] | None:
        """What is written to each channel whatever the neurons do."""
        return getattr(self.module, "bias", None)

    def require(self, channel: int, neuron: int) -> None:
        """Refuse a weight that there is not.

        Raises:
            InputError: With those that there are.
        """
        n_channels, n_neurons = self.weight.shape
        if not (0 <= channel < n_channels and 0 <= neuron < n_neurons):
            raise InputError(
                f"The weight from neuron {neuron} to channel {channel} was asked for; "
                f"block {self.block} has neurons 0 to {n_neurons - 1} and channels 0 "
                f"to {n_channels - 1}. Choose within them."
            )

    def rank(self, channel: int, neuron: int) -> int:
        """Place of one weight among all of the matrix by magnitude, from 1."""
        magnitude = self.weight.detach().abs()
        return 1 + int((magnitude > magnitude[channel, neuron]).sum())


def stream_site(anatomy: Anatomy) -> str:
    """The site whose blocks write the output."""
    return "self" if "self" in anatomy.site_names else "encoder"


def down_projection(module: nn.Module, anatomy: Anatomy, block: int) -> DownProjection:
    """The down projection of a block, found by what it is: its name does not matter.

    It is the one linear map outside the block's attention whose output is as wide as
    the stream.

    Args:
        module: A transformers model.
        anatomy: Its anatomy.
        block: Place among the blocks of the stack that writes the output.

    Raises:
        InputError: There is no such block.
        UnsupportedModelError: The model's blocks are not found, its neurons belong to
            experts, or no single matrix writes what they do.
    """
    anatomy.require_attention()
    blocks = hooks.blocks(module, anatomy, stream_site(anatomy))
    if not 0 <= block < len(blocks):
        raise InputError(
            f"The neurons of block {block} were asked for; there are 0 to "
            f"{len(blocks) - 1}. Choose one of them."
        )
    holder = blocks[block]
    experts = [name for name, _ in holder.named_modules() if "expert" in name]
    if experts:
        raise UnsupportedModelError(
            f"The neurons of block {block} were asked for; a router sends each token "
            f"to some experts there ({experts[0]}), so no one matrix writes what they "
            "do. Choose a block with a dense MLP, or a model of such."
        )
    attention = {module.get_submodule(site.module_name) for site in anatomy.sites}
    inside = {part for each in attention for part in each.modules()}
    found = {
        name: part
        for name, part in holder.named_modules()
        if part not in inside and _width(part) == anatomy.d_model
    }
    if len(found) != 1:
        many = ", ".join(found) or "none"
        raise UnsupportedModelError(
            f"The neurons of block {block} were asked for; one linear map to the "
            f"{anatomy.d_model} channels of the stream was looked for outside its "
            f"attention, and there are: {many}. Choose a model whose MLPs have one, "
            "such as Llama, Gemma, GPT-2, GPT-NeoX or OPT."
        )
    [(name, part)] = found.items()
    return DownProjection(block, name, part)


def _width(part: nn.Module) -> int | None:
    """Channels that a linear map writes; None for any other module."""
    if isinstance(part, nn.Linear):
        return part.out_features
    return part.nf if isinstance(part, Conv1D) else None
