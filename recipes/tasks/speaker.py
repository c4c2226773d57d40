"""Training of a speaker encoder: margin softmax on labels, imitation of a teacher, or both."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import speaker
from engine.errors import ConfigError
from recipes.directions import facing
from recipes.harness.augment import Augment, AugmentConfig
from recipes.harness.collapse import LABELS, collapse
from recipes.harness.data import SpeechCrops, Utterance
from recipes.harness.loaders import places
from recipes.harness.optim import cyclic, make_optimizer, warmup_cosine, warmup_stable_decay
from recipes.harness.pairs import pairs_within
from recipes.harness.recordings import UNLABELLED
from recipes.harness.speakers import SpeakerCrop, SpeakerCrops, blurred, centred, evened_targets
from recipes.harness.task import Task
from recipes.recipe import SpeakerRecipe
from recipes.teach import load_targets
from speaker.heads import MarginClassifier, contrast_loss, imitation_loss, relation_loss
from speaker.last_layer import transform
from speaker.metrics import eer, min_dcf
from speaker.model import SpeakerEncoder

log = logging.getLogger(__name__)
CUTS = (1, 2, 4)  # seconds of the validation crops
FACING = 3_000  # crops
BATCH = 64
OTHERS = 4_096  # of the teacher's embeddings, that a step's are told from
CONTRAST_SCALE = 20.0
ALIKE = 0.6  # cosine of two of the teacher's embeddings above which they may be of one voice
HEARD = 0.75  # of the hours given, that a teacher should have heard; recipes.teach leaves out some of long speakers
LENGTH_SECONDS = 0.2  # between the lengths of crops


class SpeakerTask(Task):
    """`model` is the encoder; the classifiers and the map to the teacher's dimensions stay behind."""

    recipe: SpeakerRecipe
    labels: ClassVar[dict[str, str]] = Task.labels | {
        "classify": "margin softmax", "imitate": "1 - cosine to the teacher", "relate": "difference to its cosines",
        "contrast": "telling its embedding from others", "eer": "equal error rate, %", "mindcf": "minDCF(0.01)",
        "taught": "cosine to the teacher", **LABELS,
    }  # fmt: skip
    number_label: ClassVar[str] = "seconds"

    def __init__(self, recipe: SpeakerRecipe) -> None:
        super().__init__(recipe)
        dim = recipe.network.embedding_dim
        if recipe.classify_weight <= 0 and not recipe.teacher:
            raise ConfigError("there is nothing to learn: classify_weight is 0 and there is no teacher")
        if any(not 0 < nested < dim for nested in recipe.nested):
            raise ConfigError(f"nested dimensions lie between 0 and {dim}, got {recipe.nested}")
        self.model = SpeakerEncoder(recipe.model)
        self.classifiers = nn.ModuleList()
        self.to_teacher: nn.Module = nn.Identity()
        self.held_out: list[str] = []  # the validation speakers, by label
        self.heard: list[frozenset[int]] = []  # the recordings of each validation crop
        self.begun = False  # from trained weights

    @property
    def monitor(self) -> dict[str, int]:
        return {"valid/eer2": -1}

    @property
    def seconds_per_step(self) -> float:
        """On average: crops are drawn at the longest length and cut, all of a step to one."""
        return self.recipe.batch_size * sum(self.recipe.crop_seconds) / 2

    def start_from(self, folder: str | Path) -> None:
        """Take the weights of a trained encoder of the same configuration, for example for a larger margin."""
        trained = speaker.load(folder)
        if trained.config != self.recipe.model:
            raise ConfigError(f"{folder} has another configuration than the recipe: {trained.config}")
        self.model.backbone.load_state_dict(trained.backbone.state_dict())
        self.begun = True
        self.facts["begun_from"] = trained.identity

    def holds_out(self, utterance: Utterance) -> bool:
        """Recordings of unknown speakers are all trained on: nobody can tell whether two of them should be alike.

        Held out by the name that they share, a corpus of thousands of voices would be lost as one speaker.
        """
        return not utterance.speaker.endswith(UNLABELLED) and super().holds_out(utterance)

    def prepare(self, samples: np.ndarray, train: list[Utterance], held_out: list[Utterance]) -> SpeechCrops:
        """Labels, targets, and the layers whose size depends on how many of them there are."""
        recipe = self.recipe
        targets = None
        if recipe.teacher:
            heard = load_targets(recipe.teacher)
            targets = centred(heard, train)
            self.facts["teacher"] = heard.teacher
            self.facts["teacher_sha256"] = hashlib.sha256(Path(recipe.teacher).read_bytes()).hexdigest()
        else:
            train = known_alone(train)
        if targets and (recipe.target_balance or recipe.target_nuisance):
            targets = evened_targets(targets, train, recipe.target_balance, recipe.target_nuisance)
        if targets and recipe.target_blur:
            targets = blurred(targets, recipe.target_blur)
        chain = None
        if recipe.augment != AugmentConfig():
            voices = [samples[u.start : u.start + u.num_samples] for u in train]
            chain = Augment(recipe.augment, recipe.sample_rate, babble=voices)
        total = recipe.max_steps * recipe.batch_size
        self.crops = crops = SpeakerCrops(
            samples, train, recipe.crop_samples, total, recipe.seed, speeds=recipe.speeds,
            targets=targets, own_share=recipe.own_share, unlabelled_share=recipe.unlabelled_share, augment=chain,
            levels=recipe.crop_levels, speaker_exponent=recipe.speaker_exponent,
        )  # fmt: skip
        if targets:
            say_unheard(train, crops.utterances, recipe)
        if recipe.classify_weight > 0:
            labels = json.dumps([crops.speakers, recipe.speeds])
            self.facts["labels_sha256"] = hashlib.sha256(labels.encode()).hexdigest()
        valid = SpeakerCrops(
            samples, held_out, recipe.validation_samples, recipe.validation_crops, 0, targets=targets,
            unlabelled_share=0.0, levels=recipe.crop_levels, speaker_exponent=0.0,
        )  # fmt: skip
        dim = recipe.network.embedding_dim
        if targets and crops.dim == dim and self.begun:
            face_teacher(self.model, crops)
        if recipe.classify_weight > 0:
            centres = crops.centres() if targets and crops.dim == dim else None
            if centres is None and self.begun and not recipe.fixed_classifier:
                centres = own_centres(self.model, crops)
            self.classifiers = nn.ModuleList(
                make_classifier(recipe, size, crops.num_labels, centres) for size in (dim, *recipe.nested)
            )
        if targets and crops.dim != dim:
            self.to_teacher = nn.Linear(dim, crops.dim, bias=False)
        self.held_out = list(valid.speakers)
        self.heard = [frozenset(found.start for found, _ in places(valid, i)) for i in range(len(valid))]
        same = self.trials(np.array([int(valid[i].label) for i in range(len(valid))]), np.arange(len(valid)))[2]
        if not same.any() or same.all():
            log.warning("validation has no equal error rate and so no best.ckpt: among its %d crops are no two of one "
                        "speaker from two recordings, or no two speakers of one corpus", len(valid))  # fmt: skip
        return valid

    def keep_beginning(self, folder: Path) -> None:
        """The encoder as `start_from` and `prepare` leave it: turned to the teacher, it is no longer that of a user."""
        if self.begun:
            self.model.eval()
            speaker.save(folder, self.model, "# What the run began from\n")
            self.model.train()

    def embed(self, wav: Tensor) -> Tensor:
        """(B, N) -> (B, D); features in single precision whatever the network computes in."""
        with torch.autocast(wav.device.type, enabled=False):
            features, _ = self.model.front_end(wav)
        embeddings: Tensor = self.model.backbone(features)
        return embeddings.float()

    def margin_at(self, step: int) -> float:
        """The margin grows linearly between the two steps of the recipe."""
        first, last = self.recipe.margin_steps
        return self.recipe.margin * min(1.0, max(0.0, (step - first) / max(1, last - first)))

    def samples_at(self, step: int) -> int:
        """Length of all crops of a step; depends on seed and step alone.

        One of a few lengths: kernels are compiled for each, and the library keeps so many, which is 15 % of the time.
        """
        low, high = (round(seconds * self.recipe.sample_rate) for seconds in self.recipe.crop_seconds)
        steps = max(1, round((high - low) / (LENGTH_SECONDS * self.recipe.sample_rate)))
        at = int(np.random.default_rng((self.recipe.seed, 3, step)).integers(steps + 1))
        return low + round(at * (high - low) / steps)

    def others(self, step: int) -> Tensor:
        """(K, D): targets drawn from all of training, by seed and step alone."""
        assert isinstance(self.crops, SpeakerCrops) and self.crops.targets is not None
        targets = self.crops.targets.reshape(-1, self.crops.dim)
        rows = np.random.default_rng((self.recipe.seed, 4, step)).integers(len(targets), size=OTHERS)
        return torch.from_numpy(targets[rows])

    def training_step(self, batch: SpeakerCrop, batch_idx: int) -> Tensor:
        recipe, step = self.recipe, self.batches_done
        embeddings = self.embed(batch.wav[:, : self.samples_at(step)])
        known, margin = batch.label >= 0, self.margin_at(step)
        parts: dict[str, Tensor] = {}
        sizes = (embeddings.shape[1], *recipe.nested)
        with torch.autocast(embeddings.device.type, enabled=False):
            if len(self.classifiers):
                losses = [
                    classify(embeddings[known, :size], batch.label[known], margin)
                    for classify, size in zip(self.classifiers, sizes, strict=True)
                ]
                parts["classify"] = torch.stack(losses).mean()
            if recipe.teacher:
                taught = self.to_teacher(embeddings)
                parts["imitate"] = imitation_loss(taught, batch.target)
                if recipe.contrast_weight > 0:
                    others = self.others(step).to(taught.device)
                    parts["contrast"] = contrast_loss(taught, batch.target, others, scale=CONTRAST_SCALE, alike=ALIKE)
                parts["relate"] = torch.stack([relation_loss(embeddings[:, :n], batch.target) for n in sizes]).mean()
        total = sum((getattr(recipe, f"{name}_weight") * value for name, value in parts.items()), torch.zeros(()))
        self.log_dict({f"train/{name}": value.detach() for name, value in {"total": total, **parts}.items()})
        return total

    def validation_step(self, batch: SpeakerCrop, batch_idx: int) -> None:
        self.log_dict({f"valid/{name}": v for name, v in self.metrics(batch).items()}, batch_size=len(batch.wav))

    @torch.no_grad()
    def metrics(self, batch: SpeakerCrop) -> dict[str, float]:
        """Errors of all pairs within a corpus, whole and cut; in single precision, as users embed."""
        values: dict[str, float] = {}
        known = (batch.label >= 0).cpu().numpy()
        label = batch.label.cpu().numpy()[known]
        first, second, same = self.trials(label, np.flatnonzero(known))
        with torch.autocast(batch.wav.device.type, enabled=False):
            for seconds in CUTS:
                wav = batch.wav[:, : seconds * self.recipe.sample_rate]
                embeddings = torch.cat([self.embed(part) for part in wav.split(BATCH)])
                unit = F.normalize(embeddings[batch.label >= 0]).cpu().numpy()
                cosines = np.einsum("nd,nd->n", unit[first], unit[second])
                if same.any() and not same.all():
                    values[f"eer{seconds}"] = 100 * eer(cosines[same], cosines[~same])[0]
                    values[f"mindcf{seconds}"] = min_dcf(cosines[same], cosines[~same])[0]
                if self.recipe.teacher:
                    taught = F.cosine_similarity(self.to_teacher(embeddings), batch.target)
                    values[f"taught{seconds}"] = float(taught.mean())
        return values | collapse(unit, label)

    def trials(self, label: np.ndarray, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs (n,) of validation crops within a corpus, and whether one speaks in both; none of one recording.

        `label` and `crops` (B,) tell the speakers and the numbers of the crops.
        """
        first, second, same = pairs_within([self.held_out[i] for i in label])
        apart = ~same
        for pair in np.flatnonzero(same):
            apart[pair] = self.heard[crops[first[pair]]].isdisjoint(self.heard[crops[second[pair]]])
        return first[apart], second[apart], same[apart]

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        parts = nn.ModuleDict({"model": self.model, "classifiers": self.classifiers, "to_teacher": self.to_teacher})
        optimizer = make_optimizer(parts, recipe)
        if recipe.schedule == "cosine":
            schedule = warmup_cosine(optimizer, recipe.warmup_steps, recipe.max_steps)
        elif recipe.schedule == "cyclic":
            schedule = cyclic(optimizer, recipe.cycle_steps)
        else:
            schedule = warmup_stable_decay(optimizer, recipe.warmup_steps, recipe.max_steps, recipe.decay_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def known_alone(utterances: list[Utterance]) -> list[Utterance]:
    """Those of speakers with a name, all that there is to learn from without a teacher; says how many it leaves out."""
    known = [u for u in utterances if not u.speaker.endswith(UNLABELLED)]
    if not known:
        raise ConfigError("no speaker has a name and there is no teacher: nothing to learn from; see recipes.teach")
    if len(known) < len(utterances):
        log.warning("%d recordings of unknown speakers are left out: only a teacher makes something of them "
                    "(recipes.teach)", len(utterances) - len(known))  # fmt: skip
    return known


def say_unheard(given: list[Utterance], heard: list[Utterance], recipe: SpeakerRecipe) -> None:
    """Warn where the teacher has not heard most recordings: the same ones, decoded anew, are others to it."""
    hours, of = (sum(u.num_samples for u in each) / recipe.sample_rate / 3600 for each in (heard, given))
    if hours < HEARD * of:
        log.warning(
            "the teacher has heard %.1f of %.1f hours of these recordings, and the rest is not trained on; "
            "`python -m recipes.teach` with the same manifests, and more --speaker-seconds where its recordings are of "
            "speakers with many, adds it to %s",
            hours, of, recipe.teacher,
        )  # fmt: skip


def face_teacher(encoder: SpeakerEncoder, crops: SpeakerCrops) -> None:
    """Turn a trained encoder by its last layer to where the teacher of the crops looks.

    It may have been trained without one, or turned after training (`recipes.calibrate`); what it knows already it would
    otherwise have to learn again. By crops as they were recorded: noise would hide where they point.
    """
    encoder.eval()
    undisturbed = copy.copy(crops)
    undisturbed.chain = None
    items = [undisturbed[i] for i in range(min(FACING, len(crops)))]
    with torch.inference_mode():
        wavs = torch.stack([item.wav for item in items]).split(BATCH)
        vectors = torch.cat([encoder(wav) for wav in wavs]).double().numpy()
    targets = torch.stack([item.target for item in items]).double().numpy()
    transform(encoder, *facing(vectors, targets), vectors)
    encoder.train()


def own_centres(encoder: SpeakerEncoder, crops: SpeakerCrops) -> np.ndarray:
    """(num_labels, D): where a trained encoder puts one recording of each label."""
    encoder.eval()
    wavs = crops.of_each_label()
    with torch.inference_mode():
        batches = iter(lambda: list(islice(wavs, BATCH)), [])
        parts = [encoder(torch.from_numpy(np.stack(batch))).numpy() for batch in batches]
    encoder.train()
    return np.concatenate(parts)


def make_classifier(recipe: SpeakerRecipe, size: int, num_labels: int, centres: np.ndarray | None) -> MarginClassifier:
    """Over the first `size` dimensions. Its first class vectors are `centres` (num_labels, D), where they are known.

    They are those of the teacher, or what the encoder that training begins from makes of the labels. Random ones pull
    a trained encoder apart until they are learned.
    """
    classifier = MarginClassifier(
        size, num_labels, scale=recipe.scale, sub_centres=recipe.sub_centres, top_k=recipe.top_k,
        top_k_penalty=recipe.top_k_penalty, fixed=recipe.fixed_classifier,
    )  # fmt: skip
    if centres is not None:
        classifier.start_from(torch.from_numpy(centres[:, :size]))
    return classifier
