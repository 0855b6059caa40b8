"""Error against number of evaluations (NFE) of every sampler, and of those of k-diffusion and diffusers.

Deterministic samplers: root mean square distance to the converged probability flow from the same starts, on
- a smooth mixture of three Gaussians in the plane, with its exact score under VP and VE, float64, 256 starts;
- the digits network whose weights are results/vp_digits_ema.npz, float32, 64 starts; here the median over the starts,
  since a few of them are close to where the flow parts between two digits, and would be all that a mean shows.
Stochastic samplers: distance in law to the exact mixture, the mean over eight directions of the Wasserstein-1 distance
of the projections, with what as many exact samples have for comparison (the floor of the Monte Carlo estimate).

"At a budget" means: as many steps as take no more evaluations than that; NFE is each solver's own count.

Peers run on the same mixture, score, grid and starts in the convention of VE, from sigma = 10 and 50 to 0.05, with
levels uniform in log(sigma) and in sigma^(1/7).  They need an environment of their own; the head of peers.py has the
commands.  Without it this script runs all the same, and says that the two comparisons were not measured, which
--check counts as missed.

To save hundreds of compilations, plans are made for grids that go on past the end, rows are taken from them as needed,
and one program runs the rows of all plans.  A sampler of each kind is also run by `sample`, and must agree.

python experiments/sampler_efficiency.py --check --out
"""

import dataclasses
import gc
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import Figures, arguments, machine

import score_sde as ss

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"

BUDGETS = (5, 6, 8, 10, 12, 15, 20, 25, 35, 50, 75, 100, 150, 200)
NETWORK_BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50, 100)
LAW_BUDGETS = (10, 20, 50, 100, 200)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8)
ROWS = max(BUDGETS)  # of the longest plan
PEER_BUDGETS = (3, 4, *BUDGETS)  # "at most 5" can be fewer
FLOOR = 1e-9  # errors are not told apart below

WEIGHTS, MEANS, STDS = [0.5, 0.3, 0.2], [[1.0, 0.5], [-1.2, 0.3], [0.2, -1.4]], [0.3, 0.45, 0.6]


def mixture(dtype=jnp.float64) -> ss.GaussianMixture:
    """Three overlapping components in the plane (those of the order tests and of peers.py)."""
    return ss.GaussianMixture(*(jnp.asarray(v, dtype) for v in (MEANS, STDS, WEIGHTS)))


def deterministic() -> list[str]:
    """Every deterministic sampler, as an expression; variants that are the same formula appear once."""
    names = ["ProbabilityFlowEuler()", *(f"RungeKutta(order={q})" for q in (2, 3, 4))]
    names += ["DDIM()", "Heun()", "DPMSolver(order=2)", "DPMSolver(order=3)", "DPMSolverPP2S()"]
    names += ["DPMSolverPP(order=2)", "DPMSolverPP(order=3)", "DPMSolverPP(order=3, published=True)"]
    for variable, q in itertools.product(("t", "rho", "log_snr"), (2, 3, 4)):
        names += [f"DEIS(order={q}, variable='{variable}'{p})" for p in _published(q > 2)]
    names += [f"IPNDM(order={q})" for q in (2, 3, 4)]
    for q, points in [(2, 0), (2, 2), (2, 3), (3, 0), (3, 2), (3, 3), (3, 4)]:
        names.append(f"SASolver(order={q}, corrector_points={points})")
    for q, corrector, bh in itertools.product((1, 2, 3), (True, False), (2, 1)):
        if (q, corrector) != (1, False):  # which is DDIM
            settings = f"order={q}" + ", corrector=False" * (not corrector) + ", bh=1" * (bh == 1)
            names += [f"UniPC({settings}{p})" for p in _published(q + corrector > 2)]
    return names


def _published(differs: bool) -> list[str]:
    return ["", ", published=True"] if differs else [""]


NETWORK_SAMPLERS = [
    "ProbabilityFlowEuler()", "RungeKutta(order=4)", "DDIM()", "Heun()", "DPMSolver(order=2)", "DPMSolver(order=3)",
    "DPMSolverPP2S()", "DPMSolverPP(order=2)", "DPMSolverPP(order=3)", "DPMSolverPP(order=3, published=True)",
    "DEIS(order=3, variable='t')", "DEIS(order=3, variable='log_snr', published=True)",
    "DEIS(order=4, variable='log_snr', published=True)", "IPNDM(order=3)", "IPNDM(order=4)",
    "SASolver(order=3, corrector_points=3)", "UniPC(order=2)", "UniPC(order=2, published=True)",
    "UniPC(order=3)", "UniPC(order=3, published=True)",
]  # fmt: skip

