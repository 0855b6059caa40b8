"""What the derivative contract runs over: for every public name a function of numbers, at generic and neutral points.

A case holds objects whose numbers are all differentiated (of the SDE, the sampler, the score, x, y, the times ...), and
a function of them.  A new public name needs one: `tests/test_derivatives.py` looks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import score_sde as ss
from score_sde.trees import Number

KEY = jax.random.key(0)
X = np.array([[0.4, -0.7], [-0.2, 0.9]])
Y = np.array([[0.3, -0.5], [1.1, 0.2]])
T = np.array([0.3, 0.7])
VP = ss.VP(0.2, 8.0)


class Exponential(ss.AffineSDE):
    """A user's process, which states alpha and sigma alone."""

    rate: Number = 3.0

    def alpha(self, t):
        return jnp.exp(-self.rate * t)

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(-2 * self.rate * t))


SDES = [ss.VE(0.1, 5.0), VP, ss.SubVP(0.2, 8.0), ss.CosineVP(), ss.EDM(0.02, 5.0), ss.RectifiedFlow(), Exponential()]


@dataclasses.dataclass(frozen=True)
class Case:
    """`run(**at)` is differentiable at the numbers of `at`, and of `at | neutral` for each of `neutral`.

    `exact`: the same with an adaptive solve to rounding, where `run` solves to 1e-8.
    """

    name: str
    family: str
    run: Callable[..., Any]
    at: dict[str, Any]
    neutral: tuple[dict[str, Any], ...] = ()
    exact: Callable[..., Any] | None = None
    slow: bool = False
    reverse_only: bool = False  # solvers of diffrax have no forward mode
    covers: tuple[str, ...] = ()  # other names

    @property
    def bound(self) -> float:
        return 1e-5 if self.exact is None else 1e-7

    @property
    def least(self) -> float:
        return 1e-3 if self.exact is None else 1.0


def found(module: Any, base: type) -> dict[str, type]:
    """The public classes of a module that are a `base` and can be made."""
    classes = {name: c for name, c in vars(module).items() if isinstance(c, type) and issubclass(c, base)}
    return {
        name: c
        for name, c in classes.items()
        if not any(getattr(getattr(c, m), "__isabstractmethod__", False) for m in dir(c)) and not name.startswith("_")
    }


TARGET = ss.GaussianMixture(np.array([[-1.0, 0.5], [1.2, 0.1]]), np.array([0.5, 0.8]), np.array([1.0, 2.0]))
OTHER = ss.GaussianMixture(np.array([[-0.7, 0.2], [0.9, -0.3]]), np.array([0.7, 0.6]), np.array([2.0, 1.0]))
GAUSSIAN = ss.Gaussian(np.array([0.3, -0.2]), np.array([[1.0, 0.4], [0.4, 0.6]]))
CHAIN = ss.discrete.Chain(jnp.array([0.9, 0.7, 0.4]), jnp.array([0.4, 0.8, 0.9]))
USERS = Exponential(1.8)


# --- processes and targets ---


def process(sde, x, z, t, log_snr, target):
    """Everything that an SDE says."""
    fields = [sde.alpha, sde.sigma, sde.log_alpha, sde.drift_factor, sde.diffusion, sde.log_snr, sde.label]
    score = target.score(sde)
    drifts = [sde.drift(x, t), sde.reverse_drift(score, x, t), sde.flow_drift(score, x, t), sde.perturb(x, z, t)]
    ends = [sde.t_min * jnp.ones(()), sde.t_max * jnp.ones(()), sde.t_sampling * jnp.ones(())]
    prior = [sde.prior_std(x.dtype), sde.prior_sample(KEY, x.shape, x.dtype), sde.prior_log_prob(x)]
    return [f(t) for f in fields], sde.inverse_log_snr(log_snr), drifts, ends, prior


def process_cases():
    for sde in SDES:
        name, neutral = type(sde).__name__, ()
        if isinstance(sde, ss.VP):
            neutral = ({"sde": type(sde)(3.0, 3.0)},)
        at = dict(sde=sde, x=X, z=Y, t=T, log_snr=np.array([-1.5, 2.0]), target=GAUSSIAN)
        yield Case(name, "SDEs", process, at, neutral)


