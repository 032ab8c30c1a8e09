"""Batches: every tensor moves with its sample."""

import pytest
import torch

from hf_flowft.batch import Batch

BATCH = Batch(
    torch.arange(12.0).reshape(6, 2),
    {"class_labels": torch.arange(6)},
    t=torch.arange(6) / 6,
    replay=Batch(torch.arange(6.0)[:, None], {"class_labels": -torch.arange(6)}),
)


def test_rows_choose_samples_everywhere():
    """Data, conditions, times and the replay batch are indexed together, and what was not drawn stays None."""
    chosen = BATCH.rows(torch.tensor([4, 1]))
    assert len(chosen) == 2
    assert chosen.x_1.tolist() == [[8.0, 9.0], [2.0, 3.0]]
    assert chosen.condition["class_labels"].tolist() == [4, 1]
    assert chosen.replay.condition["class_labels"].tolist() == [-4, -1]
    assert chosen.x_0 is None


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_micro_batches_are_the_batch_in_order(parts):
    """Equal consecutive pieces with nothing lost."""
    pieces = list(BATCH.split(parts))
    assert [len(piece) for piece in pieces] == [6 // parts] * parts
    assert torch.equal(torch.cat([piece.x_1 for piece in pieces]), BATCH.x_1)
    assert torch.equal(torch.cat([piece.replay.x_1 for piece in pieces]), BATCH.replay.x_1)


@pytest.mark.parametrize("parts", [0, 4, 7])
def test_uneven_micro_batches_are_refused(parts):
    """No sample is dropped silently."""
    with pytest.raises(ValueError, match=f"a batch of 6 does not divide into {parts}"):
        list(BATCH.split(parts))


def test_map_and_conditions_leave_the_original_alone():
    """Batches are values: a changed batch is another batch."""
    assert BATCH.map(lambda x: x.double()).replay.x_1.dtype == torch.float64
    assert BATCH.to("cpu").x_1.dtype == torch.float32
    assert BATCH.with_condition({}).condition == {}
    assert set(BATCH.condition) == {"class_labels"}
