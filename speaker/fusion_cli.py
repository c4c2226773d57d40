"""Commands on files of scores: calibrate, fuse, compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.errors import ScoreError
from speaker.checks import finite, probability, writable
from speaker.scoring_cli import Force, Json, Plots, Prior, show


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
    names = tuple(name.strip() for name in quality.split(",") if name.strip())
    files = _scores(scores)
    if len({file.system for file in files}) > 1:
        raise ScoreError(f"the files are of several systems: {', '.join(sorted({f.system for f in files}))}; "
                         "`speaker fuse` joins systems")  # fmt: skip
    if " & " in files[0].system:
        raise ScoreError(f"{scores[0]} was fused, which gives log-likelihood ratios; for other ones, `speaker fuse "
                         "--learn` anew on the systems' own scores")  # fmt: skip
    if any(file.facts.get("calibrated") for file in files):
        raise ScoreError("these are log-likelihood ratios already; calibrate scores, of `speaker score` without "
                         "--calibration")  # fmt: skip
    kinds = sorted({str(file.facts.get("enrolment", "recordings")) for file in files})
    if len(kinds) > 1:
        raise ScoreError("some of the files are of single recordings, some of models of several; calibrate either kind")
    missing = [name for name in names if any(name not in file.quality for file in files)]
    if missing:
        raise ScoreError(f"the files do not have the quality measures {', '.join(missing)}; --quality '' does without")
    # The seconds are kept in mind even where the map does without: of less speech than any of these it knows nothing.
    kept = [*names, *(["seconds"] if all("seconds" in file.quality for file in files) else [])]
    pooled = {name: np.concatenate([file.quality[name] for file in files]) for name in kept}
    values = np.concatenate([file.scores for file in files])[:, None]
    labels = np.concatenate([file.trials.labels for file in files])
    found = fit([files[0].system], values, labels, pooled, names, prior, kinds[0])
    found.save(out)
    print(f"{out}: {found.trials:,} trials, {found.targets:,} of one speaker")


def fuse(
    scores: Annotated[list[Path], typer.Argument(metavar="SCORES...", help="A file a system, of the same trials.")],
    out: Annotated[Path, typer.Option(help="File of fused scores to write.")],
    learn: Annotated[Path | None, typer.Option(help="Learn the fusion on these trials and write it here.")] = None,
    fusion: Annotated[Path | None, typer.Option(help="Use a fusion that --learn wrote.")] = None,
    prior: Prior = 0.01,
    pictures: Plots = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Join systems by logistic regression: --learn on one list, --fusion on others.

    What --learn prints is of the very trials that it has learned from, and better than what others will have.
    """
    import numpy as np

    from speaker.calibration import fit, load
    from speaker.metrics import split
    from speaker.plots import check
    from speaker.score_files import ScoreFile, same_trials

    if (learn is None) == (fusion is None):
        raise ScoreError("give either --learn FILE, to learn from these trials, or --fusion FILE, what was learned")
    if learn is not None and learn.resolve() == out.resolve():
        raise ScoreError(f"{out} cannot hold the fused scores and what was learned; give two names")
    writable(out, force, [*scores, fusion])
    if pictures is not None:
        check(pictures, force)
    probability(prior)
    if learn is not None:
        writable(learn, force, scores)
    files = _scores(scores, labelled=learn is not None)
    if pictures is not None and not files[0].trials.labels:
        raise ScoreError(f"{scores[0]} has no labels, and --plots are of errors; leave them out")
    if len(files) < 2:
        raise ScoreError("fusion joins two systems or more; `speaker calibrate` is for one")
    same_trials(files)
    values, systems = np.stack([file.scores for file in files], axis=1), [file.system for file in files]
    labels = np.array(files[0].trials.labels)
    if fusion is not None:
        found = load(fusion)
        if len(found.systems) < 2:
            raise ScoreError(f"{fusion} is a calibration of one system; `speaker fuse --learn` makes a fusion")
        if sorted(found.systems) == sorted(systems) and found.systems != systems:
            raise ScoreError(f"{fusion} was made for the files in another order: {', '.join(found.systems)}")
        found.check_systems(systems)
    else:
        found = fit(systems, values, labels)
        assert learn is not None
        found.save(learn)
    facts = {"system": " & ".join(systems), "calibrated": True, "list": files[0].facts.get("list")}
    file = ScoreFile(files[0].trials, found.llr(values, {}), files[0].quality, facts)
    if len(labels):
        split(file.scores, labels)  # complains before anything is written
    file.save(out)
    show(file, prior, pictures, as_json)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Scores of one system, of `speaker score`.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Scores of another, of the same trials.")],
    prior: Prior = 0.01,
    as_json: Json = False,
) -> None:
    """How much worse A is than B on the same trials: differences of EER and minDCF, with their 95 % intervals.

    Speakers are drawn for both at once, so that a hard list is hard for both: a difference is certain where its
    interval does not hold 0, though the intervals of either may overlap.
    """
    from speaker.intervals import eer_percent, least_cost, paired_difference
    from speaker.metrics import Cost
    from speaker.score_files import same_trials

    probability(prior)
    files = _scores([first, second])
    same_trials(files)
    trials = files[0].trials
    scores, who = (files[0].scores, files[1].scores), trials.speakers()
    found = {
        name: paired_difference(scores, trials.labels, who[0], who[1], figure)
        for name, figure in (("eer", eer_percent), ("min_dcf", least_cost(Cost(prior))))
    }
    if as_json:
        differences = {name: list(each) for name, each in found.items()}
        print(json.dumps(finite({"systems": [file.system for file in files], "prior": prior, **differences})))
        return
    for name, each, digits in (("EER, %", found["eer"], 2), (f"minDCF({prior:g})", found["min_dcf"], 3)):
        print(f"{name:<13} {each.value:+.{digits}f} [{each.low:+.{digits}f}, {each.high:+.{digits}f}]")


def _scores(paths: list[Path], labelled: bool = True) -> list[Any]:
    from speaker import score_files

    read = score_files.labelled if labelled else score_files.read
    return [read(path) for path in paths]
