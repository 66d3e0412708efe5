"""The command line's door: runs a command, turns errors into exit codes.

Exit codes: 0 done, 1 our mistake, 2 the caller's (one line on stderr), 130 interrupted.
Nothing heavy is imported before the door is open, so that Ctrl-C is always caught.
"""

import _thread
import atexit
import logging
import sys
import threading
import warnings

from interp.errors import InterpError

INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its code."""
    before, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        from interp.app.commands import run

        code = run()
    except InterpError as error:
        _say(str(error))
        code = 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        sys.unraisablehook = before
    if code == INTERRUPTED:
        warnings.simplefilter("ignore")  # of what was cut off halfway
        _drop_writes()
        _say("Interrupted. What was finished is kept; run the same command to go on.")
    sys.exit(code)


def _say(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"interp: {' '.join(message.split())}\n")


def _drop_writes() -> None:
    """Cuts off Zarr's writes under way; at exit it would wait, then complain."""
    logging.getLogger("asyncio").disabled = True
    if "zarr" in sys.modules:
        from zarr.core.sync import cleanup_resources

        atexit.unregister(cleanup_resources)


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Sends a Ctrl-C again that came during a destructor, where Python drops it."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)