def law(target, x, sde, t):
    noised = target.marginal(sde, t)
    return noised.log_prob(x), noised.sample(KEY, 3), target.score(sde)(x, jnp.stack([t, t])), noised.log_prob(x)


def target_cases():
    at = dict(x=X, sde=USERS, t=0.4)
    yield Case("GaussianMixture", "targets", law, at | dict(target=TARGET))

    def gaussian(target, x, sde, t, mean, covariance):
        made = ss.Gaussian(mean, covariance)
        flow = target.flow_map(sde, x, 0.1, t)
        return law(target, x, sde, t), flow, target.covariance, law(made, x, sde, t)

    covariance = np.array([[1.0, 0.4], [0.4, 0.6]])
    yield Case("Gaussian", "targets", gaussian, at | dict(target=GAUSSIAN, mean=X[0], covariance=covariance))

    def chain(made, sde):
        parts = [made.alpha, made.sigma, made.kernel_mean, made.variance_forward, made.variance_posterior]
        return parts, made.posterior_noisy, made.posterior_data, made.times(sde)

    def inner(chain):  # without the ends, where `times` has a kink
        return ss.discrete.Chain(chain.alpha[1:-1], chain.sigma[1:-1])

    users = dict(sde=Exponential(5.0))
    yield Case("discrete.of_sde", "chains", lambda sde: chain(inner(ss.discrete.of_sde(sde, 6)), sde), users)
    yield Case(
        "discrete.ddpm", "chains", lambda sde, low, high: chain(ss.discrete.ddpm(20, low, high), sde),
        dict(sde=ss.VP(0.01, 30.0), low=0.5, high=8.0),
    )  # fmt: skip
    yield Case(
        "discrete.ncsn", "chains", lambda sde, low, high: chain(ss.discrete.ncsn(6, low, high), sde),
        dict(sde=ss.VE(0.05, 9.0), low=0.1, high=5.0),
    )  # fmt: skip
    yield Case(
        "discrete.Chain", "chains", chain,
        dict(sde=VP, made=CHAIN),
    )  # fmt: skip


# --- samplers ---


def sampled(sde, sampler, target, x, t_start, t_end, temperature, grid=ss.grids.log_snr, steps=4, **options):
    return ss.sample(
        KEY, sde, target.score(sde), X.shape, sampler=sampler, steps=steps, grid=grid, x_init=x,
        t_start=t_start, t_end=t_end, temperature=temperature, **options,
    )  # fmt: skip


WAY = dict(sde=VP, target=TARGET, x=X, t_start=0.9, t_end=0.05, temperature=1.1)
MASK = ss.operators.Mask((2,), jnp.array([1, 0]))
LANGEVIN = ss.Langevin(0.2, 1000.0)
# Settings at a generic point, and at the neutral ones; others are taken with their defaults.
SETTINGS = {
    "DDIM": (ss.DDIM(0.6), ss.DDIM(0.0), ss.DDIM(1.0)),
    "DEIS": (ss.DEIS(2),),
    "UniPC": (ss.UniPC(2),),
    "SDEDPMSolverPP": (ss.SDEDPMSolverPP(2, 0.7), ss.SDEDPMSolverPP(2, 1.0)),
    "SASolver": tuple(ss.SASolver(2, 2, tau) for tau in (0.6, 0.0, 1.0)),
    "EDMStochastic": (ss.EDMStochastic(1.2, 0.05, 50.0, 1.1), ss.EDMStochastic(40.0, 0.05, 50.0, 0.0)),
    "PredictorCorrector": tuple(ss.PredictorCorrector(ss.DDIM(eta), LANGEVIN) for eta in (0.4, 0.0)),
    "Projection": tuple(ss.Projection(ss.DDIM(eta), MASK, jnp.asarray(Y)) for eta in (0.6, 0.0)),
    "RePaint": (ss.RePaint(ss.DDIM(0.6), MASK, jnp.asarray(Y), jump=2, repeats=2),),
}
VARIANTS = [
    ss.RungeKutta(3), ss.DPMSolver(2), ss.DPMSolverPP(3), ss.DPMSolverPP(3, published=True), ss.DEIS(4, "rho"),
    ss.UniPC(3), ss.SASolver(3, 4, 0.4), ss.SDEDPMSolverPP(1, 0.4), ss.Ancestral(forward_variance=True),
    ss.PredictorCorrector(ss.EulerMaruyama(), ss.Langevin(0.2, 1000.0, 2, batch_norm=True), corrector_first=True),
]  # fmt: skip


