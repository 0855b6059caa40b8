"""The samplers of k-diffusion and diffusers on a given exact score, in float64, for comparisons with ours.

`PEERS` maps names to `Peer`s. Each runs on a given falling grid of noise levels, whose last level stays above 0, with
its formula for the interior of the grid up to the end: no lower orders at the end, no jump to sigma = 0. Start-ups
stay as they are. Run as a script, this file prints the errors and measured orders of all, on a two-dimensional mixture.

k-diffusion cannot be a dependency of the project: it asks for numpy 1.26, wandb and a torchvision whose CUDA build
breaks diffusers. Only its file of samplers is imported here, past its __init__. An environment of its own:

    python3.11 -m venv peers && . peers/bin/activate
    pip install torch==2.13.0 diffusers==0.42.1 scipy -e .
    pip install --no-deps k-diffusion==0.1.1.post1 torchsde==0.2.6 trampoline==0.1.2 torchdiffeq==0.2.5

What is left out, and why:
- k-diffusion dpm_fast, dpm_adaptive: make their own grids (their steps are here as `DPMSolver-1..3`);
- diffusers KDPM2Ancestral, DPMSolverSDE: tables of intermediate levels for a formula that k-diffusion has;
- diffusers DDIM, DDPM, CosineDPMSolver, LCM, TCD, ...: tied to integer time steps of their training schedule, or
  not solvers of this equation; PNDM is tied too, and is given a training schedule that is the grid;
- diffusers DPMSolverMultistep sde-dpmsolver (noise form), and its sde-dpmsolver++ of order 3, whose last coefficient
  has a wrong sign.

Orders that the script marks as short of their claim, and why:
- the published 3M of DPM-Solver++ and of DPM-Solver halve their second difference's term: order 2;
- IPNDM and PNDM take the Adams weights of equal steps: order 2 where steps vary smoothly;
- multistep methods of order 3 and 4 (LMS, DEIS, UniP, UniPC) start with an Euler step, whose one error is of order 2
  (3 once corrected): with --high 1000 it does not matter, and they have their orders.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import itertools
import math
import sys
import types
import warnings
from collections.abc import Callable

import diffusers
import numpy as np
import torch

Denoise = Callable[[np.ndarray, float], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A sampler of another library.

    `run(denoise, sigmas, x, seed)` returns the end and the number of evaluations. `denoise(x, sigma)` is the exact
    data prediction E[x0 | x0 + sigma * noise = x], float64 to float64; `sigmas` a falling float64 array of steps + 1
    levels above 0; `x` the float64 start at `sigmas[0]`, of shape (batch, dimension).
    """

    name: str
    order: int  # as claimed by its name; in the strong sense for none of the stochastic ones
    run: Callable[[Denoise, np.ndarray, np.ndarray, int], tuple[np.ndarray, int]]
    ours: str | None = None  # our sampler of the same formula, as an expression
    deterministic: bool = True


PEERS: dict[str, Peer] = {}


def _add(name: str, order: int, solve: Callable, ours: str | None = None, deterministic: bool = True) -> None:
    def run(denoise: Denoise, sigmas: np.ndarray, x: np.ndarray, seed: int = 0) -> tuple[np.ndarray, int]:
        model = _Model(denoise)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations within the peers
            torch.manual_seed(seed)
            end = solve(model, torch.tensor(x, dtype=torch.float64), torch.tensor(sigmas, dtype=torch.float64))
        _require_float64(end)
        return end.numpy(), model.nfe

    PEERS[name] = Peer(name, order, run, ours, deterministic)


class _Model:
    """`denoise` on tensors, counted; a state or level that lost float64 on its way here is an error."""

    def __init__(self, denoise: Denoise):
        self.denoise, self.nfe = denoise, 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        _require_float64(x)
        _require_float64(sigma)
        self.nfe += 1
        data = torch.tensor(np.asarray(self.denoise(x.numpy(), float(sigma.flatten()[0]))))  # one level for the batch
        _require_float64(data)
        return data


def _require_float64(x: torch.Tensor) -> None:
    if x.dtype != torch.float64:
        raise TypeError(f"float64 was lost on the way: {x.dtype}")


# k-diffusion