STOCHASTIC = {
    "EulerMaruyama()": ss.EulerMaruyama(),
    "ReverseDiffusion()": ss.ReverseDiffusion(),
    "Ancestral() = DDIM(eta=1) = SDEDPMSolverPP(order=1)": ss.Ancestral(),
    "DDIM(eta=0.5)": ss.DDIM(eta=0.5),
    "SDEDPMSolverPP(order=2)": ss.SDEDPMSolverPP(order=2),
    "SASolver(order=2, corrector_points=2, tau=1.0)": ss.SASolver(order=2, corrector_points=2, tau=1.0),
    "EDMStochastic()": ss.EDMStochastic(),
    "PredictorCorrector(ReverseDiffusion, AnnealedLangevin)": ss.PredictorCorrector(
        ss.ReverseDiffusion(), ss.AnnealedLangevin()
    ),
}


def check_complete() -> None:
    """Raise AssertionError where a public sampler is in no list above."""
    kinds = {
        name
        for name, kind in vars(ss).items()
        if isinstance(kind, type) and issubclass(kind, ss.Sampler) and kind not in (ss.Sampler, ss.LinearSampler)
    }
    listed = {kind_of(name) for name in [*deterministic(), *STOCHASTIC]}
    assert kinds == listed, f"samplers that are not measured, or not public: {kinds ^ listed}"


def kind_of(name: str) -> str:
    return name.split("(")[0]


def make(name: str) -> ss.Sampler:
    return eval(name, vars(ss))


# Runs of our deterministic samplers


@jax.jit
def _plan(sampler, sde, times):
    """The first ROWS rows of a sampler's plan, of the same form for all samplers."""
    plan = sampler.plan(sde, times)
    weights = jnp.pad(plan.weights, ((0, 0), (0, 4 - plan.weights.shape[1])))
    plan = dataclasses.replace(plan, weights=weights, noise=None)
    return jax.tree.map(lambda a: jnp.asarray(a)[:ROWS], plan)


@jax.jit
def _run(score, x, plan, rows):
    """Where the first `rows` rows of a plan take x."""

    def advance(n, carry):
        return ss.LinearSampler().advance(None, score, *carry, jax.tree.map(lambda a: a[n], plan), None)

    history = jnp.zeros((plan.weights.shape[1] - 1, *x.shape), x.dtype)
    return jax.lax.fori_loop(0, rows, advance, (x, (x, history)))[0]


