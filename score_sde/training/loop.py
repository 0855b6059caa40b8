"""The training loop: restore, step, report, save; stop cleanly when asked to."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.data import batches
from score_sde.training.checkpoints import Checkpoints
from score_sde.training.experiment import Task
from score_sde.training.mesh import batch_sharding, data_mesh, replicated
from score_sde.training.progress import EventFiles, MetricsFile, Progress
from score_sde.training.state import State, adam, init_state, make_dispatch, make_step


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line that says why and what to do."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the state has been saved."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"interrupted at step {step}")
        self.signum, self.step = signum, step


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the defaults are those published for CIFAR-10 (Song et al. 2021, appendix H)."""

    batch_size: int = 128
    steps: int = 1_300_000
    steps_per_dispatch: int = 1  # steps in one program: for short steps
    learning_rate: float = 2e-4
    warmup: int = 5000
    clip_norm: float = 1.0  # 0: off
    ema_rate: float = 0.9999
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    log_every: int = 100
    checkpoint_every: int = 5000
    snapshot_every: int = 50_000  # a grid of EMA samples
    max_bad_steps: int = 20  # steps in a row without a finite loss and gradient before giving up
    tensorboard: bool = False  # event files beside metrics.jsonl

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = [
            f"{name} must be at least {least}, got {getattr(self, name)}"
            for name, least in [
                ("batch_size", 1), ("steps", 1), ("steps_per_dispatch", 1), ("warmup", 0), ("clip_norm", 0),
                ("log_every", 1), ("checkpoint_every", 1), ("snapshot_every", 1), ("max_bad_steps", 1),
            ]
            if not getattr(self, name) >= least
        ]  # fmt: skip
        found += [
            f"{name} must be positive, got {getattr(self, name)}"
            for name in ("learning_rate", "eps")
            if not 0 < getattr(self, name) < float("inf")
        ]
        found += [
            f"{name} must be in [0, 1), got {getattr(self, name)}"
            for name in ("ema_rate", "beta1", "beta2")
            if not 0 <= getattr(self, name) < 1
        ]
        found += [
            f"{name} must be a multiple of steps_per_dispatch = {self.steps_per_dispatch}, got {getattr(self, name)}"
            for name in ("steps", "log_every", "checkpoint_every", "snapshot_every")
            if self.steps_per_dispatch > 0 and getattr(self, name) % self.steps_per_dispatch
        ]
        return found


class _Signals:
    """Remembers the first SIGINT or SIGTERM; a second one acts as usual."""

    def __enter__(self) -> "_Signals":
        self.received: int | None = None
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)

    def __exit__(self, *_) -> None:
        self._restore()


def initial_state(experiment: Task, options: TrainingOptions, seed: int, sharding: Any = None) -> Callable[[], State]:
    """A compiled function that makes the state at step 0, on the devices of `sharding`."""
    optimizer = _optimizer(options)
    # It runs once: for CPUs, optimising hundreds of random draws takes a minute for a published network, for nothing.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(lambda: init_state(experiment.init, optimizer, seed), out_shardings=sharding, compiler_options=quick)


def state_of(params: dict, ema: dict, step: int, options: TrainingOptions, seed: int) -> State:
    """The state of a run that goes on from given weights, with a fresh optimizer."""
    state = init_state(lambda key: params, _optimizer(options), seed)
    return replace(state, ema=ema, step=jnp.asarray(step, jnp.int32))


def abstract_state(experiment: Task, options: TrainingOptions, seed: int) -> State:
    """Shapes of the state, replicated over the devices here: what a checkpoint is restored to."""
    shapes, sharding = jax.eval_shape(initial_state(experiment, options, seed)), replicated(data_mesh())
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def _optimizer(options: TrainingOptions):
    return adam(
        options.learning_rate, options.warmup, options.clip_norm, options.beta1, options.beta2, options.eps
    )  # fmt: skip


