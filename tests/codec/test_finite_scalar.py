"""Finite scalar quantization against its published formula."""

import numpy as np
import pytest
import torch

from codec.finite_scalar import FiniteScalarQuantizer
from engine.errors import ConfigError


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class TestFiniteScalar:
    @pytest.mark.parametrize("levels", [(4, 4, 4, 4, 4), (8, 5, 5, 5), (3, 7)])
    @pytest.mark.parametrize("started", [False, True])
    def test_codes_are_bijective(self, levels, started):
        size = int(np.prod(levels))
        quantizer = FiniteScalarQuantizer(len(levels), size, levels=levels)
        if started:
            quantizer.initialize(2 + torch.randn(1000, len(levels)))
        table = quantizer.table()
        assert len(table.unique(dim=0)) == size
        # Back through tanh: the vector at the heart of each cell must get that cell's code.
        integers = (table - quantizer.bias) / quantizer.gain
        hearts = torch.atanh((integers + quantizer.offset) / quantizer.half_width) * quantizer.scale + quantizer.centre
        assert torch.equal(quantizer.encode(hearts), torch.arange(size))

    def test_published_formula(self):
        levels = np.array([8, 5, 5, 5])
        quantizer, z = FiniteScalarQuantizer(4, 1000), 2 * torch.randn(300, 4)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0)
        q = np.round(np.tanh(z.double().numpy() + np.arctanh(offset / half)) * half - offset)
        code = ((q + levels // 2) * np.array([1, 8, 40, 200])).sum(1)
        assert np.array_equal(quantizer.encode(z).numpy(), code)
        assert np.allclose(quantizer(z).z_q.numpy(), q / (levels // 2))

    def test_gradient_passes_rounding_only(self):
        quantizer, z = FiniteScalarQuantizer(5, 1024), torch.randn(20, 5, requires_grad=True)
        quantizer(z).z_q.sum().backward()
        twin = z.detach().clone().requires_grad_()
        (1.5015 * torch.tanh(twin + np.arctanh(0.5 / 1.5015)) / 2).sum().backward()
        assert torch.allclose(z.grad, twin.grad)

    def test_extremes_stay_in_range(self):
        quantizer = FiniteScalarQuantizer(5, 1024)
        assert quantizer.encode(torch.tensor([[1e9] * 5, [-1e9] * 5])).tolist() == [1023, 0]

    @pytest.mark.parametrize("options", [{}, {"levels": [4, 4]}, {"levels": [4, 4, 4, 4, 2, 2, 1, 1]}])
    def test_levels_must_fit(self, options):
        with pytest.raises(ConfigError, match="FSQ needs"):
            FiniteScalarQuantizer(8, 1024, **options)
