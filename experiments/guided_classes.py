"""Samples of an asked class by classifier guidance: how many are of that class, and how diverse they are, by scale.

    python -m score_sde.main --config=configs/classifier_digits.py --mode=train            and classifier_fashion_mnist:
    python experiments/guided_classes.py --save --workdir RUN RUN                           keeps their weights
    python experiments/guided_classes.py --check                                            asks those of results/

The kept scores of configs/vp_digits.py and vp_fashion_mnist.py are guided by the kept classifiers of noised data; a
judge, which is trained here on clean images and took no part in the guidance, says which class each sample is of.
Labels are balanced, sample i has the same label and key at every scale, and scale 0 is the score without guidance.

Diversity is the mean distance (Euclidean, of pixels) between two samples of one class, those which the judge gives the
class that was asked for, over that between two test images of one class; each averaged over the classes.

--save draws the pictures of results/; --dir reads the Fashion-MNIST images from a folder instead of fetching them.
"""

import io
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import RESULTS, Figures, arguments, config_of, load_weights, save_weights
from judges import train_judge
from PIL import Image, ImageDraw, ImageFont

import score_sde as ss
from score_sde.config import build, get_config
from score_sde.files import write_bytes
from score_sde.models.cpu import set_up_cpu
from score_sde.plots import image_grid
from score_sde.training.mesh import data_mesh, per_device

BATCH = 100  # samples at once


@dataclass(frozen=True)
class Study:
    """A data set, how it is sampled, and what is to be reached at the recommended scale."""

    data: str
    title: str
    classes: tuple[str, ...]
    sampler: ss.Sampler
    steps: int
    samples: int
    scales: tuple[float, ...]
    shown: tuple[float, ...]
    recommended: float
    bound: float  # share of the asked class, %
    judge_steps: int


GARMENTS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
STUDIES = (
    Study(
        "digits", "digits", tuple("0123456789"), ss.SDEDPMSolverPP(2), steps=50, samples=500,
        scales=(0, 1, 2, 4, 8), shown=(0, 1, 4, 8), recommended=4, bound=98, judge_steps=1500,
    ),
    Study(
        "fashion_mnist", "Fashion-MNIST", GARMENTS, ss.SDEDPMSolverPP(2), steps=50, samples=300,
        scales=(0, 2, 4, 8, 16), shown=(0, 2, 4, 8), recommended=8, bound=90, judge_steps=6000,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What one scale gave; shares and diversity of 1."""

    scale: float
    asked: float
    diversity: float
    nfe: int
    networks: float
    seconds: float


def guided_samples(study: Study, run, classification):
    """`f((params, those of the classifier), keys (B,), labels (B,), scales (B,)) -> (x, nfe, networks per evaluation)`,
    compiled once for every label and scale."""
    e = run.experiment
    grid = ss.grids.log_snr(e.sde, study.steps, e.sde.t_max, e.sde.t_sampling)

    def solve(params, keys, labels, scales):
        own, theirs = params
        guided = ss.classifier_guidance(e.score(own), classification.log_prob(theirs), labels, scales)
        out = ss.sample(keys, e.sde, guided, (len(keys), *e.shape), sampler=study.sampler, grid=grid)
        networks = jax.vmap(lambda t: ss.network_evaluations(guided, jnp.full(len(keys), t)), out_axes=1)(grid[:-1])
        return out.x, out.nfe, networks.mean(1)

    return per_device(data_mesh(), solve)


def spread(images: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance between two images of one class, averaged over the classes of which there are two."""
    means = []
    for label in np.unique(labels):
        x = images[labels == label].reshape(np.sum(labels == label), -1).astype(np.float64)
        if len(x) > 1:
            squares = np.square(x).sum(1)
            distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0))
            means.append(distances[~np.eye(len(x), dtype=bool)].mean())
    return float(np.mean(means))


