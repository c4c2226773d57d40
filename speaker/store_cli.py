"""Commands on voiceprints: enroll, identify, and `speaker store ...` to look after them."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import AudioError, StoreError
from speaker.checks import number, warn

if TYPE_CHECKING:
    from speaker.embed import Embeddings
    from speaker.identify import Identification
    from speaker.model import SpeakerEncoder
    from speaker.store import Store

StorePath = Annotated[
    Path | None, typer.Option("--store", help="File of voiceprints.", show_default="VOXCODE_STORE, or the user's data")
]
Model = Annotated[str | None, typer.Option(help="Name or folder of an encoder.", show_default="ecapa")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")]

manage = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after the store of voiceprints.")


def enroll(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER...")],
    store: StorePath = None,
    model: Model = None,
    metadata: Annotated[str | None, typer.Option(help="JSON object to keep with the speaker.")] = None,
    force_quality: Annotated[bool, typer.Option("--force-quality", help="Take recordings of poor quality.")] = False,
) -> None:
    """Add a person's recordings to the store, a print for each; nothing is stored if one of them is refused."""
    from speaker.recordings import find_recordings
    from speaker.store import checked_name

    checked_name(name)  # before a store is created for it
    extra = _metadata(metadata)
    encoder = _encoder(model)
    recordings = find_recordings(files)
    quality = [_check_quality(encoder, path, force_quality) for path in recordings]
    found = _embed(encoder, recordings)
    with _open(store, create=True, model=found.model) as opened:
        numbers = opened.enroll(name, found.vectors, model=found.model, metadata=extra, sources=found.names,
                                quality=quality)  # fmt: skip
        total = len(opened.prints(name))
        known = len(found.vectors) - len(numbers)
        print(f"{name}: {_added(len(numbers), known)}, {total} in {opened.path}")


