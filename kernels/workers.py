"""Single-threaded workers, one a core, for tiles that are too small to split.

A tile of the score map fits the cache of one core. Splitting each small operation
over a thread team costs more in waiting than it saves; whole row blocks on separate
workers cost nothing.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


@cache
def pool(n_workers: int) -> ThreadPoolExecutor:
    """Workers with one thread each, ready; the caller's own threads stay as they are.

    Args:
        n_workers: How many.
    """
    ready = threading.Barrier(n_workers)

    def one_thread_each() -> None:
        torch.get_num_threads()  # a thread's first call would undo the next line later
        torch.set_num_threads(1)
        ready.wait()

    before = torch.get_num_threads()
    made = ThreadPoolExecutor(n_workers, "interp", initializer=one_thread_each)
    for started in [made.submit(int) for _ in range(n_workers)]:
        started.result()
    torch.set_num_threads(before)
    return made


def run(work: Callable[[Job], Result], jobs: Sequence[Job], n: int) -> list[Result]:
    """Results of `work` on each job, in the order of the jobs, without gradients.

    Args:
        work: Called once for each job.
        jobs: Independent of each other.
        n: Number of workers; 0 runs the jobs here, with torch's own threads.
    """

    def quiet(job: Job) -> Result:
        with torch.no_grad():
            return work(job)

    if n == 0 or (n == 1 and torch.get_num_threads() == 1):
        return [quiet(job) for job in jobs]
    return list(pool(n).map(quiet, jobs))
