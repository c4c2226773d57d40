"""Error rates against definitions worked out by brute force, and against scikit-learn where it is installed."""

import json
import math

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ScoreError
from speaker.calibration import fit
from speaker.intervals import actual_cost
from speaker.metrics import Cost, act_dcf, cllr, cllr_of, eer, error_rates, min_cllr, min_cllr_of, min_dcf, split

SETS = (
    "gauss",
    "ties",
    "imbalanced",
    "large",
    "calibrated_llr",
    "miscalibrated_llr",
    "separable",
    "inverted",
    "constant",
)
SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)


@given(SCORES, SCORES)
def test_rates_are_what_counting_gives_and_ties_move_together(targets, nontargets):
    rates = error_rates(targets, nontargets)
    assert (rates.miss[0], rates.false_accept[0], rates.miss[-1], rates.false_accept[-1]) == (0, 1, 1, 0)
    for threshold, miss, false_accept in zip(*rates, strict=True):
        assert miss == pytest.approx(np.mean(np.array(targets) < threshold))
        assert false_accept == pytest.approx(np.mean(np.array(nontargets) >= threshold))


@given(SCORES, SCORES)
def test_the_equal_error_rate_lies_between_its_neighbours_and_no_cost_is_below_the_minimum(targets, nontargets):
    value, _ = eer(targets, nontargets)
    rates = error_rates(targets, nontargets)
    at = int(np.argmax(rates.miss >= rates.false_accept))
    assert rates.miss[at - 1] - 1e-12 <= value <= rates.miss[at] + 1e-12
    assert rates.false_accept[at] - 1e-12 <= value <= rates.false_accept[at - 1] + 1e-12
    cost = Cost(0.05)
    least, threshold = min_dcf(targets, nontargets, cost)
    tried = [
        (np.mean(np.array(targets) < t) * 0.05 + np.mean(np.array(nontargets) >= t) * 0.95) / 0.05
        for t in [*range(-6, 7), math.inf]
    ]
    assert least == pytest.approx(min(tried)) and least <= 1 + 1e-12
    miss, wrong = np.mean(np.array(targets) < threshold), np.mean(np.array(nontargets) >= threshold)
    assert cost.normalized(miss, wrong) == pytest.approx(least)
    assert min_cllr(targets, nontargets) <= cllr(targets, nontargets) + 1e-9


def test_known_values():
    assert eer([2.0, 3.0], [0.0, 1.0])[0] == 0
    assert eer([0.0, 1.0], [2.0, 3.0])[0] == 1
    assert eer([1.0] * 4, [1.0] * 4)[0] == pytest.approx(0.5)
    assert eer([1, 2, 3, 4], [0, 0.5, 1.5, 0.2])[0] == pytest.approx(0.25)
    assert cllr([0.0], [0.0]) == pytest.approx(1)  # a ratio of 1 says nothing
    assert cllr([50.0], [-50.0]) == pytest.approx(0, abs=1e-9)
    assert Cost(0.01).threshold == pytest.approx(4.595, abs=1e-3)
    assert Cost(0.05).threshold == pytest.approx(2.944, abs=1e-3)


def test_calibrated_gaussian_ratios_cost_what_they_say():
    rng = np.random.default_rng(0)  # equal variances v: the ratio itself is Gaussian with mean v / 2, variance v
    targets, nontargets = rng.normal(4, math.sqrt(8), 20_000), rng.normal(-4, math.sqrt(8), 20_000)
    assert cllr(targets, nontargets) - min_cllr(targets, nontargets) < 0.01
    for prior in (0.5, 0.1):
        assert act_dcf(targets, nontargets, Cost(prior)) == pytest.approx(min_dcf(targets, nontargets, Cost(prior))[0],
                                                                          abs=0.02)  # fmt: skip
    assert act_dcf(targets + 6, nontargets + 6, Cost(0.5)) > 2 * min_dcf(targets, nontargets, Cost(0.5))[0]
    assert eer(targets, nontargets)[0] == pytest.approx(0.5 * math.erfc(4 / math.sqrt(8) / math.sqrt(2)), abs=0.005)


