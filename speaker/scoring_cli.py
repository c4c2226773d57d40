"""Commands on lists of trials and embeddings: score, plda. What comes of scores is in `speaker.fusion_cli`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import ScoreError
from speaker.checks import duration, finite, probability, warn, writable

if TYPE_CHECKING:
    from speaker.collections import Collection
    from speaker.model import SpeakerEncoder

Prior = Annotated[float, typer.Option(help="Prior of a target for the detection costs, between 0 and 1.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")]
Plots = Annotated[Path | None, typer.Option("--plots", help="Folder for pictures: DET, histogram, calibration, map.")]

FEW = 5  # speakers; fewer are not drawn from


def score(
    trials: Annotated[Path, typer.Option(help="List: `1 enrol test`, `enrol test target`, `enrol test`, NIST's.")],
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
        Path | None, typer.Option(help="Folder of speakers, .npz, .parquet, .ark or .scp.", show_default="the model's")
    ] = None,
    utt2spk: Annotated[
        Path | None,
        typer.Option(help="`recording speaker` a line, for --cohort.", show_default="the folders of its recordings"),
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Cohort scores that --norm as and near take.", show_default="200 and 50")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Turn scores into log-likelihood ratios.")] = None,
    prior: Prior = 0.01,
    by: Annotated[
        Path | None, typer.Option(help="CSV with a column path and others, such as gender or snr: tables by these.")
    ] = None,
    pictures: Plots = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Score a list of trials, each recording embedded once, and print error rates, if it has labels.

    EER: where the lines between neighbouring operating points cross misses = false acceptances; equal scores are
    accepted or rejected together. minDCF: detection cost of the best threshold, 1 for whoever accepts all or none.
    Log-likelihood ratios also get actDCF, the cost at the threshold of the prior, and Cllr. [95 %, bootstrap over
    speakers.]
    """
    import numpy as np

    from speaker import calibration as calibrations
    from speaker import collections, plots, score_inputs, scoring
    from speaker.groups import read_groups
    from speaker.plda import Plda
    from speaker.score_files import ScoreFile
    from speaker.store import same_model
    from speaker.trial_audit import audit
    from speaker.trials import read_trials

    # All that can be wrong with the options is found before hours of embedding.
    writable(out, force, [trials, embeddings, enrol, plda, cohort, utt2spk, calibration, by])
    if pictures is not None:
        plots.check(pictures, force)
    probability(prior)
    duration("--seconds", seconds)
    if (root is None) == (embeddings is None):
        raise ScoreError("give either --root, the folder of the recordings, or --embeddings")
    if embeddings is not None and seconds is not None:
        raise ScoreError("--seconds cuts recordings, and embeddings are ready; leave one of them out")
    if cohort is not None and norm == "none":
        raise ScoreError("--cohort is for --norm s, as and near; leave it out, or say which")
    if utt2spk is not None and cohort is None:
        raise ScoreError("--utt2spk says who speaks in the recordings of a --cohort; name that too, or leave it out")
    top = score_inputs.top_of(norm, top)
    chosen_backend = score_inputs.backend_of(backend, plda)
    map_ = None if calibration is None else calibrations.load(calibration)
    listed = read_trials(trials)
    models = {} if enrol is None else collections.read_spk2utt(enrol)
    groups = {} if by is None else read_groups(by, listed, models)
    if not listed.labels and (by is not None or pictures is not None):
        raise ScoreError(f"{trials} has no labels, and --by and --plots are of errors; leave them out")
    if listed.labels and (all(listed.labels) or not any(listed.labels)):
        raise ScoreError(f"{trials}: all {len(listed)} trials are of one kind; error rates need both")
    encoder = None if embeddings is not None and model is None else _encoder(model)
    ready = None if embeddings is None else collections.read(embeddings, encoder.identity if encoder else "unknown")
    if ready is not None and encoder is not None and not same_model(ready.model, encoder.identity):
        raise ScoreError(f"{embeddings} is of {ready.model}, --model {model} is {encoder.identity}; leave --model out")
    if ready is not None:
        of_model, dim = ready.model, ready.vectors.shape[1]
    else:
        assert encoder is not None
        of_model, dim = encoder.identity, encoder.embedding_dim
    if encoder is not None and encoder.embedding_dim != dim:
        raise ScoreError(f"{embeddings} has {dim} dimensions, embeddings of {of_model} have {encoder.embedding_dim}")
    for sentence in audit(listed, score_inputs.trained_on(model, of_model), models, root):
        warn(f"{trials}: {sentence}")
    chosen_backend.prepare(np.ones((1, dim)))  # refuses other dimensions
    lengths = isinstance(chosen_backend, Plda)
    if isinstance(chosen_backend, Plda) and chosen_backend.model and not same_model(chosen_backend.model, of_model):
        raise ScoreError(f"{plda} was trained on embeddings of {chosen_backend.model}, these are of {of_model}")
    kind = f"plda({score_inputs.digest(chosen_backend.transform)})" if isinstance(chosen_backend, Plda) else backend
    system = f"{of_model}:{kind}" + {"none": "", "s": "+s", "as": f"+as{top}", "near": f"+cohort{top}"}[norm]
    enrolment = "models" if models else "recordings"
    if map_ is not None:
        score_inputs.check_calibration(map_, system, cohort is not None)
        if sentence := map_.doubt(enrolment):
            warn(f"{calibration}: {sentence}")
    names = score_inputs.names_of(listed, models)
    if ready is not None:
        found = collections.enrolled(ready, models, lengths=lengths)
        sides = listed.rows(found.names)  # refuses recordings without an embedding
        if map_ is not None and "seconds" in map_.quality and np.isnan(found.seconds[sides]).any():
            raise ScoreError(f"{calibration} needs seconds of speech, and {embeddings} does not tell them of all; "
                             "`speaker embed` does, and `speaker calibrate --quality ''` needs none")  # fmt: skip
    else:
        assert encoder is not None and root is not None
        collections.check_models(models, names)
        collections.check_recordings(encoder, root, names)
    others = None
    if norm != "none":
        source = score_inputs.cohort_file(cohort, model)
        others = collections.cohort(source, encoder, of_model, dim, lengths=lengths, utt2spk=utt2spk)
        if top is not None and len(others) < top:
            warn(f"the cohort has {len(others)} speakers, fewer than the {top} whose scores count; few strangers tell "
                 "little of how alike strangers are")  # fmt: skip
    if cohort is not None:
        # What scores mean depends on a cohort of one's own: others cannot be calibrated alike.
        system += f"({score_inputs.digest(others)})"
        if map_ is not None:
            map_.check_systems([system])
    if ready is None:
        assert encoder is not None and root is not None
        found = score_inputs.embedded(encoder, root, names, seconds)
        found = collections.enrolled(found, models, lengths=lengths)
        sides = listed.rows(found.names)
    scored = scoring.score(listed, found.names, found.vectors, chosen_backend, cohort=others, top=top,
                           normalize=norm != "near", models=models)  # fmt: skip
    score_inputs.warn_of_little_speech(listed, found, map_)
    quality = score_inputs.quality_of(found, sides)
    if scored.cohort_means is not None:
        quality["cohort"] = np.stack(scored.cohort_means, axis=1)
    values = scored.values if map_ is None else map_.llr(scored.values[:, None], quality)
    facts = {
        "system": system if map_ is None else f"llr({system})", "calibrated": map_ is not None, "list": trials.name,
        "enrolment": enrolment,
    }  # fmt: skip
    file = ScoreFile(listed, values, quality, facts)
    file.save(out)
    show(file, prior, pictures, as_json, found, groups)


