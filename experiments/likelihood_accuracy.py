"""Error of log_prob at its default tolerance, against the exact density of a 64-dimensional mixture.

Both ends of the solve are exact (the marginals at t_min and t_max), so this is the error of the solve alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import Figures, arguments

import score_sde as ss

SDES = [ss.VP(), ss.SubVP(), ss.VE(), ss.CosineVP(), ss.EDM(), ss.RectifiedFlow()]


def mixture() -> ss.GaussianMixture:
    """Six components in 64 dimensions: means of standard deviation 0.7, standard deviations 0.05 to 0.4."""
    rng = np.random.default_rng(0)
    means, stds = 0.7 * rng.standard_normal((6, 64)), rng.uniform(0.05, 0.4, 6)
    return ss.GaussianMixture(jnp.asarray(means, jnp.float32), jnp.asarray(stds, jnp.float32))


if __name__ == "__main__":
    args = arguments(__doc__).parse_args()
    target, figures = mixture(), Figures()
    x = target.sample(jax.random.key(1), 256)
    for sde in SDES:
        end = target.marginal(sde, sde.t_max).log_prob
        lp = ss.log_prob(
            None, sde, target.score(sde), x, divergence=ss.ExactDivergence(), terminal_log_prob=end
        )  # fmt: skip
        error = np.abs(lp.nats - target.marginal(sde, sde.t_min).log_prob(x)) / (64 * np.log(2))
        name = type(sde).__name__
        figures.at_most(f"{name}: mean error of log_prob, bits/dim", float(error.mean()), 1e-4)
        figures.at_most(f"{name}: largest error of 256 samples, bits/dim", float(error.max()), 1.5e-3)
        figures.at_most(f"{name}: mean NFE", float(lp.nfe.mean()), 130)
    figures.end(args.check)
