"""Results on their way to the host: the order, how many wait, and nothing lost."""

import threading
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from interp.transfer import Transfer


class Room:
    """Takes layers as a store does, and remembers in which order."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int]] = []
        self.values: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def write(self, node: str, layer: int, arrays: dict[str, np.ndarray]) -> None:
        self.taken.append((node, layer))
        self.values[node, layer] = arrays


def layer_of(n: int) -> dict[str, torch.Tensor]:
    values = torch.arange(6.0).view(2, 3) + n
    return {"values": values, "turned": values.T, "index": values.long()}


def test_arrays_arrive_as_they_were_sent():
    room = Room()
    transfer = Transfer(room.write, behind=1)
    for layer in range(3):
        transfer.send("self", layer, layer_of(layer))
    transfer.flush()
    assert room.taken == [("self", 0), ("self", 1), ("self", 2)]
    for layer in range(3):
        for name, sent in layer_of(layer).items():
            found = room.values["self", layer][name]
            assert found.dtype == sent.numpy().dtype
            np.testing.assert_array_equal(found, sent.numpy())


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_no_more_layers_of_a_node_wait_than_are_allowed(behind):
    room = Room()
    transfer = Transfer(room.write, behind)
    for layer in range(5):
        transfer.send("self", layer, layer_of(layer))
        sent = [("self", n) for n in range(layer + 1)]
        assert room.taken == sent[: len(room.taken)]
        assert len(room.taken) >= len(sent) - behind
    transfer.flush()
    assert room.taken == [("self", n) for n in range(5)]


def test_a_node_does_not_wait_for_the_layers_of_another():
    go_on = threading.Event()
    room = Room()

    def slowly(node: str, layer: int, arrays: dict[str, np.ndarray]) -> None:
        go_on.wait()
        room.write(node, layer, arrays)

    sent = [("residual", 0), ("self", 0), ("cross", 0)]
    transfer = Transfer(slowly, behind=1)
    for node, layer in sent:
        transfer.send(node, layer, layer_of(layer))
    assert room.taken == []
    go_on.set()
    transfer.flush()
    assert room.taken == sent


def test_what_was_sent_is_kept_when_the_forward_is_interrupted():
    room = Room()

    def forward() -> None:
        with ExitStack() as stack:
            transfer = Transfer(room.write, behind=1)
            stack.callback(transfer.flush)
            transfer.send("self", 0, layer_of(0))
            transfer.send("self", 1, layer_of(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forward()
    assert room.taken == [("self", 0), ("self", 1)]


def test_a_layer_that_cannot_be_written_is_not_tried_again():
    room = Room()

    def full(node: str, layer: int, arrays: dict[str, np.ndarray]) -> None:
        room.write(node, layer, arrays)
        if layer == 0:
            raise OSError("the disk is full")

    transfer = Transfer(full, behind=1)
    transfer.send("self", 0, layer_of(0))
    with pytest.raises(OSError, match="full"):
        transfer.send("self", 1, layer_of(1))
    transfer.flush()
    assert room.taken == [("self", 0), ("self", 1)]


def test_a_flush_with_nothing_under_way_writes_nothing():
    room = Room()
    transfer = Transfer(room.write, behind=1)
    transfer.flush()
    transfer.send("self", 0, layer_of(0))
    transfer.flush()
    transfer.flush()
    assert room.taken == [("self", 0)]
