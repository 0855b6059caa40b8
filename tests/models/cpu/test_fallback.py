"""Without the parts of JAX that the fast convolutions stand on, networks work as before."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.models import UNet, blocks, cpu


@pytest.fixture
def without_primitives(monkeypatch):
    """`cpu` as it is imported by a JAX that has no such thing as a primitive of one's own."""
    monkeypatch.delattr("jax.extend.core.Primitive")
    monkeypatch.delitem(sys.modules, "score_sde.models.cpu.convolution")
    with pytest.warns(RuntimeWarning, match="Primitive"):
        importlib.reload(cpu)
    yield
    monkeypatch.undo()
    importlib.reload(cpu)


def test_the_network_is_the_same_function(without_primitives, monkeypatch):
    network = UNet(nf=4, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), dropout=0.0)
    x, label = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jnp.array([1.0, 500.0])
    params = network.init(jax.random.key(1), x, label)

    def value_and_gradient():
        def loss(params, x):
            return jnp.sum(jnp.sin(network.apply(params, x, label)))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)

    fast = value_and_gradient()
    assert blocks.convolve is not cpu.convolve is jax.lax.conv_general_dilated
    monkeypatch.setattr(blocks, "convolve", cpu.convolve)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), fast, value_and_gradient())