def sampler_cases():
    for name, kind in found(ss, ss.Sampler).items():
        sampler, *neutral = SETTINGS[name] if name in SETTINGS else (kind(),)
        points = tuple({"sampler": other} for other in neutral)
        at, covers = WAY | dict(sampler=sampler), ("Langevin",) * (kind is ss.PredictorCorrector)
        slow = not jax.tree.leaves(sampler) and name not in ("EulerMaruyama", "UniPC")  # no numbers of their own
        yield Case(name, "samplers", lambda **at: sampled(**at).x, at, points, slow=slow, covers=covers)
    for number, sampler in enumerate(VARIANTS):
        name = f"{type(sampler).__name__} {number}"
        yield Case(name, "samplers", lambda **at: sampled(**at).x, WAY | dict(sampler=sampler), slow=True)
    for sde in SDES:
        at = WAY | dict(sde=sde, sampler=ss.DPMSolver(3))
        yield Case(f"DPMSolver on {type(sde).__name__}", "samplers", lambda **at: sampled(**at).x, at, slow=True)
    annealed = WAY | dict(sampler=ss.PredictorCorrector(None, ss.AnnealedLangevin(0.2, 1000.0)))
    yield Case("AnnealedLangevin", "samplers", lambda **at: sampled(**at, steps=2).x, annealed)
    for name in ("uniform", "quadratic", "log_snr", "edm"):
        grid = getattr(ss.grids, name)
        yield Case(
            f"grids.{name}",
            "grids",
            lambda grid=grid, **at: grid(steps=4, **at),
            dict(sde=USERS, t_start=0.9, t_end=0.05),
        )

    def from_prior(**at):
        out = sampled(**at, x=None, sampler=ss.EulerMaruyama(), denoise=True, trajectory=2, steps=3)
        return out.x, out.trajectory

    from_noise = {k: v for k, v in WAY.items() if k != "x"}
    yield Case("sample", "samplers", from_prior, from_noise, ({"temperature": 0.0},))

    def sde_solved(target, sde, x):
        return ss.sample_sde(KEY, sde, target.score(sde), X.shape, steps=3, t_start=0.9, t_end=0.1, x_init=x).x

    yield Case("sample_sde", "samplers", sde_solved, dict(target=TARGET, sde=USERS, x=X), slow=True, reverse_only=True)

    def flow(tolerance):
        def solve(sde, target, x, t_start, t_end):
            options = dict(rtol=tolerance, atol=tolerance, t_start=t_start, t_end=t_end)
            return ss.sample_adaptive(KEY, sde, target.score(sde), X.shape, x_init=x, denoise=True, **options).x

        return solve

    way = {k: v for k, v in WAY.items() if k != "temperature"}
    yield Case("sample_adaptive", "adaptive solves", flow(1e-8), way, exact=flow(1e-12), slow=True, reverse_only=True)

    def back(tolerance):
        def solve(sde, target, x, t_start, t_end):
            options = dict(rtol=tolerance, atol=tolerance, t_start=t_end, t_end=t_start)
            return ss.encode_adaptive(sde, target.score(sde), x, **options).x

        return solve

    yield Case("encode_adaptive", "adaptive solves", back(1e-8), way, exact=back(1e-12), slow=True, reverse_only=True)

    def encoded(sde, target, x, t_start, t_end):
        return ss.encode(sde, target.score(sde), x, sampler=ss.DDIM(), steps=4, t_start=t_end, t_end=t_start).x

    yield Case("encode", "samplers", encoded, way)

    def translated(sde, target, other, x, t_start, t_end):
        scores = target.score(sde), other.score(sde)
        return ss.translate(sde, *scores, x, sampler=ss.DDIM(), steps=3, t_start=t_end, t_end=t_start).x

    yield Case("translate", "samplers", translated, way | dict(other=OTHER), slow=True)

    def edited(sde, target, x, t_start, t_end):
        return ss.sdedit(KEY, sde, target.score(sde), x, t_start, steps=3, t_end=t_end).x

    yield Case("sdedit", "samplers", edited, way | dict(t_start=0.5))
    yield Case(
        "interpolate", "samplers", ss.interpolate, dict(a=X, b=Y, weights=np.array([0.0, 0.3, 1.0])), ({"b": X},)
    )


