"""speaker/pooling.py against the equations written out frame by frame, and in padded batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from speaker.pooling import AttentiveStatisticsPooling, StatisticsPooling, length_mask, masked, masked_mean

CHANNELS, ATTENTION = 6, 4
# As the four implementations have them.
VARIANTS: dict[str, dict] = {
    "speechbrain": {},
    "nemo": {"eps": 1e-10},
    "taoruijie": {"unbiased_context": True, "eps": 1e-4},
    "wespeaker": {"norm": False, "unbiased_context": True, "eps_added_to_context": True, "eps": 1e-7},
    "without_context": {"global_context": False},
}


def attentive(**options: object) -> AttentiveStatisticsPooling:
    """In double precision, with random weights and normalization."""
    torch.manual_seed(0)
    pool = AttentiveStatisticsPooling(CHANNELS, ATTENTION, **options).double().eval()  # type: ignore[arg-type]
    for parameter in pool.parameters():
        nn.init.normal_(parameter)
    if pool.norm is not None:
        assert pool.norm.running_mean is not None and pool.norm.running_var is not None
        pool.norm.running_mean.normal_()
        pool.norm.running_var.uniform_(0.5, 2)
    return pool


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(pool: AttentiveStatisticsPooling, x: Tensor, options: dict) -> Tensor:
    """Desplanques et al. (2020), eq. 2 to 4, of one utterance (C, T): the context concatenated to every frame."""
    eps, context = options.get("eps", 1e-12), []
    if options.get("global_context", True):
        variance = x.var(-1, unbiased=options.get("unbiased_context", False))
        std = (variance + eps).sqrt() if options.get("eps_added_to_context") else variance.clamp(min=eps).sqrt()
        context = [x.mean(-1), std]
    scores = []
    for frame in x.T:
        hidden = pool.hidden.weight[..., 0] @ torch.cat([frame, *context]) + pool.hidden.bias
        if pool.norm is not None:
            hidden = pool.norm(hidden.relu()[None])[0]
        scores.append(pool.score.weight[..., 0] @ hidden.tanh() + pool.score.bias)
    weights = torch.stack(scores, -1).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    mean = (weights * x).sum(-1)
    return torch.cat([mean, ((weights * x**2).sum(-1) - mean**2).clamp(min=eps).sqrt()])


@pytest.mark.parametrize("variant", VARIANTS)
def test_attentive_pooling_is_the_equations(variant: str) -> None:
    pool, x = attentive(**VARIANTS[variant]), noise(3, CHANNELS, 17)
    lengths = torch.tensor([17, 5, 2])
    pooled = pool(x, lengths)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(pooled[i], written_out(pool, x[i, :, :length], VARIANTS[variant]))


@pytest.mark.parametrize("eps_added", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
def test_statistics_pooling_is_mean_and_std(unbiased: bool, eps_added: bool) -> None:
    pool, x = StatisticsPooling(unbiased=unbiased, eps=1e-2, eps_added=eps_added), noise(2, CHANNELS, 11)
    x[:, 0] = 3  # no variance: the least deviation is that of eps
    pooled = pool(x, torch.tensor([11, 4]))
    for i, length in enumerate((11, 4)):
        variance = x[i, :, :length].var(-1, unbiased=unbiased)
        std = (variance + 1e-2).sqrt() if eps_added else variance.clamp(min=1e-2).sqrt()
        torch.testing.assert_close(pooled[i], torch.cat([x[i, :, :length].mean(-1), std]))
        torch.testing.assert_close(pooled[i, CHANNELS], torch.tensor(0.1, dtype=torch.float64))


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), variant=st.sampled_from([*VARIANTS, "plain"]))
def test_padding_changes_nothing(lengths: list[int], variant: str) -> None:
    pool = StatisticsPooling() if variant == "plain" else attentive(**VARIANTS[variant])
    x = noise(len(lengths), CHANNELS, max(lengths) + 3)
    for i, length in enumerate(lengths):
        x[i, :, length:] = 1e3 * i
    pooled = pool(x, torch.tensor(lengths))
    for i, length in enumerate(lengths):
        torch.testing.assert_close(pooled[i], pool(x[i : i + 1, :, :length])[0])


def test_one_frame_has_no_deviation() -> None:
    x = noise(2, CHANNELS, 1)
    pooled = StatisticsPooling(eps=1e-4)(x)
    torch.testing.assert_close(pooled, torch.cat([x[..., 0], torch.full_like(x[..., 0], 1e-2)], 1))
    for options in VARIANTS.values():
        assert attentive(**options)(x).isfinite().all()


def test_a_large_mean_costs_no_digits_of_the_deviation() -> None:
    x = noise(1, CHANNELS, 200)
    shifted = (x + 4096).float()  # in float32, E[x^2] - mean^2 of it is off by about 1
    exact = StatisticsPooling()(shifted.double())[:, CHANNELS:]
    torch.testing.assert_close(StatisticsPooling()(shifted)[:, CHANNELS:].double(), exact, rtol=1e-4, atol=0)


def test_the_context_is_never_spread_over_time() -> None:
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            sizes.extend(each.numel() for each in [result] if isinstance(each, Tensor))
            return result

    pool, x = attentive(), noise(2, CHANNELS, 1000)
    with Watch(), torch.no_grad():
        pool(x, torch.tensor([1000, 500]))
    assert max(sizes) == x.numel()


def test_gradients_reach_everything() -> None:
    pool, x = attentive(), noise(2, CHANNELS, 9).requires_grad_()
    pool(x, torch.tensor([9, 6])).square().sum().backward()
    # the bias of the scores is the same in all frames: the softmax cancels it
    assert all(p.grad.abs().max() > 1e-9 for name, p in pool.named_parameters() if name != "score.bias")
    assert x.grad is not None and x.grad[0].all() and x.grad[1, :, :6].all() and not x.grad[1, :, 6:].any()


def test_masks() -> None:
    mask = length_mask(torch.tensor([3, 0, 2]), 4)
    assert mask.tolist() == [[True] * 3 + [False], [False] * 4, [True] * 2 + [False] * 2]
    x = noise(3, 2, 5, 4)
    zeroed = masked(x, mask)
    assert torch.equal(zeroed[0, ..., :3], x[0, ..., :3]) and not zeroed[0, ..., 3].any() and not zeroed[1].any()
    assert masked(x, None) is x
    means = masked_mean(x[:, 0], mask)
    torch.testing.assert_close(means[2], x[2, 0, :, :2].mean(-1, keepdim=True))
    assert means.shape == (3, 5, 1) and not means[1].any()
