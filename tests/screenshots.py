"""Pictures of the explorer's pages, in a real browser, on the real default model.

`make screenshots` runs it. Chromium has to be on the path: apt-get install -y chromium.
"""

import sys
import tempfile
from pathlib import Path

from explorer_browser import browser, explorer, page, settled

OUT = Path(__file__).parent.parent / "docs" / "screenshots"
TOKENS = "tokens=192"
SHOTS = (
    ("overview", "", "", "The strongest heads", None, False),
    ("overview-dark", "", "", "The strongest heads", None, True),
    ("head", "head", "head=L18.H6", "What is lost without it", None, False),
    ("head-profiles", "head", "head=L18.H6", "Where it is", "Along the text", False),
    ("tokens", "tokens", "token=21", "Striking tokens", None, False),
    ("tokens-dark", "tokens", "token=21", "Striking tokens", None, True),
    ("ablate", "ablate", "heads=L17.H3,L17.H4,L17.H5,L18.H6", "says", None, False),
    ("compare", "compare", "with=without+some+heads", "Head by head", None, False),
)
"""Name, page, address, text that is waited for, heading that is scrolled to, dark."""


def main() -> None:
    """Write a picture of 1280 x 720 for each page."""
    OUT.mkdir(exist_ok=True)
    log = Path(tempfile.mkdtemp()) / "explorer.log"
    with browser() as started, explorer(log=log) as address:
        for name, path, query, text, heading, dark in SHOTS:
            with page(started, address, dark) as found:
                found.goto(f"{address}/{path}?{TOKENS}&{query}")
                settled(found, text)
                if name == "ablate":
                    found.get_by_role("button", name="Run the ablation").click()
                    settled(found, "Diamond: the effect of these heads")
                    heading = "Without 4 heads"
                if heading:
                    found.get_by_text(heading).first.evaluate(
                        "e => e.scrollIntoView({block: 'start'})"
                    )
                found.wait_for_timeout(1500)
                found.screenshot(path=OUT / f"{name}.png")
                sys.stdout.write(f"{OUT / name}.png\n")
                for fault in found.faults:
                    raise SystemExit(f"{name}: {fault}")


if __name__ == "__main__":
    main()
