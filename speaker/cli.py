"""The command `speaker`: convert, info, embed, verify; what is planned says that it is not built yet.

torch takes seconds to import, so a command imports what it needs when it runs. Results go to stdout, everything else to
stderr. Exit status: 0 done (verify: same speaker), 1 some files failed (verify: different speakers), 2 error.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import SpeechError

app = typer.Typer(
    name="speaker",
    help="Speaker embeddings. No trained encoder is shipped yet: bring one with `speaker convert`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

PLANNED = {
    "score": "Score a list of trials.",
    "enroll": "Add a speaker to a gallery.",
    "identify": "Find a recording's speaker in a gallery.",
}
NO_MODEL = (
    "no trained encoder is shipped yet; convert one of another project (`speaker convert`) and give --model FOLDER"
)

Model = Annotated[str | None, typer.Option(help="Folder of an encoder.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")]


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help=".ckpt, .pt, .pth, .nemo or .safetensors")],
    out: Annotated[Path, typer.Option("--out", help="Folder to create.")],
    origin: Annotated[
        str, typer.Option("--from", help="speechbrain, nemo, wespeaker, taoruijie or 3dspeaker; auto: recognized.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")] = False,
) -> None:
    """Turn another project's weights (read as data, no code is run) into a model folder."""
    from speaker.convert import convert as convert_weights

    if out.exists() and not (out.is_dir() and not any(out.iterdir())) and not force:
        raise SpeechError(f"{out} exists; --force overwrites it")
    encoder, origin = convert_weights(source, out, origin)
    print(f"{out}: {encoder.config.kind} of {origin}, embeddings of {encoder.embedding_dim} numbers")


@app.command()
def info(model: Annotated[str, typer.Argument(metavar="MODEL")], as_json: Json = False) -> None:
    """Describe an encoder: size, cost, front end, shortest input."""
    from dataclasses import asdict

    from speaker.model import load

    encoder = load(model)
    front, rate = encoder.config.front_end, encoder.config.front_end.sample_rate
    facts = {
        "model": encoder.name,
        "kind": encoder.config.kind,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "embedding_dim": encoder.embedding_dim,
        "sample_rate": rate,
        "shortest_seconds": encoder.min_samples / rate,
        "front_end": asdict(front),
        "network": asdict(encoder.config.network),
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        print(
            f"{name}: " + (", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value))
        )


@app.command()
def embed(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER...")],
    out: Annotated[Path, typer.Option("--out", help="File to write: names and embeddings, .npz.")],
    model: Model = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")] = "cpu",
) -> None:
    """Turn recordings into embeddings; one that cannot be read does not stop the rest and is listed at the end."""
    from rich.console import Console
    from rich.progress import Progress

    from speaker.embed import embed_files, find_recordings
    from speaker.model import load

    if out.suffix != ".npz":
        raise SpeechError(f"{out}: the name must end in .npz")
    recordings = find_recordings(paths)
    encoder = load(_chosen(model), device)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=len(recordings))
        result = embed_files(encoder, recordings, lambda done: bar.update(task, completed=done))
    result.save(out)
    print(f"{out}: {len(result.names)} embeddings of {encoder.embedding_dim} numbers")
    for name, reason in result.failed.items():
        print(f"speaker: {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr)
    if result.failed:
        raise typer.Exit(1)


@app.command()
def verify(
    first: Annotated[Path, typer.Argument(metavar="A.wav")],
    second: Annotated[Path, typer.Argument(metavar="B.wav")],
    threshold: Annotated[
        float | None,
        typer.Option(help="Cosine from which on it is one speaker; depends on the model and the recordings."),
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Cosine of two recordings' embeddings and, with --threshold, a decision (exit status 0 same, 1 different)."""
    import numpy as np

    from speaker.embed import embed_files
    from speaker.model import load

    result = embed_files(load(_chosen(model)), [first, second] if first != second else [first])
    for reason in result.failed.values():
        raise SpeechError(reason)
    a, b = (result.vectors * 2)[:2]
    score = float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    same = None if threshold is None else score >= threshold
    if as_json:
        print(json.dumps({"cosine": score, "threshold": threshold, "same": same}))
    else:
        decision = "" if same is None else f", {'same speaker' if same else 'different speakers'}"
        print(f"cosine {score:.3f}{decision} (not calibrated: no probability)")
    if same is False:
        raise typer.Exit(1)


def _chosen(model: str | None) -> str:
    if model is None:
        raise SpeechError(NO_MODEL)
    return model


def _not_built(context: typer.Context) -> None:
    typer.echo(f"speaker: not built yet: `speaker {context.info_name}` comes with a later version", err=True)
    raise typer.Exit(2)


# Arguments are taken as they come, so that the answer is the honest one and not a complaint about an option.
_ANY = {"ignore_unknown_options": True, "allow_extra_args": True}
for _name, _help in PLANNED.items():
    app.command(_name, help=f"{_help} (not built yet)", context_settings=_ANY)(_not_built)


def main() -> None:
    """Run the command line; errors that a user can act on become one line and exit status 2."""
    logging.basicConfig(format="speaker: warning: %(message)s", level=logging.WARNING)
    try:
        app(prog_name="speaker")
    except (SpeechError, OSError) as error:
        print(f"speaker: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
