"""What changes a model's attention while it runs, and which changes are in force.

The changes belong to the model, not to a tap: a trace inside an intervention sees the
changed attention, and interventions nest.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from interp.anatomy import Site
from interp.kernels.edits import Edit
from interp.kernels.rules import AttentionCall

_in_force: WeakKeyDictionary[nn.Module, tuple["AttentionEdit", ...]] = (
    WeakKeyDictionary()
)


class AttentionEdit:
    """A change of a model's attention calls; as it stands, none."""

    @property
    def uses_keys(self) -> bool:
        """Whether it reads or changes queries or keys, which not every model shows."""
        return False

    def inputs(self, site: Site, call: AttentionCall) -> AttentionCall:
        """The call with other queries, keys, values or rules."""
        return call

    def weights(self, site: Site, call: AttentionCall) -> Sequence[Edit]:
        """Changes of the call's attention weights, in order."""
        return ()

    def output(self, site: Site, call: AttentionCall, output: Tensor) -> Tensor:
        """What each head gives to the output projection.

        Args:
            site: Which module attends.
            call: Its call, with all inputs edited.
            output: `[batch, head, query, d_value]`; must not be changed in place.
        """
        return output


def in_force(module: nn.Module) -> tuple[AttentionEdit, ...]:
    """The changes of a model's attention, the outermost first."""
    return _in_force.get(module, ())


@contextmanager
def editing(module: nn.Module, edit: AttentionEdit) -> Iterator[None]:
    """Puts a change in force for the taps of a model, until the block ends."""
    before = in_force(module)
    _in_force[module] = (*before, edit)
    try:
        yield
    finally:
        _in_force[module] = before
