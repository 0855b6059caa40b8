"""diffusers' networks in and out: outputs agree with `UNet2DModel` at several noise levels, both ways."""

import json
import math
import os
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.weights.__main__ import main
from score_sde.weights.commands import read
from score_sde.weights.naming import as_file, slots
from score_sde.weights.unet2d import diffusers_config
from tests.weights.networks import distance, predict, restored

pytestmark = pytest.mark.interop

DDPM = dict(
    sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_eps=1e-6, flip_sin_to_cos=False, freq_shift=1,
    downsample_padding=0, attention_head_dim=None, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
NCSNPP = dict(
    sample_size=16, block_out_channels=(32, 128), layers_per_block=1, norm_eps=1e-6, norm_num_groups=None,
    attention_head_dim=None, down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"), time_embedding_type="fourier", center_input_sample=True,
    mid_block_scale_factor=2**0.5,
)  # fmt: skip
# what others have published with: today's defaults of the library, and one of each option
TODAY = {k: DDPM[k] for k in ("sample_size", "block_out_channels", "layers_per_block")}
TODAY |= dict(down_block_types=DDPM["down_block_types"], up_block_types=DDPM["up_block_types"])
GREY = DDPM | dict(in_channels=1, out_channels=1, norm_num_groups=8, down_block_types=("DownBlock2D",) * 2,
                   up_block_types=("UpBlock2D",) * 2)  # fmt: skip
SMALL = {"DDPM": DDPM, "today's defaults": TODAY, "grey, no attention": GREY, "NCSN++": NCSNPP}
FULL = {
    "google/ddpm-cifar10-32": DDPM | dict(
        sample_size=32, block_out_channels=(128, 256, 256, 256), layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ),
    "google/ncsnpp-celebahq-256": NCSNPP | dict(
        sample_size=256, block_out_channels=(128, 128, 256, 256, 256, 256, 256), layers_per_block=2,
        down_block_types=("SkipDownBlock2D",) * 4 + ("AttnSkipDownBlock2D",) + ("SkipDownBlock2D",) * 2,
        up_block_types=("SkipUpBlock2D",) * 2 + ("AttnSkipUpBlock2D",) + ("SkipUpBlock2D",) * 4,
    ),
}  # fmt: skip
PARAMETERS = {"google/ddpm-cifar10-32": (328, 35_746_307), "google/ncsnpp-celebahq-256": (645, 65_574_549)}
SIGMA_MAX = "--config.sde.sigma_max=348"


def diffusers():
    with warnings.catch_warnings():  # of its own imports
        warnings.simplefilter("ignore")
        import diffusers

        diffusers.utils.logging.set_verbosity_error()
        return diffusers


def make(options, folder=None, scheduler=None):
    """A random `UNet2DModel` whose biases and norms are nowhere 0 and 1, saved in the folder."""
    import torch

    torch.manual_seed(0)
    model = diffusers().UNet2DModel(**options).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and not name.startswith("time_proj"):
                p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder / "unet")
    if scheduler is not None:
        scheduler.save_pretrained(folder / "scheduler")
    return model


def theirs(model, x, label, classes=None):
    import torch

    classes = None if classes is None else torch.tensor(classes)
    with torch.no_grad():
        out = model(torch.tensor(x).permute(0, 3, 1, 2), torch.full((len(x),), label), classes).sample
    return out.permute(0, 2, 3, 1).numpy()


def compare(model, net, params, shape, labels, batch=2):
    """Largest relative distance of outputs; sigma itself is their label for VE, and log sigma ours."""
    for label in labels:
        x = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
        x *= label if net.scale_by_sigma else 1
        told = np.log(np.float32(label)) if net.scale_by_sigma else label
        assert distance(predict(net, params, x, told), theirs(model, x, label)) < 1e-4, label


def labels_of(options):
    return (0.01, 1.0, 30.0, 348.0) if options.get("time_embedding_type") == "fourier" else (0.0, 10.0, 500.0, 999.0)


