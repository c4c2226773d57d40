"""Export a run's averaged weights as a checkpoint folder: python -m recipes.export RUN --out checkpoints/NAME.

The card gets what the run knows (recipe, hours seen, data); `benchmarks/quality.py` and `benchmarks/verification.py`
add the measured tables.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import speaker.model
from codec.io import make
from codec.live import EscLive
from codec.model import Codec
from engine import checkpoint
from engine.errors import CheckpointError, SpeechError
from recipes.harness.manifests import read
from recipes.harness.record import BEGINNING, load_recipe, starts
from recipes.harness.recordings import UNLABELLED
from recipes.recipe import AdversarialRecipe, CodecRecipe, SpeakerRecipe
from recipes.teach import load_targets
from speaker.model import SpeakerEncoder

CODEC_CARD = """# {name}

{what} (`{kind}`, {parameters:.2f} M parameters): {rate_khz:g} kHz speech to {lowest:g} ... {highest:g} kbit/s
in {levels} levels, {delay}.

## Training
- Recipe `{recipe}`, {steps} steps of {batch} crops of {crop:.2f} s: {hours:.1f} hours of audio seen, drawn from
  {data_hours:.2f} hours of recordings (averaged weights, decay {ema}).
- Learning rate {rate:g} with linear decay over the last {decay} steps; {losses}.
{note}- Validation speakers are disjoint from the training speakers.

## Data
{data}

## Measured
<!-- quality -->
Not measured yet: `make quality`.
<!-- /quality -->

## Known weaknesses
Languages, noise, music and several talkers at once that the data above have not are outside of what it has seen. What
that costs:

<!-- weaknesses -->
Not measured yet: `python -m benchmarks.weaknesses`.
<!-- /weaknesses -->
"""


SPEAKER_CARD = """# {name}

Speaker encoder: {kind}, {parameters:.2f} M parameters, {dim} dimensions. {rate_khz:g} kHz speech in, front end
included. The embeddings are not normalized; compare them by cosine.

## Training
- Recipe `{recipe}`, {steps} steps of {batch} crops of {shortest:g} to {longest:g} s: {hours:.1f} hours of audio seen,
  drawn from {data_hours:.2f} hours of recordings{speeds} (averaged weights, decay {ema}).
- Loss: {losses}.
- {teacher}
{note}- Validation speakers are disjoint from the training speakers.

## Data
{data}

## Measured
<!-- verification -->
Not measured yet: `make verification`.
<!-- /verification -->

## Calibration
`speaker verify` turns the cosine and the seconds of speech into a log-likelihood ratio (`calibration.json`, learned on
held-out training speakers, 1 to 10 s, noise at 0 to 30 dB). On the test lists, cut and disturbed in the same way:

<!-- calibration -->
Not measured yet: `python -m benchmarks.calibration`.
<!-- /calibration -->

