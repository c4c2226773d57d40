"""The command `speaker`: convert, info, embed, verify, and those of `speaker.scoring_cli` on
lists of trials and `speaker.store_cli` on voiceprints.

torch takes seconds to import, so a command imports what it needs when it runs. Results go to stdout, everything else to
stderr. Exit status: 0 done (verify: same speaker), 1 some files failed (verify: different speakers), 2 error (verify:
also where nothing is decided).
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from engine.console import progress, set_up
from engine.errors import SpeechError
from speaker.checks import creatable, warn, writable
from speaker.diarize_cli import diarize
from speaker.fusion_cli import calibrate, compare, fuse
from speaker.scoring_cli import plda, score
from speaker.store_cli import enroll, identify, manage
from speaker.stream_cli import stream

app = typer.Typer(
    name="speaker",
    help="Speaker embeddings, verification, and error rates to judge them by.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Model = Annotated[str | None, typer.Option(help="Name or folder of an encoder.", show_default="ecapa")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")]


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help=".ckpt, .pt, .pth, .nemo or .safetensors")],
    out: Annotated[Path, typer.Option("--out", help="Folder to create.")],
    origin: Annotated[
        str, typer.Option("--from", help="speechbrain, nemo, wespeaker, taoruijie, 3dspeaker or vbx; auto: recognized.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")] = False,
) -> None:
    """Turn another project's weights (read as data, no code is run) into a model folder."""
    from speaker.convert import convert as convert_weights
    from speaker.convert import read_weights
    from speaker.parity import compare

    creatable(out, force)
    encoder, origin = convert_weights(source, out, origin)
    print(f"{out}: {encoder.config.kind} of {origin}, embeddings of {encoder.embedding_dim} numbers")
    print(compare(encoder, origin, read_weights(source)))


@app.command()
def info(model: Annotated[str, typer.Argument(metavar="MODEL")], as_json: Json = False) -> None:
    """Describe an encoder: size, cost, front end, shortest input."""
    from dataclasses import asdict

    from speaker.cost import macs_per_second, receptive_field
    from speaker.model import load

    encoder = load(model)
    front, rate = encoder.config.front_end, encoder.config.front_end.sample_rate
    facts = {
        "model": encoder.name,
        "kind": encoder.config.kind,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "macs_per_second": macs_per_second(encoder),
        "receptive_field_seconds": receptive_field(encoder),
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
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    onnx: Annotated[Path, typer.Option("--onnx", help="File to write.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")] = False,
) -> None:
    """Write an encoder as one ONNX graph: waveforms and lengths in, embeddings of unit length out."""
    from speaker.export_onnx import export as export_graph
    from speaker.model import load

    if onnx.exists() and not force:
        raise SpeechError(f"{onnx} exists; --force overwrites it")
    encoder = load(model)
    export_graph(encoder, onnx)
    print(f"{onnx}: wav (batch, samples) at {encoder.config.front_end.sample_rate} Hz, lengths (batch,) -> embedding "
          f"(batch, {encoder.embedding_dim})")  # fmt: skip