@pytest.mark.parametrize("kind", SMALL)
def test_small_networks_in_and_out(kind, tmp_path):
    """Measured: up to 4e-6, as at full size."""
    options, labels = SMALL[kind], labels_of(SMALL[kind])
    model = make(options, tmp_path)
    flags = [SIGMA_MAX] if kind == "NCSN++" else []
    reading, run = read(tmp_path, flags, prepared=False)
    net, shape = run.experiment.network, run.experiment.shape
    assert shape == (16, 16, options.get("in_channels", 3)) and not reading.weights.unexpected
    compare(model, net, reading.weights.params, shape, labels)

    assert main(["import", str(tmp_path), str(tmp_path / "run"), *flags]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    back = diffusers().UNet2DModel.from_pretrained(tmp_path / "out").eval()
    compare(back, net, reading.weights.params, shape, labels[-1:])
    assert distance(theirs(back, np.ones((2, *shape), np.float32), 7.0),
                    theirs(model, np.ones((2, *shape), np.float32), 7.0)) < 1e-5  # fmt: skip


DOWN, UP = ["DownBlock2D", "AttnDownBlock2D"], ["UpBlock2D", "AttnUpBlock2D"]
OPTIONS = {
    "all at once": dict(resnet_time_scale_shift="scale_shift", num_class_embeds=3, down_block_types=DOWN,
                        up_block_types=UP, freq_shift=0),
    "normed in the middle": dict(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=32, attention_head_dim=8,
                                 down_block_types=DOWN[:1] * 2, up_block_types=UP[1:] * 2),
    "no attention in the middle": dict(add_attention=False, down_block_types=DOWN[::-1], up_block_types=UP[:1] * 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIONS)
def test_other_options_in_and_out(kind, tmp_path):
    import torch

    options = DDPM | OPTIONS[kind]
    model = make(options, tmp_path)
    reading, run = read(tmp_path, [], prepared=False)
    net, params, shape = run.experiment.network, reading.weights.params, run.experiment.shape
    assert not reading.weights.unexpected
    back = diffusers().UNet2DModel(**diffusers_config(net, shape)).eval()
    tensors = as_file(slots(net, shape, "diffusers"), params)
    back.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()})
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    classes = np.array([0, 2]) if net.num_classes else None
    want = theirs(model, x, 10.0, classes)
    assert distance(predict(net, params, x, 10.0, classes), want) < 1e-5
    assert distance(theirs(back, x, 10.0, classes), want) < 1e-5
    if net.num_classes:  # the null class of ours adds nothing
        model.class_embedding.weight.data[0] = 0
        assert distance(predict(net, params, x, 10.0), theirs(model, x, 10.0, 0 * classes)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", FULL)
def test_full_size(kind, tmp_path):
    options = FULL[kind]
    model = make(options, tmp_path)
    reading, run = read(tmp_path, [SIGMA_MAX] if "ncsnpp" in kind else [], prepared=False)
    tensors = reading.found.tensors
    assert (len(tensors), sum(math.prod(t.shape) for t in tensors.values())) == PARAMETERS[kind]
    params = reading.weights.params
    compare(model, run.experiment.network, params, run.experiment.shape, labels_of(options)[1:3], batch=1)


def test_old_names_and_a_state_dict_of_torch(tmp_path):
    """Attention by its first names, as 1x1 convolutions, in a .bin; half precision."""
    import torch

    model = make(DDPM, tmp_path)
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn", "downsamplers.0.conv":
           "downsamplers.0.Conv2d_0"}  # fmt: skip
    old = {}
    for name, value in model.state_dict().items():
        for now, then in new.items():
            if f"{now}." in name and now in name:
                name = name.replace(now, then)
                value = value[:, :, None, None] if value.ndim == 2 else value
        old[name] = value
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(old, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    reading, run = read(tmp_path, [], prepared=False)
    compare(model, run.experiment.network, reading.weights.params, (16, 16, 3), (10.0,))
    for dtype, tolerance in ((torch.bfloat16, 2**-8), (torch.float16, 2**-11)):
        torch.save({k: v.to(dtype) for k, v in old.items()}, tmp_path / "unet" / "diffusion_pytorch_model.bin")
        if dtype == torch.float16:  # as its users save and name it
            (tmp_path / "unet" / "diffusion_pytorch_model.bin").unlink()
            model.half().save_pretrained(tmp_path / "unet", variant="fp16")
        rounded, _ = read(tmp_path, [], prepared=False)
        kernel, exact = (r.weights.params["Conv_0"]["kernel"] for r in (rounded, reading))
        assert kernel.dtype == np.float32
        np.testing.assert_allclose(kernel, exact, rtol=tolerance)


def test_conventions_of_ddpm_travel(tmp_path):
    scheduler = diffusers().DDPMScheduler(variance_type="fixed_large", beta_end=0.015)
    make(DDPM, tmp_path, scheduler)
    assert main(["import", str(tmp_path), str(tmp_path / "run")]) == 0
    run, state = restored(tmp_path / "run")
    sde, limit = run.experiment.sde, np.exp(-np.cumsum(scheduler.betas.numpy()))  # of prod(1 - beta) for small beta
    assert type(sde).__name__ == "VP" and type(run.experiment.prediction).__name__ == "Noise"
    t = jnp.array([0.1, 0.5, 1.0])
    np.testing.assert_allclose(np.asarray(sde.alpha(t)) ** 2, limit[[99, 499, 999]], rtol=0.01)
    np.testing.assert_allclose(sde.label(t), 999 * t, rtol=1e-6)
    assert run.experiment.data_range == (-1.0, 1.0) and int(state.step) == 0
    how = run.sampling.solve.keywords
    assert type(how["sampler"]).__name__ == "Ancestral" and how["sampler"].forward_variance and how["steps"] == 999
    assert run.sampling.transform.keywords == {"low": -1.0, "high": 1.0}  # clip_sample


def test_conventions_of_ve_travel(tmp_path):
    make(NCSNPP, tmp_path)
    (tmp_path / "scheduler").mkdir()
    scheduler = dict(
        _class_name="ScoreSdeVeScheduler",
        num_train_timesteps=2000,
        sigma_min=0.01,
        sigma_max=380.0,
        snr=0.075,
        correct_steps=1,
    )
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    _, run = read(tmp_path, [], prepared=False)
    sde, how = run.experiment.sde, run.sampling.solve.keywords
    assert (type(sde).__name__, float(sde.sigma_min), float(sde.sigma_max)) == ("VE", 0.01, 380.0)
    assert (how["steps"], how["sampler"].corrector.snr, how["sampler"].corrector.steps) == (2000, 0.075, 1)
    assert run.experiment.data_range == (0.0, 1.0) and type(run.experiment.prediction).__name__ == "Score"


# --- the published weights themselves

PUBLISHED = os.environ.get("SCORE_SDE_PUBLISHED_WEIGHTS")
needs_weights = pytest.mark.skipif(
    not PUBLISHED, reason="golden: set SCORE_SDE_PUBLISHED_WEIGHTS to a folder with ddpm-cifar10-32 and others"
)
# First values of the output for torch's noise of seed 0 at timestep 10 (scripts/generate_logits.py of diffusers).
LOGITS = {
    "ddpm-cifar10-32": [-0.7515, -1.6883, 0.2420, 0.0300, 0.6347, 1.3433, -1.1743, -3.7467],
    "ddpm-celebahq-256": [-1.3690, -1.9720, -0.4090, -0.6966, 1.4660, 0.9938, -0.1385, -2.7324],
    "ddpm-church-256": [-2.0585, -2.7897, -0.2850, -0.8940, 1.9052, 0.5702, 0.6345, -3.8959],
    "ncsnpp-celebahq-256": [0.1154, 0.1218, 0.0307, 0.0526, -0.0711, -0.0541, 0.0366, 0.2078],
    "ncsnpp-church-256": [0.1192, 0.1240, 0.0414, 0.0606, -0.0557, -0.0412, 0.0430, 0.2042],
    "ncsnpp-ffhq-1024": [0.0911, 0.1107, 0.0182, 0.0435, -0.0805, -0.0608, 0.0381, 0.2172],
}


@needs_weights
@pytest.mark.parametrize("name", LOGITS)
def test_golden_logits(name):
    import torch

    reading, run = read(Path(PUBLISHED) / name, [SIGMA_MAX] if "ncsnpp" in name else [], prepared=False)
    net, (size, _, channels) = run.experiment.network, run.experiment.shape
    torch.manual_seed(0)
    x = torch.randn(1, channels, size, size).permute(0, 2, 3, 1).numpy()
    out = predict(net, reading.weights.params, x, np.log(10.0) if net.scale_by_sigma else 10.0)
    np.testing.assert_allclose(out[0, 0, : len(LOGITS[name]), 0], LOGITS[name], atol=1e-3)


@needs_weights
def test_golden_values_without_a_generator():
    """ncsnpp-celebahq-256 of ones at sigma = 1e-4 (tests/models/unets/test_models_unet_2d.py of diffusers)."""
    reading, run = read(Path(PUBLISHED) / "ncsnpp-celebahq-256", [SIGMA_MAX], prepared=False)
    out = predict(run.experiment.network, reading.weights.params, np.ones((1, 256, 256, 3), np.float32), np.log(1e-4))
    want = [-4836.2178, -6487.1470, -3816.8196, -7964.9302, -10966.3037, -20043.5957, 8137.0513, 2340.3328, 544.6056]
    np.testing.assert_allclose(_corner(out), want, rtol=1e-2)


def _corner(out):
    """The last 3 channels' last 3 rows of the last column, as torch's [0, -3:, -3:, -1] takes them."""
    return out[0, -3:, -1, :].T.ravel()
