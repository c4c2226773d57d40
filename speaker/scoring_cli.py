"""Commands on lists of trials: score, calibrate, fuse, plda."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import ScoreError
from speaker.checks import finite, probability, writable

if TYPE_CHECKING:
    from speaker.collections import Collection
    from speaker.model import SpeakerEncoder
    from speaker.trials import Trials

Prior = Annotated[float, typer.Option(help="Prior of a target for the detection costs, between 0 and 1.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")]
Plots = Annotated[Path | None, typer.Option(help="Folder for pictures: DET, histogram, calibration, map.")]


def score(
    trials: Annotated[Path, typer.Option(help="List of trials: `1 enrol test`, or `enrol test target`.")],
    out: Annotated[Path, typer.Option(help="File of scores to write.")],
    root: Annotated[Path | None, typer.Option(help="Folder that the list's recordings are named from.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="Ready ones: .npz, .parquet, Kaldi's .ark, .scp.")] = None,
    model: Annotated[str | None, typer.Option(help="Name or folder of an encoder.", show_default="ecapa")] = None,
    enrol: Annotated[Path | None, typer.Option(help="spk2utt: models enrolled from several recordings.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Cut recordings to so much in their middle.")] = None,
    backend: Annotated[str, typer.Option(help="cosine or plda.")] = "cosine",
    plda: Annotated[Path | None, typer.Option(help="What `speaker plda` wrote, or a Kaldi file.")] = None,
    norm: Annotated[
        str,
        typer.Option(
            help="none, s (by all of the cohort), as (by its --top nearest), or near: as they are, but a --calibration "
            "may ask how near either side is to the cohort."
        ),
    ] = "none",
    cohort: Annotated[
        Path | None, typer.Option(help="Folder of speakers, .npz or .parquet.", show_default="the model's")
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Cohort scores that --norm as and near take.", show_default="200 and 50")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Turn scores into log-likelihood ratios.")] = None,
    prior: Prior = 0.01,
    by: Annotated[
        Path | None, typer.Option(help="CSV with a column path and others, such as gender or snr: tables by these.")
    ] = None,
    plots: Plots = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Score a list of trials, each recording embedded once, and print error rates."""
    import numpy as np

    from speaker import calibration as calibrations
    from speaker import collections, scoring
    from speaker.groups import read_groups
    from speaker.plda import Plda
    from speaker.score_files import ScoreFile
    from speaker.store import same_model
    from speaker.trials import audit, read_trials

    # All that can be wrong with the options is found before hours of embedding.
    writable(out, force, [trials, embeddings, enrol, plda, cohort, calibration, by])
    probability(prior)
    if (root is None) == (embeddings is None):
        raise ScoreError("give either --root, the folder of the recordings, or --embeddings")
    if embeddings is not None and seconds is not None:
        raise ScoreError("--seconds cuts recordings, and embeddings are ready; leave one of them out")
    if cohort is not None and norm == "none":
        raise ScoreError("--cohort is for --norm s, as and near; leave it out, or say which")
    top = _top(norm, top)
    chosen_backend = _backend(backend, plda)
    map_ = None if calibration is None else calibrations.load(calibration)
    listed = read_trials(trials)
    groups = {} if by is None else read_groups(by, listed)
    if all(listed.labels) or not any(listed.labels):
        raise ScoreError(f"{trials}: all {len(listed)} trials are of one kind; error rates need both")
    for sentence in audit(listed, _trained_on(model)):
        print(f"speaker: warning: {trials}: {sentence}", file=sys.stderr)
    models = {} if enrol is None else collections.read_spk2utt(enrol)
    encoder = None if embeddings is not None and model is None else _encoder(model)
    ready = None if embeddings is None else collections.read(embeddings)
    of_model, dim = _origin(ready, encoder)
    chosen_backend.prepare(np.ones((1, dim)))  # refuses other dimensions
    lengths = isinstance(chosen_backend, Plda)
    if isinstance(chosen_backend, Plda) and chosen_backend.model and not same_model(chosen_backend.model, of_model):
        raise ScoreError(f"{plda} was trained on embeddings of {chosen_backend.model}, these are of {of_model}")
    others = None
    if norm != "none":
        others = collections.cohort(_cohort(cohort, model), encoder, of_model, lengths=lengths)
    name = {"none": "", "s": "+s", "as": f"+as{top}", "near": f"+cohort{top}"}[norm]
    # What scores mean depends on the PLDA, and on a cohort of one's own: others cannot be calibrated alike.
    name += f"({_digest(others)})" if cohort is not None else ""
    kind = f"plda({_digest(chosen_backend.transform)})" if isinstance(chosen_backend, Plda) else backend
    system = f"{of_model}:{kind}{name}"
    if map_ is not None:
        map_.check_systems([system])
    found = _embedded(listed, models, root, ready, encoder, seconds, lengths)
    scored = scoring.score(listed, found.names, found.vectors, chosen_backend, cohort=others, top=top,
                           normalize=norm != "near")  # fmt: skip
    sides = listed.rows(found.names)
    quality: dict[str, Any] = {"magnitude": np.linalg.norm(found.vectors, axis=1)[sides]}
    if np.isfinite(found.seconds).all():
        quality["seconds"] = found.seconds[sides]
    if scored.cohort_means is not None:
        quality["cohort"] = np.stack(scored.cohort_means, axis=1)
    values = scored.values if map_ is None else map_.llr(scored.values[:, None], quality)
    system = system if map_ is None else f"llr({system})"
    facts = {"system": system, "calibrated": map_ is not None, "list": trials.name}
    file = ScoreFile(listed, values, quality, facts)
    file.save(out)
    _show(file, prior, plots, as_json, found, groups)