def examine(study: Study, directory: str | None) -> tuple[list[Row], dict[float, np.ndarray]]:
    """The table of a study, printed as it comes, and the samples of each scale."""
    configs = [config_of(f"{kind}_{study.data}") for kind in ("vp", "classifier")]
    for config in configs:
        config.data.dir = directory
    run, classifier = map(build, configs)
    weights = tuple(load_weights(RESULTS / f"{kind}_{study.data}_ema.npz") for kind in ("vp", "classifier"))
    started = time.perf_counter()
    test = run.experiment.load("test")
    judge, accuracy = train_judge(run.experiment.load("train"), test, study.judge_steps)
    print(f"\n{study.title}: the judge calls {accuracy:.1%} of {len(test)} clean test images by their class "
          f"({time.perf_counter() - started:.0f} s to train it)")  # fmt: skip
    real = test[np.arange(len(test))]
    among_real = spread(real["x"], real["label"])
    print(f"{study.samples} samples for each scale, {type(study.sampler).__name__}({study.sampler.order}), "
          f"{study.steps} steps; * recommended")  # fmt: skip
    print(f"{'scale':>6} {'asked class, %':>15} {'diversity':>10} {'NFE':>5} {'networks/evaluation':>20} {'s':>5}")
    solve = guided_samples(study, run, classifier.experiment)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(study.samples))
    labels = np.arange(study.samples) % len(study.classes)
    rows, samples = [], {}
    for scale in study.scales:
        started, parts = time.perf_counter(), []
        for first in range(0, study.samples, BATCH):
            part = slice(first, first + BATCH)
            x, nfe, networks = solve(weights, keys[part], jnp.asarray(labels[part]), jnp.full(BATCH, float(scale)))
            parts.append(run.experiment.unscale(x))
        images = samples[scale] = np.concatenate(parts)
        good = np.argmax(judge(images), -1) == labels
        diversity = spread(images[good], labels[good]) / among_real
        row = Row(scale, good.mean(), diversity, int(nfe[0]), float(networks[0]), time.perf_counter() - started)
        error = 100 * np.sqrt(row.asked * (1 - row.asked) / study.samples)
        mark = "*" if scale == study.recommended else " "
        print(f"{scale:>5g}{mark} {100 * row.asked:>8.1f} +- {error:.1f} {row.diversity:>11.3f} {row.nfe:>5} "
              f"{row.networks:>20.1f} {row.seconds:>5.0f}", flush=True)  # fmt: skip
        rows.append(row)
    return rows, samples


def labelled_grid(study: Study, samples: dict[float, np.ndarray], levels: int) -> bytes:
    """A PNG: a column for each class, two rows for each scale; a place has the same key in all scales."""
    n, margin, head = len(study.classes), 62, 20
    shown = np.concatenate([samples[scale][: 2 * n] for scale in study.shown])
    grid = Image.open(io.BytesIO(image_grid(shown, levels, columns=n, min_side=56))).convert("L")
    gap, side = 8, grid.width // n
    canvas = Image.new("L", (margin + grid.width, head + grid.height + gap * (len(study.shown) - 1)), 255)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for i, name in enumerate(study.classes):
        draw.text((margin + (i + 0.5) * side, head / 2), name, fill=0, font=font, anchor="mm")
    for i, scale in enumerate(study.shown):
        top = head + i * (2 * side + gap)
        canvas.paste(grid.crop((0, 2 * i * side, grid.width, 2 * (i + 1) * side)), (margin, top))
        draw.text((margin / 2, top + side), f"scale {scale:g}", fill=0, font=font, anchor="mm")
    buffer = io.BytesIO()
    canvas.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def trade_off(tables: dict[Study, list[Row]]) -> bytes:
    """A PNG of the share of the asked class and of the diversity, against scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, buffer = Figure(figsize=(9, 3.6), dpi=100, layout="constrained"), io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for color, (study, rows) in zip(("C0", "C3"), tables.items(), strict=True):
        scales = [row.scale for row in rows]
        chosen = study.scales.index(study.recommended)
        left.axhline(study.bound, color=color, linewidth=0.8, linestyle="--")
        for axis, values in ((left, [100 * row.asked for row in rows]), (right, [row.diversity for row in rows])):
            axis.plot(scales, values, ".-", color=color, label=study.title)
            axis.plot(scales[chosen], values[chosen], "o", color=color, markersize=9, fillstyle="none")
    left.set_ylabel("samples of the asked class, %")
    right.set_ylabel("diversity within a class, test images = 1")
    for axis in (left, right):
        axis.set_xlabel("guidance scale (circle: recommended)")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    left.legend(title="dashed: bound")
    canvas.print_png(buffer)
    return buffer.getvalue()


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--dir", help="folder of the four IDX files of Fashion-MNIST")
    parser.add_argument("--workdir", type=Path, nargs="*", default=(), help="finished runs of the classifiers, to keep")
    parser.add_argument("--save", action="store_true", help="draw the pictures of results/")
    args = parser.parse_args()
    set_up_cpu((BATCH,))
    for workdir in args.workdir:
        name = get_config(str(workdir / "config.json")).data.name
        save_weights(workdir, RESULTS / f"classifier_{name}_ema.npz")
    figures, tables = Figures(), {}
    for study in STUDIES:
        tables[study], samples = examine(study, args.dir if study.data == "fashion_mnist" else None)
        if args.save:
            levels = 17 if study.data == "digits" else 256
            write_bytes(RESULTS / f"guided_{study.data}.png", labelled_grid(study, samples, levels))
    if args.save:
        write_bytes(RESULTS / "guided_classes.png", trade_off(tables))
    print()
    for study, rows in tables.items():
        row = rows[study.scales.index(study.recommended)]
        name = f"{study.title}, scale {study.recommended:g}: samples of the asked class, %"
        figures.at_least(name, 100 * row.asked, study.bound)
    figures.end(args.check)
