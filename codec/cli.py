"""The command `codec`: encode, decode, info, truncate, stream, evaluate, import-esc.

torch takes seconds to import, so a command imports what it needs when it runs; `codec --help` needs none of it.
Results go to stdout, everything else to stderr. Exit status: 0 done, 1 some of several files failed or the reader of
our output has gone, 2 error.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec.paths import (
    AUDIO_SUFFIXES,
    CODED_SUFFIX,
    STDIO,
    Job,
    check_target,
    make_folder,
    plan_jobs,
    read_bytes,
    write_bytes,
)
from codec.stream_cli import app as stream_app
from engine.console import progress, set_up
from engine.errors import ConfigError, SpeechError

if TYPE_CHECKING:
    from codec.files import Progress, Report

    Do = Callable[[Job, Progress], Report]

DEFAULT_MODEL = "esc_live"

app = typer.Typer(
    name="codec",
    help="Speech to a few kbit/s and back. `-` stands for stdin or stdout.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain usage errors, and no half second spent on drawing boxes
    pretty_exceptions_enable=False,
)

app.add_typer(stream_app)

Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
# The models are small: a second thread gains little on an idle machine and, on a busy one, both wait for each other.
Threads = Annotated[int, typer.Option(min=1, help="CPU threads; several files at once are faster in processes.")]


@app.command()
def encode(
    paths: Annotated[list[str], typer.Argument(metavar="IN... OUT", help="Audio files or folders; .esc or folder.")],
    bitrate: Annotated[
        float | None,
        typer.Option(
            "--bitrate",
            "-b",
            help="kbit/s, 1.5 to 9 in steps of 1.5. Default: the highest, because a file can be cut down later "
            "(codec truncate) but never up.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Name or folder of the model.")] = DEFAULT_MODEL,
    device: Device = "cpu",
    threads: Threads = 1,
    mono: Annotated[bool, typer.Option("--mono", help="Mix channels to one; otherwise each is coded.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn audio (wav, flac, ogg, opus, mp3; any rate and channels) into .esc files."""
    inputs, output = _split(paths)
    if Path(output).suffix.lower() in AUDIO_SUFFIXES:
        raise SpeechError(f"the last path is the output, and {output} is an audio name; name a {CODED_SUFFIX} file")
    jobs = plan_jobs(inputs, output, source_suffixes=AUDIO_SUFFIXES, target_suffix=CODED_SUFFIX)

    def prepare() -> "Do":
        from codec.files import encode_file, load_model

        _set_up_torch(device, threads)
        loaded = load_model(model, device)
        levels = None if bitrate is None else loaded.config.levels_for(bitrate * 1000)
        return lambda job, progress: encode_file(
            loaded, job.source, job.target, levels=levels, mono=mono, force=force, progress=progress
        )

    _run(jobs, prepare, force=force, as_json=as_json)


@app.command()
def decode(
    paths: Annotated[list[str], typer.Argument(metavar="IN... OUT", help=".esc files or folders; audio or folder.")],
    recover: Annotated[
        bool, typer.Option("--recover", help="Decode what is intact of a damaged file, silence for the rest.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Name or folder of the model. Default: the one the file names.", show_default=False),
    ] = None,
    device: Device = "cpu",
    threads: Threads = 1,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn .esc files back into audio (by suffix: wav, flac, ogg, opus, mp3), same rate and sample count."""
    inputs, output = _split(paths)
    coded = frozenset({CODED_SUFFIX})
    jobs = plan_jobs(inputs, output, source_suffixes=coded, target_suffix=".wav")

    def prepare() -> "Do":
        from codec.files import decode_file

        _set_up_torch(device, threads)
        return lambda job, progress: decode_file(
            job.source, job.target, model=model, device=device, recover=recover, force=force, progress=progress
        )

    _run(jobs, prepare, force=force, as_json=as_json)


@app.command()
def info(
    what: Annotated[str, typer.Argument(metavar="FILE.esc|MODEL")],
    as_json: Json = False,
) -> None:
    """Describe a coded file (model, bitrate, duration, intact or not) or a model (size, delay, cost, rates)."""
    from codec.info import describe, to_text

    facts = describe(what)
    print(json.dumps(facts, indent=1) if as_json else to_text(facts))


@app.command()
def truncate(
    source: Annotated[str, typer.Argument(metavar="IN.esc")],
    target: Annotated[str, typer.Argument(metavar="OUT.esc")],
    bitrate: Annotated[float, typer.Option("--bitrate", "-b", help="kbit/s to keep.")],
    force: Force = False,
) -> None:
    """Lower the bitrate of a coded file by dropping levels: the same bytes as encoding at that rate, at once."""
    from codec.bitstream import read_header
    from codec.bitstream import truncate as drop_levels
    from codec.info import levels_for

    check_target(target, force)
    data = read_bytes(source)
    write_bytes(target, drop_levels(data, levels_for(read_header(data), bitrate)))


@app.command()
def evaluate(
    reference_dir: Annotated[str, typer.Argument(metavar="REFERENCE_DIR")],
    decoded_dir: Annotated[str, typer.Argument(metavar="DECODED_DIR")],
    align: Annotated[
        bool, typer.Option("--align", help="First remove the one delay (up to 100 ms) that fits the folder best.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure decoded against reference audio: PESQ-WB, STOI, SI-SDR, mel distance; 95 % intervals of the means."""
    from codec.evaluate import evaluate as measure_folders
    from codec.evaluate import report_problems

    result = measure_folders(reference_dir, decoded_dir, align=align)
    report_problems(result)
    print(result.to_json() if as_json else result.to_text())


@app.command()
def import_esc(
    checkpoint: Annotated[str, typer.Argument(metavar="MODEL.pth", help="The authors' checkpoint.")],
    out: Annotated[str, typer.Option("--out", help="Folder to create.")],
    config: Annotated[
        str | None,
        typer.Option(help="Constructor arguments (.json or .yaml); else inferred from shapes.", show_default=False),
    ] = None,
    force: Force = False,
) -> None:
    """Convert a checkpoint of the published ESC (weights only, no code is run) into a model folder."""
    from codec.import_esc import import_checkpoint

    folder = Path(out)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())) and not force:
        raise SpeechError(f"{out} exists; --force overwrites it")
    import_checkpoint(checkpoint, config, out)
    print(out)