def train(
    experiment: Task,
    options: TrainingOptions,
    workdir: Path,
    *,
    seed: int = 0,
    flip: bool = False,
    snapshot: Callable[[int, State], bytes | None] | None = None,
) -> State:
    """Train until `options.steps`, from the newest checkpoint in `workdir` if there is one.

    Writes checkpoints/, metrics.jsonl and, where asked for, tensorboard/; `snapshot(step, state)` is called at step 0
    and every `snapshot_every`, and may return a PNG for TensorBoard.  The state at a step is a function of the
    arguments alone (on a CPU, to the bit, for one version and device count).

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; the state is saved.
        TrainingError: `max_bad_steps` steps in a row had no finite loss and gradient.
        WorkdirError: no checkpoint can be read.
        MissingExtra: `options.tensorboard` without tensorboardX.
    """
    mesh = data_mesh()
    whole, sliced = replicated(mesh), batch_sharding(mesh, axis=1)
    make = initial_state(experiment, options, seed, whole)
    dispatch = make_dispatch(
        make_step(experiment.loss, _optimizer(options), options.ema_rate), state_sharding=whole, batch_sharding=sliced
    )
    with _Signals() as signals, Checkpoints(workdir) as checkpoints, ExitStack() as open_files:
        state = checkpoints.restore(abstract_state(experiment, options, seed))
        fresh = state is None
        state = make() if fresh else state
        step = int(state.step)
        metrics, events = [MetricsFile(Path(workdir) / "metrics.jsonl", step)], None
        if options.tensorboard and step < options.steps:
            events = EventFiles(Path(workdir) / "tensorboard", 0 if fresh else step + 1)
            metrics.append(events)
        for file in metrics:
            open_files.callback(file.close)

        def show(step: int, state: State) -> None:
            png = snapshot(step, state) if snapshot else None
            if events and png is not None:
                events.picture(step, png)

        if fresh:
            show(0, state)
        stream = batches(
            experiment.load("train"), options.batch_size, seed, start=step, flip=flip, stack=options.steps_per_dispatch
        )
        progress = Progress("train", options.steps, step)
        try:
            advance = _steps(dispatch, state, step, stream, sliced, options, metrics, progress)
            for step, state in advance:
                if signals.received:
                    checkpoints.save(step, state)
                    checkpoints.wait()
                    raise Interrupted(signals.received, step)
                if step % options.checkpoint_every == 0 or step == options.steps:
                    checkpoints.save(step, state)
                if step % options.snapshot_every == 0 or step == options.steps:
                    show(step, state)
        finally:
            progress.close()
            stream.close()
    return state


def _steps(
    dispatch, state: State, step: int, stream, sharding, options: TrainingOptions, metrics: list, progress
) -> Iterator[tuple[int, State]]:
    """Advance to `options.steps`, yielding after each dispatch, and report every `log_every` steps."""
    window, since, began = [], step, time.monotonic()
    while step < options.steps:
        batch = jax.device_put(next(stream), sharding)
        state, measured = dispatch(state, batch)
        step += options.steps_per_dispatch
        window.append(measured)  # stays on the device: fetching each would wait for each
        if step % options.log_every == 0 or step == options.steps:
            window, bad, skipped = jax.device_get((window, state.bad_steps, state.skipped))
            now = time.monotonic()
            rate = options.batch_size * (step - since) / (now - began)
            loss = np.concatenate([m.loss for m in window])
            norm = np.concatenate([m.grad_norm for m in window])
            finite = np.isfinite(loss) & np.isfinite(norm)
            mean_loss, mean_norm = (float(v[finite].mean()) if finite.any() else None for v in (loss, norm))
            for file in metrics:
                file.write(
                    step=step, loss=mean_loss, grad_norm=mean_norm, skipped=int(skipped),
                    images_per_second=round(rate, 1),
                )  # fmt: skip
            shown = "nan" if mean_loss is None else f"{mean_loss:.4f}"
            progress.update(step, f"loss {shown}  {rate:.0f} img/s" + (f"  skipped {skipped}" if skipped else ""))
            if bad >= options.max_bad_steps:
                raise TrainingError(
                    f"the last {bad} steps up to {step} had no finite loss and gradient; the weights are as before "
                    "them. Lower training.learning_rate, raise training.warmup, or look for bad values in the data."
                )
            window, since, began = [], step, now
        yield step, state
