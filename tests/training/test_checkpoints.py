"""Checkpoints come back to the bit, and damage is found, told and survived."""

import contextlib
import dataclasses
import json
import logging
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.files import WorkdirError
from score_sde.training.checkpoints import Checkpoints, fingerprint, newest_notes, notes_of
from score_sde.training.state import adam, init_state


def make(step=0):
    """A state at a step, other ones with other weights."""
    state = init_state(lambda key: {"w": jax.random.normal(key, (64, 64))}, adam(0.1, 0, 1.0), seed=step)
    return dataclasses.replace(state, step=jnp.full((), step, jnp.int32))


def leaves(state):
    return [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(state)
    ]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_state_comes_back_to_the_bit(tmp_path):
    state = make(3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make(1)) is None
        checkpoints.save(3, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(jax.eval_shape(make)), state)


def test_a_reader_touches_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make(1))
        checkpoints.wait()
        checkpoints.save(2, make(2))
    _truncate(tmp_path / "checkpoints" / "2")
    in_flight = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    in_flight.mkdir()
    before = sorted(tmp_path.rglob("*"))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert_same(checkpoints.restore(make(0)), make(1))
    assert sorted(tmp_path.rglob("*")) == before


def test_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make(step))
            checkpoints.wait()
        assert checkpoints.steps() == [2, 3]


def test_the_newest_good_one_is_kept_however_far_the_run_goes_astray(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, make(step), good=step < 3)
            checkpoints.wait()
    with Checkpoints(tmp_path, keep=2) as checkpoints:  # it is known after a restart too
        checkpoints.save(5, make(5), good=False)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5] and checkpoints.newest_good() == 2
        checkpoints.save(6, make(6))
        checkpoints.wait()
        assert checkpoints.steps() == [5, 6]
        checkpoints.set_aside_after(5)
        assert checkpoints.steps() == [5] and (tmp_path / "checkpoints" / "exploded-6").is_dir()


def test_notes_come_back_and_those_of_an_older_version_are_few(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, make(2), window={"loss": 0.1})
    notes = notes_of(tmp_path, 2)
    assert notes["window"] == {"loss": 0.1} and notes["good"] is True
    path = tmp_path / "checkpoints" / "2" / "meta" / "metadata"
    path.write_text(json.dumps({"fingerprint": notes["fingerprint"]}))
    assert newest_notes(tmp_path) == (2, {"fingerprint": notes["fingerprint"]})
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(make(0)), make(2))


def _flip_a_bit(directory):
    data = max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(bytes(raw))


def _truncate(directory):
    data = max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def _empty(directory):
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _call_it_another_step(directory):
    """As a hand may, which copies an older one over it."""
    shutil.rmtree(directory)
    shutil.copytree(directory.parent / "1", directory)


def _change_a_note(directory):
    path = directory / "meta" / "metadata"
    path.write_text(path.read_text().replace('"loss": 0.5', '"loss": 0.7'))


def _lose_the_digest(directory):
    path = directory / "meta" / "metadata"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "digest"}))


DAMAGES = [_flip_a_bit, _truncate, _empty, _call_it_another_step, _change_a_note, _lose_the_digest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make(1))
        checkpoints.wait()
        checkpoints.save(2, make(2), window={"loss": 0.5})
    damage(tmp_path / "checkpoints" / "2")
    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING):
        assert_same(checkpoints.restore(make(0)), make(1))
        assert checkpoints.steps() == [1]
    assert "checkpoint 2 is damaged" in caplog.text
    assert (tmp_path / "checkpoints" / "damaged-2").is_dir()  # set aside, not deleted


def test_other_devices_than_those_of_the_run_are_no_damage(tmp_path):
    def spread(count):
        mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    state = jax.device_put(make(1), spread(4))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread(1)), jax.eval_shape(lambda: make())
    )
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(shapes), make(1))


def test_when_all_are_damaged_nothing_starts_over(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make(1))
    _truncate(tmp_path / "checkpoints" / "1")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(WorkdirError, match="no checkpoint in .* can be read"):
            checkpoints.restore(make(0))
        assert checkpoints.steps() == [1]  # and nothing is renamed


def test_the_fingerprint_sees_any_single_word():
    x = jax.random.normal(jax.random.key(0), (1000,))
    changed = x.at[jnp.arange(0, 1000, 37)].multiply(1 + 2.0**-20)
    assert fingerprint({"x": x})[0] != fingerprint({"x": changed})[0]
    for i in (0, 1, 500, 999):
        assert fingerprint({"x": x})[0] != fingerprint({"x": x.at[i].set(-x[i])})[0]  # one bit, the sign


@contextlib.contextmanager
def files_of_at_most(size):
    """What the system does to every write beyond `size` bytes of a file, as a full disk does beyond its own."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_save_that_fails_says_what_is_safe_and_leaves_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make(1))
        checkpoints.wait()
        with (
            files_of_at_most(8192),
            pytest.raises(WorkdirError, match="cannot write a checkpoint .*too large") as error,
        ):
            checkpoints.save(2, make(2))
            checkpoints.wait()
    assert "Safe are the checkpoints of the steps 1:" in str(error.value) and "\n" not in str(error.value)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(make(0)), make(1))
        checkpoints.save(2, make(2))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def test_a_save_that_fails_in_the_background_is_told_at_the_end(tmp_path, caplog):
    with pytest.raises(WorkdirError, match="There is none yet"), files_of_at_most(8192), Checkpoints(tmp_path) as later:
        later.save(1, make(1))
    with (  # what was raised first is not hidden
        pytest.raises(ZeroDivisionError), files_of_at_most(8192), Checkpoints(tmp_path) as later,
    ):  # fmt: skip
        later.save(1, make(1))
        raise ZeroDivisionError
    assert "cannot write a checkpoint" in caplog.text
