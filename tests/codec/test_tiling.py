"""Tiles: what they cover, how far windows reach, and the signal beyond its ends."""

import torch

from codec.tiling import last_of_window, mirrored, plan_tiles, window_reach


def test_tiles_cover_every_frame_once() -> None:
    for size, halo, grid in [(4, 2, 2), (5, 3, 2), (1, 0, 1), (7, 9, 3)]:
        lengths = [1, 7, 40, 40, 41]
        seen = [[0] * n for n in lengths]
        for group in plan_tiles(lengths, size, halo, grid):
            assert len(group) <= len(lengths) and len({t.right - t.left for t in group}) == 1
            for tile in group:
                assert tile.left % grid == 0 and (tile.right % grid == 0 or tile.right == lengths[tile.row])
                assert tile.left == 0 or tile.start - tile.left >= halo
                assert tile.right == lengths[tile.row] or tile.right - tile.stop >= halo
                for frame in range(tile.start, tile.stop):
                    seen[tile.row][frame] += 1
        assert all(count == 1 for row in seen for count in row)


def slow_reach(shifts: list[int], window: int) -> int:
    """Mark columns beyond the edge as wrong, let every window that holds a wrong one be wrong, count."""
    lead = 48  # a multiple of the windows below
    wrong = [True] * lead + [False] * 80
    for shift in shifts:
        starts = range(shift - window, len(wrong), window)
        windows = [[c for c in range(start, start + window) if 0 <= c < len(wrong)] for start in starts]
        wrong = [any(wrong[c] for w in windows if column in w for c in w) for column in range(len(wrong))]
    return wrong.index(False) - lead


def test_reach_equals_its_slow_twin() -> None:
    for window in (2, 4, 6):
        half = window // 2
        for shifts in ([], [0], [half], [0, half], [half, half], [0, half] * 4, [0, half, 0, 0, half, half, 0]):
            assert window_reach(shifts, window) == slow_reach(shifts, window), (window, shifts)
    assert window_reach([0, 2] * 6, 4) == 22  # the encoder of the base model


def test_last_of_window() -> None:
    assert [last_of_window(c, 0, 4) for c in (0, 3, 4)] == [3, 3, 7]
    assert [last_of_window(c, 2, 4) for c in (0, 1, 2, 5, 6)] == [1, 1, 5, 5, 9]


def test_mirrored_equals_padding() -> None:
    wav = torch.randn(2, 50)
    whole = torch.nn.functional.pad(torch.nn.functional.pad(wav, (0, 10)), (23, 23), mode="reflect")
    for start, stop in [(-23, 83), (-23, 5), (40, 83), (0, 50), (45, 55), (55, 83)]:
        assert torch.equal(mirrored(wav, start, stop, 60), whole[:, start + 23 : stop + 23])
