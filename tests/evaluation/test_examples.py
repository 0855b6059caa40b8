"""Which examples an evaluation of N looks at: all classes of a sorted set, and fewer of them a part of more."""

import ast
import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import score_sde
from score_sde.data import ArraySource, DataError
from score_sde.evaluation import levels, likelihood
from score_sde.evaluation.examples import examples_of
from tests.evaluation import stub, test_accuracy, test_likelihood

CLASSES, EACH = 10, 100
SORTED = ArraySource(
    np.zeros((CLASSES * EACH, 2), np.float32), np.arange(CLASSES).repeat(EACH), None, CLASSES
)  # as folders of classes are read
ROOMS = [path for room in ("evaluation", "modes") for path in (Path(score_sde.__file__).parent / room).glob("*.py")]


class Gathered(Exception):
    """Raised where the first batch would be computed, which holds all examples."""


class Watching:
    """SORTED, which notes the rows that it is asked for."""

    shape, levels, num_classes = SORTED.shape, SORTED.levels, SORTED.num_classes

    def __init__(self):
        self.rows = set()

    def __len__(self):
        return len(SORTED)

    def __getitem__(self, indices):
        self.rows |= set(np.asarray(indices).tolist())
        return SORTED[indices]


def score_on(source):
    return dataclasses.replace(stub.experiment(np.zeros((4, 2), np.float32)), load=lambda split: source)


def classifier_on(source):
    e = test_accuracy.classification()
    return dataclasses.replace(e, load=lambda split: source, num_classes=CLASSES)


def likelihood_of(source, n):
    options = test_likelihood.options(num_examples=n, batch_size=n)
    likelihood.evaluate_likelihood(score_on(source), {}, options, step=0, seed=0)


def by_level(evaluator, task):
    def evaluate(source, n):
        evaluator(task(source), {}, split="test", batch_size=n, seed=0, examples=n)

    return evaluate


EVALUATORS = {
    "likelihood": likelihood_of,
    "loss_by_level": by_level(levels.loss_by_level, score_on),
    "bound_by_level": by_level(levels.bound_by_level, score_on),
    "accuracy_by_level": by_level(levels.accuracy_by_level, classifier_on),
    "restore": lambda source, n: next(examples_of(score_on(source), "test", n, shuffled=True).batches(n)),
}


@pytest.fixture
def rows_of(monkeypatch):
    """f(evaluator, n): the rows that it looks at."""

    def stop(*_):
        raise Gathered

    for room in (levels, likelihood):
        monkeypatch.setattr(room, "per_device", lambda *_: stop)  # no program is compiled

    def rows(evaluator, n):
        source = Watching()
        try:
            EVALUATORS[evaluator](source, n)
        except Gathered:
            pass
        return source.rows

    return rows


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_n_examples_of_a_sorted_set_are_of_all_classes_and_nested(evaluator, rows_of):
    few, more = rows_of(evaluator, 60), rows_of(evaluator, 120)
    assert len(few) == 60 and len(more) == 120 and few < more
    counts = np.bincount(SORTED.labels[sorted(more)], minlength=CLASSES)
    assert counts.min() > 3 and counts.max() < 24, counts  # 12 +- 3.3
    assert few == rows_of("restore", 60), "all evaluators look at the same examples"


def test_no_evaluator_chooses_examples_of_its_own():
    """Only `examples_of` reads a split, and training its own data: whoever would take the first N must come by here."""
    for path in ROOMS:
        for node in ast.walk(ast.parse(path.read_text())):
            call = ast.unparse(node) if isinstance(node, ast.Call) and path.name != "examples.py" else ""
            reads = re.match(r"(?!np\.)([\w.]*\.load|in_order)\(", call)
            assert not reads or "load('train')" in call, f"{path.name}:{node.lineno} {call}"


def test_all_of_a_split_come_in_its_order_and_there_is_nothing_to_say_of_a_draw():
    e = score_on(SORTED)
    for count in (None, len(SORTED), 5000):
        chosen = examples_of(e, "test", count)
        np.testing.assert_array_equal(chosen.rows, np.arange(len(SORTED)))
        assert chosen.settings() == {"split": "test", "examples": 1000, "of": 1000}
    few = examples_of(e, "test", 5)
    assert few.settings()["rows"] == sorted(few.rows) and "SplitMix64" in few.settings()["drawn"]
    np.testing.assert_array_equal(np.sort(examples_of(e, "test", 5, shuffled=True).rows), few.rows)


def test_draws_belong_to_the_example_whatever_their_number():
    """A value of 40 examples is found again among those of 100."""
    e = stub.experiment(np.zeros((100, 2), np.float32))

    def draw(params, key, example):
        return {"draw": jax.random.normal(key)[None]}

    few, more = (levels._per_example(e, {}, draw, "test", n, 40, 0)[0]["draw"].ravel() for n in (40, 100))
    assert set(few) < set(more) and len(set(more)) == 100


def test_an_empty_split_is_told(rows_of):
    class Empty(Watching):
        def __len__(self):
            return 0

    for evaluate in EVALUATORS.values():
        with pytest.raises(DataError, match="the test split has no examples"):
            evaluate(Empty(), 4)