def main() -> None:
    """Run the command line; errors that a user can act on become one line and exit status 2.

    A defect keeps its traceback; its status is 2 too, because Python's 1 would say that some files were done.
    """
    logging.basicConfig(format="codec: warning: %(message)s", level=logging.WARNING)
    set_up()
    try:
        try:
            app(prog_name="codec")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nobody is left to tell, and exit must not flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (SpeechError, OSError) as error:
        print(f"codec: error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.exit(2)


def _split(paths: list[str]) -> tuple[list[str], str]:
    if len(paths) < 2:
        raise SpeechError(f"an input and an output are needed, got only {' '.join(paths)}; `-` is stdin or stdout")
    return paths[:-1], paths[-1]


def _set_up_torch(device: str, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}; use cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this machine or this build of torch has no CUDA device; use --device cpu")


def _run(jobs: list[Job], prepare: "Callable[[], Do]", *, force: bool, as_json: bool) -> None:
    """Run the jobs; of several, a bad one does not stop the rest but is listed at the end with exit status 1."""
    if as_json and jobs[0].target == STDIO:
        raise SpeechError("--json and output - both need stdout; name an output file")
    if len(jobs) == 1:
        make_folder(jobs[0])
        check_target(jobs[0].target, force)  # before seconds go into loading a model
    reports, failed = _run_all(jobs, prepare())
    if as_json:
        failures = [{"source": job.source, "error": str(error)} for job, error in failed]
        print(json.dumps({"files": [asdict(report) for report in reports], "failed": failures}, indent=1))
    for report in reports:
        if not as_json:
            print(report.line(), file=sys.stderr if report.target == STDIO else sys.stdout)
        for loss in report.losses():
            print(f"codec: {report.source}: {loss}", file=sys.stderr)
    for job, error in failed:
        named = str(error) if job.source in str(error) else f"{job.source}: {error}"
        print(f"codec: error: {named}", file=sys.stderr)
    if failed:
        print(f"codec: {len(failed)} of {len(jobs)} files failed", file=sys.stderr)
        raise typer.Exit(1)


def _run_all(jobs: list[Job], do: "Do") -> "tuple[list[Report], list[tuple[Job, Exception]]]":
    """Run the jobs under one progress bar; the error of a single one is raised, those of several are returned."""
    reports: list[Report] = []
    failed: list[tuple[Job, Exception]] = []
    with progress(len(jobs)) as told:
        for i, job in enumerate(jobs):
            show = partial(_advance, told, i)
            try:
                make_folder(job)
                reports.append(do(job, show))
            except BrokenPipeError:
                raise
            except (SpeechError, OSError) as error:
                if len(jobs) == 1:
                    raise
                failed.append((job, error))
            show(1, 1)
    return reports, failed


def _advance(told: "Callable[[float], None]", jobs_done: int, done: float, total: float) -> None:
    """Draw the share of the present job on top of the jobs that are done."""
    told(jobs_done + min(1, done / total) if total else jobs_done)