# --- losses ---


def loss(sde, x0, target, prediction, weighting, times):
    def predict(x, t):  # smooth, and not the minimiser
        return jnp.tanh(target.score(sde)(x, t))

    return ss.denoising_score_matching(KEY, sde, predict, x0, prediction=prediction, weighting=weighting, times=times)


def loss_cases():
    way = dict(sde=USERS, x0=X, target=TARGET)
    way |= dict(prediction=ss.predictions.EDM(0.7), weighting=ss.weightings.SigmaSquared(), times=ss.times.LogSNR())
    yield Case("denoising_score_matching", "losses", loss, way, slow=True)
    parts = {
        "prediction": (ss.predictions, ss.predictions.Prediction),
        "weighting": (ss.weightings, ss.weightings.Weighting),
        "times": (ss.times, ss.times.TimeSampler),
    }
    names = [[f"{m.__name__.split('.')[-1]}.{n}" for n in found(m, base)] for m, base in parts.values()]
    made = [[kind() for kind in found(m, base).values()] for m, base in parts.values()]
    for number in range(max(map(len, made))):  # each of each kind once
        settings = {part: kinds[number % len(kinds)] for part, kinds in zip(parts, made, strict=True)}
        covers = tuple(n[number % len(n)] for n in names)
        yield Case(covers[0], "losses", loss, way | settings, covers=covers)

    def converted(sde, x, t, output, source, to, apply):
        score = ss.PredictedScore(ss.Network(apply, sde, source), sde, source)
        labelled = ss.ConditionalScore(lambda x, noise, label: apply(x, noise), sde, to)
        return ss.predictions.convert(sde, output, x, t, source, to), score(x, t), labelled(x, t, jnp.array([0, 1]))

    def network(weight, x, label):
        return jnp.tanh(weight * x + label[:, None])

    at = dict(sde=USERS, x=X, t=T, output=Y, source=ss.predictions.EDM(0.7), to=ss.predictions.Velocity())
    at["apply"] = jax.tree_util.Partial(network, 0.8)
    names = ("predictions.convert", "PredictedScore", "ConditionalScore")
    yield Case("Network", "predictions", converted, at, covers=names)


# --- likelihoods ---