def _k_diffusion_sampling() -> types.ModuleType:
    """k_diffusion.sampling without its package's __init__, and with the one helper that it takes from its utils."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        raise ModuleNotFoundError("k-diffusion is not installed; see the head of this file", name="k_diffusion")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__, package.utils = list(spec.submodule_search_locations), utils
    utils.append_dims = lambda x, ndim: x.reshape(x.shape + (1,) * (ndim - x.ndim))
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling")


_k = _k_diffusion_sampling()


def _add_k(name: str, claimed: int, ours: str | None = None, **options) -> None:
    """The function sample_<name> with its options; stochastic unless it has no noise or eta is 0."""
    function = getattr(_k, f"sample_{name}")
    noisy = options.get("eta", 1) > 0 and ("ancestral" in name or "sde" in name) or options.get("s_churn", 0) > 0
    label = " ".join([f"k-diffusion {name}", *(f"{k}={v}" for k, v in options.items())])
    _add(label, claimed, lambda model, x, sigmas: function(model, x, sigmas, disable=True, **options), ours, not noisy)


def _k_single(order: int) -> Callable:
    """DPM-Solver steps over the grid."""

    def solve(model, x, sigmas):
        solver = _k.DPMSolver(model)
        step = getattr(solver, f"dpm_solver_{order}_step")
        for t, t_next in itertools.pairwise(solver.t(sigmas)):
            x, _ = step(x, t, t_next)
        return x

    return solve


_add_k("euler", 1, "DDIM()")
_add_k("heun", 2, "Heun()")
_add_k("dpm_2", 2, "DPMSolver(order=2)")
for _q in range(1, 5):
    _add_k("lms", _q, f"DEIS(order={_q}, variable='rho', published=True)", order=_q)
for _q in range(1, 4):
    _add(f"k-diffusion DPMSolver-{_q}", _q, _k_single(_q), f"DPMSolver(order={_q})")
_add_k("dpmpp_2m", 2, "DPMSolverPP(order=2)")
_add_k("dpmpp_2s_ancestral", 2, "DPMSolverPP2S()", eta=0.0)
_add_k("dpmpp_2m_sde", 2, "DPMSolverPP(order=2)", eta=0.0, solver_type="midpoint")
_add_k("dpmpp_2m_sde", 2, eta=0.0, solver_type="heun")
_add_k("dpmpp_3m_sde", 3, eta=0.0)  # DPMSolverPP(order=3, published=True) but for its second step, of the heun kind

_add_k("euler_ancestral", 1, "SDEDPMSolverPP(order=1)")
_add_k("dpm_2_ancestral", 2)
_add_k("dpmpp_2s_ancestral", 2)
_add_k("dpmpp_sde", 2)  # noise of one Brownian path for both stages
_add_k("dpmpp_2m_sde", 2, "SDEDPMSolverPP(order=2)", solver_type="midpoint")
_add_k("dpmpp_2m_sde", 2, solver_type="heun")
_add_k("dpmpp_3m_sde", 3)
_add_k("heun", 2, "EDMStochastic(s_churn=40.0)", s_churn=40.0)


# diffusers


class _Torch64:
    """torch, whose float32 is float64: in place of `torch` within a scheduler's module, it undoes the casts there.

    DPMSolverMultistep, Euler, EulerAncestral and EDMEuler cast the state to float32 in every step.
    """

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


def _add_d(
    name: str,
    order: int,
    scheduler: str,
    ours: str | None = None,
    *,
    output: str = "data",
    vp: bool = True,
    prepare: Callable | None = None,
    predictor_only: bool = False,
    deterministic: bool = True,
    options: dict | None = None,
    **config,
) -> None:
    """A scheduler: `output` is what it takes from the model ("data", "noise", "velocity").

    With vp, its state is alpha * x for alpha = 1 / sqrt(1 + sigma^2). `prepare(scheduler, sigmas)` puts the grid into
    it, and returns the levels at which it evaluates; `options` are for each step. With predictor_only, it forgets the
    last state before each step, and thereby skips its corrector.
    """
    kind = getattr(diffusers, scheduler + "Scheduler")
    sys.modules[kind.__module__].torch = _Torch64()
    prepare = prepare or _on_grid

    def solve(model, x, sigmas):
        solver = kind(**config)
        levels = prepare(solver, sigmas)
        if hasattr(solver, "set_begin_index"):
            solver.set_begin_index(0)  # count steps from 0, look nothing up
        solver.is_scale_input_called = True
        state = x * _alpha(sigmas[0]) if vp else x
        for t, sigma in zip(solver.timesteps, levels, strict=True):
            alpha = _alpha(sigma) if vp else torch.ones_like(sigma)
            x = state / alpha
            data = model(x, sigma)
            noise = (x - data) / sigma
            given = {"data": data, "noise": noise, "velocity": alpha * (noise - sigma * data)}[output]
            if predictor_only:
                solver.last_sample = None
            state = solver.step(given, t, state, **(options or {})).prev_sample
        return state / _alpha(sigmas[-1]) if vp else state

    _add(f"diffusers {name}", order, solve, ours, deterministic)


def _alpha(sigma: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + sigma**2).sqrt()


def _count_steps(scheduler, steps: int) -> None:
    scheduler.timesteps = torch.arange(steps, dtype=torch.float64)


def _on_grid(scheduler, sigmas):
    """Multistep schedulers, Euler: one evaluation a level, none at the last."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas
    _count_steps(scheduler, len(sigmas) - 1)
    return sigmas[:-1]


