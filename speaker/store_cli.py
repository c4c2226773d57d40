"""`speaker enroll`, `speaker identify`, and `speaker store ...`: voiceprints of known speakers in one file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import SpeechError, StoreError

if TYPE_CHECKING:
    from speaker.model import SpeakerEncoder
    from speaker.store import Store

app = typer.Typer(
    name="store", help="Voiceprints of known speakers: look at them, change and remove them.", no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip
StorePath = Annotated[
    Path | None, typer.Option("--store", help="File of voiceprints.", show_default="VOXCODE_STORE, or the user's own")
]
Model = Annotated[str | None, typer.Option(help="Name or folder of an encoder.", show_default="ecapa")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")]
KEY = "VOXCODE_STORE_KEY"  # an option would stand in the list of processes, for all to see


def enroll(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER...", help="Recordings of this speaker alone.")],
    store: StorePath = None,
    metadata: Annotated[str, typer.Option(help="About the speaker, a JSON object.")] = "{}",
    anyway: Annotated[bool, typer.Option("--anyway", help="Take recordings of poor quality, too.")] = False,
    model: Model = None,
) -> None:
    """Add a speaker, or recordings to one: a print for each. What is of no use is refused, with the reason."""
    from speaker.embed import embed_files
    from speaker.model import default, load
    from speaker.recordings import find_recordings

    facts = _metadata(metadata)
    recordings = find_recordings(files)
    encoder = load(model or default())
    with _open(store, encoder, create=True) as opened:
        qualities, refused = _assessed(encoder, recordings, anyway)
        found = embed_files(encoder, list(qualities))
        refused |= found.failed
        if found.names:
            opened.enroll(
                name, found.vectors, model=found.model, metadata=facts, sources=found.names,
                quality=[qualities[Path(path)] for path in found.names],
            )  # fmt: skip
    for path, reason in refused.items():
        print(f"speaker: {path} is not taken: {reason.removeprefix(f'{path}: ')}", file=sys.stderr)
    if not found.names:
        raise StoreError(f"{name} is not enrolled: none of {len(recordings)} recordings can be used (--anyway takes "
                         "what holds any speech)")  # fmt: skip
    print(f"{name}: {len(found.names)} print{'s' if len(found.names) > 1 else ''} in {opened.path}")
    if refused:
        raise typer.Exit(1)


def identify(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="A recording of one speaker; - reads it from stdin.")],
    store: StorePath = None,
    false_positive_rate: Annotated[
        float, typer.Option(help="How often a stranger may be taken for somebody enrolled.")
    ] = 0.01,
    prior: Annotated[float, typer.Option(help="How probable it is that the speaker is enrolled.")] = 0.5,
    threshold: Annotated[float | None, typer.Option(help="Decide by this score instead of the rate.")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Who of the enrolled speakers is it, or nobody we know? Exit status 0 somebody, 1 nobody, 2 trouble."""
    from engine import checkpoint
    from speaker.embed import embed_files
    from speaker.identify import OpenSet, cohort_of
    from speaker.model import default, load
    from speaker.verify import calibration_of

    folder = checkpoint.find(model or default())
    encoder = load(folder)
    with _open(store, encoder) as opened, _recording(file) as path:
        gallery = opened.gallery()  # an empty store is told of before anything is embedded
        calibration = calibration_of(folder, encoder)
        decide = OpenSet(gallery, cohort_of(folder, opened.model), calibration)
        found = embed_files(encoder, [path])
    for reason in found.failed.values():
        raise SpeechError(reason.replace(str(path), file))
    quality = found.quality[0]
    if quality.seconds == 0 or (calibration is not None and quality.seconds < calibration.shortest):
        raise SpeechError(f"{file}: not enough speech, {quality.seconds:.2f} s")
    answer = decide.identify(
        found.vectors[0], false_positive_rate=false_positive_rate, prior=prior, seconds=quality.seconds,
        threshold=threshold,
    )  # fmt: skip
    for warning in quality.warnings():
        print(f"speaker: warning: {file}: {warning}", file=sys.stderr)
    print(json.dumps(answer.as_dict()) if as_json else answer.as_text())
    if answer.speaker is None:
        raise typer.Exit(1)


@app.command("list")
def list_speakers(store: StorePath = None, as_json: Json = False) -> None:
    """All speakers: prints, seconds of speech, since when."""
    with _open(store) as opened:
        found = opened.speakers()
        if as_json:
            print(json.dumps({"model": opened.model, "speakers": [vars(each) for each in found]}))
            return
        width = max([len(each.name) for each in found], default=0)
        for each in found:
            print(f"{each.name:<{width}}  {each.num_prints:>3} prints  {each.seconds:7.1f} s  since {each.created}")
        print(f"{len(found)} speakers, prints of {opened.model or 'no model yet'}", file=sys.stderr)


@app.command()
def show(name: Annotated[str, typer.Argument()], store: StorePath = None, as_json: Json = False) -> None:
    """One speaker: what is known, and where each print comes from."""
    with _open(store) as opened:
        opened.number_of(name)
        about = next(each for each in opened.speakers() if each.name == _composed(name))
        prints: list[dict[str, Any]] = [
            {"id": p.id, "source": p.source, "created": p.created, "model": p.model,
             "migrated_from": p.migrated_from, "quality": p.quality}
            for p in opened.prints(name)
        ]  # fmt: skip
    if as_json:
        print(json.dumps({**vars(about), "prints": prints}))
        return
    print(f"{about.name}: {about.num_prints} prints, {about.seconds:.1f} s of speech, since {about.created}")
    for key, value in about.metadata.items():
        print(f"  {key}: {value}")
    for each in prints:
        spoken = each["quality"].get("seconds")
        seconds = "" if spoken is None else f"  {spoken:.1f} s"
        print(f"  print {each['id']}{seconds}  {each['created']}  {each['source']}")