def test_trials_of_one_kind_and_scores_that_are_no_numbers_are_refused():
    assert [len(part) for part in split([1, 2, 3], [1, 0, 0])] == [1, 2]
    for labels, kind in (([1, 1], "targets"), ([0, 0], "non-targets")):
        with pytest.raises(ScoreError, match=f"all 2 trials are {kind}"):
            split([1, 2], labels)
    with pytest.raises(ScoreError, match="no trials"):
        split([], [])
    with pytest.raises(ScoreError, match="1 of 2 scores are not finite, the first is number 1"):
        split([1, math.nan], [0, 1])
    with pytest.raises(ScoreError, match="two lists of one length"):
        split([1, 2], [1])


def test_as_others_compute_them():
    """scikit-learn as the oracle: ROC for the rates, isotonic and logistic regression for what calibration does."""
    pytest.importorskip("sklearn")
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss, roc_curve

    rng = np.random.default_rng(0)
    labels = rng.random(3_000) < 0.2
    scores = np.round(rng.normal(np.where(labels, 2.0, 0.0)), 1)  # with ties
    targets, others = split(scores, labels)
    false_accept, hit, _ = roc_curve(labels, scores, drop_intermediate=False)
    gap = (1 - hit) - false_accept
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    assert eer(targets, others)[0] == pytest.approx(np.interp(share, [0, 1], false_accept[after - 1 : after + 1]))
    cost = Cost(0.05)
    least = cost.normalized(1 - hit, false_accept).min()
    assert min_dcf(targets, others, cost)[0] == pytest.approx(least)
    weights = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    posterior = IsotonicRegression(y_min=0, y_max=1).fit_transform(scores, labels.astype(float), sample_weight=weights)
    best = log_loss(labels, np.stack([1 - posterior, posterior], 1), sample_weight=weights) / np.log(2)
    assert min_cllr(targets, others) == pytest.approx(best, abs=1e-6)
    mine = fit(["x"], scores[:, None], labels, prior=0.5)
    theirs = LogisticRegression(C=1e6, tol=1e-10).fit(scores[:, None], labels, sample_weight=weights * len(labels))
    assert [*mine.weights, mine.offset] == pytest.approx([*theirs.coef_[0], *theirs.intercept_], abs=2e-3)


def test_figures_of_rates_are_those_of_scores():
    rng = np.random.default_rng(1)
    labels = rng.random(500) < 0.4
    scores = np.round(rng.normal(np.where(labels, 1.5, -1.5), 2.0), 1)
    targets, others = split(scores, labels)
    rates = error_rates(targets, others)
    assert actual_cost(Cost(0.1))(rates) == pytest.approx(act_dcf(targets, others, Cost(0.1)))
    assert cllr_of(rates) == pytest.approx(cllr(targets, others))
    assert min_cllr_of(rates) == pytest.approx(min_cllr(targets, others))


@pytest.mark.parametrize("name", SETS)
def test_figures_equal_those_of_public_libraries(shared, name):
    """WeSpeaker's equal error rate, BUT's and Brummer's detection costs and Cllr (llreval), on the same scores."""
    pytest.importorskip("scipy")
    with safetensors.safe_open(shared / "conformance" / "speaker" / "scoring_metrics.safetensors", "np") as file:
        found = split(file.get_tensor(f"scores.{name}").astype(np.float64), file.get_tensor(f"labels.{name}"))
        results = json.loads(file.metadata()["golden"])["results"][name]
    reference, theirs = results["reference"], results["llreval"]
    assert eer(*found)[0] == pytest.approx(reference["eer_linear"], abs=1e-12)
    for prior, digits in ((0.01, "p01"), (0.05, "p05")):
        for ours, what in ((min_dcf(*found, Cost(prior))[0], "minDCF"), (act_dcf(*found, Cost(prior)), "actDCF")):
            assert ours == pytest.approx(reference[f"{what}_{digits}"], abs=1e-12)
            assert ours == pytest.approx(theirs[f"{what}_{digits}"], abs=1e-12)
    assert cllr(*found) == pytest.approx(theirs["cllr"], rel=1e-12)
    assert min_cllr(*found) == pytest.approx(theirs["min_cllr"], abs=1e-12)
