"""One contract over every entry of QUANTIZERS and gradient; products, residual stacks and usage entropy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codec.quantizers import QUANTIZERS, ProductQuantizer, ResidualQuantizer, code_entropy
from engine.errors import ConfigError

GRADIENTS = ["straight_through", "rotation"]
DIM, SIZE = 5, 1024
CONTRACT = pytest.mark.parametrize("gradient", GRADIENTS)
KINDS = pytest.mark.parametrize("kind", QUANTIZERS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def mixture(num_vectors: int, dim: int = DIM, num_modes: int = 24) -> torch.Tensor:
    """Vectors (M, d) around fixed random centres of unequal weight, far from the origin on average."""
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(num_modes, dim, generator=generator) + 0.5
    modes = (torch.rand(num_vectors) ** 2 * num_modes).long()
    return centres[modes] + 0.2 * torch.randn(num_vectors, dim)


def make(kind: str, gradient: str = "straight_through", **options):
    """A quantizer of DIM and SIZE that has been started on data, in evaluation mode."""
    quantizer = QUANTIZERS[kind](DIM, SIZE, gradient=gradient, **options)
    quantizer.initialize(mixture(3000))
    return quantizer.eval()


def distortion(quantizer, z: torch.Tensor) -> float:
    with torch.no_grad():
        return F.mse_loss(quantizer.decode(quantizer.encode(z)), z).item()


class TestContract:
    @KINDS
    @CONTRACT
    def test_shapes_and_round_trip(self, kind, gradient):
        quantizer, z = make(kind, gradient), mixture(333)
        result = quantizer(z)
        assert result.z_q.shape == z.shape and result.codes.shape == (333,) and result.codes.dtype == torch.int64
        assert result.commitment_loss.shape == result.codebook_loss.shape == ()
        assert result.codes.min() >= 0 and result.codes.max() < SIZE
        assert torch.equal(quantizer.encode(z), result.codes)
        assert torch.equal(quantizer.decode(result.codes), result.z_q)
        assert torch.equal(quantizer.table()[result.codes], result.z_q)
        assert quantizer.decode(result.codes.view(3, 111)).shape == (3, 111, DIM)

    @KINDS
    @CONTRACT
    def test_training_value_is_what_the_decoder_sees(self, kind, gradient):
        quantizer, z = make(kind, gradient), mixture(100)
        table = quantizer.table().detach().clone()
        result = quantizer.train()(z.requires_grad_())
        assert torch.equal(result.z_q, table[result.codes])

    @KINDS
    @CONTRACT
    def test_gradient_reaches_every_vector(self, kind, gradient):
        quantizer, z = make(kind, gradient).train(), mixture(200).requires_grad_()
        (quantizer(z).z_q * torch.randn(200, DIM)).sum().backward()
        assert z.grad is not None and z.grad.isfinite().all()
        assert (z.grad.norm(dim=1) > 0).all()

    @KINDS
    @CONTRACT
    def test_evaluation_changes_nothing(self, kind, gradient):
        quantizer, z = make(kind, gradient), mixture(64)
        before = {name: value.clone() for name, value in quantizer.state_dict().items()}
        for _ in range(3):
            quantizer(z)
        after = quantizer.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    @KINDS
    @CONTRACT
    def test_a_code_does_not_depend_on_its_batch(self, kind, gradient):
        quantizer, z = make(kind, gradient), mixture(1100)
        codes = quantizer.encode(z)
        for start, stop in [(0, 1), (7, 9), (500, 515), (511, 1027), (1099, 1100)]:
            assert torch.equal(quantizer.encode(z[start:stop]), codes[start:stop])

    @pytest.mark.parametrize("kind", [kind for kind in QUANTIZERS if kind != "fsq"])
    @CONTRACT
    def test_learning_lowers_the_distortion(self, kind, gradient):
        quantizer = QUANTIZERS[kind](DIM, 64, gradient=gradient).train()
        held_out = mixture(2000)
        before = distortion(quantizer, held_out)
        parameters = list(quantizer.parameters())
        optimizer = torch.optim.Adam(parameters, lr=0.03) if parameters else None
        for _ in range(60):
            loss = quantizer(mixture(256)).codebook_loss
            if optimizer:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        assert distortion(quantizer, held_out) < 0.6 * before

    @KINDS
    def test_starting_from_data_lowers_the_distortion(self, kind):
        quantizer, z = QUANTIZERS[kind](DIM, SIZE), 3 * mixture(4000)
        before = distortion(quantizer, z)
        quantizer.initialize(z)
        assert distortion(quantizer, z) < 0.5 * before

    @KINDS
    def test_state_dict_restores_the_codes(self, kind):
        source, z = make(kind), mixture(500)
        copy = QUANTIZERS[kind](DIM, SIZE)
        copy.load_state_dict(source.state_dict())
        assert torch.equal(copy.eval()(z).z_q, source(z).z_q)

    @KINDS
    def test_unknown_gradient_is_refused(self, kind):
        with pytest.raises(ConfigError, match="straight_through, rotation"):
            QUANTIZERS[kind](DIM, SIZE, gradient="none")


def product(kind: str, joint: bool, gradient: str = "straight_through") -> ProductQuantizer:
    quantizer = ProductQuantizer(32, 3, DIM, SIZE, kind=kind, joint=joint, gradient=gradient)
    quantizer.initialize(torch.randn(4, 300, 32))
    return quantizer.eval()


class TestProduct:
    @KINDS
    @CONTRACT
    @pytest.mark.parametrize("joint", [False, True])
    def test_round_trip_and_gradient(self, kind, gradient, joint):
        quantizer, x = product(kind, joint, gradient), torch.randn(2, 7, 32, requires_grad=True)
        x_q, codes, commitment_loss, codebook_loss = quantizer(x)
        assert x_q.shape == x.shape and codes.shape == (2, 3, 7) and codes.dtype == torch.int64
        assert commitment_loss.shape == codebook_loss.shape == ()
        encoded, encoded_x_q = quantizer.encode(x)
        assert torch.equal(encoded, codes) and torch.equal(encoded_x_q, x_q)
        assert torch.equal(quantizer.decode(codes), x_q)
        x_q.square().sum().backward()
        assert (x.grad.norm(dim=-1) > 0).all()

    def test_published_layout_by_hand(self):
        quantizer, x = ProductQuantizer(32, 3, 8, 64).eval(), torch.randn(1, 5, 32)
        x_q, codes, commitment_loss, _ = quantizer(x)
        losses = []
        for group, part in enumerate([slice(0, 10), slice(10, 20), slice(20, 32)]):
            z = x[0, :, part] @ quantizer.down[group].weight.t()
            table = quantizer.codebooks[group].embedding.weight
            code = (F.normalize(z, dim=1) @ F.normalize(table, dim=1).t()).argmax(1)
            assert torch.equal(code, codes[0, group])
            assert torch.allclose(table[code] @ quantizer.up[group].weight.t(), x_q[0, :, part], atol=1e-6)
            losses.append(F.mse_loss(z, table[code]))
        assert torch.allclose(commitment_loss, torch.stack(losses).mean())

    def test_joint_rows_belong_to_groups(self):
        quantizer, x = ProductQuantizer(32, 3, 4, 64, joint=True).eval(), torch.randn(2, 5, 32)
        down = quantizer.down.weight
        assert torch.allclose(down @ down.t(), torch.eye(12), atol=1e-5)
        assert torch.equal(quantizer.up.weight, down.t())
        codes = quantizer.encode(x)[0]
        for group in range(3):
            z = x @ down[4 * group : 4 * group + 4].t()
            assert torch.equal(quantizer.codebooks[group].encode(z.flatten(0, 1)).view(2, 5), codes[:, group])

    @pytest.mark.parametrize("joint", [False, True])
    def test_bypass_is_the_projections_alone(self, joint):
        quantizer, x = ProductQuantizer(12, 3, 4, 16, kind="ema", joint=joint).train(), torch.randn(2, 5, 12)
        x_q, codes, *losses = quantizer(x, bypass=True)
        assert codes.shape == (2, 3, 5) and (codes == -1).all() and all(loss == 0 for loss in losses)
        assert not any(book.initialized for book in quantizer.codebooks)
        if joint:  # 3 x 4 = 12 orthonormal rows lose nothing
            assert torch.allclose(x_q, x, atol=1e-5)
        else:
            expected = x[..., :4] @ (quantizer.up[0].weight @ quantizer.down[0].weight).t()
            assert torch.allclose(x_q[..., :4], expected, atol=1e-6)

    def test_errors_name_the_way_out(self):
        with pytest.raises(ConfigError, match="cosine, ema, simvq, affine, fsq"):
            ProductQuantizer(32, 3, 8, 64, kind="vq")
        with pytest.raises(ConfigError, match="dimension 2 into 3 groups"):
            ProductQuantizer(2, 3, 8, 64)


def residual(kind: str, gradient: str = "straight_through") -> ResidualQuantizer:
    quantizer = ResidualQuantizer(32, 4, 3, DIM, SIZE, kind=kind, gradient=gradient)
    quantizer.initialize(torch.randn(4, 300, 32))
    return quantizer


class TestResidual:
    @KINDS
    @CONTRACT
    def test_round_trip_and_prefix(self, kind, gradient):
        quantizer, x = residual(kind, gradient).eval(), torch.randn(2, 7, 32)
        for levels in (1, 3, 4):
            x_q, codes, *losses = quantizer(x, levels)
            assert codes.shape == (2, levels, 3, 7) and all(loss.shape == () for loss in losses)
            encoded, encoded_x_q = quantizer.encode(x, levels)
            assert torch.equal(encoded, codes)
            assert torch.equal(encoded_x_q, x_q) and torch.equal(quantizer.decode(codes), x_q)
            assert torch.equal(quantizer.encode(x)[0][:, :levels], codes)

    def test_each_level_halves_the_error(self):
        quantizer, x = ResidualQuantizer(32, 4, 3, 2, 16, kind="ema", joint=True).eval(), torch.randn(2, 50, 32)
        quantizer.initialize(torch.randn(4, 300, 32))
        target = quantizer(x, bypass=True)[0]
        errors = [F.mse_loss(quantizer(x, levels)[0], target).item() for levels in (1, 2, 3, 4)]
        assert errors[3] < 0.5 * errors[2] < 0.25 * errors[1] < 0.125 * errors[0]

    def test_every_levels_commitment_reaches_the_input(self):
        """With the residual taken against an undetached straight-through z_q, only level 0 would have a gradient."""
        quantizer, x = residual("cosine"), torch.randn(1, 6, 32, requires_grad=True)
        _, codes, commitment_loss, _ = quantizer(x)
        (gradient,) = torch.autograd.grad(commitment_loss, x)
        expected = torch.zeros_like(x)
        for group, part in enumerate(x.detach().split(quantizer.part_dims, dim=-1)):
            down = quantizer.down[group].weight
            left = part @ down.t()
            total = torch.zeros_like(left)
            for level in range(4):
                left = left - quantizer.codebooks[level][group].decode(codes[:, level, group])
                total = total + 2 * left / left.numel() / 3
            start = sum(quantizer.part_dims[:group])
            expected[..., start : start + part.shape[-1]] = total @ down
        assert torch.allclose(gradient, expected, atol=1e-6)

    def test_straight_through_gradient_counts_once(self):
        quantizer, x = residual("cosine"), torch.randn(1, 6, 32, requires_grad=True)
        weight = torch.randn(1, 6, 32)
        (gradient,) = torch.autograd.grad((quantizer(x)[0] * weight).sum(), x)
        (linear,) = torch.autograd.grad((quantizer(x, bypass=True)[0] * weight).sum(), x)
        assert torch.allclose(gradient, linear, atol=1e-5)

    def test_training_runs_all_levels_but_counts_the_first(self):
        quantizer, x = residual("cosine").train(), torch.randn(2, 7, 32)
        x_q, codes, *losses = quantizer(x, levels=2)
        (x_q.sum() + sum(losses)).backward()
        assert codes.shape == (2, 4, 3, 7)
        assert all(parameter.grad is not None for parameter in quantizer.parameters())
        reference_x_q, _, *reference_losses = quantizer.eval()(x, levels=2)
        assert torch.allclose(x_q, reference_x_q, atol=1e-6)
        assert all(torch.allclose(*pair) for pair in zip(losses, reference_losses, strict=True))

    def test_levels_out_of_range(self):
        with pytest.raises(ConfigError, match="levels must be 1 .. 4, got 5"):
            residual("cosine")(torch.randn(1, 2, 32), levels=5)


class TestEntropy:
    @pytest.mark.parametrize("shape", [(2, 3, 500), (2, 6, 3, 40)])
    def test_against_numpy(self, shape):
        codes = (torch.rand(shape) ** 2 * 64).long()
        entropy = code_entropy(codes, 64)
        assert entropy.shape == shape[1:-1]
        for book in np.ndindex(*shape[1:-1]):
            shares = np.bincount(codes.numpy()[(slice(None), *book)].ravel(), minlength=64) / (shape[0] * shape[-1])
            shares = shares[shares > 0]
            assert entropy[book].item() == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-5)

    def test_limits(self):
        assert code_entropy(torch.arange(1024).view(1, 1, -1), 1024).item() == 10
        assert code_entropy(torch.zeros(1, 1, 9, dtype=torch.int64), 1024).item() == 0
        assert code_entropy(torch.full((1, 2, 9), -1), 1024).tolist() == [0, 0]
