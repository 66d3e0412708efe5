"""Pictures of the explorer's pages, in a real browser, on the real default model.

`make screenshots` runs it. Chromium has to be on the path: apt-get install -y chromium.
"""

import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from explorer_browser import browser, explorer, page, settled
from PIL import Image

OUT = Path(__file__).parent.parent / "docs" / "screenshots"
TOKENS = "tokens=192"
COLORS, RARE = 256, Image.Quantize.MAXCOVERAGE
"""A picture's colors; rare ones, such as the frame of one cell, are kept."""


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        name: Of the file.
        query: Of the address, beside the tokens.
        until: Text that is waited for.
        path: Of the page.
        button: Pressed before, and waited for what it brings.
        brings: Text that the button brings.
        heading: Scrolled to.
        dark: In dark mode.
    """

    name: str
    query: str
    until: str
    path: str = ""
    button: str = ""
    brings: str = ""
    heading: str = ""
    dark: bool = False


HEAD, TOKEN = "head=L18.H6", "token=21"
FOUR = "heads=L17.H3,L17.H4,L17.H5,L18.H6"
PROFILES, EFFECT, SAID = "Along the text", "Without 4 heads", "What the model says"
SHOTS = (
    Shot("overview", "", "The strongest heads"),
    Shot("overview-dark", "", "The strongest heads", dark=True),
    Shot("head", HEAD, "single weights", "head"),
    Shot("head-map", HEAD, "single weights", "head", heading="Its map"),
    Shot("head-profiles", HEAD, "Where it is", "head", heading=PROFILES),
    Shot("tokens", TOKEN, "Striking tokens", "tokens"),
    Shot("tokens-dark", TOKEN, "Striking tokens", "tokens", dark=True),
    Shot("long-map", HEAD, "every weight", "long_map"),
    Shot("long-map-near", f"{HEAD}&zoom=100-126,0-26", "every weight", "long_map"),
    Shot("ablate", FOUR, SAID, "ablate"),
    Shot("ablate-effect", FOUR, SAID, "ablate", "Run the ablation", "Diamond:", EFFECT),
    Shot("ablate-says", FOUR, SAID, "ablate", "Let it speak", "Greedy", SAID),
    Shot("compare", "with=without+some+heads", "Head by head", "compare"),
    Shot(
        "crossattn",
        "model=whisper-base",
        "Methods of saliency",
        "crossattn",
        "Compare attention with saliency",
        "How far they agree",
    ),
)


def main() -> None:
    """Write a picture of 1280 x 720 for each page, or for those that are named."""
    OUT.mkdir(exist_ok=True)
    log = Path(tempfile.mkdtemp()) / "explorer.log"
    with browser() as started, explorer(log=log) as address:
        for shot in SHOTS:
            if shot.name in (sys.argv[1:] or [shot.name]):
                take(started, address, shot)


def take(started, address: str, shot: Shot) -> None:
    """Open a page and save what it looks like once all is drawn."""
    with page(started, address, shot.dark) as found:
        found.goto(f"{address}/{shot.path}?{TOKENS}&{shot.query}")
        settled(found, shot.until)
        if shot.button:
            found.get_by_role("button", name=shot.button).click()
            settled(found, shot.brings)
        if shot.heading:
            heading = found.get_by_text(shot.heading).first
            heading.evaluate("e => e.scrollIntoView({block: 'start'})")
        found.mouse.move(0, 0)
        found.wait_for_timeout(1500)  # plotly fades in, and says not when it is done
        with Image.open(io.BytesIO(found.screenshot())) as picture:
            small = picture.convert("RGB").quantize(
                COLORS, RARE, dither=Image.Dither.NONE
            )
            small.save(OUT / f"{shot.name}.png", optimize=True)
        sys.stdout.write(f"{OUT / shot.name}.png\n")
        if found.faults:
            raise SystemExit(f"{shot.name}: {found.faults}")


if __name__ == "__main__":
    main()