def identify(
    file: Annotated[str, typer.Argument(metavar="FILE|-")],
    store: StorePath = None,
    false_positive_rate: Annotated[
        float, typer.Option(help="How often an unknown voice may be taken for a known one, whatever their number.")
    ] = 0.01,
    prior: Annotated[float, typer.Option(help="How probable it is beforehand that the speaker is enrolled.")] = 0.5,
    threshold: Annotated[float | None, typer.Option(help="Decide by the cosine instead, from here on.")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Who is speaking, or nobody we know? Exit status 0 for a known speaker, 1 for nobody, 2 for trouble."""
    if not 0 < false_positive_rate < 1 or not 0 < prior < 1:
        raise StoreError(f"rate and prior lie between 0 and 1; got {false_positive_rate} and {prior}")
    number("--threshold", threshold, "a cosine, between -1 and 1")
    source = "stdin" if file == "-" else file
    with _open(store) as opened:
        opened.gallery()  # an empty store is told before seconds of loading
        encoder = _encoder(model)
        opened.check_model(_name(encoder))
        with tempfile.TemporaryDirectory() as folder:
            path = _from_stdin(Path(folder)) if file == "-" else Path(file)
            try:
                found = _embed(encoder, [path])
            except AudioError as error:  # nobody knows the temporary file
                raise AudioError(str(error).replace(str(path), source)) from error
        quality = found.quality[0]
        if quality.seconds == 0:
            raise AudioError(f"{source}: no speech found, it is silence")
        warnings = [f"{source}: {sentence}" for sentence in quality.warnings()]
        for sentence in warnings:
            warn(sentence)
        answer = _decide(
            opened, encoder, model, found.vectors[0], quality.seconds, false_positive_rate, prior, threshold
        )
        answer.warnings.extend(warnings)
    print(json.dumps(answer.as_dict()) if as_json else answer.as_text())
    if answer.speaker is None:
        raise typer.Exit(1)


@manage.command("list")
def list_speakers(store: StorePath = None, as_json: Json = False) -> None:
    """Everybody in the store."""
    from dataclasses import asdict

    with _open(store) as opened:
        found, model = opened.speakers(), opened.model
    if as_json:
        print(json.dumps({"model": model, "speakers": [asdict(each) for each in found]}, ensure_ascii=False))
        return
    for each in found:
        print(f"{each.name}\t{each.num_prints} {_plural(each.num_prints, 'print')}\t{each.seconds:.1f} s of speech")
    print(f"{len(found)} {_plural(len(found), 'speaker')}, prints of {model or 'no model yet'}", file=sys.stderr)


@manage.command()
def show(name: str, store: StorePath = None, as_json: Json = False) -> None:
    """The prints of a speaker."""
    from speaker.store import checked_name

    with _open(store) as opened:
        prints = opened.prints(name)
        person = next(each for each in opened.speakers() if each.name == checked_name(name))
    facts = [{"id": p.id, "source": p.source, "model": p.model, "migrated_from": p.migrated_from, "created": p.created,
              "quality": p.quality} for p in prints]  # fmt: skip
    if as_json:
        print(json.dumps({"name": name, "metadata": person.metadata, "prints": facts}, ensure_ascii=False))
        return
    print(f"{name}: since {person.created}, metadata {json.dumps(person.metadata, ensure_ascii=False)}")
    for p in prints:
        migrated = f", migrated from {p.migrated_from}" if p.migrated_from else ""
        print(f"{p.id}\t{p.created}\t{p.quality.get('seconds', 0):.1f} s\t{p.model}{migrated}\t{p.source}")


@manage.command()
def rename(old: str, new: str, store: StorePath = None) -> None:
    """Give a speaker another name."""
    with _open(store) as opened:
        opened.rename(old, new)
    print(f"{old} is {new} now")


@manage.command()
def merge(source: str, into: str, store: StorePath = None) -> None:
    """Give all prints of one speaker to another; the first is gone then."""
    with _open(store) as opened:
        opened.merge(source, into)
        print(f"{into}: {len(opened.prints(into))} prints, {source} is gone")


@manage.command()
def delete(
    name: str,
    print_id: Annotated[int | None, typer.Option("--print", help="Only this print, see `speaker store show`.")] = None,
    store: StorePath = None,
) -> None:
    """Remove a speaker, or a print; nothing of it is left in the file."""
    with _open(store) as opened:
        opened.delete(name, print_id)
    print(f"{name} is deleted" if print_id is None else f"{name}: print {print_id} is deleted")


@manage.command("export")
def export_store(
    out: Annotated[Path, typer.Argument(metavar="FILE.npz")], store: StorePath = None, force: Force = False
) -> None:
    """Write everything into one .npz that `speaker store import` reads. It is not encrypted."""
    from speaker.transfer import export_prints

    if out.suffix != ".npz":
        raise StoreError(f"{out}: the name must end in .npz")
    if out.exists() and not force:
        raise StoreError(f"{out} exists; --force overwrites it")
    with _open(store) as opened:
        print(f"{out}: {export_prints(opened, out)} prints")


@manage.command("import")
def import_store(file: Annotated[Path, typer.Argument(metavar="FILE.npz|.parquet")], store: StorePath = None) -> None:
    """Add what `store export` or `embed` wrote; there a speaker is a folder, or each file where all lie in one."""
    from speaker.transfer import import_prints, read_prints

    prints = read_prints(file)  # before a store is created for it
    with _open(store, create=True) as opened:
        added = import_prints(opened, prints)
        print(f"{opened.path}: {_added(added, len(prints.speakers) - added)}")


@manage.command()
def audit(
    store: StorePath = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Find damage, one voice under two names, two voices under one, prints unlike the others. Exit status 1 if any."""
    from dataclasses import asdict

    from speaker.audit import audit as find

    with _open(store) as opened:
        damage = opened.check()
        findings = [] if damage else find(opened, _open_set(opened, model))
    if as_json:
        print(json.dumps({"damage": damage, "findings": [asdict(each) for each in findings]}, ensure_ascii=False))
    else:
        for line in [*damage, *(each.sentence for each in findings)]:
            print(line)
        if not damage and not findings:
            print("nothing found")
    if damage or findings:
        raise typer.Exit(1)


@manage.command()
def migrate(
    to: Annotated[str, typer.Option("--to", help="Encoder that the prints shall be of.")],
    recordings: Annotated[Path, typer.Option(help="Folder of speakers' recordings that both encoders embed.")],
    model: Annotated[str | None, typer.Option(help="Encoder of the store's prints.", show_default="its name")] = None,
    store: StorePath = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write; without, only the loss is measured.")] = False,
) -> None:
    """Turn prints into those of another encoder by a linear map; what that costs is measured and shown first."""
    from speaker.collections import speaker_of
    from speaker.migrate import best_penalty, learn, measure, migrate_store
    from speaker.model import load
    from speaker.recordings import find_recordings
    from speaker.store import same_model

    with _open(store) as opened:
        before, after = load(model or opened.model.partition("@")[0]), load(to)
        opened.check_model(_name(before))
        if same_model(opened.model, _name(after)):
            raise StoreError(f"{opened.path} holds prints of {_name(after)} already; give --to another encoder")
        files = find_recordings([recordings])
        pairs = [_embed(each, files) for each in (before, after)]
        speakers = [speaker_of(name) for name in pairs[0].names]
        penalty = best_penalty(pairs[0].vectors, pairs[1].vectors, speakers)
        print(measure(pairs[0].vectors, pairs[1].vectors, speakers, penalty).as_text())
        if not yes:
            print("nothing was written; --yes writes", file=sys.stderr)
            return
        count = migrate_store(opened, learn(pairs[0].vectors, pairs[1].vectors, penalty), _name(after))
        print(f"{opened.path}: {count} prints migrated to {_name(after)}")


@manage.command()
def rescue(
    broken: Path, out: Annotated[Path, typer.Option("--out", help="Store to create.")], force: Force = False
) -> None:
    """Copy what is left of a damaged store into a new one."""
    from speaker.rescue import rescue as recover
    from speaker.store import default_key

    if out.resolve() == broken.resolve():
        raise StoreError(f"{out} is the damaged store itself; give --out another name")
    if out.exists() and not force:
        raise StoreError(f"{out} exists; --force overwrites it")
    beside = out.with_name(f".{out.name}.rescued")
    beside.unlink(missing_ok=True)
    try:
        said = recover(broken, beside, default_key())
        beside.replace(out)  # only now: a store that is there stays until there is another
    finally:
        beside.unlink(missing_ok=True)
    print(said.replace(str(beside), str(out), 1))


def _check_quality(encoder: SpeakerEncoder, path: Path, forced: bool) -> dict[str, Any]:
    """Figures to keep with a print. The one place that refuses a recording: silence always, the rest unless forced."""
    from dataclasses import asdict, replace

    from speaker.embed import heard
    from speaker.enrolment import assess_enrolment

    rate = encoder.config.front_end.sample_rate
    wav, clipped = heard(path, rate)
    found = assess_enrolment(encoder, wav, rate)
    found = replace(found, quality=replace(found.quality, clipped=clipped))
    problems, silent = found.reasons(), found.quality.seconds == 0
    if silent or not (found.acceptable or forced):
        way_out = "" if silent else "; --force-quality takes it all the same"
        raise AudioError(f"{path} is not enrolled: {'; '.join(problems)}{way_out}")
    for sentence in problems:
        warn(f"{path}: {sentence}")
    figures = asdict(found.quality) | {"snr": found.snr, "agreement": found.agreement}
    return {name: round(value, 4) for name, value in figures.items() if value == value} | {"warnings": problems}


def _decide(
    store: Store, encoder: SpeakerEncoder, model: str | None, vector: Any, seconds: float, rate: float, prior: float,
    threshold: float | None,
) -> Identification:  # fmt: skip
    from speaker.identify import Identification

    if threshold is None:
        return _open_set(store, model, encoder).identify(vector, false_positive_rate=rate, prior=prior, seconds=seconds)
    matches = store.search(vector)
    best = matches[0]
    return Identification(
        speaker=best.name if best.cosine >= threshold else None, best=best.name, score=best.cosine, threshold=threshold,
        cosine=best.cosine, llr=None, posterior=None, unknown=None, num_speakers=len(store.gallery()),
        false_positive_rate=None, candidates=[(match.name, match.cosine) for match in matches],
    )  # fmt: skip


def _open_set(store: Store, model: str | None, encoder: SpeakerEncoder | None = None) -> Any:
    from engine import checkpoint
    from speaker.evidence import cohort_of, evidence_of
    from speaker.identify import OpenSet
    from speaker.model import default

    encoder = encoder or _encoder(model)
    store.check_model(_name(encoder))
    folder = checkpoint.find(model or default())
    return OpenSet(store.gallery(), cohort_of(folder, _name(encoder)), evidence_of(folder, encoder))


def _open(path: Path | None, create: bool = False, model: str | None = None) -> Store:
    from speaker.store import Store, default_key

    return Store.open(path, create=create, model=model, key=default_key())


def _encoder(model: str | None) -> SpeakerEncoder:
    from speaker.model import default, load

    return load(model or default())


def _name(encoder: SpeakerEncoder) -> str:
    return encoder.identity


def _embed(encoder: SpeakerEncoder, files: list[Path]) -> Embeddings:
    from speaker.embed import embed_files

    found = embed_files(encoder, files)
    for path, reason in found.failed.items():
        raise AudioError(reason if path in reason else f"{path}: {reason}")
    return found


def _from_stdin(folder: Path) -> Path:
    data = sys.stdin.buffer.read()
    if not data:
        raise AudioError("stdin is empty; pipe a WAV into it, such as `arecord -d 5 -f S16_LE -r 16000 | speaker ...`")
    path = folder / "stdin.wav"
    path.write_bytes(data)
    return path


def _metadata(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise StoreError(f"--metadata is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise StoreError("""--metadata is a JSON object, such as '{"team": "north"}'""")
    return found


def _added(count: int, known: int) -> str:
    there = f", {known} {'was' if known == 1 else 'were'} there already" if known else ""
    return f"{count} {_plural(count, 'print')} added{there}"


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
