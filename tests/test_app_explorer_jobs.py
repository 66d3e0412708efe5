"""Jobs: one run for all who ask the same, progress, cancelling, errors."""

import threading
import time

import pytest

from interp.app.explorer.jobs import OUR_MISTAKE, Board
from interp.app.explorer.memory import Shelf
from interp.errors import InputError


@pytest.fixture
def board():
    return Board(Shelf(1 << 20, weigh=len))


def ended(job):
    """Wait for the end of a job; its state."""
    for _ in range(1000):
        if not job.is_active:
            return job.state
        time.sleep(0.005)
    raise AssertionError("the job goes on")


class Gate:
    """Work that goes on, step by step, until it is told to end."""

    def __init__(self):
        self.open, self.runs = threading.Event(), 0

    def __call__(self, tell):
        self.runs += 1
        while not self.open.wait(0.005):
            tell("step", 3, 7)
        return b"result"


def test_the_result_is_kept_under_its_key(board):
    assert ended(board.start("k", "work", lambda tell: b"result", "me")) == "done"
    assert board.results.get("k") == b"result"
    assert board.find("k", "me") is None


def test_equal_keys_share_one_run(board):
    gate = Gate()
    first = board.start("k", "work", gate, "me")
    second = board.start("k", "work", gate, "you")
    gate.open.set()
    assert first is second
    assert ended(first) == "done"
    assert gate.runs == 1


def test_progress_is_told(board):
    gate = Gate()
    job = board.start("k", "work", gate, "me")
    while job.total == 0:
        time.sleep(0.005)
    assert (job.step, job.done, job.total) == ("step", 3, 7)
    gate.open.set()
    ended(job)


def test_a_cancelled_job_ends_at_its_next_step(board):
    job = board.start("k", "work", Gate(), "me")
    board.cancel("k", "me")
    assert ended(job) == "cancelled"
    assert board.results.get("k") is None


def test_cancelling_leaves_the_job_to_another_living_session(board):
    gate = Gate()
    job = board.start("k", "work", gate, "me")
    board.find("k", "you")
    board.cancel("k", "me", alive={"you"})
    assert job.is_active
    assert board.find("k", "me") is None
    gate.open.set()
    assert ended(job) == "done"


def test_a_session_that_is_gone_keeps_no_job_alive(board):
    job = board.start("k", "work", Gate(), "me")
    board.find("k", "gone")
    board.cancel("k", "me", alive=set())
    assert ended(job) == "cancelled"


def test_a_new_session_finds_the_job_again_as_after_a_reload(board):
    gate = Gate()
    job = board.start("k", "work", gate, "before")
    assert board.find("k", "after") is job
    gate.open.set()
    ended(job)


def test_the_callers_mistake_is_told_in_its_words(board):
    def work(tell):
        raise InputError("Asked for L99.H0. Choose another.")

    job = board.start("k", "work", work, "me")
    assert ended(job) == "failed"
    assert job.message == "Asked for L99.H0. Choose another."


def test_our_mistake_shows_no_details(board):
    def work(tell):
        raise RuntimeError("/secret/path")

    job = board.start("k", "work", work, "me")
    assert ended(job) == "failed"
    assert job.message == OUR_MISTAKE


def test_a_failed_job_can_be_run_again(board):
    def work(tell):
        raise InputError("No.")

    ended(board.start("k", "work", work, "me"))
    job = board.start("k", "work", lambda tell: b"now", "me")
    assert ended(job) == "done"
