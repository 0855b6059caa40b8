"""The training loop: restore, step, report, save; stop cleanly when asked to."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.data import batches
from score_sde.training.checkpoints import Checkpoints
from score_sde.training.experiment import Task
from score_sde.training.mesh import batch_sharding, data_mesh, replicated
from score_sde.training.progress import EventFiles, MetricsFile, Progress, tell
from score_sde.training.resume import resume, settings_of
from score_sde.training.signals import Signals
from score_sde.training.state import State, adam, init_state, make_dispatch, make_step
from score_sde.training.window import Pending, Window


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line that says why and what to do."""


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or SIGHUP: the state has been saved.

    abandoned: a snapshot was dropped, whose thread may still be at work; it writes nothing that is not whole.
    """

    def __init__(self, signum: int, step: int, abandoned: bool):
        super().__init__(f"interrupted at step {step}")
        self.signum, self.step, self.abandoned = signum, step, abandoned


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
    snapshot_every: int = 50_000  # a grid of EMA samples, and a checkpoint
    max_bad_steps: int = 20  # steps in a row without a finite loss and gradient before giving up
    new_data: bool = False  # whether a run may go on with other data than before
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
    has_snapshot: Callable[[int], bool] = lambda step: True,
    identity: dict[str, Any] | None = None,
) -> State:
    """Train until `options.steps`, from the newest checkpoint in `workdir` if there is one.

    Writes checkpoints/, metrics.jsonl and, where asked for, tensorboard/; `snapshot(step, state)` is called at step 0,
    every `snapshot_every` and at the end, and may return a PNG for TensorBoard; a step that training is resumed at and
    that lacks its own, by `has_snapshot(step)`, gets it then.  `identity` says what is trained on what, for
    `resume.check`, and is kept with every checkpoint.  The state at a step, and what the metrics say up to it, is a
    function of the arguments alone (on a CPU, to the bit, for one version and device count).

    Learning rate, warmup and clip_norm may change from one call to the next, which is told and noted in the metrics; if
    the run had left the good way, as `Window.exploded` defines it, it then goes back to the newest good checkpoint.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or SIGHUP came; the state is saved.
        TrainingError: `max_bad_steps` steps in a row had no finite loss and gradient.
        WorkdirError: no checkpoint can be read; the disk takes no more; the workdir has gone.
        MissingExtra: `options.tensorboard` without tensorboardX.
    """
    mesh = data_mesh()
    whole, sliced = replicated(mesh), batch_sharding(mesh, axis=1)
    make = initial_state(experiment, options, seed, whole)
    step_fn = make_step(experiment.loss, _optimizer(options), options.ema_rate, options.max_bad_steps)
    dispatch = make_dispatch(step_fn, state_sharding=whole, batch_sharding=sliced)
    with Signals() as signals, Checkpoints(workdir) as checkpoints, ExitStack() as open_files:
        state, window = resume(checkpoints, abstract_state(experiment, options, seed), options)
        fresh = state is None
        state = make() if fresh else state
        step = int(state.step)
        metrics, events = [MetricsFile(Path(workdir) / "metrics.jsonl", step, window.reports)], None
        if options.tensorboard and step < options.steps:
            events = EventFiles(Path(workdir) / "tensorboard", 0 if fresh else step + 1)
            metrics.append(events)
        for file in metrics:
            open_files.callback(file.close)
        notes = {"identity": identity or {}, "settings": settings_of(options)}
        run = _Steps(dispatch, state, step, window, sliced, options, metrics)

        def save() -> None:
            good = run.settle() == 0 and not run.window.exploded()
            safe = checkpoints.newest_good()
            if not good and safe is not None and safe == checkpoints.steps()[-1]:
                tell(f"note: at step {run.step} the loss is no longer good; checkpoint {safe} is kept.")
            checkpoints.save(run.step, run.state, good=good, window=run.window.to_json(), **notes)

        def show() -> bool:
            """Whether a snapshot was dropped, since a signal came."""
            if signals.received or not snapshot:
                return False
            at, shown = run.step, run.state

            def take() -> None:
                try:
                    png = snapshot(at, shown)
                except FloatingPointError as error:
                    return tell(f"note: no samples at step {at}, training goes on: {error}")
                if events and png is not None:
                    events.picture(at, png)

            return not signals.unless_received(take)

        def stop_if_asked(abandoned: bool) -> None:
            if signals.received:
                if not abandoned:  # else it is saved, or is step 0, and what is abandoned may hold the device
                    save()
                checkpoints.wait()
                raise Interrupted(signals.received, run.step, abandoned)

        def due(every: int) -> bool:
            return run.step % every == 0 or run.step == options.steps

        if fresh or (due(options.snapshot_every) and not has_snapshot(step)):
            stop_if_asked(show())
        source = experiment.load("train")
        stream = batches(source, options.batch_size, seed, start=step, flip=flip, stack=options.steps_per_dispatch)
        try:
            while run.step < options.steps:
                run.advance(next(stream))
                if due(options.log_every):
                    run.report()
                if due(options.checkpoint_every) or due(options.snapshot_every):
                    save()
                stop_if_asked(due(options.snapshot_every) and show())
        finally:
            run.progress.close()
            stream.close()
    return run.state


class _Steps:
    """The state on its way to `options.steps`, and what is to be said of it."""

    def __init__(
        self, dispatch: Callable, state: State, step: int, window: Window, sharding: Any, options: TrainingOptions,
        files: list,
    ):  # fmt: skip
        self.state, self.step, self.window = state, step, window
        self._dispatch, self._sharding, self._options, self._files = dispatch, sharding, options, files
        self._pending = Pending(int(state.bad_steps))
        # Dispatches that are not looked at yet: as many as may be bad, since the device halts by itself after those.
        self._lag = -(-options.max_bad_steps // options.steps_per_dispatch)
        self._since, self._began = step, time.monotonic()
        self.progress = Progress("train", options.steps, step)

    def advance(self, batch: Any) -> None:
        """One dispatch.

        Raises:
            TrainingError: training has halted, up to 2 `_lag` dispatches ago: to look at each would be to wait for it.
        """
        self.state, measured = self._dispatch(self.state, jax.device_put(batch, self._sharding))
        self.step += self._options.steps_per_dispatch
        self._pending.append(measured)
        if len(self._pending) >= 2 * self._lag:
            self.settle(leave=self._lag)

    def settle(self, leave: int = 0) -> int:
        """Take all that was measured, but of the last `leave` dispatches, into the window.

        Returns how many steps in a row, up to the last one taken, were bad.

        Raises:
            TrainingError: training has halted.
        """
        self._pending.fetch(self.window, leave)
        bad = self._pending.bad_steps
        if bad >= self._options.max_bad_steps:
            self._pending.fetch(self.window)
            self.step = int(self.state.step)
            self._write()
            raise TrainingError(
                f"the last {bad} steps up to {self.step} had no finite loss and gradient; the weights are as before "
                "them. Lower training.learning_rate or raise training.warmup, and run the same command again: it goes "
                "back to the newest good checkpoint; or look for bad values in the data."
            )
        return bad

    def report(self) -> None:
        """Close the window: a line of metrics, and one for who watches."""
        self.settle()
        self._write()
        self.window = self.window.next()

    def _write(self) -> None:
        now = time.monotonic()
        rate = self._options.batch_size * (self.step - self._since) / (now - self._began)
        (loss, norm), skipped = self.window.means(), int(self.state.skipped)
        for file in self._files:
            file.write(
                step=self.step, loss=loss, grad_norm=norm, skipped=skipped, images_per_second=round(rate, 1),
                **self.window.changed,
            )  # fmt: skip
        shown = "nan" if loss is None else f"{loss:.4f}"
        self.progress.update(self.step, f"loss {shown}  {rate:.0f} img/s" + (f"  skipped {skipped}" if skipped else ""))
        self._since, self._began = self.step, now
