"""Effective batches: no row is lost, the step alone decides them, and reading ahead changes nothing."""

import threading
import time

import pytest
import torch
from tiny import toy

from hf_flowft import FlowMatchingObjective, FrozenVelocity, ReplayObjective, build_replay
from hf_flowft.batch import Batch
from hf_flowft.couplings import OTCoupling, Shard
from hf_flowft.objectives import Objective
from hf_flowft.randomness import keyed_generator
from hf_flowft.training.batches import BankRows, ConditionDropout, MemoryRows, SampleOrder, drawn_batches, prefetched


def numbers(count):
    """A table whose rows say their own number."""
    return Batch(torch.arange(float(count))[:, None], {"class_labels": torch.arange(count)})


# The order of rows


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (12, 4), (7, 7), (5, 1), (9, 8)])
def test_every_row_once_a_pass(size, batch):
    """The batches end to end are shuffled passes over all rows; none is dropped, and a batch may span two passes."""
    order = SampleOrder(size, batch, seed=0)
    stream = torch.cat([order.rows(step) for step in range(6 * size)])
    passes = stream[: 6 * size].reshape(6, size)
    assert (passes.sort(dim=1).values == torch.arange(size)).all()
    assert [order.epoch(step) for step in range(20)] == [step * batch // size for step in range(20)]
    if size > 5:
        assert len({tuple(p.tolist()) for p in passes}) == 6


def test_the_step_alone_decides_a_batch():
    """Asked for in any order, by any object, however often; another seed, another batch."""
    order, other = SampleOrder(10, 4, seed=3), SampleOrder(10, 4, seed=3)
    late = other.rows(17)
    assert all(torch.equal(order.rows(step), other.rows(step)) for step in (0, 5, 1, 17))
    assert torch.equal(order.rows(17), late)
    assert not torch.equal(SampleOrder(10, 4, seed=4).rows(17), late)


def test_processes_share_a_batch():
    whole = SampleOrder(10, 4, seed=0)
    parts = [SampleOrder(10, 4, 0, Shard(rank, 2)) for rank in range(2)]
    for step in range(5):
        assert torch.equal(torch.cat([part.rows(step) for part in parts]), whole.rows(step))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 8, 0), "5 samples, fewer than the effective batch of 8: lower train.batch_size .* at most 5"),
        ((8, 0, 0), "effective batch of 0"),
        ((8, 3, 0, Shard(0, 2)), "effective batch of 3 must be a positive multiple of the 2 processes"),
    ],
)
def test_impossible_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SampleOrder(*arguments)


# Drawing and reading ahead


class Drawing(Objective):
    """Draws noise on a thread of its own, or fails at a row."""

    prefetch = True

    def __init__(self, fails_at=None):
        super().__init__()
        self.fails_at, self.threads = fails_at, set()

    def draw(self, batch, generator, shard):
        """Noise, and the name of the thread."""
        self.threads.add(threading.current_thread())
        if self.fails_at is not None and len(self.threads) and (batch.x_1 == self.fails_at).any():
            raise RuntimeError(f"row {self.fails_at} is bad")
        return Batch(batch.x_1, batch.condition, x_0=torch.randn(batch.x_1.shape, generator=generator))


@pytest.mark.parametrize("start", [0, 5])
def test_reading_ahead_gives_the_same_batches(start):
    """From a thread or inline, from the start or from the middle, with conditions dropped or not."""
    drawn, dropout = {}, ConditionDropout(0.5, {"class_labels": 99})
    for ahead in (False, True):
        objective = Drawing()
        objective.prefetch = ahead
        stream = drawn_batches(MemoryRows(numbers(10)), SampleOrder(10, 4, 0), objective, start, 0, dropout)
        drawn[ahead] = [next(stream) for _ in range(8)]
        stream.close()
        assert (threading.main_thread() in objective.threads) is not ahead
    for a, b in zip(drawn[False], drawn[True], strict=True):
        assert torch.equal(a.x_0, b.x_0)
        assert torch.equal(a.x_1, b.x_1)
        assert torch.equal(a.condition["class_labels"], b.condition["class_labels"])


def test_collectives_stay_on_the_main_thread():
    """With several processes nothing is drawn in a thread."""
    objective, shard = Drawing(), Shard(0, 2)
    stream = drawn_batches(MemoryRows(numbers(10)), SampleOrder(10, 4, 0, shard), objective, 0, 0)
    next(stream)
    assert objective.threads == {threading.main_thread()}


def test_errors_of_the_thread_are_raised_here():
    """After the batches that were still good."""
    order = SampleOrder(10, 1, 0)
    bad = int(order.rows(4))
    stream = drawn_batches(MemoryRows(numbers(10)), order, Drawing(bad), 0, 0)
    assert [int(next(stream).x_1) for _ in range(4)] == [int(order.rows(k)) for k in range(4)]
    with pytest.raises(RuntimeError, match=f"row {bad} is bad"):
        next(stream)


def test_the_thread_ends_with_its_reader():
    """Also when it was waiting to hand over a batch, or an error."""

    def failing():
        yield from [numbers(1)] * 4
        raise RuntimeError("nobody is listening")

    before = threading.active_count()
    for stream in (prefetched(iter(numbers(4) for _ in range(100))), prefetched(failing())):
        next(stream)
        stream.close()
    for _ in range(50):
        if threading.active_count() == before:
            return
        time.sleep(0.1)
    raise AssertionError("a thread is left")


