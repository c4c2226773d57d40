"""Sessions on one model: they never touch each other, come, go, and move."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.errors import CheckpointError, ConfigError
from engine.sessions import Sessions
from engine.streaming import PastState, State, StateList, saved_metadata


@dataclass
class Sums(State):
    total: Tensor
    deeper: StateList


def initial(batch):
    return Sums(torch.zeros(batch, 1), StateList([PastState(torch.zeros(batch, 2, 1))]))


def running_sum(items, state):
    """(B, 1) -> (B, 1): the sum so far plus what came two steps ago."""
    state.total = state.total + items
    past = state.deeper.children[0]
    older = past.past[:, 0].clone()
    past.extend(items[:, None])
    return state.total + 100 * older


def alone(values):
    state = initial(1)
    return [running_sum(torch.tensor([[v]]), state).item() for v in values]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_session_is_as_if_alone(data):
    """Random opening, closing, stepping of any subset, saving and restoring: results equal those of each alone."""
    sessions = Sessions(initial, running_sum)
    fed: dict[int, list[float]] = {}
    got: dict[int, list[float]] = {}
    for _ in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(["open", "close", "step", "step", "step", "move"]))
        if action == "open":
            new = sessions.open()
            assert new not in fed
            fed[new], got[new] = [], []
        elif fed and action == "close":
            gone = data.draw(st.sampled_from(sorted(fed)))
            sessions.close(gone)
            assert got.pop(gone) == alone(fed.pop(gone))
        elif fed and action == "move":
            moved = data.draw(st.sampled_from(sorted(fed)))
            new = sessions.restore(sessions.save(moved))
            sessions.close(moved)
            fed[new], got[new] = fed.pop(moved), got.pop(moved)
        elif fed:
            chosen = data.draw(st.sets(st.sampled_from(sorted(fed)), min_size=1))
            items = {s: torch.tensor([float(data.draw(st.integers(0, 9)))]) for s in sorted(chosen)}
            for session, result in sessions.step(items).items():
                fed[session].append(items[session].item())
                got[session].append(result.item())
        assert len(sessions) == len(fed) and sessions.capacity <= max(1, 2 * len(fed) + 32)
    assert all(got[s] == alone(fed[s]) for s in fed)


def test_unknown_sessions_are_named():
    sessions = Sessions(initial, running_sum)
    for call in (sessions.close, sessions.save, lambda s: sessions.step({s: torch.ones(1)})):
        with pytest.raises(ConfigError, match="no open session 7"):
            call(7)
    assert sessions.step({}) == {}


def test_memory_follows_the_load():
    sessions = Sessions(initial, running_sum)
    ids = [sessions.open() for _ in range(100)]
    assert sessions.capacity == 128
    for session in ids:
        sessions.close(session)
    assert sessions.capacity == 1 and len(sessions) == 0


@pytest.mark.parametrize("count", [0, 2])
def test_only_one_session_is_restored(count):
    sessions = Sessions(initial, running_sum)
    with pytest.raises(CheckpointError, match=f"of {count} sessions, not of one"):
        sessions.restore(initial(count).to_bytes())
    assert len(sessions) == 0 and sessions.open() == 1


def test_state_bytes_keep_everything_and_refuse_strangers():
    state = initial(3)
    running_sum(torch.tensor([[1.0], [2.0], [3.0]]), state)
    data = state.to_bytes({"model": "abc"})
    assert saved_metadata(data) == {"model": "abc"}
    back = initial(1).load_bytes(data)
    assert all(torch.equal(a, b) for a, b in zip(state.tensors(), back.tensors(), strict=True))
    with pytest.raises(CheckpointError, match="no saved state"):
        saved_metadata(b"nothing of the kind")
    for nothing in (b"\x02\0\0\0\0\0\0\0{}", StateList([]).to_bytes({"model": "abc"})):
        with pytest.raises(CheckpointError, match="no saved state"):
            saved_metadata(nothing)
    for wrong in (b"", b"nothing of the kind", data[:-1], StateList([]).to_bytes()):
        with pytest.raises(CheckpointError, match="no saved state|another shape"):
            initial(1).load_bytes(wrong)
    other = Sums(torch.zeros(1, 2), StateList([PastState(torch.zeros(1, 2, 1))]))
    with pytest.raises(CheckpointError, match="another shape"):
        other.load_bytes(data)