@app.command()
def embed(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER|LIST...", help="LIST: .csv, .tsv, Kaldi's .scp")],
    out: Annotated[Path, typer.Option("--out", help="File to write: names and embeddings, .npz or .parquet.")],
    model: Model = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")] = "cpu",
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Half precision: twice as fast on newer CPUs.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")] = False,
) -> None:
    """Turn recordings into embeddings; one that cannot be read does not stop the rest and is listed at the end.

    Interrupted, it keeps what is done beside the output and continues there when the same command is given again.
    """
    from speaker.embedding_files import check_format

    check_format(out)
    writable(out, force, [])

    from speaker.model import default, load
    from speaker.recordings import list_recordings
    from speaker.resumable import embed_resumably, partial_path

    recordings = list_recordings(paths)
    encoder = load(model or default(), device)
    if partial_path(out).exists():
        print(f"speaker: continuing {partial_path(out)}", file=sys.stderr)
    with progress(len(recordings)) as told:
        found, failed = embed_resumably(encoder, recordings, out, force, bfloat16, told)
    print(f"{out}: {len(found.names)} embeddings of {encoder.embedding_dim} numbers")
    for name, reason in failed.items():
        print(f"speaker: {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


@app.command()
def verify(
    first: Annotated[Path, typer.Argument(metavar="A.wav")],
    second: Annotated[Path, typer.Argument(metavar="B.wav")],
    prior: Annotated[
        float | None, typer.Option(help="How probable one speaker is beforehand.", show_default="0.1")
    ] = None,
    cost_miss: Annotated[
        float | None, typer.Option(help="What it costs to turn the right speaker away.", show_default="1")
    ] = None,
    cost_false: Annotated[
        float | None, typer.Option(help="What it costs to accept a wrong one.", show_default="1")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Decide by the cosine instead: one speaker from here on.")
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Are two recordings of one speaker? Exit status 0 same, 1 different, 2 trouble, such as too little speech, or
    where nothing is decided.

    Where the model brings a calibration: the log-likelihood ratio (natural logarithm) of the cosine and the
    seconds of speech, the probability at the prior, and the decision that costs least. Without: the cosine, and a
    decision only with --threshold.
    """
    from speaker.verify import PRIOR, compare

    if threshold is not None and not -1 <= threshold <= 1:
        raise SpeechError(f"--threshold {threshold:g}: it is a cosine, between -1 and 1")
    if threshold is not None and (cost_miss, cost_false) != (None, None):
        raise SpeechError("with --threshold the cosine decides, whatever mistakes cost; leave the costs or it out")
    prior = PRIOR if prior is None else prior
    cost_miss, cost_false = (1.0 if cost is None else cost for cost in (cost_miss, cost_false))
    if not (0 < prior < 1 and 0 < cost_miss < inf and 0 < cost_false < inf):
        raise SpeechError(f"the prior lies between 0 and 1, costs are above 0; got {prior}, {cost_miss}, {cost_false}")
    found = compare(first, second, model, prior, cost_miss, cost_false, threshold)
    for warning in found.warnings:
        warn(warning)
    print(json.dumps(found.as_dict()) if as_json else found.as_text())
    if found.same is None:  # 0 would say "same"
        print("speaker: nothing is decided, the model has no calibration; give --threshold", file=sys.stderr)
        raise typer.Exit(2)
    if not found.same:
        raise typer.Exit(1)


@app.command()
def adapt(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILE|FOLDER|LIST...", help="Recordings such as yours, or one .npz, .parquet, .ark."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to create: a model.")],
    model: Model = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")] = False,
) -> None:
    """Make an encoder for recordings of another kind, from 10 people or more; who they are need not be known.

    Their mean is taken off the embeddings, as far as it is not chance. A folder each person, or all in one folder.
    """
    from engine import checkpoint
    from speaker import adapt as adaptation
    from speaker import collections
    from speaker.model import default, load
    from speaker.recordings import list_recordings

    creatable(out, force)
    source = checkpoint.find(model or default())
    if out.resolve() == source.resolve():
        raise SpeechError(f"{out} is the model itself; give --out another folder")
    encoder = load(source)
    failed: dict[str, str] = {}
    if len(paths) == 1 and paths[0].suffix in (".npz", ".parquet", ".ark"):
        recordings = collections.read(paths[0], encoder.identity)
    else:
        files = [each.path for each in list_recordings(paths)]
        with progress(len(files)) as told:
            recordings, failed = adaptation.embedded(encoder, files, told)
    recordings, silent = adaptation.with_speech(recordings)
    failed |= silent
    for name, reason in failed.items():
        print(f"speaker: {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr)
    found = adaptation.adapt(encoder, source, recordings, out)
    far = f"{found.share:.2f} of it taken off" if found.share else "no more than chance, nothing is changed"
    print(f"{out}: mean of {found.people} people, {found.recordings} recordings: {far}")
    if failed:
        raise typer.Exit(1)


for _command in (enroll, identify, stream, diarize, score, calibrate, fuse, compare, plda):
    app.command()(_command)
app.add_typer(manage, name="store")


def main() -> None:
    """Run the command line; errors that a user can act on become one line and exit status 2.

    So do those that nobody foresaw, with their traceback: Python's own 1 says "different" or "nobody" here.
    """
    logging.basicConfig(format="speaker: warning: %(message)s", level=logging.WARNING)
    set_up()
    try:
        app(prog_name="speaker")
    except (SpeechError, OSError) as error:
        print(f"speaker: error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.exit(2)


if __name__ == "__main__":
    main()
