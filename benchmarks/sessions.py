"""Many people at the explorer at once: no error, no cross-talk, memory levels off.

    python benchmarks/sessions.py --sessions 20 --minutes 5 --out sessions.json

Each session is a browser tab of its own, with a text and a head of its own. Once all
texts are read, the clock runs. In every round all sessions go to a page at once; then
each has to show its own text and head, and no error. The memory of the server is read
meanwhile, and counts as level if its last quarter grew by less than 5 % over the third.
Exit code 1 if anything failed.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from explorer_browser import browser, explorer_process, page, settled

PAGES = {
    "Overview": "The strongest heads",
    "Head": "What is lost without it",
    "Tokens": "Striking tokens",
    "Long map": "every weight",
    "Ablate": "What the model says",
}
"""Pages that are gone to, and what each ends with."""

TEXT = "Session {0} counts to {0}. The keeper of lamp {0} wrote {0} names. " * 4
PATIENCE = 90_000
"""Milliseconds until a page has to show what it should."""

LEVEL = 0.05
"""Growth of the last quarter over the third that still counts as level."""


def main() -> int:
    """Run the sessions; write and print what was found."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sessions", type=int, default=20)
    options.add_argument("--minutes", type=float, default=5)
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--out", type=Path)
    asked = options.parse_args()
    log = Path(tempfile.mkdtemp()) / "explorer.log"
    with explorer_process(log=log) as (address, process):
        watch = Watch(process.pid)
        found = steps(address, asked, watch)
    found |= {
        "sessions": asked.sessions,
        "minutes": asked.minutes,
        "memory_mib": watch.mib,
        **watch.told(),
        "log_errors": sum("Traceback" in line for line in log.open()),
    }
    report = json.dumps(found, indent=2)
    if asked.out:
        asked.out.write_text(report + "\n")
    shown = {k: v for k, v in found.items() if k != "memory_mib"}
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    return 1 if found["faults"] else 0


def steps(address: str, asked: argparse.Namespace, watch: "Watch") -> dict:
    """All sessions, round by round, once each has read its text."""
    faults: list[str] = []
    times: list[float] = []
    rng = random.Random(0)
    with browser() as started, ExitStack() as stack:
        tabs = range(asked.sessions)
        pages = [stack.enter_context(page(started, address)) for _ in tabs]
        for found in pages:
            found.set_default_timeout(PATIENCE)
            found.goto(f"{address}/?tokens={asked.tokens}")
        for number in tabs:
            settled(pages[number], "The strongest heads")
            paste(pages[number], TEXT.format(number))
        for number in tabs:
            settled(pages[number], f"on Session {number} ")
        until = time.monotonic() + 60 * asked.minutes
        watch.start()
        while time.monotonic() < until:
            begun = time.monotonic()
            visits = [
                (found, rng.choice(list(PAGES)), number, head_of(number, len(times)))
                for number, found in enumerate(pages)
            ]
            for act in (go, look, check):
                for visit in visits:
                    try:
                        act(*visit)
                    except Exception as error:
                        said = f"{act.__name__} {visit[1:]}: {str(error)[:300]}"
                        faults.append(said)
            times.append(time.monotonic() - begun)
            sys.stderr.write(f"round {len(times)}: {times[-1]:.0f} s\n")
            for number in tabs:
                said = pages[number].faults
                faults += [f"session {number}: {fault}" for fault in said]
                said.clear()
        watch.stop.set()
        watch.join()
    times.sort()
    return {
        "rounds": len(times),
        "steps": len(times) * asked.sessions,
        "faults": faults,
        "median_round_s": round(times[len(times) // 2], 2) if times else None,
        "slowest_round_s": round(times[-1], 2) if times else None,
    }


def paste(found, text: str) -> None:
    """Bring a text of one's own."""
    found.get_by_role("button", name="Paste a text").click()
    found.get_by_placeholder("Any text").fill(text)
    found.get_by_role("button", name="Read this text").click()


def head_of(number: int, turn: int) -> str:
    """The head that a session looks at in a round."""
    return f"L{(number + 7 * turn) % 30}.H{number % 9}"


def go(found, title: str, number: int, head: str) -> None:
    """Go to a page; nothing is waited for."""
    found.get_by_role("link", name=title, exact=True).click()


def look(found, title: str, number: int, head: str) -> None:
    """Choose a head, once the page is there."""
    found.get_by_role("heading", name=title, exact=True, level=1).wait_for()
    settled(found, PAGES[title])
    box = found.get_by_label("Head", exact=True)
    box.fill(head)
    box.press("Enter")


def check(found, title: str, number: int, head: str) -> None:
    """Everything that is shown has to be of this session, and whole."""
    found.wait_for_url(f"**head={head}**")
    settled(found, PAGES[title])
    if title != "Ablate":
        settled(found, head)
    text = found.get_by_label("Text", exact=True).first.input_value()
    if not text.startswith(f"Session {number} "):
        raise AssertionError(f"it sees the text {text[:60]}")
    for alert in found.get_by_role("alert").all_text_contents():
        raise AssertionError(f"an error: {alert[:200]}")


class Watch(threading.Thread):
    """Reads the server's memory while it works."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.mib: list[float] = []
        self.stop = threading.Event()
        self._status = Path(f"/proc/{pid}/status")

    def run(self) -> None:
        """Until it is stopped."""
        while not self.stop.wait(2):
            for line in self._status.read_text().splitlines():
                if line.startswith("VmRSS"):
                    self.mib.append(round(int(line.split()[1]) / 1024, 1))

    def told(self) -> dict:
        """Means of the quarters, and whether the last one still grew."""
        size = max(len(self.mib) // 4, 1)
        quarters = [self.mib[i : i + size] for i in range(0, 4 * size, size)]
        means = [round(sum(q) / len(q), 1) for q in quarters if q]
        level = len(means) == 4 and means[3] < means[2] * (1 + LEVEL)
        return {"memory_by_quarter_mib": means, "memory_is_level": level}


if __name__ == "__main__":
    sys.exit(main())