class Problem:
    """A score, starts at t_start, and where the flow takes them by t_end."""

    def __init__(
        self, sde: ss.AffineSDE, score, x: jax.Array, t_start: float, t_end: float, tolerance: float, median=False
    ):
        from diffrax import Dopri8

        self.average = np.median if median else np.mean
        self.sde, self.score, self.x, self.ends = sde, score, x, (t_start, t_end)
        self._stages: dict[str, tuple[int, int]] = {}
        self._errors: dict[tuple, tuple[float, int]] = {}
        self.exact = self.adaptive(tolerance, Dopri8())[0]
        self.uncertainty = self.error(self.adaptive(10 * tolerance, Dopri8())[0])

    def adaptive(self, tolerance: float, solver=None) -> tuple[jax.Array, float]:
        """The end by an adaptive solver, and its mean number of evaluations."""
        out = ss.sample_adaptive(
            jax.random.key(0), self.sde, self.score, self.x.shape, x_init=self.x, rtol=tolerance, atol=tolerance,
            t_start=self.ends[0], t_end=self.ends[1], solver=solver, max_steps=20_000,
        )  # fmt: skip
        return out.x, float(out.nfe.mean())

    def error(self, x: jax.Array) -> float:
        """Root of the mean (or median) over the starts of the mean squared error of each."""
        squares = np.square(np.asarray(x, np.float64) - np.asarray(self.exact, np.float64))
        return float(np.sqrt(self.average(squares.reshape(squares.shape[0], -1).mean(1))))

    def steps(self, name: str, budget: int) -> int:
        """How many steps take at most this number of evaluations (0: none do)."""
        if name not in self._stages:
            step = np.asarray(self._plan_of(name, jnp.linspace(*self.ends, 11)).step)
            stages = int(np.sum(step == 9))
            self._stages[name] = stages, int(np.sum(step < 10)) - 10 * stages
        stages, extra = self._stages[name]
        return max((budget - extra) // stages, 0)

    def run(self, name: str, grid: str, times: Callable[[int], jax.Array], steps: int) -> tuple[float, int]:
        """(error, evaluations) of a sampler."""
        key = name, grid, steps
        if key not in self._errors:
            plan = self._plan_of(name, times(steps))
            rows = int(np.sum(np.asarray(plan.step) < steps))
            self._errors[key] = self.error(_run(self.score, self.x, plan, rows)), rows
        return self._errors[key]

    def _plan_of(self, name: str, times: jax.Array):
        """The plan of a grid that goes on past its end: a row knows of no later time than its step's end."""
        beyond = times[-1] * (1 - 1e-3 * jnp.arange(1, ROWS + 2 - times.size))
        return _plan(make(name), self.sde, jnp.concatenate([times, beyond]).astype(self.x.dtype))

    def agrees_with_sample(self, name: str, grid: str, times: Callable[[int], jax.Array], budget: int) -> None:
        """Raise AssertionError where `run` is not what `sample` gives."""
        steps = self.steps(name, budget)
        out = ss.sample(
            jax.random.key(0), self.sde, self.score, self.x.shape, sampler=make(name), grid=times(steps), x_init=self.x
        )
        error, nfe = self.run(name, grid, times, steps)
        assert int(out.nfe[0]) == nfe <= budget, f"{name}: {nfe} evaluations here, {out.nfe[0]} by sample"
        assert abs(self.error(out.x) / error - 1) < 1e-5, f"{name}: error {error} here, {self.error(out.x)} by sample"


def grid_of(problem: Problem, name: str) -> Callable[[int], jax.Array]:
    grid = getattr(ss.grids, name)
    return lambda steps: grid(problem.sde, steps, *problem.ends)


def mixture_problem(sde: ss.AffineSDE, t_start: float, t_end: float) -> Problem:
    target = mixture()
    x = target.marginal(sde, t_start).sample(jax.random.key(0), 256)
    return Problem(sde, target.score(sde), x, t_start, t_end, 1e-12)


def network_problem() -> Problem:
    """The network of configs/vp_digits.py, from the prior."""
    from score_sde.config import build

    sys.path.insert(0, str(ROOT / "configs"))
    import vp_digits

    experiment = build(vp_digits.get_config()).experiment
    params: dict = {}
    with np.load(RESULTS / "vp_digits_ema.npz") as weights:
        for name in weights.files:
            *path, last = name.split("/")
            place = params
            for part in path:
                place = place.setdefault(part, {})
            place[last] = jnp.asarray(weights[name])
    sde = experiment.sde
    x = sde.prior_sample(jax.random.key(0), (64, *experiment.shape), jnp.float32)
    return Problem(sde, experiment.score(params), x, sde.t_max, sde.t_sampling, 1e-6, median=True)


# Tables


class Report:
    """Lines to print and to keep, and the series to plot."""

    def __init__(self):
        self.lines: list[str] = []
        self.series: dict[tuple[str, str, str], tuple[list, list]] = {}  # (problem, grid, sampler): (NFE, errors)
        self.start = time.perf_counter()

    def __call__(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)

    def done(self, what: str) -> None:
        print(f"    {what} after {time.perf_counter() - self.start:.0f} s", file=sys.stderr, flush=True)


def shown(errors: list[float]) -> str:
    return "".join("   -    " if np.isnan(e) else f"{e:<8.1e}" for e in errors)


def table(report: Report, title: str, problem: Problem, pairs: list[tuple[str, str]], budgets: tuple) -> None:
    """The errors of (sampler, grid) pairs at budgets, sorted by grid; and of adaptive solves."""
    report(f"\n{title}; the reference is known to {problem.uncertainty:.0e}")
    kind = "median" if problem.average is np.median else "rms"
    report(f"{f'{kind} error at NFE of at most':<64}" + "".join(f"{b:<8}" for b in budgets))
    best = {b: (np.inf, "") for b in budgets}
    for name, grid in sorted(pairs, key=lambda pair: pair[1]):
        errors, nfe = [], []
        for budget in budgets:
            steps = problem.steps(name, budget)
            error, n = problem.run(name, grid, grid_of(problem, grid), steps) if steps else (np.nan, 0)
            errors.append(error)
            nfe.append(n)
            if error < best[budget][0]:
                best[budget] = error, f"{name}, {grid}"
        report.series[title.split(",")[0], grid, name] = nfe, errors
        report(f"{f'{grid:<8} {name}':<64}{shown(errors)}")
    for budget, (error, what) in best.items():
        report(f"best at {budget:<4}: {error:.2e}  {what}")
    runs = [(tolerance, *problem.adaptive(tolerance)) for tolerance in TOLERANCES if tolerance > problem.uncertainty]
    report("sample_adaptive (Tsit5), rtol = atol: " + ", ".join(
        f"{tolerance:.0e}: {problem.error(x):.1e} at {nfe:.0f}" for tolerance, x, nfe in runs
    ))  # fmt: skip
    report.series[title.split(",")[0], "", "sample_adaptive"] = (
        [nfe for *_, nfe in runs],
        [problem.error(x) for _, x, _ in runs],
    )


def mixtures(report: Report) -> None:
    """Every deterministic sampler on the mixture, under VP and under VE."""
    vp, ve = ss.VP(), ss.VE()
    for title, sde, end, grids in [
        ("mixture under VP, float64, t = 1 to 1e-3", vp, vp.t_sampling, ("uniform", "log_snr", "edm")),
        ("mixture under VE, float64, sigma = 50 to 0.05", ve, time_of(ve, 0.05), ("log_snr", "edm")),
    ]:
        problem = mixture_problem(sde, sde.t_max, end)
        names = [n for n in deterministic() if sde is vp or "'t'" not in n]  # t is log sigma, in VE
        if sde is vp:
            for name in {kind_of(name): name for name in names}.values():
                problem.agrees_with_sample(name, "log_snr", grid_of(problem, "log_snr"), 12)
            report.done("agreement with sample")
        table(report, title, problem, [(name, grid) for name in names for grid in grids], BUDGETS)
        report.done("table")


def network(report: Report) -> None:
    problem = network_problem()
    # each on the grid that suits it, and some on others
    uniform = ("Euler", "RungeKutta", "'t'")
    pairs = [(n, "uniform" if any(kind in n for kind in uniform) else "log_snr") for n in NETWORK_SAMPLERS]
    pairs += [(n, grid) for n in ("DDIM()", "DPMSolverPP(order=2)") for grid in ("uniform", "edm")]
    pairs += [("UniPC(order=3, published=True)", grid) for grid in ("uniform", "edm")]
    pairs += [(n, "edm") for n in ("Heun()", "UniPC(order=2)", "DEIS(order=3, variable='log_snr', published=True)")]
    table(report, "digits network under VP, float32, t = 1 to 1e-3", problem, pairs, NETWORK_BUDGETS)
    report.done("table")


def laws(report: Report, n: int = 2**16) -> None:
    """Stochastic samplers on the mixture under VP, against its exact law."""
    sde, target = ss.VP(), mixture(jnp.float32)
    start = target.marginal(sde, sde.t_max).sample(jax.random.key(1), n)
    law = target.marginal(sde, sde.t_sampling)
    angles = np.arange(8) * np.pi / 8
    directions = np.stack([np.cos(angles), np.sin(angles)])
    quantiles = [_quantiles(law, direction, n) for direction in directions.T]

    def distance(x) -> float:
        projected = np.sort(np.asarray(x, np.float64) @ directions, axis=0)
        return float(np.mean([np.abs(p - q).mean() for p, q in zip(projected.T, quantiles, strict=True)]))

    floor = np.mean([distance(law.sample(jax.random.key(seed), n)) for seed in (2, 3, 4)])
    report(f"\nmixture under VP, stochastic samplers, float32, {n} samples; exact samples have {floor:.1e}")
    report(f"{'Wasserstein-1 distance at NFE of at most':<64}" + "".join(f"{b:<8}" for b in LAW_BUDGETS))
    for name, sampler in STOCHASTIC.items():
        per_step = 2 if "EDM" in name or "Corrector" in name else 1
        for grid in ("log_snr", "edm") if "EDM" in name else ("uniform", "log_snr"):
            distances = []
            for budget in LAW_BUDGETS:
                times = getattr(ss.grids, grid)(sde, budget // per_step, sde.t_max, sde.t_sampling)
                out = ss.sample(
                    jax.random.key(5), sde, target.score(sde), start.shape, sampler=sampler, grid=times, x_init=start
                )
                assert int(out.nfe[0]) <= budget
                distances.append(distance(out.x))
            report(f"{f'{grid:<8} {name}':<64}{shown(distances)}")
    report.done("laws")


def _quantiles(law: ss.GaussianMixture, direction: np.ndarray, n: int) -> np.ndarray:
    """The exact quantiles at (i + 1/2)/n of the law's projection."""
    from jax.scipy.stats import norm

    means, stds = np.asarray(law.means, np.float64) @ direction, np.asarray(law.stds, np.float64)[:, 0]
    y = np.linspace((means - 8 * stds).min(), (means + 8 * stds).max(), 40_001)
    cdf = np.asarray(norm.cdf((y[:, None] - means) / stds)) @ np.asarray(law.weights, np.float64)
    return np.interp((np.arange(n) + 0.5) / n, cdf, y)


# Peers


def time_of(sde: ss.AffineSDE, sigma):
    """The time at which sigma/alpha has this value."""
    return sde.inverse_log_snr(-2 * jnp.log(jnp.asarray(sigma, jnp.float64)))


def peers(report: Report, figures: Figures) -> None:
    """Ours against theirs: formula against formula, and the best against the best."""
    formula, best = "largest error ours/theirs, identical formulas", "largest error of our best/their best at a budget"
    try:
        import torch
        from peers import PEERS
    except ModuleNotFoundError as error:
        print(f"\n{error}. The peers are not measured; the head of peers.py says how to install them.")
        figures.at_most(formula, np.nan, 1.02)
        figures.at_most(best, np.nan, 1)
        return
    torch.set_num_threads(1)
    gc.freeze()  # with all that was compiled alive, collections would take most of the time
    sde, target = ss.VE(), mixture()
    data = jax.jit(lambda x, sigma: x + sigma**2 * jax.vmap(target.noised(1.0, sigma).score_at)(x))
    denoise = lambda x, sigma: np.asarray(data(x, sigma))  # noqa: E731
    theirs = [peer for peer in PEERS.values() if peer.deterministic]
    ratios, bests = [], []
    for high in (10.0, 50.0):
        problem = mixture_problem(sde, time_of(sde, high), time_of(sde, 0.05))
        x = np.asarray(problem.x)
        for grid in ("log_snr", "edm"):
            times = grid_of(problem, grid)
            where = f"sigma = {high:g} to 0.05, {grid}"
            found: dict[str, dict[int, tuple[float, str]]] = {"ours": {}, "theirs": {}}

            def note(side, budget, error, name, found=found):
                found[side][budget] = min(found[side].get(budget, (np.inf, "")), (error, name))

            for name in (n for n in deterministic() if "'t'" not in n):
                for budget in PEER_BUDGETS:
                    if steps := problem.steps(name, budget):
                        note("ours", budget, problem.run(name, grid, times, steps)[0], name)
            for peer in theirs:
                counts = [peer.run(denoise, _sigmas(sde, times(n)), x[:2], 0)[1] for n in (5, 6)]
                stages = counts[1] - counts[0]
                for budget in PEER_BUDGETS:
                    steps = (budget - counts[0]) // stages + 5
                    if steps < 1:
                        continue
                    end, nfe = peer.run(denoise, _sigmas(sde, times(steps)), x, 0)
                    assert nfe <= budget, f"{peer.name} took {nfe} evaluations, not {budget}"
                    error = problem.error(end)
                    note("theirs", budget, error, peer.name)
                    if peer.ours:
                        own, own_nfe = problem.run(peer.ours, grid, times, steps)
                        assert own_nfe == nfe, f"{peer.ours} took {own_nfe} evaluations, {peer.name} {nfe}"
                        ratios.append((max(own, FLOOR) / max(error, FLOOR), f"{peer.name}, {nfe} NFE, {where}"))
            report(f"\nbest of ours and of theirs on the mixture under VE, float64, {where}")
            for budget in BUDGETS:
                ours, other = (min(v for b, v in found[side].items() if b <= budget) for side in ("ours", "theirs"))
                ratio = max(ours[0], FLOOR) / max(other[0], FLOOR)
                bests.append((ratio, f"{other[1]} at {budget}, {where}"))
                report(f"{budget:<5}{ratio:<8.4f}{ours[0]:<9.2e}{ours[1]:<52}{other[0]:<9.2e}{other[1]}")
            report.done(where)
    report(f"\n{len(theirs)} deterministic peers, {len(ratios)} comparisons of identical formulas")
    figures.at_most(formula, round(max(ratios)[0], 5), 1.02)
    figures.at_most(best, round(max(bests)[0], 5), 1)
    report(f"largest: {max(ratios)[0]:.7f} against {max(ratios)[1]}")
    report(f"smallest: {min(ratios)[0]:.7f} against {min(ratios)[1]}")
    report(f"best against best, largest: {max(bests)[0]:.4f} against {max(bests)[1]}")


def _sigmas(sde: ss.AffineSDE, times: jax.Array) -> np.ndarray:
    return np.asarray(sde.sigma(times))


# The plot


CURVES = [
    ("DDIM()", "DDIM", "0.6"),
    ("Heun()", "Heun", "tab:brown"),
    ("DPMSolver(order=3)", "DPM-Solver-3", "tab:orange"),
    ("DPMSolverPP(order=2)", "DPM-Solver++ 2M", "tab:green"),
    ("DEIS(order=3, variable='log_snr', published=True)", "DEIS-3, published start", "tab:blue"),
    ("UniPC(order=3)", "UniPC-3", "tab:red"),
    ("UniPC(order=3, published=True)", "UniPC-3, published start", "tab:pink"),
    ("sample_adaptive", "adaptive (Tsit5)", "black"),
]
PANELS = [
    ("mixture under VP", "log_snr", "mixture, VP, log_snr"),
    ("mixture under VE", "edm", "mixture, VE, edm"),
    ("digits network under VP", "log_snr", "digits network, log_snr (median)"),
]


def plot(report: Report, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 5.2), constrained_layout=True)
    for ax, (problem, grid, title) in zip(axes, PANELS, strict=True):
        for name, label, color in CURVES:
            adaptive = name == "sample_adaptive"
            nfe, errors = report.series.get((problem, "" if adaptive else grid, name), ([], []))
            keep = np.isfinite(np.asarray(errors, float))
            style = {"ls": ":", "marker": "x"} if adaptive else {"ls": "-", "marker": "o"}
            ax.loglog(np.asarray(nfe)[keep], np.asarray(errors)[keep], label=label, color=color, ms=4, lw=1.6, **style)
        ax.set_title(title)
        ax.set_xlabel("evaluations of the score")
        ax.set_xlim(4.5, 230)
        ax.set_ylim(top=2)
        ax.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
        ax.minorticks_off()
        ax.grid(True, alpha=0.3)
    axes[0].set_ylabel("distance to the converged flow")
    axes[0].legend(fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument(
        "--out", type=Path, nargs="?", const=RESULTS, help="write sampler_efficiency.txt and .png here (results/)"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=("mixture", "network", "laws", "peers"),
        default=("mixture", "network", "laws", "peers"), help="what to run",
    )  # fmt: skip
    args = parser.parse_args()
    if args.check and "peers" not in args.parts:
        parser.error("what --check checks is measured by the part 'peers'")
    check_complete()
    report, figures = Report(), Figures()
    if "network" in args.parts:
        network(report)
    if "laws" in args.parts:
        laws(report)
    jax.config.update("jax_enable_x64", True)  # from here on
    if "mixture" in args.parts:
        mixtures(report)
    if "peers" in args.parts:
        peers(report, figures)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "sampler_efficiency.txt").write_text("\n".join([*report.lines, f"machine: {machine()}"]) + "\n")
        plot(report, args.out / "sampler_efficiency.png")
    figures.end(args.check)