def _edm(scheduler, sigmas):
    """Schedulers that would apply EDM's preconditioning to a network's output: the data prediction as it is."""
    scheduler.precondition_outputs = lambda sample, output, sigma: output
    return _on_grid(scheduler, sigmas)


def _stages(order: int) -> Callable:
    """Single-step schedulers take levels of the grid for their stages: stages that split each step of ours evenly."""

    def prepare(scheduler, sigmas):
        parts = torch.arange(order, dtype=torch.float64) / order
        log = sigmas.log()
        fine = (log[:-1, None] + parts * (log[1:] - log[:-1])[:, None]).exp().flatten()
        return _on_grid(scheduler, torch.cat([fine, sigmas[-1:]]))

    return prepare


def _heun(scheduler, sigmas):
    """Each level twice: where a step ends, and where the next begins."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
    _count_steps(scheduler, 2 * len(sigmas) - 2)
    return scheduler.sigmas[:-1]


def _kdpm2(scheduler, sigmas):
    _heun(scheduler, sigmas)
    middle = (sigmas[:-1] * sigmas[1:]).sqrt()
    scheduler.sigmas_interpol = torch.cat([middle[:1], middle.repeat_interleave(2)])
    return torch.stack([sigmas[:-1], middle], dim=1).flatten()


def _ipndm(scheduler, sigmas):
    """Takes the velocity, on cos and sin of an angle of its own: the grid's instead."""
    _on_grid(scheduler, sigmas)
    scheduler.alphas = _alpha(sigmas)
    scheduler.betas = sigmas * scheduler.alphas
    return sigmas[:-1]


def _pndm(scheduler, sigmas):
    """A training schedule whose step k is level steps - k of the grid; the second level is evaluated twice."""
    steps = len(sigmas) - 1
    scheduler.register_to_config(num_train_timesteps=steps)
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = 1 / (1 + sigmas.flip(0) ** 2)
    scheduler.timesteps = torch.tensor([steps, steps - 1, *range(steps - 1, 0, -1)])
    return sigmas[steps - scheduler.timesteps]


_INTERIOR = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
_DATA = _INTERIOR | {"prediction_type": "sample"}
_NOISE = _INTERIOR | {"prediction_type": "epsilon", "algorithm_type": "dpmsolver"}

_add_d("Euler", 1, "EulerDiscrete", "DDIM()", output="noise", vp=False)
_add_d("EDMEuler", 1, "EDMEuler", "DDIM()", vp=False, prepare=_edm)
_add_d("Heun", 2, "HeunDiscrete", "Heun()", output="noise", vp=False, prepare=_heun)
_add_d("KDPM2", 2, "KDPM2Discrete", "DPMSolver(order=2)", output="noise", vp=False, prepare=_kdpm2)
for _q in range(1, 5):
    _ours = f"DEIS(order={_q}, variable='rho', published=True)"
    _add_d(f"LMS-{_q}", _q, "LMSDiscrete", _ours, output="noise", vp=False, options={"order": _q})
_add_d("IPNDM", 4, "IPNDM", "IPNDM(order=4)", output="velocity", prepare=_ipndm)
_add_d("PNDM", 4, "PNDM", output="noise", prepare=_pndm, skip_prk_steps=True)