def plda(
    embeddings: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help=".npz, .parquet or Kaldi archive, named speaker/...; or a PLDA to --adapt."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write, .npz.")],
    dim: Annotated[int | None, typer.Option(help="Dimensions that LDA keeps.", show_default="all")] = None,
    adapt_to: Annotated[Path | None, typer.Option("--adapt", help="Embeddings of the new domain, unlabelled.")] = None,
    utt2spk: Annotated[
        Path | None, typer.Option(help="`recording speaker` a line.", show_default="the folders of the recordings")
    ] = None,
    force: Force = False,
) -> None:
    """Train the PLDA back end; speakers are the folders in the recordings' names, or what --utt2spk says.

    Or --adapt one that is trained, of this command or of Kaldi.
    """
    from dataclasses import replace

    import numpy as np

    from speaker import collections
    from speaker import plda as backend
    from speaker.store import same_model

    writable(out, force, [embeddings, adapt_to, utt2spk])
    other = None if adapt_to is None else collections.read(adapt_to)
    if trained := backend.is_plda(embeddings):
        if other is None or dim is not None or utt2spk is not None:
            raise ScoreError(f"{embeddings} is a PLDA already; it can be adapted, with --adapt EMBEDDINGS alone")
        found = backend.load(embeddings)
        model, size, told = found.model or other.model, len(found.centre), f"{embeddings}"
    else:
        given = collections.read(embeddings)
        model, size = given.model, given.vectors.shape[1]
    if other is not None and not same_model(other.model, model):
        raise ScoreError(f"{adapt_to} is of {other.model}, {embeddings} is of {model}")
    if other is not None and other.vectors.shape[1] != size:
        raise ScoreError(f"{adapt_to} has {other.vectors.shape[1]} dimensions, {embeddings} {size}")
    if not trained:
        speakers = np.unique(collections.speakers_of(given.names, utt2spk), return_inverse=True)[1]
        found = backend.train(given.vectors, speakers, dim)
        told = f"{len(given.names)} embeddings of {speakers.max() + 1} speakers"
    if other is not None:
        found = backend.adapt(found, other.vectors)
        told += f", adapted to {len(other.names)} embeddings"
    replace(found, model="" if model == "unknown" else model).save(out)
    print(f"{out}: {told}, {len(found.psi)} dimensions")


