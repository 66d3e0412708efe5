"""Takes results from the device to where they are kept, without waiting for them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache

import numpy as np
import torch
from torch import Tensor

Write = Callable[[str, int, dict[str, np.ndarray]], None]
"""Of a node, a layer and its arrays, as `Memory.write` and `Store.write`."""


class Transfer:
    """Hands each layer on to `write`, in the order in which they were sent.

    On a CUDA device a copy is only begun when a layer is sent; a thread waits for it
    and writes, while the caller goes on giving the device work.

    Args:
        write: Takes a layer whose arrays are on the host.
        behind: Layers of a node that may be under way; no more of them lie in the
            device's memory. 0 hands each on at once.
    """

    def __init__(self, write: Write, behind: int) -> None:
        self.write, self.behind = write, behind
        self._writer = ThreadPoolExecutor(1, "interp-transfer") if behind else None
        self._under_way: list[tuple[str, Future[None]]] = []

    def send(self, node: str, layer: int, arrays: dict[str, Tensor]) -> None:
        """Begins to copy a layer, which must not be changed afterwards.

        Raises:
            Exception: What `write` raised for this layer or one before it.
        """
        copy = _Copy(arrays)
        if self._writer is None:
            self.write(node, layer, copy.result())
            return
        job = self._writer.submit(lambda: self.write(node, layer, copy.result()))
        self._under_way.append((node, job))
        own = [job for name, job in self._under_way if name == node]
        for late in own[: len(own) - self.behind]:
            self._finish(late)

    def flush(self) -> None:
        """Waits until all that was sent is written; also when a forward fails.

        Raises:
            Exception: The first thing that `write` raised.
        """
        jobs = [job for _, job in self._under_way]
        self._under_way.clear()
        wait(jobs)
        for job in jobs:
            job.result()

    def _finish(self, late: "Future[None]") -> None:
        self._under_way = [each for each in self._under_way if each[1] is not late]
        late.result()


class _Copy:
    """Arrays of one layer, and so of one device, on their way to the host."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        self.arrays, self.done = arrays, None
        # Until the copy is done, its source must stay: it is read on another stream.
        self.source = arrays
        device = next((values.device for values in arrays.values()), None)
        if device is None or device.type != "cuda":
            return
        stream = _beside(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self.arrays = {
                name: torch.empty(
                    values.shape, dtype=values.dtype, pin_memory=True
                ).copy_(values, non_blocking=True)
                for name, values in arrays.items()
            }
            self.done = stream.record_event()

    def result(self) -> dict[str, np.ndarray]:
        """The arrays on the host; waits for this copy alone."""
        if self.done is not None:
            self.done.synchronize()
        return {name: values.cpu().numpy() for name, values in self.arrays.items()}


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a device's results are copied while it goes on."""
    return torch.cuda.Stream(device)