def likelihood_cases():
    def density(tolerance, **options):
        def solve(sde, target, x, t_start):
            ways = dict(divergence=ss.ExactDivergence(), rtol=tolerance, atol=tolerance, t_start=t_start) | options
            return ss.log_prob(KEY, sde, target.score(sde), x, **ways).nats

        return solve

    way = dict(sde=USERS, target=TARGET, x=X, t_start=0.05)
    ways = {"log_prob": {}, "Hutchinson": dict(divergence=ss.Hutchinson(2)), "whole batch": dict(whole_batch=True)}
    for name, options in ways.items():
        solves = density(1e-8, **options), density(1e-12, **options)
        yield Case(name, "adaptive solves", solves[0], way, exact=solves[1], slow=name != "log_prob", reverse_only=True)

    cells = ss.Cells(8, (-1.0, 1.0))

    def values(bound):
        return bound.nats, bound.standard_error, ss.bits_per_dim(bound, levels=8)

    def discrete(cells, *variances):
        def bound(sde, target, x, chain, variance, prior_std):
            ways = dict(chain=chain, repeats=2, prior_std=prior_std, cells=cells)
            score = target.score(sde)
            kinds = variances or (variance,)
            return [values(ss.discrete_bound(KEY, sde, score, x, variance=v, **ways)) for v in kinds]

        return bound

    at = dict(sde=VP, target=TARGET, x=X, chain=CHAIN)
    chain = at | dict(variance=np.array([0.2, 0.3, 0.4]), prior_std=1.1)
    yield Case("discrete_bound", "bounds", discrete(cells), chain)
    yield Case("discrete_bound by name", "bounds", discrete(None, "forward", "posterior"), chain, slow=True)

    def continuous(cells):
        def bound(sde, target, x, t_start):
            ways = dict(draws=3, repeats=2, t_start=t_start, cells=cells)
            return values(ss.continuous_bound(KEY, sde, target.score(sde), x, **ways))

        return bound

    yield Case("continuous_bound", "bounds", continuous(None), way)
    yield Case("continuous_bound of levels", "bounds", continuous(cells), way, slow=True)
    yield Case(
        "optimal_variances", "bounds",
        lambda sde, target, x, chain: ss.optimal_variances(KEY, sde, target.score(sde), x, chain=chain), at, slow=True,
    )  # fmt: skip
    yield Case("prior_kl", "bounds", lambda sde, x: ss.prior_kl(sde, x), dict(sde=USERS, x=X))
    yield Case(
        "bound_by_noise_level", "bounds",
        lambda sde, target, x: ss.bound_by_noise_level(KEY, sde, target.score(sde), x, bins=3),
        dict(sde=USERS, target=TARGET, x=X), slow=True,
    )  # fmt: skip
    yield Case(
        "score_error", "bounds",
        lambda sde, target, other, t: ss.score_error(KEY, sde, other.score(sde), target, t, samples=2),
        dict(sde=USERS, target=GAUSSIAN, other=OTHER, t=T),
    )  # fmt: skip
    yield Case("energy_distance", "bounds", ss.energy_distance, dict(a=X, b=Y))
    yield Case(
        "Cells", "bounds", lambda mean, std: cells.log_mass(jnp.asarray(X), mean, std), dict(mean=Y, std=0.3),
        ({"std": 0.001},),
    )  # fmt: skip


# --- guided scores ---


class Classifier(ss.Frozen):
    """Log-probabilities of three classes, smooth in x and t."""

    weights: Any

    def __call__(self, x, t):
        return jax.nn.log_softmax(x @ self.weights + jnp.sin(t)[:, None])


class Labelled(ss.Frozen):
    """A score of a class: two targets' between which the label chooses."""

    one: Any
    other: Any
    sde: Any

    def __call__(self, x, t, label):
        return jnp.where((label == 0)[:, None], self.one.score(self.sde)(x, t), self.other.score(self.sde)(x, t))


def twice(score, x, t):
    """A score, its derivative along a direction, and that of its divergence: what a density's gradient needs."""
    value, slope = jax.jvp(lambda x: score(x, t), (x,), (jnp.asarray(Y),))
    return value, slope