for _q, _ours in enumerate(["DDIM()", "DPMSolverPP(order=2)", "DPMSolverPP(order=3, published=True)"], start=1):
    _add_d(f"DPM++ {_q}M", _q, "DPMSolverMultistep", _ours, solver_order=_q, **_DATA)
    _edm_options = {"vp": False, "prepare": _edm, "solver_order": _q} | _INTERIOR
    _add_d(f"EDM DPM++ {_q}M", _q, "EDMDPMSolverMultistep", _ours, **_edm_options)
_add_d("DPM++ 2M heun", 2, "DPMSolverMultistep", solver_order=2, solver_type="heun", **_DATA)
for _q in range(1, 4):
    _add_d(f"DPM {_q}M", _q, "DPMSolverMultistep", output="noise", solver_order=_q, **_NOISE)
_ours = "DEIS(order=2, variable='log_snr', published=True)"
_add_d("DPM 2M heun", 2, "DPMSolverMultistep", _ours, output="noise", solver_order=2, solver_type="heun", **_NOISE)

for _q in range(1, 4):  # the third of DPM is DPMSolver(order=3) but for the middle stage, of the midpoint kind
    _ours = [None, "DPMSolver(order=1)", "DPMSolver(order=2)", None][_q]
    _single = {"prepare": _stages(_q), "solver_order": _q}
    _add_d(f"DPM {_q}S", _q, "DPMSolverSinglestep", _ours, output="noise", **_single, **_NOISE)
    _ours = [None, "DDIM()", "DPMSolverPP2S()", None][_q]
    _add_d(f"DPM++ {_q}S", _q, "DPMSolverSinglestep", _ours, **_single, **_DATA)
_add_d("DPM 3S heun", 3, "DPMSolverSinglestep", output="noise", solver_type="heun", **_single, **_NOISE)

for _q in range(1, 4):
    _ours = f"DEIS(order={_q}, variable='log_snr', published=True)"
    _add_d(f"DEIS-{_q}", _q, "DEISMultistep", _ours, output="noise", solver_order=_q, lower_order_final=False)

for _q, _bh, _corrector in itertools.product((1, 2, 3), (1, 2), (True, False)):
    _ours = f"UniPC(order={_q}, corrector={_corrector}, bh={_bh}, published=True)"
    _name = f"{'UniPC' if _corrector else 'UniP'}-{_q} bh{_bh}"
    _unipc = {"solver_order": _q, "solver_type": f"bh{_bh}", "predictor_only": not _corrector} | _DATA
    _add_d(_name, _q + _corrector, "UniPCMultistep", _ours, **_unipc)

# SA-Solver without noise: exponential Adams in log-SNR for the data; P3 is the 3M of order 3, after its start-up.
for _p, _c in [(2, 0), (3, 0), (2, 2), (3, 3)]:
    _sa = {"predictor_order": _p, "corrector_order": max(_c, 1), "predictor_only": _c == 0, "lower_order_final": False}
    _sa |= {"prediction_type": "sample", "tau_func": lambda t: 0}
    _ours = f"SASolver(order={_p}, corrector_points={_c})"
    _add_d(f"SASolver P{_p}" + f"C{_c}" * (_c > 0) + " tau=0", max(_p, _c), "SASolver", _ours, **_sa)

_stochastic = {"deterministic": False}
_ours = "SDEDPMSolverPP(order=1)"
_add_d("EulerAncestral", 1, "EulerAncestralDiscrete", _ours, output="noise", vp=False, **_stochastic)
for _q in (1, 2):
    _sde = {"solver_order": _q, "algorithm_type": "sde-dpmsolver++"} | _DATA | _stochastic
    _add_d(f"SDE DPM++ {_q}M", _q, "DPMSolverMultistep", f"SDEDPMSolverPP(order={_q})", **_sde)
_sa = {"predictor_order": 2, "corrector_order": 2, "lower_order_final": False, "prediction_type": "sample"}
_add_d("SASolver P2C2 tau=1", 2, "SASolver", tau_func=lambda t: 1, **_sa, **_stochastic)


# The check


