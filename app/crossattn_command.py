"""The command `interp crossattn`: what it takes."""

from pathlib import Path
from typing import Annotated

import typer

from interp.app.options import (
    Device,
    Dtype,
    Names,
    Reference,
    folder_for,
    lengths,
    split,
    typed,
)
from interp.app.progress import make_shown


def crossattn(
    model: Reference,
    given: Annotated[
        str,
        typer.Argument(
            metavar="AUDIO|TEXT", help="A recording, a text file, or the text itself."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results. Unset: crossattn-MODEL."),
    ] = None,
    methods: Names = None,
    written: Annotated[
        str | None,
        typer.Option(help="The output text. Unset: what the model itself writes."),
    ] = None,
    begin: Annotated[
        float, typer.Option(min=0, help="Where in a recording to begin, in seconds.")
    ] = 0.0,
    seconds: Annotated[
        float | None,
        typer.Option(min=0, help="How much of a recording. Unset: to its end."),
    ] = None,
    masks: Annotated[
        int, typer.Option(min=1, help="Random masks of a perturbation of sound.")
    ] = 200,
    segments: Annotated[
        str, typer.Option(help="Superpixels of 5 s of sound, each size in turn.")
    ] = "200,250,300",
    steps: Annotated[
        int, typer.Option(min=1, help="Points of integrated gradients over sound.")
    ] = 4,
    faithfulness: Annotated[
        bool, typer.Option(help="Make deletion and insertion curves.")
    ] = True,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Output tokens of an utterance at most.")
    ] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of masks and intervals.")] = 0,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Attention against saliency: crossattn.csv, crossattn.zarr, index.html.

    Cross-attention of a model of speech or text, or attention of a decoder alone.
    Prints the path of the page. An interrupted run goes on with the same command.
    """
    from interp.app.crossattn import Request, make
    from interp.probes.crossattn import Options, named

    request = Request(
        model=model,
        given=given,
        out=out or folder_for("crossattn", model),
        methods=named(split("--methods", methods)),
        options=Options(
            steps=steps,
            masks=masks,
            segments=tuple(lengths(segments, "--segments")),
            seed=seed,
        ),
        text=written,
        max_tokens=max_tokens,
        faithfulness=faithfulness,
        seed=seed,
        begin=begin,
        seconds=seconds,
        device=device,
        dtype=dtype,
        command=typed(),
    )
    make_shown("comparison", make, request)