def guided_cases():
    at = dict(x=X, t=T, sde=USERS, target=TARGET, scale=1.7)
    neutral = tuple({"scale": scale} for scale in (0.0, 1.0))
    interval = lambda sde: ss.NoiseInterval(sde, -50.0, 50.0)  # noqa: E731

    def autoguided(x, t, sde, target, scale, other):
        return twice(ss.autoguidance(target.score(sde), other.score(sde), scale, interval=interval(sde)), x, t)

    yield Case("autoguidance", "guided scores", autoguided, at | dict(other=OTHER), neutral)

    def free(x, t, sde, target, scale, other):
        return twice(ss.classifier_free_guidance(Labelled(target, other, sde), 0, scale, num_classes=1), x, t)

    yield Case("classifier_free_guidance", "guided scores", free, at | dict(other=OTHER), neutral)

    def classified(x, t, sde, target, scale, weights):
        guided = ss.classifier_guidance(target.score(sde), Classifier(weights), jnp.array([0, 2]), scale)
        return twice(guided, x, t), guided.log_likelihood(x, t)

    weights = np.array([[0.4, -0.3, 0.8], [0.1, 0.9, -0.5]])
    yield Case("classifier_guidance", "guided scores", classified, at | dict(weights=weights), neutral)

    def per_sample(scale, low, high, **at):
        sde, target = at["sde"], at["target"]
        limits = ss.NoiseInterval(sde, low, high)
        return twice(
            ss.autoguidance(target.score(sde), at["other"].score(sde), scale, interval=limits), at["x"], at["t"]
        )

    mixed = at | dict(other=OTHER, scale=np.array([1.0, 0.0]), low=-3.0, high=0.0)
    yield Case("NoiseInterval", "guided scores", per_sample, mixed, ({"scale": np.array([1.0, 1.0])},))

    known = dict(x=X, t=T, sde=USERS, target=TARGET, y=Y, noise=0.4, matrix=np.array([[1.0, 0.3], [-0.2, 3.0]]))

    def measured(make):
        def run(x, t, sde, target, y, noise, matrix, **numbers):
            operator = ss.operators.Matrix((2,), matrix)
            return twice(make(target.score(sde), sde, operator, y, noise, **numbers), x, t)

        return run

    # the residual lies in fewer directions than its derivative
    plain = dict(x=np.array([[0.3, 0.0]] * 2), y=np.array([[1.0, 0.0]] * 2), matrix=np.diag([1.0, 3.0]))
    standard = ss.Gaussian(np.zeros(2), np.eye(2))
    yield Case("dps", "guided scores", measured(ss.dps), known)
    yield Case(
        "dps step", "guided scores", measured(lambda *a, step: ss.dps(*a[:-1], step=step)), known | dict(step=0.3)
    )
    known |= dict(target=standard)
    yield Case("pigdm", "guided scores", measured(ss.pigdm), known | dict(prior_variance=0.8), (plain,))
    yield Case("moment_matching", "guided scores", measured(ss.moment_matching), known, (plain,))

    def bounded(kind):
        return lambda x, t, sde, target, **numbers: twice(kind(target.score(sde), sde, **numbers), x, t)

    cut = dict(x=3 * X, t=T, sde=USERS, target=TARGET, low=-0.6, high=0.5)
    wide = ({"low": -9.0, "high": 9.0},)
    yield Case("Clipped", "guided scores", bounded(ss.Clipped), cut, wide)
    yield Case("DynamicThreshold", "guided scores", bounded(ss.DynamicThreshold), cut | dict(quantile=0.7), wide)


def operator_cases():
    image = (2, 2, 3)
    pixels = np.linspace(-1, 1, 12).reshape(1, *image)
    kernel, matrix = jnp.array([[0.1, 0.2, 0.1]] * 3), jnp.linspace(-1, 2, 24).reshape(2, 12)
    made = [
        ss.operators.GreyScale(image),
        ss.operators.AveragePool(image),
        ss.operators.Blur(image, kernel),
        ss.operators.Mask(image, jnp.array(1)),
        ss.operators.SubsampledFourier(image, jnp.array([[1, 0], [1, 1]])),
        ss.operators.Matrix(image, matrix),
        ss.operators.Function(image, jax.tree_util.Partial(lambda a, x: a * x[0], 0.7)),
    ]

    def both(operator, x):
        return operator(x), operator.adjoint(jnp.sin(operator(x)))

    for operator in made:
        name = f"operators.{type(operator).__name__}"
        yield Case(name, "operators", both, dict(operator=operator, x=pixels))


def cases() -> list[Case]:
    """All cases."""
    makers = [process_cases, target_cases, sampler_cases, loss_cases, likelihood_cases, guided_cases, operator_cases]
    return [case for make in makers for case in make()]
