"""Score-SDE's own checkpoints, of torch and of JAX: our network computes what theirs does, from the file alone."""

import flax.serialization
import jax
import numpy as np
import pytest

from score_sde.weights.__main__ import main
from score_sde.weights.commands import read
from score_sde.weights.errors import WeightsError
from score_sde.weights.opening import open_weights
from tests.weights.networks import distance, predict, restored, write_config

pytestmark = pytest.mark.interop

# options of the reference -> fields of ours
NETWORKS = {
    "DDPM++": (dict(), dict()),
    "NCSN++ of CIFAR-10": (
        dict(smooth=True, progressive_input="residual", fourier=True),
        dict(fir_kernel=(1, 3, 3, 1), progressive_input="residual"),
    ),
    "NCSN++ of 256 pixels": (
        dict(smooth=True, progressive="output_skip", progressive_input="input_skip", fourier=True, ch_mult=(1, 1, 2)),
        dict(fir_kernel=(1, 3, 3, 1), progressive="output_skip", progressive_input="input_skip", ch_mult=(1, 1, 2)),
    ),
    "concatenated, DDPM's blocks, a Fourier embedding with VP": (
        dict(kind="ddpm", progressive="output_skip", progressive_input="input_skip", combine="cat", ch_mult=(1, 1, 2),
             fourier=True, vp=True),
        dict(resblock_type="ddpm", progressive="output_skip", progressive_input="input_skip",
             progressive_combine="cat", ch_mult=(1, 1, 2), embedding_type="fourier", log_label=True),
    ),
    "NCSN++ of discrete levels": (
        dict(smooth=True, progressive_input="residual", levels=10),
        dict(fir_kernel=(1, 3, 3, 1), progressive_input="residual", embedding_type="positional",
             sigma_levels=(348.0, 0.01, 10.0)),
    ),
    "DDPM": (
        dict(kind="ddpm", rescale=False, old_names=True, blocks=2),
        dict(resblock_type="ddpm", skip_rescale=False, num_res_blocks=2),
    ),
}  # fmt: skip
LABELS = {True: (0.01, 1.0, 20.0, 348.0), False: (0.3, 37.0, 500.0, 999.0)}  # of VE, of VP
LEVELS = (0.0, 4.0, 9.0)  # the numbers of levels, of discrete VE


@pytest.fixture(params=NETWORKS, scope="module")
def case(request, tmp_path_factory):
    """The reference, its averages, a config file for it, and a folder."""
    from tests.weights import reference

    options, fields = NETWORKS[request.param]
    net, averaged = reference.make(size=16, **options), reference.make(size=16, seed=1, **options)
    if options.get("fourier"):  # never trained: one table for both
        averaged.all_modules[0].W.data = net.all_modules[0].W.data
    folder = tmp_path_factory.mktemp("weights")
    ours = dict(nf=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), dropout=0.0) | fields
    return net, averaged, write_config(folder / "config.py", ours, ve=net.ve, size=16), folder


def agree(run, tensors_of, params):
    """Our network with `params` against the reference `tensors_of`, at several noise levels."""
    import torch

    for label in LEVELS if tensors_of.levels else LABELS[tensors_of.ve]:
        sigma = float(tensors_of.sigmas[int(label)]) if tensors_of.levels else label
        x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
        x *= sigma if tensors_of.ve else 1
        with torch.no_grad():
            want = tensors_of(torch.tensor(x).permute(0, 3, 1, 2), torch.full((2,), label)).permute(0, 2, 3, 1).numpy()
        told = np.log(np.float32(sigma)) if tensors_of.ve else label
        got = predict(run.experiment.network, params, x, told)
        assert distance(got, want) < 1e-4, label  # measured: up to 6e-6


def test_pth(case):
    from tests.weights import reference

    net, averaged, config, folder = case
    path, bare = folder / "checkpoint_24.pth", folder / "bare.pth"
    averages = [p.detach() for p in averaged.parameters() if p.requires_grad]
    reference.save_pth(net, path, averages=averages)
    reading, run = read(path, [f"--config={config}"], prepared=False)
    assert (reading.found.step, reading.found.layout) == (12_000, "torch")
    assert not reading.weights.unexpected
    agree(run, net, reading.weights.params)
    agree(run, averaged, reading.averages().params)
    reference.save_pth(net, bare, averages=averages, prefix=False)
    assert open_weights(path).tensors.keys() == open_weights(bare).tensors.keys()


def test_msgpack(case):
    from tests.weights import reference

    net, averaged, config, folder = case
    trees = [reference.as_flax(n, dict(n.named_parameters())) for n in (net, averaged)]
    state = {
        "step": 12_000, "lr": 2e-4, "ema_rate": 0.999, "rng": np.zeros(2, np.uint32), "params_ema": trees[1],
        "optimizer": {"target": trees[0], "state": {"step": 12_000}}, "model_state": {},
    }  # fmt: skip
    path = folder / "checkpoint_24"
    path.write_bytes(flax.serialization.msgpack_serialize(state))
    reading, run = read(path, [f"--config={config}"], prepared=False)
    assert (reading.found.step, reading.found.layout, reading.weights.unexpected) == (12_000, "flax", [])
    agree(run, net, reading.weights.params)
    agree(run, averaged, reading.averages().params)


@pytest.mark.parametrize("case", ["NCSN++ of CIFAR-10"], indirect=True)
def test_an_imported_run_holds_both_weights_and_the_step(case, tmp_path):
    from tests.weights import reference

    net, averaged, config, _ = case
    path = tmp_path / "checkpoint_3.pth"
    reference.save_pth(net, path, averages=[p.detach() for p in averaged.parameters() if p.requires_grad])
    assert main(["import", str(path), str(tmp_path / "run"), f"--config={config}"]) == 0
    run, state = restored(tmp_path / "run")
    assert int(state.step) == 12_000 and run.training.steps > 12_000
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt_state))
    agree(run, net, state.params)
    agree(run, averaged, state.ema)


def test_averages_that_do_not_fit_are_refused(tmp_path):
    from tests.weights import reference

    net = reference.make(size=8, nf=8, attention=(), fourier=True)
    averages = [p.detach() for p in net.parameters() if p.requires_grad]
    path = tmp_path / "checkpoint_3.pth"
    for wrong, message in ((averages[:-1], f"expected {len(averages)} averages"), (averages[::-1], "in the order")):
        reference.save_pth(net, path, averages=wrong)
        with pytest.raises(WeightsError, match=message):
            open_weights(path)
