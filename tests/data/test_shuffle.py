"""Rows drawn from a data set: always the same, fewer of them a part of more, and a fair sample."""

import numpy as np
import pytest

from score_sde.data import drawn_rows, shuffle


def test_the_hashes_are_those_of_splitmix64():
    """Its first outputs from seed 0, as published with the generator (Vigna, splitmix64.c)."""
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert shuffle._hashes(np.arange(3)).tolist() == first


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_fewer_rows_are_the_first_of_more_and_none_comes_twice(size, monkeypatch):
    whole = drawn_rows(size, size)
    assert sorted(whole) == list(range(size))
    monkeypatch.setattr(shuffle, "_PIECE", 64)  # as of a set a million times larger
    for count in {0, 1, size // 3, size - 1, size}:
        np.testing.assert_array_equal(drawn_rows(size, count), whole[:count])


def test_a_set_that_has_grown_keeps_most_of_what_was_drawn():
    assert len(np.intersect1d(drawn_rows(1000, 100), drawn_rows(1100, 100))) > 75  # 91 on average


def test_what_is_drawn_is_spread_over_the_set():
    counts = np.histogram(drawn_rows(10_000, 2000), bins=20, range=(0, 10_000))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 45  # chi-square of 19 degrees: 0.07 % are larger


def test_more_rows_than_there_are_is_an_error():
    for count in (-1, 4):
        with pytest.raises(ValueError, match=f"expected a number of rows in 0..3, got {count}"):
            drawn_rows(3, count)