def _encoder(model: str | None) -> SpeakerEncoder:
    from speaker.model import default, load

    return load(model or default())


def show(
    file: Any, prior: float, plots: Path | None, as_json: bool, found: Collection | None = None,
    groups: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Print what the scores say, and draw it."""
    import numpy as np

    from speaker import plots as pictures
    from speaker.report import as_text, report

    if not file.trials.labels:
        count = len(file.trials)
        told = f"trials      {count:,}, without labels: no error rates"
        print(json.dumps({**file.facts, "trials": count}) if as_json else told)
        return
    labels = np.array(file.trials.labels)
    who = file.trials.speakers()
    ratios = bool(file.facts.get("calibrated"))
    result = report(file.scores, labels, who, prior=prior, are_ratios=ratios, seconds=file.quality.get("seconds"),
                    groups=groups)  # fmt: skip
    print(json.dumps(finite({**file.facts, **result})) if as_json else as_text(result))
    if min(len({a for a, same in zip(who[0], labels, strict=True) if same}), result["targets"]) < FEW:
        warn(f"target trials of fewer than {FEW} speakers; the intervals are not to be trusted")
    if result["eer"][0] == 0:  # the rule of three: an interval drawn from no errors has no width
        least = min(result["targets"], result["nontargets"])
        warn(f"there are no errors, which of {least:,} trials that one error rate rests on can still happen once in 20 "
             f"times where it is {min(100.0, 300 / least):.2g} %; the intervals do not tell")  # fmt: skip
    if plots is not None:
        owner = dict(zip([*file.trials.enrol, *file.trials.test], [*who[0], *who[1]], strict=True))
        known = [] if found is None else [row for row, name in enumerate(found.names) if name in owner]
        vectors = found.vectors[known] if found is not None else None
        names = [owner[found.names[row]] for row in known] if found is not None else None
        for path in pictures.save_all(plots, file.scores, labels, who, are_ratios=ratios, vectors=vectors,
                                      speakers=names):  # fmt: skip
            print(path, file=sys.stderr)