@app.command()
def rename(
    old: Annotated[str, typer.Argument()], new: Annotated[str, typer.Argument()], store: StorePath = None
) -> None:
    """Give a speaker another name."""
    with _open(store) as opened:
        opened.rename(old, new)
    print(f"{old} is {new} now")


@app.command()
def merge(
    source: Annotated[str, typer.Argument()], into: Annotated[str, typer.Argument()], store: StorePath = None
) -> None:
    """Give all prints of one speaker to another: two names, one person."""
    with _open(store) as opened:
        opened.merge(source, into)
    print(f"{source} is part of {into} now")


@app.command()
def delete(
    name: Annotated[str, typer.Argument()],
    print_id: Annotated[int | None, typer.Option("--print", help="This print only.")] = None,
    store: StorePath = None,
) -> None:
    """Remove a speaker, or one print, from the bytes of the file too."""
    with _open(store) as opened:
        opened.delete(name, print_id)
    print(f"{name} is gone" if print_id is None else f"print {print_id} of {name} is gone")


@app.command("export")
def export_prints(
    out: Annotated[Path, typer.Option("--out", help="File to write, .json.")], store: StorePath = None,
    force: Force = False,
) -> None:  # fmt: skip
    """Write all speakers and prints as JSON, to be imported elsewhere. It holds biometric data: keep it as such."""
    from speaker.store_exchange import write

    if out.exists() and not force:
        raise StoreError(f"{out} exists; --force overwrites it")
    with _open(store) as opened:
        print(f"{out}: {write(opened, out)} prints")


@app.command("import")
def import_prints(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What `speaker store export` wrote.")],
    store: StorePath = None,
) -> None:
    """Add the speakers and prints of another store; those that are there already are left out."""
    from speaker.store_exchange import read

    with _open(store, create=True) as opened:
        added, known = read(opened, source)
    print(f"{opened.path}: {added} prints added" + (f", {known} were there already" if known else ""))


@app.command()
def audit(store: StorePath = None, as_json: Json = False) -> None:
    """Look for two names of one voice, prints unlike the others of their speaker, and two voices under one name."""
    from engine import checkpoint
    from speaker.audit import audit as look
    from speaker.model import load
    from speaker.verify import calibration_of

    with _open(store) as opened:
        damage = opened.check()
        name = opened.model.partition("@")[0]
        if name not in checkpoint.shipped():
            raise StoreError(f"the prints are of {opened.model}, which is not shipped: there is no calibration to "
                             "judge them by")  # fmt: skip
        folder = checkpoint.find(name)
        calibration = calibration_of(folder, load(folder))
        if calibration is None:
            raise StoreError(f"{name} has no calibration to judge prints by")
        found = look(opened.prints(), calibration)
    if as_json:
        print(json.dumps({"damage": damage, "findings": [vars(each) for each in found]}))
    else:
        for line in [*damage, *(each.as_text() for each in found)]:
            print(line)
        print(f"{len(found)} findings", file=sys.stderr)
    if found or damage:
        raise typer.Exit(1)


@app.command()
def rescue(
    broken: Annotated[Path, typer.Argument(metavar="BROKEN")],
    out: Annotated[Path, typer.Option("--out", help="New store to write.")],
) -> None:
    """Copy what can still be read of a damaged store into a new one."""
    from speaker.store_exchange import rescue as recover

    if out.exists():
        raise StoreError(f"{out} exists; name a store that is not there yet")
    prints, lost = recover(broken, out, os.environ.get(KEY))
    print(f"{out}: {prints} prints of {broken}" + (f"; {lost} could not be read" if lost else ""))
    if lost:
        raise typer.Exit(1)


def _open(path: Path | None, encoder: SpeakerEncoder | None = None, create: bool = False) -> Store:
    from speaker.store import Store

    model = None if encoder is None else f"{encoder.name}@{encoder.digest}"
    return Store.open(path, model=model, create=create, key=os.environ.get(KEY))


def _metadata(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise StoreError(f'--metadata is a JSON object such as \'{{"team": "sales"}}\', got {text!r}') from error
    if not isinstance(found, dict):
        raise StoreError(f'--metadata is a JSON object such as \'{{"team": "sales"}}\', got {text!r}')
    return found


def _assessed(
    encoder: SpeakerEncoder, recordings: list[Path], anyway: bool
) -> tuple[dict[Path, dict[str, float]], dict[str, str]]:
    """Figures of the recordings that may be enrolled, and why the others may not."""
    from engine import audio
    from engine.errors import AudioError
    from speaker.enrolment import assess_enrolment

    rate, taken, refused = encoder.config.front_end.sample_rate, {}, {}
    for path in recordings:
        try:
            quality = assess_enrolment(encoder, audio.load(path, rate, mono=True)[0][0], rate)
        except AudioError as error:
            refused[str(path)] = str(error)
            continue
        if not quality.acceptable and not (anyway and quality.quality.seconds > 0):
            refused[str(path)] = "; ".join(quality.reasons())
            continue
        for reason in quality.reasons():
            print(f"speaker: warning: {path}: {reason}", file=sys.stderr)
        figures = {**vars(quality.quality), "snr": quality.snr, "agreement": quality.agreement}
        taken[path] = {key: round(float(value), 4) for key, value in figures.items() if value == value}
    return taken, refused


def _composed(name: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", name)


@contextlib.contextmanager
def _recording(name: str) -> Iterator[Path]:
    """The file, or what stdin holds as a temporary one."""
    if name != "-":
        yield Path(name)
        return
    data = sys.stdin.buffer.read()
    if not data:
        raise SpeechError("nothing came in; is the microphone on?")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin.wav"
        path.write_bytes(data)
        yield path