def test_slow_couplings_are_drawn_ahead():
    """The drawn batch is that of the objective itself, keyed by the step."""
    data, objective = toy(), FlowMatchingObjective(coupling=OTCoupling())
    assert objective.prefetch
    order, rows = SampleOrder(64, 16, 0), MemoryRows(data.rows("train"))
    stream = drawn_batches(rows, order, objective, 2, seed=7)
    expected = objective.draw(data.rows("train", order.rows(2).tolist()), keyed_generator(7, "draw", 2), Shard())
    drawn = next(stream)
    stream.close()
    assert torch.equal(drawn.x_t, expected.x_t)
    assert torch.equal(drawn.t, expected.t)


# Banks


def bank(version):
    """Pairs that say the number of their bank."""
    return Batch(torch.arange(6.0)[:, None], {}, x_0=torch.full((6, 1), float(version)))


@pytest.mark.parametrize(
    ("refresh", "versions"), [(0, [0] * 9), (1, [0, 0, 0, 1, 1, 1, 2, 2, 2]), (2, [0] * 6 + [1] * 3)]
)
def test_banks_are_made_when_they_are_needed(refresh, versions):
    """Once, or after every `refresh_epochs` passes of three batches; a stream from the middle begins with its bank."""
    built = []
    rows = BankRows(lambda k: built.append(k) or bank(k), refresh)
    assert built == []
    assert len(rows) == 6
    stream = rows.batches(SampleOrder(6, 2, 0), 0)
    assert [int(next(stream).x_0[0]) for _ in range(9)] == versions
    assert built == sorted(set(versions))
    later = BankRows(bank, refresh).batches(SampleOrder(6, 2, 0), 7)
    assert int(next(later).x_0[0]) == versions[7]


def test_banks_are_kept_in_checkpoints():
    """A restored bank is used as it is; it is not made again."""
    rows = BankRows(bank, 1)
    next(rows.batches(SampleOrder(6, 2, 0), 3))

    def refuse(version):
        raise AssertionError("made again")

    restored = BankRows(refuse, 1)
    restored.load(rows.tensors())
    assert int(next(restored.batches(SampleOrder(6, 2, 0), 4)).x_0[0]) == 1


# Dropped conditions


def test_conditions_are_dropped_together():
    """Each sample loses all of its conditions or none, as often as asked for, and its data never."""
    batch = Batch(
        torch.ones(20_000, 1), {"class_labels": torch.ones(20_000, dtype=int), "condition": torch.ones(20_000, 2)}
    )
    dropped = ConditionDropout(0.3, {"class_labels": 7.0, "condition": 0.0})(batch, torch.Generator(), Shard())
    gone = dropped.condition["class_labels"] == 7
    assert gone.float().mean() == pytest.approx(0.3, abs=0.02)
    assert (dropped.condition["condition"] == (~gone)[:, None].float()).all()
    assert (dropped.x_1 == 1).all()
    halves = [
        ConditionDropout(0.3, {"class_labels": 7.0})(numbers(4), torch.Generator(), Shard(r, 2)) for r in range(2)
    ]
    both = Batch(torch.cat([numbers(4).x_1] * 2), {"class_labels": torch.arange(4).repeat(2)})
    whole = ConditionDropout(0.3, {"class_labels": 7.0})(both, torch.Generator(), Shard())
    assert torch.equal(torch.cat([half.condition["class_labels"] for half in halves]), whole.condition["class_labels"])


def test_what_is_replayed_loses_its_condition_too(generator):
    """As often as the new rows do; the velocity to be kept is then the base's without a condition, also where one was cached with it."""

    class Base(torch.nn.Module):
        """v = its label."""

        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, t, class_labels):
            return self.one * class_labels[:, None] * torch.ones_like(x)

    kept = {"class_labels": torch.ones(64, dtype=int)}
    for states in ("interpolant", "trajectory"):
        bank = build_replay(FrozenVelocity(Base()), kept, [2], generator, states=states, num_samples=64, num_steps=2)
        objective, rows = (
            ReplayObjective(bank),
            MemoryRows(Batch(torch.zeros(4000, 2), {"class_labels": torch.ones(4000, dtype=int)})),
        )
        drawn = drawn_batches(
            rows, SampleOrder(4000, 4000, 0), objective, 0, 0, ConditionDropout(0.3, {"class_labels": 7})
        )
        batch = next(drawn)
        for labels in (batch.condition["class_labels"], batch.replay.condition["class_labels"]):
            assert (labels == 7).float().mean() == pytest.approx(0.3, abs=0.03)
        old = objective.kept(batch.replay)
        assert torch.equal(old.v_t, old.condition["class_labels"][:, None].expand(-1, 2).float())


def test_dropping_needs_a_null_value():
    with pytest.raises(ValueError, match="probability below 1, got 1"):
        ConditionDropout(1.0, {})
    with pytest.raises(ValueError, match=r"has none for \['class_labels'\]"):
        ConditionDropout(0.5, {"condition": 0.0})(numbers(4), torch.Generator(), Shard())
    with pytest.raises(ValueError, match="needs conditions"):
        ConditionDropout(0.5, {})(Batch(torch.zeros(2, 1)), torch.Generator(), Shard())