## Known weaknesses
Trained on the voices of {num_speakers} known speakers. Languages, ages, emotions and recording conditions other than
those of the data above are outside of what it has seen. A cosine is no probability; thresholds differ from one use to
the next.
"""

TEACHERS = {
    "campplus": "Teacher: CAM++ (`speech_campplus_sv_zh_en_16k-common_advanced` of 3D-Speaker, Apache-2.0), its "
    "embeddings of the undisturbed recordings, their mean taken off; none of its weights are in here.",
    "ge2e": "Teacher: GE2E of Resemblyzer (Apache-2.0), its embeddings of the undisturbed recordings, their "
    "mean taken off; none of its weights are in here.",
}


def export(
    run: Path, out: Path, note: str = "", best: bool = False, average: float = 0.0,
    others: Sequence[tuple[Path, float]] = (),
) -> str:  # fmt: skip
    """Write the folder `out` from the run's last checkpoint, or its best; return the sha256 of the weights.

    `average` is the share of the weights of the encoder that the run began from (`--init`), 0 to 1; `others` are more
    encoders' folders with their shares, and what is left is the share of the run.
    """
    weights = run / "checkpoints" / ("best.ckpt" if best else "last.ckpt")
    for needed in (weights, run / "recipe.json", run / "data.json"):
        if not needed.exists():
            raise CheckpointError(f"{needed} is missing; is {run} a run folder?")
    facts = json.loads((run / "data.json").read_text())
    # Our own run folder, yet still nothing but tensors and plain values is unpickled.
    loaded = torch.load(weights, map_location="cpu", weights_only=True)
    prefix = "model."
    state = {k.removeprefix(prefix): v for k, v in loaded["state_dict"].items() if k.startswith(prefix)}
    steps, note = int(loaded["global_step"]), f"- {note}\n" if note else ""
    if "network" in json.loads((run / "recipe.json").read_text()):
        if average:
            state = averaged(state, run / BEGINNING, average)
        if not all(0 <= share <= 1 for _, share in others) or sum(share for _, share in others) >= 1:
            raise CheckpointError("the shares of --with are 0 to 1, and less than 1 together")
        for place, (folder, share) in enumerate(others):
            # Of the mean so far, so that in the end each has its share.
            state = averaged(state, folder, share / (1 - sum(later for _, later in others[place + 1 :])))
        if others:
            listed = ", ".join(f"{share:.0%} of `{speaker.model.load(folder).identity}`" for folder, share in others)
            note = f"- Mean of weights: {listed}, the rest what the steps made.\n{note}"
        if begun_from := (starts(run) or [{}])[0].get("begun_from"):
            mean = f"; {average:.0%} of these are still those, the rest what the steps made of them" if average else ""
            note = f"- Begun from the weights of `{begun_from}`{mean}.\n{note}"
        recipe = load_recipe(run, SpeakerRecipe)
        # Runs of before its name was kept have it in the file alone.
        taught_by = (starts(run) or [{}])[-1].get("teacher", "")
        return _export_speaker(recipe, state, steps, facts, out, note, taught_by)
    if average or others:
        raise CheckpointError("weights are averaged of speaker encoders only: means of codebooks code nothing")
    return _export_codec(load_recipe(run, _codec_kind(run)), state, steps, facts, out, note)


def averaged(state: dict[str, Tensor], folder: Path, share: float) -> dict[str, Tensor]:
    """A mean of these weights and, with that share, those of the encoder in `folder`; CheckpointError.

    Such means are often better than both (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
    """
    if not 0 <= share <= 1:
        raise CheckpointError(f"--average is the share of the first weights, 0 to 1; got {share:g}")
    if not folder.exists():
        hint = ": a run has it that began from an encoder (recipes.train --init)" if folder.name == BEGINNING else ""
        raise CheckpointError(f"{folder} is missing{hint}")
    other = speaker.model.load(folder).state_dict()
    if {k: v.shape for k, v in other.items()} != {k: v.shape for k, v in state.items()}:
        raise CheckpointError(f"{folder} has other weights than the run: their mean means nothing")
    return {k: (1 - share) * v + share * other[k] if v.is_floating_point() else v for k, v in state.items()}


def other_encoder(text: str) -> tuple[Path, float]:
    """FOLDER=SHARE, for argparse."""
    folder, _, share = text.rpartition("=")
    if not folder:
        raise ValueError
    return Path(folder), float(share)


def _codec_kind(run: Path) -> type[CodecRecipe]:
    adversarial = "discriminator_steps" in json.loads((run / "recipe.json").read_text())
    return AdversarialRecipe if adversarial else CodecRecipe


def _export_codec(
    recipe: CodecRecipe, state: dict[str, Tensor], steps: int, facts: dict[str, Any], out: Path, note: str
) -> str:
    model = make(recipe.model)
    model.load_state_dict(state)
    card = CODEC_CARD.format(
        name=out.name,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        recipe=recipe.name,
        steps=f"{steps:,}",
        batch=recipe.batch_size,
        crop=recipe.crop_samples / recipe.sample_rate,
        hours=steps * recipe.batch_size * recipe.crop_samples / recipe.sample_rate / 3600,
        data_hours=facts["hours"],
        ema=recipe.ema_decay,
        rate=recipe.learning_rate,
        decay=recipe.decay_steps,
        note=note,
        data=facts["table"],
        **_codec_facts(recipe, model),
    )
    return checkpoint.save(out, model, kind=model.kind, config=model.config, card=card)


def _codec_facts(recipe: CodecRecipe, model: Codec) -> dict[str, Any]:
    """What the card says of the model and of its losses."""
    config = model.config
    adversary = isinstance(recipe, AdversarialRecipe)
    what, delay = "Speech codec", "for recordings: every frame sees some of what follows"
    if isinstance(model, EscLive):
        samples = config.samples_per_frame + model.istft.delay
        what, delay = "Live speech codec", f"causal, {1000 * samples / config.sample_rate:.0f} ms algorithmic delay"
    return {
        "what": what,
        "kind": model.kind,
        "rate_khz": config.sample_rate / 1000,
        "lowest": config.bitrate(1) / 1000,
        "highest": config.bitrate(config.levels) / 1000,
        "levels": config.levels,
        "delay": delay,
        "losses": "reconstruction losses and adversaries" if adversary else "reconstruction losses only, no adversary",
    }


def _export_speaker(
    recipe: SpeakerRecipe, state: dict[str, Tensor], steps: int, facts: dict[str, Any], out: Path, note: str,
    teacher_name: str,
) -> str:  # fmt: skip
    encoder = SpeakerEncoder(recipe.model)
    encoder.load_state_dict(state)
    losses = ["margin softmax"] if recipe.classify_weight > 0 else []
    teacher = "No teacher."
    if recipe.teacher:
        losses += ["cosine to the teacher's embedding"]
        losses += ["telling that from its embeddings of other recordings"] if recipe.contrast_weight > 0 else []
        losses += ["difference to its cosines within a batch"]
        name = teacher_name or load_targets(recipe.teacher).teacher
        teacher = TEACHERS.get(name, f"Teacher: {name}.")
        if recipe.target_nuisance or recipe.target_balance:
            teacher += (
                f" {recipe.target_nuisance} directions in which corpora differ were taken away from them, wide ones "
                f"narrowed (exponent {recipe.target_balance:g})."
            )
        if recipe.target_blur:
            teacher += f" Those at the next lower and higher speed were added, times {recipe.target_blur:g}."
    shortest, longest = recipe.crop_seconds
    card = SPEAKER_CARD.format(
        name=out.name,
        kind=recipe.model.kind,
        rate_khz=recipe.sample_rate / 1000,
        parameters=sum(p.numel() for p in encoder.parameters()) / 1e6,
        dim=encoder.embedding_dim,
        recipe=recipe.name,
        steps=f"{steps:,}",
        batch=recipe.batch_size,
        shortest=shortest,
        longest=longest,
        hours=steps * recipe.batch_size * (shortest + longest) / 2 / 3600,
        data_hours=facts["hours"],
        speeds=at_speeds(recipe.speeds),
        num_speakers=facts.get("speakers", "hundreds"),
        ema=recipe.ema_decay,
        losses=", ".join(losses),
        teacher=teacher,
        note=note,
        data=facts["table"],
    )
    checkpoint.drop_extras(out)
    return speaker.model.save(out, encoder, card)


def at_speeds(speeds: Sequence[float]) -> str:
    """Words behind "recordings"; none where they are as they were recorded."""
    listed = ", ".join(f"{factor:g}" for factor in speeds)
    return "" if tuple(speeds) == (1.0,) else f" at {listed} times their speed"


def describe_data(manifests: Sequence[str]) -> str:
    """Markdown table: hours, recordings, speakers, language and licence of each corpus of the manifests."""
    corpora: dict[str, dict[str, Any]] = {}
    for manifest in manifests:
        for item in read(manifest):
            entry = corpora.setdefault(
                item.corpus,
                {"hours": 0.0, "files": 0, "speakers": set(), "language": item.language, "licence": item.licence},
            )
            entry["hours"] += math.nan if item.seconds is None else item.seconds / 3600
            entry["files"] += 1
            entry["speakers"].add(item.speaker)
    lines = ["| corpus | hours | recordings | speakers | language | licence |", "|---|---|---|---|---|---|"]
    for name, entry in sorted(corpora.items()):
        known = [name for name in entry["speakers"] if not name.endswith(UNLABELLED)]
        unknown = len(known) < len(entry["speakers"])
        speakers = " + ".join([str(len(known))] * bool(known) + ["unlabelled"] * unknown)
        hours = "" if math.isnan(entry["hours"]) else f"{entry['hours']:.2f}"
        facts = (name, hours, entry["files"], speakers, entry["language"], entry["licence"])
        lines.append("| " + " | ".join(str(fact or "not stated") for fact in facts) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m recipes.export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder; its name becomes the model's name")
    parser.add_argument("--best", action="store_true", help="the checkpoint that validated best, not the last one")
    parser.add_argument("--average", type=float, nargs="?", const=0.5, default=0.0, metavar="SHARE",
                        help="of the weights of the encoder that the run began from; half of them")  # fmt: skip
    parser.add_argument("--with", type=other_encoder, action="append", default=[], dest="others",
                        metavar="FOLDER=SHARE",
                        help="of the weights of another encoder that looks the same way; may be repeated")  # fmt: skip
    parser.add_argument("--note", default="", help="a line for the card: what the recipe does not say")
    options = parser.parse_args(arguments)
    try:
        sha256 = export(options.run, options.out, options.note, options.best, options.average, options.others)
    except SpeechError as error:
        print(f"export: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
