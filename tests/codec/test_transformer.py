"""The published layers against slow twins."""

import pytest
import torch
from torch import Tensor

from codec.transformer import Merge, Split, WindowAttention


def slow_attention(layer: WindowAttention, x: Tensor) -> Tensor:
    """Window by window, query by query, as Swin defines it: pad, shift, number the regions, mask, shift back."""
    batch, columns, rows, channels = x.shape
    w, heads, shift = layer.window, layer.heads, layer.shift
    wide, high = -(-columns // w) * w, -(-rows // w) * w
    padded = torch.zeros(batch, wide, high, channels)
    padded[:, :columns, :rows] = x
    q, k, v = layer.qkv(padded).unflatten(-1, (3, heads, channels // heads)).unbind(3)

    def region(position: int, size: int) -> int:
        return 0 if position < size - w else 1 if position < size - shift else 2

    out = torch.zeros(batch, wide, high, heads, channels // heads)
    places = [(i, j) for i in range(w) for j in range(w)]
    for t0, h0 in [(t, h) for t in range(0, wide, w) for h in range(0, high, w)]:
        tokens = [((t0 + i + shift) % wide, (h0 + j + shift) % high) for i, j in places]
        labels = [(region(t0 + i, wide), region(h0 + j, high)) for i, j in places]
        for a, (i, j) in enumerate(places):
            bias = torch.stack([
                layer.position_bias[(j - jj + w - 1) * (2 * w - 1) + (i - ii + w - 1)]
                - (100 if shift and labels[a] != labels[b] else 0)
                for b, (ii, jj) in enumerate(places)
            ])  # fmt: skip
            keys = torch.stack([k[:, t, h] for t, h in tokens], 1)
            values = torch.stack([v[:, t, h] for t, h in tokens], 1)
            query = q[:, tokens[a][0], tokens[a][1]]
            scores = torch.einsum("bhd,bkhd->bkh", query, keys) * (channels // heads) ** -0.5 + bias
            out[:, tokens[a][0], tokens[a][1]] = torch.einsum("bkh,bkhd->bhd", scores.softmax(1), values)
    return layer.proj(out.flatten(-2)[:, :columns, :rows])


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("columns", "rows"), [(8, 8), (4, 4), (2, 2), (10, 2), (6, 8), (12, 1), (9, 5)])
def test_window_attention_equals_its_slow_twin(columns: int, rows: int, shifted: bool) -> None:
    torch.manual_seed(columns * 16 + rows)
    layer = WindowAttention(12, heads=3, window=4, shifted=shifted)
    torch.nn.init.normal_(layer.position_bias)
    x = torch.randn(2, columns, rows, 12)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), slow_attention(layer, x), atol=2e-6, rtol=1e-5)


def test_merge_and_split_pair_neighbouring_rows() -> None:
    torch.manual_seed(0)
    merge, split, x = Merge(4, 6), Split(6, 4), torch.randn(2, 3, 8, 4)
    merged = merge(x)
    both = torch.cat([x[:, 1, 4], x[:, 1, 5]], dim=-1)  # rows 4 and 5 become row 2
    torch.testing.assert_close(merged[:, 1, 2], merge.linear(merge.norm(both)))
    back = split(merged)
    assert back.shape == x.shape
    torch.testing.assert_close(back[:, 1, 4:6].flatten(1), split.linear(split.norm(merged[:, 1, 2])))
