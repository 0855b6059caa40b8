"""Half of a Fashion-MNIST image from the other half: every method of `--mode=restore` in one table.

    python experiments/inpainting.py --check

The upper halves of the first test images are measured with noise of 0.05 (grey levels span 2), and each method draws
samples of the whole images from the kept weights of configs/vp_fashion_mnist.py.  In the table:

    PSNR          of the mean of an image's samples, and of one sample, over the whole image, in dB below the range
    spread        standard deviation of the samples over the error of their mean, 1 if truth and samples are of one law
    covered       of the hidden pixels, in how many the truth is between the least and the largest of the 9 samples;
                  8 of 10 if calibrated.  (Pixels are dequantised, so that none are equal.)
    NFE, networks evaluations of the score, and networks (forward or backward) of a sample
    s             seconds of a sample, without compilation

--save draws pictures of some methods and tasks, of garments and of the CIFAR images, into results/.
"""

import dataclasses
import time
from functools import partial

import numpy as np
from common import RESULTS, Figures, arguments, config_of, load_weights

from score_sde import sampling
from score_sde.config import build
from score_sde.evaluation import measured
from score_sde.evaluation.restoration import Restored, RestoreOptions, assess, restore
from score_sde.sampling import grids
from score_sde.training.mesh import use_host_devices

NOISE, SAMPLES = 0.05, 9
# method -> (what it is, steps)
METHODS = {
    "projection": (measured.Projection(), 100),
    "RePaint": (measured.RePaint(jump=5, repeats=5), 100),
    "DPS": (measured.DPS(step=0.5), 100),
    "PiGDM": (measured.PiGDM(prior_variance=0.5), 100),  # of the grey levels: 0.7^2
    "moment matching": (measured.MomentMatching(iterations=3), 100),
    "SMC, 8 particles": (measured.SMC(particles=8), 100),
}


def sampling_with(run, steps: int):
    """The run's way to sample, with steps of q(x' | x, D(x)) in log-SNR, as --mode=restore takes them."""
    sampler = sampling.DDIM(eta=1.0)
    solve = partial(sampling.sample, sampler=sampler, steps=steps, grid=grids.log_snr, t_end=None, denoise=True)
    return dataclasses.replace(run.sampling, solve=solve, sampler=sampler, steps=steps)


def covered(restored: Restored, hidden: np.ndarray) -> float:
    """The share of hidden pixels whose truth is between the least and the largest sample."""
    low, high = restored.samples.min(1), restored.samples.max(1)
    return float(np.mean(((low < restored.truth) & (restored.truth < high))[:, hidden]))


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--dir", help="folder of the four IDX files")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--methods", default=",".join(METHODS), help="some of the table, with commas between")
    args = parser.parse_args()
    config, figures = config_of("vp_fashion_mnist"), Figures()
    config.data.dir = args.dir
    config.sampling.batch_size = 4 * SAMPLES
    use_host_devices((config.sampling.batch_size,))
    run, params = build(config), load_weights(RESULTS / "vp_fashion_mnist_ema.npz")
    images = run.experiment.load("test")[np.arange(args.images)]["x"]
    hidden = np.zeros(run.experiment.shape, bool)
    hidden[run.experiment.shape[0] // 2 :] = True

    print(f"{'method':<18} PSNR, dB: mean  sample  spread  covered  NFE   networks  s")
    found = {}
    for name in args.methods.split(","):
        method, steps = METHODS[name]
        options = RestoreOptions(measured.Inpaint("top"), method, NOISE, args.images, SAMPLES)
        go = partial(restore, run.experiment, params, sampling_with(run, steps), options)
        go(images[:4], seed=1)  # a batch, to compile
        started = time.perf_counter()
        restored = go(images, seed=0)
        seconds = (time.perf_counter() - started) / (args.images * SAMPLES)
        report, networks = assess(run.experiment, options, restored), method.networks
        found[name] = report
        print(
            f"{name:<18} {report.psnr_of_mean:14.2f}  {report.psnr_of_sample:6.2f}  {report.spread:6.2f}  "
            f"{covered(restored, hidden):7.2f}  {restored.nfe:<5.0f} {networks * restored.nfe:<8.0f}  {seconds:.2f}",
            flush=True,
        )
    figures.end(args.check)
