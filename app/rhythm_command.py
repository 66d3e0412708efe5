"""The command `interp rhythm`: what it takes."""

from pathlib import Path
from typing import Annotated

import typer

from interp.app.options import Device, Dtype, MaxTokens, Reference, folder_for, typed
from interp.app.progress import make_shown
from interp.errors import InputError

LINES = (".jsonl", ".ndjson")
"""Files that hold chains, one to a line."""


def rhythm(
    model: Reference,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="UTF-8 file, read as it stands; or JSON lines (.jsonl) with question "
            "or prompt, and response where it is known; may be repeated. Unset, and no "
            "--prompt: a shipped text."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What the model is asked, step by step; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. Unset: rhythm-MODEL.")
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Prompts as they stand, without frame or template."),
    ] = False,
    new_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens that the model writes.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="Of sampling; 0 takes the likeliest token.")
    ] = 0.7,
    layers: Annotated[
        str | None,
        typer.Option(help="Heads of these alone: middle, or 10,12,15. Unset: all."),
    ] = None,
    exclude_sink: Annotated[
        bool,
        typer.Option(
            "--exclude-sink", help="Tell local from global heads without token 0."
        ),
    ] = False,
    max_tokens: MaxTokens = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of sampling, chance and intervals.")
    ] = 0,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Look-back and later influence of tokens: tokens.csv, coupling.csv, index.html.

    Of texts, or of what the model writes. Prints the path of the page. An interrupted
    run goes on with the same command.
    """
    from interp.app.rhythm import Request, make
    from interp.app.texts import read_texts
    from interp.probes.reach import Reach
    from interp.tasks import Chains

    if text and prompt:
        raise InputError(
            f"--text {text[0]} and --prompt were both given. Give one of them; chains "
            "of both kinds can stand in one file of JSON lines."
        )
    options = {"max_new_tokens": new_tokens, "temperature": temperature, "seed": seed}
    plain = [path for path in text or () if path.suffix.lower() not in LINES]
    files = [path for path in text or () if path not in plain]
    asked = {
        path.name: Chains(path, name=f"chains-{number}", **options)
        for number, path in enumerate(files)
    }
    if prompt:
        said = [{"prompt" if raw else "question": each} for each in prompt]
        asked["prompt"] = Chains(said, name="prompt", **options)
    request = Request(
        model=model,
        out=out or folder_for("rhythm", model),
        texts=read_texts(plain) if plain or not asked else {},
        asked=asked,
        reach=Reach(exclude_sink=exclude_sink, layers=_layers(layers)),
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
        command=typed(),
    )
    make_shown("rhythm", make, request)


def _layers(text: str | None) -> str | tuple[int, ...] | None:
    """What `--layers` was given.

    Raises:
        InputError: It is neither "middle" nor whole numbers.
    """
    if text is None or text == "middle":
        return text
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(
            f"--layers takes middle, or whole numbers; got {text!r}. Write it as "
            "10,12,15."
        )
    return tuple(map(int, parts))
