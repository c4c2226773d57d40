"""Cosines to log-likelihood ratios, with and without a cohort."""

import numpy as np
import pytest
import torch

import speaker
from engine import checkpoint
from engine.errors import ScoreError
from engine.features import kaldi_fbank
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.calibration import Calibration, fit
from speaker.evidence import TOP, Evidence, calibration_of, cohort_of, evidence_of, nearness, system_of
from speaker.metrics import eer
from speaker.model import SpeakerConfig, SpeakerEncoder
from speaker.scoring import unit

DIM = 24


def crowded(count, takes, seed):
    """Half of the voices lie in a crowd, where strangers are alike; (n, D) and the speakers (n,)."""
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(count, DIM))
    people[: count // 2, 0] += 6
    vectors = np.repeat(people, takes, 0) + 0.7 * rng.normal(size=(count * takes, DIM))
    return vectors, np.repeat(np.arange(count), takes)


def test_near_is_the_mean_of_the_highest_cosines():
    cohort = unit(crowded(200, 1, 1)[0])
    made = Calibration(["m@1:x"], ["cohort"], [10.0, -3.0, -3.0], 0.0, 0.5, 1, 1, 0.0)
    vectors = 3 * unit(np.random.default_rng(2).normal(size=(5, DIM)))
    side = Evidence(made, cohort).side(vectors, 2.0)
    expected = np.sort(unit(vectors) @ cohort.T, axis=1)[:, -TOP:].mean(1)
    assert np.allclose(side.cohort, expected) and np.allclose(side.magnitude, 3) and (side.seconds == 2).all()
    assert Evidence(made).side(vectors, 2.0).cohort is None
    assert np.allclose(nearness(cohort[:7], vectors), (unit(vectors) @ cohort[:7].T).mean(1))  # fewer than TOP: all
    assert nearness(cohort, vectors[:0]).shape == (0,)
    with pytest.raises(ScoreError, match="needs the quality measure 'cohort'"):
        Evidence(made).llr(np.zeros(5), *[Evidence(made).side(vectors, 2.0)] * 2)


def test_one_side_may_be_for_all():
    cohort = unit(crowded(200, 1, 1)[0])
    evidence = Evidence(
        Calibration(["m@1:x"], ["seconds", "cohort"], [9.0, 1, -1, 0, -3, -2], 0.5, 0.5, 1, 1, 0.0), cohort
    )
    vectors, _ = crowded(6, 1, 3)
    cosines = unit(vectors) @ unit(vectors[:1])[0]
    many = evidence.side(vectors, np.arange(1.0, 7.0))
    one = evidence.side(vectors[:1], 3.0)
    ratios = evidence.llr(cosines, many, one)
    assert ratios.shape == (6,)
    alone = evidence.llr(cosines[4:5], many.take(np.array([4])), one)
    assert ratios[4] == pytest.approx(alone[0]) and ratios[4] == pytest.approx(
        evidence.llr(cosines[4:5], one, many.take(np.array([4])))[0]
    )  # which of two recordings is the first makes no difference


def test_a_crowd_is_told_from_a_likeness():
    """Learned on some voices, tried on others: strangers of the crowd no longer pass for one speaker."""
    cohort = unit(crowded(300, 1, 1)[0])

    def trials(seed):
        vectors, owners = crowded(40, 4, seed)
        first, second = np.triu_indices(len(owners), 1)
        side = Evidence(made, cohort).side(vectors, 1.0)
        cosines = np.einsum("nd,nd->n", unit(vectors)[first], unit(vectors)[second])
        return cosines, owners[first] == owners[second], side.take(first), side.take(second)

    made = Calibration(["m@1:x"], ["cohort"], [1.0, 0, 0], 0.0, 0.5, 1, 1, 0.0)
    cosines, same, one, other = trials(5)
    near = {"cohort": np.stack([one.cohort, other.cohort], 1)}
    made = fit(["m@1:x"], cosines[:, None], same, near, ("cohort",))
    cosines, same, one, other = trials(6)
    ratios = Evidence(made, cohort).llr(cosines, one, other)
    assert eer(ratios[same], ratios[~same])[0] < 0.7 * eer(cosines[same], cosines[~same])[0]


def test_what_lies_beside_the_weights(tmp_path):
    network = EcapaTdnnConfig(
        num_bins=24, channels=32, mfa_channels=48, res2_scale=4, squeeze_channels=8, attention_channels=8,
        embedding_dim=16, dilations=(2, 3),
    )  # fmt: skip
    torch.manual_seed(0)
    speaker.save(tmp_path, SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(24), network=network)).eval(), "# mine")
    encoder = speaker.load(tmp_path)
    name = encoder.identity
    assert evidence_of(tmp_path, encoder) is None and calibration_of(tmp_path, encoder) is None
    Calibration([f"{name}:cosine"], ["seconds"], [9.0, 1, 0, 0], 0.0, 0.1, 9, 3, 0.5).save(
        tmp_path / "calibration.json"
    )
    plain = evidence_of(tmp_path, encoder)
    assert plain.cohort is None and plain.calibration == calibration_of(tmp_path, encoder)
    rich = Calibration([system_of(name)], ["cohort"], [9.0, -1, -1], 0.0, 0.1, 9, 3, 0.5)
    rich.save(tmp_path / "verification.json")
    with pytest.raises(ScoreError, match=r"needs the cohort of these weights, .*cohort\.npz"):
        evidence_of(tmp_path, encoder)
    (tmp_path / "cohort.npz").write_bytes(b"")
    with pytest.raises(ScoreError, match="holds no cohort"):
        evidence_of(tmp_path, encoder)
    np.savez(tmp_path / "cohort.npz", names=["a"], embeddings=np.ones((1, 16), np.float32), model=name)
    with pytest.raises(ScoreError, match="two voices or more"):
        evidence_of(tmp_path, encoder)
    whole = (tmp_path / "cohort.npz").read_bytes()
    (tmp_path / "cohort.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScoreError, match="holds no cohort"):
        cohort_of(tmp_path, name)
    rows = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    np.savez(tmp_path / "cohort.npz", names=[str(k) for k in range(60)], embeddings=rows, model=name)
    found = evidence_of(tmp_path, encoder)
    assert found.calibration == rich and np.allclose(np.linalg.norm(found.cohort, axis=1), 1)
    Calibration(["other@2:cosine+cohort50"], ["cohort"], [9.0, -1, -1], 0.0, 0.1, 9, 3, 0.5).save(
        tmp_path / "verification.json"
    )
    with pytest.raises(ScoreError, match=r"verification\.json: .*was made for other@2.*recipes\.calibrate"):
        evidence_of(tmp_path, encoder)


def test_lengths_are_not_made_up_where_only_directions_are_known():
    made = Calibration(["m@1:x"], ["magnitude"], [9.0, 1, 1], 0.0, 0.5, 1, 1, 0.0)
    side = Evidence(made).side(np.ones((2, DIM)), 1.0, directions=True)
    assert side.magnitude is None
    with pytest.raises(ScoreError, match="needs the quality measure 'magnitude'"):
        Evidence(made).llr(np.zeros(2), side, side)


def test_the_shipped_model_is_calibrated_for_voices_of_any_kind():
    encoder = speaker.load("ecapa")
    found = evidence_of(checkpoint.find("ecapa"), encoder)
    assert found == Evidence(calibration_of(checkpoint.find("ecapa"), encoder))
    assert found.calibration.quality == ["seconds"]
