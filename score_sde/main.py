"""The command line: flags to mode, and every mistake of a user to one line."""

import logging
import os
import sys
import time
from pathlib import Path

HELP = """\
Score-based generative modelling through SDEs: train, sample, and evaluate likelihoods.

  python -m score_sde.main --config=configs/vp_digits.py --mode=train     train; run it again to resume
  python -m score_sde.main --workdir=runs/vp_digits --mode=eval           test bits/dim by the probability flow
  python -m score_sde.main --workdir=runs/vp_digits --mode=sample         a picture and an array of samples

flags:
  --config=FILE.py     what to do: a file with get_config(), as in configs/; start your own from one of them
  --mode=MODE          train (the default), eval or sample
  --workdir=DIR        where the run lives; runs/<name of the config> by default.  eval and sample read the
                       config from there, so --config may be left out
  --config.KEY=VALUE   override a value, as often as you like:
                         --config.training.steps=20000  --config.training.batch_size=64
                         --config.sampling.num_samples=256  --config.sampling.steps=500
                         --config.eval.probes=4  --config.eval.num_examples=100  --config.data.dir=PATH
                       sections: seed sde model objective data training sampling eval; score_sde/config.py lists
                       all keys with their defaults
  --help               this text

What a run leaves in its workdir:
  config.json          config, overrides, versions, devices
  metrics.jsonl        step, loss, gradient norm, images/s; one JSON object a line
  checkpoints/         the newest states; `train` resumes from the last undamaged one
  samples/             EMA samples from fixed noise at every snapshot; those of --mode=sample
  eval/                likelihood.json, and the values per example
Ctrl-C and SIGTERM save before they stop.  A GPU or TPU is used where JAX finds one.
"""


class UsageError(Exception):
    """A mistake on the command line, in one line."""


def run(argv: list[str] | None = None) -> None:
    """Entry point of `score-sde`: exits with main's code."""
    sys.exit(main(sys.argv[1:] if argv is None else argv))


def main(argv: list[str]) -> int:
    """Run the mode that `argv` (without the program's name) asks for; returns the exit code."""
    if not argv or {"--help", "-h", "-help", "--helpfull"} & set(argv):
        print(HELP)
        return 0 if argv else 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax is talkative
    try:
        mode, workdir, config, overrides = parse(argv)
        return dispatch(mode, workdir, config, overrides)
    except Exception as error:
        if not _is_ours(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _is_ours(error: Exception) -> bool:
    """Whether an exception carries a message for the user; anything else is a defect and keeps its traceback."""
    from score_sde.config import ConfigError
    from score_sde.data import DataError
    from score_sde.files import WorkdirError
    from score_sde.training.loop import TrainingError

    return isinstance(error, (UsageError, ConfigError, DataError, WorkdirError, TrainingError, FloatingPointError))


def parse(argv: list[str]):
    """(mode, workdir, config, overrides) of a command line.

    Raises:
        UsageError: unknown flag, mode or config key; a value of the wrong type; a config file that does not load.
    """
    from absl import flags
    from ml_collections import config_flags

    from score_sde import config as configs

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "config file", lock_config=True, flag_values=values)
    flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
    flags.DEFINE_enum("mode", "train", ["train", "eval", "sample"], "what to do", flag_values=values)
    argv = list(argv)
    given = [a for a in argv if a == "--config" or a.startswith("--config=")]
    if not given:
        workdir = next((a.split("=", 1)[1] for a in argv if a.startswith("--workdir=")), None)
        if workdir is None:
            raise UsageError("give --config=configs/NAME.py, or the --workdir of a run. See --help.")
        saved = Path(workdir) / "config.json"
        if not saved.is_file():
            raise UsageError(f"no run at {workdir}: expected {saved}. Train one with --config=... --mode=train.")
        argv.insert(0, f"--config={configs.__file__}:{saved}")
    else:  # a config may import its neighbours, as a script may
        sys.path.insert(0, str(Path(given[0].partition("=")[2].partition(":")[0]).resolve().parent))
    try:
        rest = values(["score_sde", *argv])[1:]
        config = values.config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        raise UsageError(_explain(error)) from error
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; flags are written --name=value. See --help.")
    if config is None:
        raise UsageError("give --config=configs/NAME.py. See --help.")
    overrides = config_flags.get_override_values(values["config"])
    name = Path(values["config"].config_filename).stem
    return values.mode, Path(values.workdir or Path("runs") / name), config, overrides


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, AttributeError):  # ml_collections: 'lrr' ... Did you mean "lr" instead of "lrr"?
        return f"unknown config key: {text}"
    if isinstance(error, OSError) and error.filename:
        return f"cannot read the config {error.filename}: {error.strerror}."
    return text or type(error).__name__


def dispatch(mode: str, workdir: Path, config, overrides: dict) -> int:
    """Run a mode; returns the exit code."""
    from score_sde import modes

    config = modes.settle(mode, workdir, config, overrides)
    started = time.monotonic()
    if mode == "train":
        return modes.train_mode(workdir, config, overrides, command=_command(), started=started)
    elif mode == "eval":
        return modes.eval_mode(workdir, config)
    else:
        return modes.sample_mode(workdir, config)



def _command() -> str:
    program = "score-sde" if os.path.basename(sys.argv[0]) == "score-sde" else "python -m score_sde.main"
    return " ".join([program, *sys.argv[1:]])


if __name__ == "__main__":
    run()
