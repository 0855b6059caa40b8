"""How far apart a sample is in a batch of 1 and in a batch of 64: 64 samples of a two-component mixture, every SDE.

A fixed grid of times leaves rounding.  An adaptive solve in float32 can take another step where an error estimate is
within rounding of its bound; from there on the two solves are apart by what the tolerance allows.
Adaptive steps along a Brownian path are not compared: the path is rough, so a rounding grows from step to step.
"""

import jax
import numpy as np
from common import Figures, arguments

import score_sde as ss
from score_sde.arrays import sample_keys

SDES = [ss.VP(), ss.SubVP(), ss.VE(), ss.CosineVP(), ss.EDM(), ss.RectifiedFlow()]
BATCH = 64


def compare(solve, value="x") -> tuple[np.ndarray, np.ndarray]:
    """(distance, whether the evaluations differ) of each sample, in one batch and alone."""
    keys = sample_keys(jax.random.key(0), BATCH)
    whole, alone = solve(keys), [solve(keys[i : i + 1]) for i in range(BATCH)]
    distance = np.abs(np.concatenate([getattr(out, value) for out in alone]) - getattr(whole, value))
    return distance.reshape(BATCH, -1).max(1), np.concatenate([out.nfe for out in alone]) != whole.nfe


if __name__ == "__main__":
    args = arguments(__doc__).parse_args()
    target, figures = ss.GaussianMixture(means=[[-1.0, 0.0], [1.0, 0.5]], stds=[0.3, 0.2]), Figures()
    adaptive = {1e-4: [], 1e-3: []}
    for sde in SDES:
        score, name = target.score(sde), type(sde).__name__
        fixed, _ = compare(
            lambda keys, sde=sde, score=score: ss.sample(
                keys, sde, score, (keys.size, 2), sampler=ss.UniPC(), steps=30, grid=ss.grids.log_snr
            )
        )
        figures.at_most(f"{name}: fixed grid, largest distance", fixed.max(), 5e-6)
        path, _ = compare(lambda keys, sde=sde, score=score: ss.sample_sde(keys, sde, score, (keys.size, 2), steps=30))
        figures.at_most(f"{name}: sample_sde on a fixed grid, largest distance", path.max(), 5e-6)
        nats, other = compare(
            lambda keys, sde=sde, score=score: ss.log_prob(
                keys, sde, score, jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
            ),
            "nats",
        )
        figures.at_most(f"{name}: log_prob, other evaluations, of 64", other.sum(), 24)
        figures.at_most(f"{name}: log_prob, largest distance in nats", nats.max(), 0.01)
        for tolerance, found in adaptive.items():
            distance, other = compare(
                lambda keys, sde=sde, score=score, tolerance=tolerance: ss.sample_adaptive(
                    keys, sde, score, (keys.size, 2), rtol=tolerance, atol=tolerance
                )
            )
            found.append((distance, other))
            figures.at_most(f"{name}: tolerance {tolerance:g}, other evaluations, of 64", other.sum(), 6)
            figures.at_most(f"{name}: tolerance {tolerance:g}, largest distance", distance.max(), 0.05)
    for tolerance, found in adaptive.items():
        distance, other = (np.concatenate(parts) for parts in zip(*found, strict=True))
        figures.at_most(f"all, tolerance {tolerance:g}: other evaluations, of {64 * len(SDES)}", other.sum(), 12)
        figures.at_most(f"all, tolerance {tolerance:g}: distance, 95 % of samples", np.quantile(distance, 0.95), 1e-4)
    figures.end(args.check)