class Mixture:
    """Three components in the plane, of standard deviations 0.3 to 0.6."""

    weights = np.array([0.5, 0.3, 0.2])
    means = np.array([[1.0, 0.5], [-1.2, 0.3], [0.2, -1.4]])
    stds = np.array([0.3, 0.45, 0.6])

    def denoise(self, x: np.ndarray, sigma: float) -> np.ndarray:
        variances = self.stds**2 + sigma**2
        offsets = x[:, None] - self.means
        logits = np.log(self.weights / variances) - 0.5 * (offsets**2).sum(-1) / variances
        posterior = np.exp(logits - logits.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        data = self.means + (self.stds**2 / variances)[:, None] * offsets
        return (posterior[..., None] * data).sum(1)

    def sample(self, n: int, sigma: float, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), n, p=self.weights)
        return self.means[k] + np.hypot(self.stds[k], sigma)[:, None] * rng.standard_normal((n, 2))


def grid(steps: int, rho: float = math.inf, high: float = 10.0, low: float = 0.05) -> np.ndarray:
    """Noise levels that are uniform in sigma^(1/rho); rho = inf: in log(sigma)."""
    u = np.linspace(0, 1, steps + 1)
    if math.isinf(rho):
        return high * (low / high) ** u
    return (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def main() -> None:
    from scipy.integrate import solve_ivp

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rho", type=float, default=math.inf, help="exponent of the grid (default: uniform in log)")
    parser.add_argument("--high", type=float, default=10.0, help="first level; at 1000 the start-ups' errors vanish")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 40, 80, 160], help="each twice the one before")
    args = parser.parse_args()
    torch.set_num_threads(1)
    mixture, steps, high = Mixture(), args.steps, args.high
    x = mixture.sample(16, high, seed=0)

    def slope(sigma, flat):
        y = flat.reshape(x.shape)
        return ((y - mixture.denoise(y, sigma)) / sigma).ravel()

    true = solve_ivp(slope, (high, 0.05), x.ravel(), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1].reshape(x.shape)

    print(f"{'deterministic: rms error at':<55}" + "".join(f"{n:<9}" for n in steps) + "NFE   order  of")
    for peer in (p for p in PEERS.values() if p.deterministic):
        ends, nfe = zip(*(peer.run(mixture.denoise, grid(n, args.rho, high), x, 0) for n in steps), strict=True)
        errors = [np.sqrt(np.mean((end - true) ** 2)) for end in ends]
        order = math.log2(errors[-2] / errors[-1])
        flag = "" if order > peer.order - 0.3 and errors[-1] < 0.1 else "ANOMALY"
        shown = "".join(f"{e:<9.1e}" for e in errors)
        print(f"{peer.name:<55}{shown}{nfe[-1]:<6}{order:<7.2f}{peer.order}  {flag}")

    print("\nlargest difference between peers of one formula, 20 steps, rho = 7 (where the step ratios vary)")
    by_ours = lambda p: p.ours or ""  # noqa: E731
    groups = itertools.groupby(sorted((p for p in PEERS.values() if p.deterministic and p.ours), key=by_ours), by_ours)
    for ours, group in groups:
        peers = list(group)
        ends = np.stack([p.run(mixture.denoise, grid(20, 7.0, high), x, 0)[0] for p in peers])
        if len(peers) > 1:
            print(f"{ours:<50}{np.ptp(ends, axis=0).max():<9.1e}" + ", ".join(p.name for p in peers))

    n = 2000
    print(f"\nstochastic: means of x, y, x^2, y^2 of {n} samples, 160 steps, less the truth, in standard errors")
    many, exact = mixture.sample(n, high, seed=1), mixture.sample(10**6, 0.05, seed=2)
    for peer in (p for p in PEERS.values() if not p.deterministic):
        end, nfe = peer.run(mixture.denoise, grid(160, args.rho, high), many, 0)
        got, want = np.concatenate([end, end**2], 1), np.concatenate([exact, exact**2], 1)
        scores = (got.mean(0) - want.mean(0)) / (want.std(0) / math.sqrt(n))
        few = [peer.run(mixture.denoise, grid(5, args.rho, high), many[:4], seed)[0] for seed in (3, 3, 4)]
        flag = "" if np.abs(scores).max() < 4 else "ANOMALY"
        flag += "" if (few[0] == few[1]).all() and (few[0] != few[2]).all() else " SEED HAS NO EFFECT"
        print(f"{peer.name:<55}{'  '.join(f'{z:6.1f}' for z in scores)}  NFE {nfe} {flag}")


if __name__ == "__main__":
    main()
