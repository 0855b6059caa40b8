"""Half of a Fashion-MNIST image from the other half: every method of `--mode=restore` in one table.

    python experiments/restoration.py

The upper halves of the first test images are measured with noise of 0.05 (grey levels span 2), and each method draws
samples of the whole images from the kept weights of configs/vp_fashion_mnist.py.  In the table:

    PSNR          of the mean of an image's samples, and of one sample, over the whole image, in dB below the range
    spread        standard deviation of the samples over the error of their mean, 1 if truth and samples are of one law
    covered       of the hidden pixels, in how many the truth is between the least and the largest of the 9 samples:
                  80 % if calibrated.  (Pixels are dequantised, so that none are equal.)
    NFE, networks evaluations of the score of a sample, and networks (forward or backward) that they run
    s             seconds of a sample, without compilation: of the second half of the images

--save draws pictures into results/: inpainting and super-resolution of garments, colourisation of CIFAR-10's images by
the kept weights of configs/vp_cifar_small.py.  --dir and --colour read the images from folders: the IDX files of
Fashion-MNIST, and 32x32 images in train/ and test/.
"""

import dataclasses
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from common import RESULTS, Figures, arguments, config_of, load_weights, save_weights

from score_sde import sampling
from score_sde.config import build
from score_sde.evaluation import measured
from score_sde.evaluation.provenance import Origin, Provenance
from score_sde.evaluation.restoration import Restored, RestoreOptions, assess, restore, write_restored
from score_sde.files import write_bytes
from score_sde.models.cpu import set_up_cpu
from score_sde.sampling import grids

NOISE, SAMPLES, STEPS = 0.05, 9, 50
VARIANCE = 0.5  # of garments' grey levels in [-1, 1]
METHODS = {
    "projection": measured.Projection(),
    "RePaint": measured.RePaint(jump=5, repeats=5),
    "DPS": measured.DPS(step=0.5),
    "PiGDM": measured.PiGDM(VARIANCE),
    "moment matching": measured.MomentMatching(iterations=3),
    "SMC, 8 particles": measured.SMC(particles=8),
}


def how_to_sample(run):
    """The run's way to sample, with steps of q(x' | x, D(x)) in log-SNR, as --mode=restore takes them."""
    sampler = sampling.DDIM(eta=1.0)
    solve = partial(sampling.sample, sampler=sampler, steps=STEPS, grid=grids.log_snr, t_end=None, denoise=True)
    return dataclasses.replace(run.sampling, solve=solve, sampler=sampler, steps=STEPS, batch_size=4 * SAMPLES)


def covered(restored: Restored, hidden: np.ndarray) -> float:
    """The share of hidden pixels whose truth is between the least and the largest sample, %."""
    low, high = restored.samples.min(1), restored.samples.max(1)
    return 100 * float(np.mean(((low < restored.truth) & (restored.truth < high))[:, hidden]))


def table(run, params, images: np.ndarray, names: list[str]) -> dict[str, tuple[float, float]]:
    """Print the table; (PSNR of the mean, share of pixels covered) by method."""
    hidden = np.zeros(run.experiment.shape, bool)
    hidden[run.experiment.shape[0] // 2 :] = True
    found = {}
    print(f"{'method':<18} PSNR of mean  of sample  spread  covered  NFE   networks  s", flush=True)
    for name in names:
        method = METHODS[name]
        options = RestoreOptions(measured.Inpaint("top"), method, NOISE, len(images), SAMPLES)
        go = partial(restore, run.experiment, params, how_to_sample(run), options)
        half = len(images) // 2
        compiling = go(images[:half], seed=0)
        started = time.perf_counter()
        timed = go(images[half:], seed=1)
        seconds = (time.perf_counter() - started) / ((len(images) - half) * SAMPLES)
        arrays = (np.concatenate(pair) for pair in zip(compiling[:3], timed[:3], strict=True))
        restored = Restored(*arrays, timed.nfe)
        report = assess(run.experiment, options, restored)
        found[name] = report.psnr_of_mean, covered(restored, hidden)
        print(
            f"{name:<18} {report.psnr_of_mean:<12.2f}  {report.psnr_of_sample:<9.2f}  {report.spread:<6.2f}  "
            f"{found[name][1]:<5.0f} %  {restored.nfe:<4.0f}  {method.networks * restored.nfe:<8.0f}  "
            f"{seconds:.2f}",
            flush=True,
        )
    return found


def network(name: str, folder: str | None):
    """The run of configs/NAME.py on data of a folder or as they are published, and its kept weights."""
    config = config_of(name)
    config.data.dir = folder
    if folder and config.data.name == "cifar10":
        config.data.name, config.data.size, config.data.channels = "images", 32, 3
    return build(config), load_weights(RESULTS / f"{name}_ema.npz")


def draw(run, params, operator, method, name: str) -> None:
    """Restore the first test images and keep the picture as results/NAME.png."""
    images = run.experiment.load("test")[np.arange(6)]["x"]
    options = RestoreOptions(operator, method, NOISE, len(images), SAMPLES)
    restored = restore(run.experiment, params, how_to_sample(run), options, images, seed=0)
    title = f"{measured.settings_of(operator)}, noise {NOISE:g}; {measured.settings_of(method)}"
    with tempfile.TemporaryDirectory() as folder:
        made = Provenance("restored", title, Origin(name))
        png = write_restored(run.experiment, options, restored, Path(folder) / name, made)[-1]
        write_bytes(RESULTS / f"{name}.png", png.read_bytes())


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--dir", help="folder of the four IDX files of Fashion-MNIST")
    parser.add_argument("--colour", help="folder of 32x32 colour images")
    parser.add_argument("--workdir", type=Path, help="a finished run of configs/vp_cifar_small.py, to keep its weights")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    set_up_cpu((4 * SAMPLES,))
    if args.workdir:
        save_weights(args.workdir, RESULTS / "vp_cifar_small_ema.npz")
    figures, (run, params) = Figures(), network("vp_fashion_mnist", args.dir)
    found = table(run, params, run.experiment.load("test")[np.arange(args.images)]["x"], args.methods)
    if "PiGDM" in found:  # the default of --mode=restore
        psnr, share = found["PiGDM"]
        figures.at_least("PiGDM: PSNR of the mean, dB", psnr, 17)
        figures.at_most("PiGDM: hidden pixels covered, points from 80 %", abs(share - 80), 10)
    if args.save:
        draw(run, params, measured.Inpaint("top"), METHODS["PiGDM"], "inpainting")
        draw(run, params, measured.SuperResolve(4), METHODS["PiGDM"], "super_resolution")
        draw(*network("vp_cifar_small", args.colour), measured.Colourise(), measured.PiGDM(0.25), "colourisation")
    figures.end(args.check)
