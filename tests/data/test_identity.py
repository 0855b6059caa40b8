"""The digest of a source tells data apart, and nothing else."""

import numpy as np
import pytest

from score_sde.data import ArraySource, Subset
from score_sde.data.identity import fingerprint

X = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
LABELS = np.arange(10) % 3


def source(x=X, labels=LABELS):
    return ArraySource(x.copy(), labels.copy(), 256, 3)


class Own:
    """A source of one's own, whose examples `change` changes at each reading."""

    shape, levels, num_classes = (2, 2, 1), 256, None

    def __init__(self, x=X, change=lambda x: x):
        self.x, self.change = x, change

    def __len__(self):
        return len(self.x)

    def __getitem__(self, indices):
        return {"x": self.change(self.x[indices])}


def test_the_same_examples_have_the_same_digest_however_they_are_held(monkeypatch):
    whole = fingerprint(source())
    assert len(whole) == 32 and whole == fingerprint(source())
    backwards = Subset(source(X[::-1], LABELS[::-1]), np.arange(10)[::-1])
    assert fingerprint(Subset(backwards, np.arange(10))) == whole
    monkeypatch.setattr("score_sde.data.identity._PIECE", 12)  # three examples at a time
    assert fingerprint(source()) == whole


@pytest.mark.parametrize(
    "other",
    [
        source(X ^ (X == 17)),  # one bit
        source(X, (LABELS + (np.arange(10) == 9)) % 3),  # one label
        source(X.reshape(10, 4, 1, 1)),
        source(X[:9], LABELS[:9]),
        source(X.astype(np.uint16)),
        Subset(source(), np.array([1, 0, *range(2, 10)])),
        ArraySource(X, LABELS, 128, 3),
        ArraySource(X, None, 256),
    ],
)
def test_any_change_shows(other):
    assert fingerprint(other) != fingerprint(source())


def test_a_source_of_ones_own_is_probed_and_may_be_random():
    assert fingerprint(Own()) == fingerprint(Own()) != fingerprint(Own(X + 1))
    rng = np.random.default_rng(0)

    def noisy(x):
        return x + rng.integers(100, size=x.shape)

    assert fingerprint(Own(change=noisy)) == fingerprint(Own(change=noisy)) != fingerprint(Own(X[1:], noisy))
