"""Batch n is a function of (seed, n): coverage, resumption, stacking, flips, and life in the background."""

import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from score_sde.data import ArraySource, batch_indices, batches, digits, in_order


def numbered(size, shape=()):
    """A source whose example i holds the number i in every place."""
    x = np.broadcast_to(np.arange(size).reshape(-1, *(1 for _ in shape)), (size, *shape))
    return ArraySource(x, labels=np.arange(size), levels=max(size, 2), num_classes=size)


def images(size):
    """Distinct images, none of them symmetric."""
    x = np.random.default_rng(0).integers(0, 256, (size, 6, 4, 3), dtype=np.uint8)
    return ArraySource(x, labels=np.arange(size), levels=256, num_classes=size)


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(("batch_size", "size"), [(4, 12), (5, 12), (7, 12), (12, 12), (30, 12), (3, 1), (1, 3)])
def test_every_epoch_covers_each_example_once(batch_size, size):
    epochs = 4
    count = -(-epochs * size // batch_size)
    stream = np.concatenate([batch_indices(n, batch_size, size, seed=3) for n in range(count)])
    assert stream.shape == (count * batch_size,)
    for epoch in stream[: epochs * size].reshape(epochs, size):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))


def test_stream_does_not_depend_on_the_batch_size():
    streams = [np.concatenate([batch_indices(n, b, 50, seed=0) for n in range(240 // b)]) for b in (1, 8, 80, 240)]
    for stream in streams[1:]:
        np.testing.assert_array_equal(stream, streams[0])


def test_epochs_and_seeds_differ():
    orders = [batch_indices(n, 1000, 1000, seed) for seed in (0, 1, 2) for n in (0, 1, 2)]
    for a, b in itertools.combinations(orders, 2):
        assert np.mean(a == b) < 0.01  # two random orders of 1,000 agree in one place on average


def test_permutations_are_uniform():
    first = [batch_indices(0, 1, 6, seed) for seed in range(6000)]
    # chi^2 with 5 degrees of freedom exceeds 25.7 with probability 1e-4; the seeds are fixed
    assert np.sum((np.bincount(np.concatenate(first), minlength=6) - 1000) ** 2 / 1000) < 25.7


def test_indices_are_the_callers_own():
    expected = batch_indices(0, 10, 10, seed=0).copy()
    batch_indices(0, 10, 10, seed=0)[:] = 0  # writes into its own copy, not into the cached permutation
    np.testing.assert_array_equal(batch_indices(0, 10, 10, seed=0), expected)


def test_far_batches_cost_the_same():
    (batch,) = take(batches(numbered(10), 4, seed=0, start=10**12), 1)
    np.testing.assert_array_equal(batch["x"], batch_indices(10**12, 4, 10, seed=0))


def test_batches_are_the_gathered_indices():
    source = digits("train")
    for n, batch in enumerate(take(batches(source, 500, seed=7), 4)):
        assert_same([batch], [source[batch_indices(n, 500, 1437, seed=7)]])
        assert batch["x"].shape == (500, 8, 8, 1) and batch["label"].shape == (500,)


@pytest.mark.parametrize("flip", [False, True])
def test_resume_is_the_run(flip):
    run = take(batches(images(20), 6, seed=1, flip=flip), 12)
    for start in (1, 5, 11):
        assert_same(take(batches(images(20), 6, seed=1, flip=flip, start=start), 12 - start), run[start:])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("start", "stack"), [(0, 1), (0, 3), (2, 4)])
def test_stacked_batches_are_the_same_batches(flip, start, stack):
    run = take(batches(images(20), 6, seed=1, flip=flip, start=start), 2 * stack)
    stacked = take(batches(images(20), 6, seed=1, flip=flip, start=start, stack=stack), 2)
    assert all(batch["x"].shape == (stack, 6, 6, 4, 3) and batch["label"].shape == (stack, 6) for batch in stacked)
    assert_same([{k: v[i] for k, v in batch.items()} for batch in stacked for i in range(stack)], run)


def test_flips_mirror_about_half():
    source = images(50)
    flipped = []
    for n, batch in enumerate(take(batches(source, 100, seed=0, flip=True), 40)):
        plain = source[batch_indices(n, 100, 50, seed=0)]
        np.testing.assert_array_equal(batch["label"], plain["label"])
        same = np.all(batch["x"] == plain["x"], axis=(1, 2, 3))
        mirrored = np.all(batch["x"] == plain["x"][:, :, ::-1], axis=(1, 2, 3))
        assert np.all(same ^ mirrored)
        flipped.append(mirrored)
    flipped = np.array(flipped)
    # 4 standard errors: of 4,000 coins 0.03, of 40 coins (one place in the batch) 0.32, of 100 coins (a batch) 0.2
    assert abs(flipped.mean() - 0.5) < 0.03
    assert np.abs(flipped.mean(axis=0) - 0.5).max() < 0.32 and np.abs(flipped.mean(axis=1) - 0.5).max() < 0.2


def test_flips_depend_on_the_seed():
    source = ArraySource(np.array([0, 1]).reshape(1, 1, 2, 1), levels=2)  # one image, so that only flips are random
    left, right = (np.stack([b["x"] for b in take(batches(source, 64, s, flip=True), 4)]) for s in (0, 1))
    assert 0.3 < np.mean(left != right) < 0.7  # 256 pairs of coins: 6 standard errors


def test_flips_leave_the_source_alone():
    class Shared:
        """Returns its own memory, as a memory map read in order may."""

        shape, levels, num_classes = (6, 4, 3), 256, None
        x = images(8).x.copy()

        def __len__(self):
            return 8

        def __getitem__(self, indices):
            return {"x": self.x}

    source = Shared()
    before = source.x.copy()
    take(batches(source, 8, seed=0, flip=True), 3)
    np.testing.assert_array_equal(source.x, before)


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (10, 5), (3, 8), (1, 1)])
def test_in_order_covers_each_example_once(size, batch_size):
    source = numbered(size, (2,))
    seen = []
    for batch, indices, valid in in_order(source, batch_size):
        assert batch["x"].shape == (batch_size, 2) and valid.shape == (batch_size,) and valid.dtype == bool
        assert_same([batch], [source[indices]])  # the padding is real examples
        assert valid[0] and np.all(np.diff(valid.astype(int)) <= 0)
        seen.append(batch["label"][valid])
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(size))
    assert len(seen) == -(-size // batch_size)


class Empty(ArraySource):
    def __len__(self):
        return 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (dict(seed=-1), "seed must be at least 0, got -1"),
        (dict(start=-2), "start must be at least 0, got -2"),
        (dict(stack=0), "stack must be at least 1, got 0"),
        (dict(flip=True), r"flip needs images \(height, width, channels\), got shape \(2,\)"),
        (dict(source=Empty(np.zeros((1, 2)))), "at least one example, got 0"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(**dict(source=numbered(5, (2,)), batch_size=2, seed=0) | arguments)
    if set(arguments) <= {"batch_size", "source"}:
        with pytest.raises(ValueError, match=message):
            in_order(**dict(source=numbered(5), batch_size=2) | arguments)


def test_an_exception_in_the_source_reaches_the_consumer():
    class Failing(ArraySource):
        def __getitem__(self, indices):
            if 13 in indices:
                raise OSError("disk on fire")
            return super().__getitem__(indices)

    source = Failing(np.arange(20.0))
    bad = next(n for n in range(5) if 13 in batch_indices(n, 4, 20, seed=0))
    iterator = batches(source, 4, seed=0)
    assert len(take(iterator, bad)) == bad  # what lies before it is served
    with pytest.raises(OSError, match="disk on fire"):
        next(iterator)
    assert next(iterator, None) is None  # finished: to go on would skip a batch in silence


def test_dropping_the_iterator_cancels_what_was_ahead():
    class Gated(ArraySource):
        def __getitem__(self, indices):
            asked.append(indices)
            if not np.array_equal(indices, first):
                gate.wait(10)
            return super().__getitem__(indices)

    first = batch_indices(0, 4, 20, seed=0)
    asked, gate, before = [], threading.Event(), threading.active_count()
    iterator = batches(Gated(np.arange(20.0)), 4, seed=0)
    next(iterator)
    iterator.close()
    gate.set()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert len(asked) <= 3  # the first, and what two threads had begun; the buffer holds four


ABANDON = """
import threading, time
import numpy as np
from score_sde.data import ArraySource, batches

class Slow(ArraySource):
    def __getitem__(self, indices):
        time.sleep(0.05)
        return super().__getitem__(indices)

source = Slow(np.arange(20.0))
dropped = batches(source, 4, seed=0)
next(dropped)
before = threading.active_count()
del dropped
deadline = time.monotonic() + 10
while threading.active_count() >= before and time.monotonic() < deadline:
    time.sleep(0.01)
assert threading.active_count() < before, threading.enumerate()
kept = batches(source, 4, seed=0)  # never closed, as when a script ends in the middle of training
next(kept)
print("done")
"""


def test_an_abandoned_iterator_does_not_hold_up_the_interpreter():
    # A fresh interpreter also shows that nothing has to parse absl flags first.
    done = subprocess.run([sys.executable, "-c", ABANDON], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr
    assert "Error" not in done.stderr and "Exception" not in done.stderr