def calibrate(
    scores: Annotated[list[Path], typer.Argument(metavar="SCORES...", help="Files of one system; they are pooled.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    quality: Annotated[str, typer.Option(help="Of seconds, magnitude, cohort; separated by commas.")] = "seconds",
    prior: Annotated[float, typer.Option(help="Prior of a target that matters most.")] = 0.5,
    force: Force = False,
) -> None:
    """Learn log-likelihood ratios from scored trials that are not those of the test."""
    import numpy as np

    from speaker.calibration import fit

    writable(out, force, scores)
    probability(prior)
    names = tuple(name for name in quality.split(",") if name)
    files = _scores(scores)
    if len({file.system for file in files}) > 1:
        raise ScoreError(f"the files are of several systems: {', '.join(sorted({f.system for f in files}))}; "
                         "`speaker fuse` joins systems")  # fmt: skip
    missing = [name for name in names if any(name not in file.quality for file in files)]
    if missing:
        raise ScoreError(f"the files do not have the quality measures {', '.join(missing)}; --quality '' does without")
    pooled = {name: np.concatenate([file.quality[name] for file in files]) for name in names}
    values = np.concatenate([file.scores for file in files])[:, None]
    labels = np.concatenate([file.trials.labels for file in files])
    found = fit([files[0].system], values, labels, pooled, names, prior)
    found.save(out)
    print(f"{out}: {found.trials:,} trials, {found.targets:,} of one speaker")


def fuse(
    scores: Annotated[list[Path], typer.Argument(metavar="SCORES...", help="A file a system, of the same trials.")],
    out: Annotated[Path, typer.Option(help="File of fused scores to write.")],
    learn: Annotated[Path | None, typer.Option(help="Learn the fusion on these trials and write it here.")] = None,
    fusion: Annotated[Path | None, typer.Option(help="Use a fusion that --learn wrote.")] = None,
    prior: Prior = 0.01,
    plots: Plots = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Join systems by logistic regression: --learn on one list, --fusion on others."""
    import numpy as np

    from speaker.calibration import fit, load
    from speaker.score_files import ScoreFile, same_trials

    if (learn is None) == (fusion is None):
        raise ScoreError("give either --learn FILE, to learn from these trials, or --fusion FILE, what was learned")
    writable(out, force, [*scores, fusion, learn])
    probability(prior)
    if learn is not None:
        writable(learn, force, scores)
    files = _scores(scores)
    if len(files) < 2:
        raise ScoreError("fusion joins two systems or more; `speaker calibrate` is for one")
    same_trials(files)
    values, systems = np.stack([file.scores for file in files], axis=1), [file.system for file in files]
    labels = np.array(files[0].trials.labels)
    if fusion is not None:
        found = load(fusion)
        found.check_systems(systems)
    else:
        found = fit(systems, values, labels)
        assert learn is not None
        found.save(learn)
    facts = {"system": " & ".join(systems), "calibrated": True, "list": files[0].facts.get("list")}
    file = ScoreFile(files[0].trials, found.llr(values, {}), files[0].quality, facts)
    file.save(out)
    _show(file, prior, plots, as_json, None)


def plda(
    embeddings: Annotated[
        Path, typer.Argument(metavar="FILE", help=".npz, .parquet or Kaldi archive, named speaker/...")
    ],
    out: Annotated[Path, typer.Option(help="File to write, .npz.")],
    dim: Annotated[int | None, typer.Option(help="Dimensions that LDA keeps.", show_default="all")] = None,
    adapt_to: Annotated[Path | None, typer.Option("--adapt", help="Embeddings of the new domain, unlabelled.")] = None,
    utt2spk: Annotated[
        Path | None, typer.Option(help="`recording speaker` a line.", show_default="the folders of the recordings")
    ] = None,
    force: Force = False,
) -> None:
    """Train the PLDA back end; speakers are the folders in the recordings' names, or what --utt2spk says."""
    from dataclasses import replace

    import numpy as np

    from speaker import collections
    from speaker import plda as backend
    from speaker.store import same_model

    writable(out, force, [embeddings, adapt_to, utt2spk])
    found = collections.read(embeddings)
    other = None if adapt_to is None else collections.read(adapt_to)
    if other is not None and not same_model(other.model, found.model):
        raise ScoreError(f"{adapt_to} is of {other.model}, {embeddings} is of {found.model}")
    owners = {} if utt2spk is None else collections.read_utt2spk(utt2spk)
    unknown = [name for name in found.names if owners and name not in owners]
    if unknown:
        raise ScoreError(f"{utt2spk} does not say who speaks in {len(unknown)} recordings, the first is {unknown[0]}")
    named = [owners.get(name) or collections.speaker_of(name) for name in found.names]
    speakers = np.unique(named, return_inverse=True)[1]
    trained = backend.train(found.vectors, speakers, dim)
    if other is not None:
        trained = backend.adapt(trained, other.vectors)
    replace(trained, model="" if found.model == "unknown" else found.model).save(out)
    print(f"{out}: {len(found.names)} embeddings of {speakers.max() + 1} speakers, {len(trained.psi)} dimensions")


def _backend(name: str, file: Path | None) -> Any:
    from speaker import plda as plda_backend
    from speaker.scoring import Cosine

    if name == "cosine" and file is None:
        return Cosine()
    if name == "plda" and file is not None:
        return plda_backend.load(file)
    raise ScoreError(f"--backend {name}: it is cosine, or plda together with --plda FILE")


def _top(norm: str, top: int | None) -> int | None:
    """How many of the cohort count; ScoreError for an unknown way to normalize."""
    from speaker.evidence import TOP

    if norm not in ("none", "s", "as", "near"):
        raise ScoreError(f"--norm {norm}: there are none, s, as and near")
    if norm in ("none", "s"):
        if top is not None:
            raise ScoreError(f"--top is for --norm as and near, not for {norm}")
        return None
    if top is not None and top < 2:
        raise ScoreError(f"--top {top}: take 2 cohort scores or more")
    return top if top is not None else {"as": 200, "near": TOP}[norm]


def _digest(rows: Any) -> str:
    import hashlib

    return hashlib.sha256(rows.tobytes()).hexdigest()[:8]


def _encoder(model: str | None) -> SpeakerEncoder:
    from speaker.model import default, load

    return load(model or default())


def _cohort(cohort: Path | None, model: str | None) -> Path:
    from engine import checkpoint
    from speaker.evidence import COHORT
    from speaker.model import default

    if cohort is not None:
        return cohort
    shipped = checkpoint.find(model or default()) / COHORT
    if not shipped.is_file():
        raise ScoreError(f"{shipped.parent} brings no cohort; give --cohort, a folder of speakers or their embeddings")
    return shipped


def _trained_on(model: str | None) -> list[str]:
    """Speakers, as `corpus/speaker`, of the model's training: those of the cohort that came with it."""
    import numpy as np

    from engine import checkpoint
    from speaker.evidence import COHORT
    from speaker.model import DEFAULT

    if model is None and DEFAULT not in checkpoint.shipped():
        return []
    shipped = checkpoint.find(model or DEFAULT) / COHORT
    if not shipped.is_file():
        return []
    with np.load(shipped, allow_pickle=False) as parts:
        return [name.removesuffix("/mean") for name in parts["names"].tolist()]


def _origin(ready: Collection | None, encoder: SpeakerEncoder | None) -> tuple[str, int]:
    """What the embeddings will be of, and their dimensions."""
    if ready is not None:
        return ready.model, ready.vectors.shape[1]
    assert encoder is not None
    return encoder.identity, encoder.embedding_dim


def _embedded(
    trials: Trials, models: dict[str, list[str]], root: Path | None, ready: Collection | None,
    encoder: SpeakerEncoder | None, seconds: float | None, lengths: bool,
) -> Collection:  # fmt: skip
    from rich.console import Console
    from rich.progress import Progress

    from speaker import collections

    names = [name for name in trials.recordings() if name not in models]
    names = list(dict.fromkeys([*names, *(name for utterances in models.values() for name in utterances)]))
    if ready is not None:
        found = ready
    else:
        assert encoder is not None and root is not None
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=len(names))
            found = collections.of_recordings(
                encoder, root, names, seconds, lambda done: bar.update(task, completed=done)
            )
    return collections.enrolled(found, models, lengths=lengths) if models else found


def _scores(paths: list[Path]) -> list[Any]:
    from speaker.score_files import read

    return [read(path) for path in paths]


def _show(
    file: Any,
    prior: float,
    plots: Path | None,
    as_json: bool,
    found: Collection | None,
    groups: dict[str, Any] | None = None,
) -> None:
    import numpy as np

    from speaker import plots as pictures
    from speaker.report import as_text, report

    labels = np.array(file.trials.labels)
    who = file.trials.speakers()
    ratios = bool(file.facts.get("calibrated"))
    result = report(file.scores, labels, who, prior=prior, are_ratios=ratios, seconds=file.quality.get("seconds"),
                    groups=groups)  # fmt: skip
    print(json.dumps(finite({**file.facts, **result})) if as_json else as_text(result))
    if plots is not None:
        owner = dict(zip([*file.trials.enrol, *file.trials.test], [*who[0], *who[1]], strict=True))
        known = [] if found is None else [row for row, name in enumerate(found.names) if name in owner]
        vectors = found.vectors[known] if found is not None else None
        names = [owner[found.names[row]] for row in known] if found is not None else None
        for path in pictures.save_all(plots, file.scores, labels, who, are_ratios=ratios, vectors=vectors,
                                      speakers=names):  # fmt: skip
            print(path, file=sys.stderr)
