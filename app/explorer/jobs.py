"""Long work outside the script's thread: progress, cancelling, results.

A job is named by a key that tells everything that decides its result. The key follows
from the address of the page, so that a reload finds the job again; and two people who
ask for the same thing share one run of it and nothing else.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from interp.app.explorer.memory import Shelf
from interp.app.progress import Progress
from interp.errors import InterpError

WORKERS = 2
"""Jobs at once; further ones wait."""

Work = Callable[[Progress], Any]
"""Makes the result, and tells how far it is."""

OUR_MISTAKE = (
    "This went wrong inside the program; its log has the details. The rest of the page "
    "can still be used."
)


class CancelledError(Exception):
    """Nobody wants the job any more."""


@dataclass
class Job:
    """One run of some work.

    Attributes:
        key: What decides the result.
        title: What is done, for the reader.
        state: "waiting", "running", "done", "failed" or "cancelled".
        step: What is done now.
        done: How much of the step, of `total`; 0 where nobody knows.
        message: Why it failed.
    """

    key: str
    title: str
    state: str = "waiting"
    step: str = "waiting for other work"
    done: int = 0
    total: int = 0
    message: str = ""
    wanted_by: set[str] = field(default_factory=set)
    given_up_by: set[str] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")

    def tell(self, step: str, done: int, total: int) -> None:
        """Progress of the work, which ends here once nobody wants it."""
        if self.stop.is_set():
            raise CancelledError
        self.step, self.done, self.total = step, done, total


class Board:
    """All jobs of the server, and the results of those that are done.

    Args:
        results: Where results are kept.
        workers: Jobs at once.
    """

    def __init__(self, results: Shelf, workers: int = WORKERS) -> None:
        self.results = results
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="job")

    def start(self, key: str, title: str, work: Work, who: str) -> Job:
        """The job of that key: the one that is under way, else a new one."""
        with self._lock:
            job = self._jobs.get(key)
            if job is None or not job.is_active or job.stop.is_set():
                job = self._jobs[key] = Job(key, title)
                self._pool.submit(self._run, job, work)
            job.wanted_by.add(who)
            job.given_up_by.discard(who)
        return job

    def find(self, key: str, who: str) -> Job | None:
        """The job of that key, unless this session has given it up."""
        job = self._jobs.get(key)
        if job is None or who in job.given_up_by:
            return None
        if job.is_active:
            job.wanted_by.add(who)
        return job

    @property
    def is_busy(self) -> bool:
        """Whether any job waits or runs."""
        return any(job.is_active for job in list(self._jobs.values()))

    def cancel(self, key: str, who: str, alive: Iterable[str] = ()) -> None:
        """Give a job up; it ends unless another living session waits for it."""
        job = self._jobs.get(key)
        if job is not None:
            job.wanted_by.discard(who)
            job.given_up_by.add(who)
            if not job.wanted_by & set(alive):
                job.stop.set()

    def _run(self, job: Job, work: Work) -> None:
        try:
            job.tell("starting", 0, 0)
            job.state = "running"
            self.results.put(job.key, work(job.tell), job.title)
            with self._lock:
                if self._jobs.get(job.key) is job:
                    del self._jobs[job.key]
            job.state = "done"
        except CancelledError:
            job.state = "cancelled"
        except InterpError as error:
            job.message, job.state = str(error), "failed"
        except Exception:
            logging.getLogger(__name__).exception("%s failed", job.title)
            job.message, job.state = OUR_MISTAKE, "failed"
