"""The command line: flags to mode, and every mistake of a user to one line."""

import contextlib
import errno
import logging
import os
import runpy
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from score_sde.reading import escaped, printable

HELP = """\
Score-based generative modelling through SDEs: train, sample, and evaluate likelihoods.

  python -m score_sde.main --config=configs/vp_digits.py --mode=train     train; run it again to resume
  python -m score_sde.main --workdir=runs/vp_digits --mode=eval           test bits/dim by the probability flow
  python -m score_sde.main --workdir=runs/vp_digits --mode=sample         a picture and an array of samples
  python -m score_sde.main --workdir=runs/vp_digits --mode=restore        test images from half of them
  python -m score_sde.main --workdir=runs/vp_digits --mode=plot           learning curve and loss by noise level
  python -m score_sde.main --workdir=runs/vp_digits --mode=list           what all of these have left, with settings

flags:
  --config=FILE.py     what to do: a file with get_config(), as in configs/; start your own from one of them
  --mode=MODE          train (the default), eval, sample, restore, plot or list
  --workdir=DIR        where the run lives; runs/<name of the config> by default.  All but train read the
                       config from there, so --config may be left out
  --config.KEY=VALUE   override a value, as often as you like:
                         --config.training.steps=20000  --config.training.batch_size=64
                         --config.sampling.num_samples=256  --config.sampling.steps=500
                         --config.sampling.sampler=unipc  --config.sampling.preset=song_ve  (all of them below)
                         --config.sampling.label=3  --config.guidance.kind=classifier_free  --config.guidance.scale=2
                         --config.restore.operator=super_resolve  --config.restore.method=moment_matching
                         --config.restore.noise=0.05  --config.restore.input=PHOTO.png
                         --config.sampling.trajectory=12 (from noise to data, as a strip and an animation)
                         --config.training.tensorboard=True (event files in tensorboard/)
                         --config.eval.probes=4  --config.eval.num_examples=100  --config.eval.passes=3
                         --config.eval.divergence=exact  --config.eval.solver=tsit5  --config.data.dir=PATH
                       sections: seed sde model objective data training sampling guidance restore eval;
                       score_sde/config/template.py lists all keys with their defaults
  --trust              run code that the run's config.json names, without a record of yours (see below)
  --help               this text

Published weights become runs by `python -m score_sde.weights import`; its --help says how.

What a run leaves in its workdir:
  config.json          config, overrides, versions, devices
  metrics.jsonl        step, loss, gradient norm, images/s; one JSON object a line
  checkpoints/         the newest states, and the newest before a loss that exploded; `train` resumes from the last
                       undamaged one, or, with a lower learning rate, from before the explosion
  plots/               learning curve, loss by noise level: at the end of training and by --mode=plot
  samples/             EMA samples from fixed noise at every snapshot; those of --mode=sample
  restored/            posterior samples of --mode=restore, their picture and figures
  eval/                likelihoods, a report each: likelihood_test_step00003800_n2000_1a2b3c4d.json of 2,000 examples,
                       all360 for n360 where they are all; the digits are of the settings.  Values per example beside it
Beside every array and picture lies a JSON file that says what made it.  Nothing is overwritten by something else: a
command with other settings, or another result, writes files of other names.
Ctrl-C, SIGTERM and SIGHUP save before they stop; a second one stops at once.  A GPU or TPU is used where JAX finds one.

Code runs from --config files, and as module:function of a config (data.name=my_data:load).  Such a name is taken from a
config file and the command line; from a run's config.json, that of guidance.workdir too, only with --trust, or where
your record ($SCORE_SDE_STATE, or ~/.local/state/score_sde) says that you trained the run in this place with this config
and this file of the module.  Do not start `python -m` in a folder that you do not trust: it imports what lies there.
What a config asks of memory at least is compared with what the machine has; SCORE_SDE_MAX_MEMORY=BYTES says otherwise.

How to sample (settings with their defaults are flags too, as in --config.sampling.order=3):
"""


MODES = ("train", "eval", "sample", "restore", "plot", "list")
# What the system says of a disk, a path or a pipe, wherever it is met: no defect of the program.
SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EPIPE}
SYSTEM |= {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ESTALE}


class UsageError(Exception):
    """A mistake on the command line, in one line."""


def run(argv: list[str] | None = None) -> None:
    """Entry point of `score-sde`: exits with main's code."""
    sys.unraisablehook = _unraisable
    sys.exit(main(sys.argv[1:] if argv is None else argv))


def _unraisable(what) -> None:
    """The usual, but for what TensorStore's threads say of each write that a failed save has left behind."""
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


def main(argv: list[str]) -> int:
    """Run the mode that `argv` (without the program's name) asks for; returns the exit code."""
    if not argv or {"--help", "-h", "-help", "--helpfull"} & set(argv):
        print(HELP)
        if argv:
            from score_sde.config import describe_sampling  # takes a second to import

            print(describe_sampling())
        return 0 if argv else 2
    handler = logging.StreamHandler()
    handler.setFormatter(Printable("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax is talkative, and what it raises is told below
    return telling(lambda: dispatch(*parse(argv)))


class _Escaped:
    """A stream to which names of files, which need not be text, do not bring control characters."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(escaped(text))

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


class Printable(logging.Formatter):
    """The same for what is logged."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


def telling(command: Callable[[], int]) -> int:
    """The exit code of a command; a mistake of the user's becomes one line and the code 1."""
    try:
        with contextlib.redirect_stdout(_Escaped(sys.stdout)):
            code = command()
        sys.stdout.flush()  # a full disk shows here rather than at the very end
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if (message := _message(error)) is None:
            raise
        words = (word if len(word) <= 300 else word[:60] + "..." for word in message.split())
        print(f"error: {printable(' '.join(words), 100_000)}", file=sys.stderr)
        return 1


def _message(error: Exception) -> str | None:
    """What to tell the user; None for a defect, which keeps its traceback."""
    if _is_ours(error):
        return str(error)
    if isinstance(error, OSError) and error.errno in SYSTEM:
        return f"{error.filename or 'the output'}: {error.strerror}. Make room, give access, or choose another place."
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        reason = (str(error).splitlines() or ["no more"])[0][:200]
        return f"out of memory ({reason}). Lower training.batch_size, sampling.batch_size or eval.batch_size."
    return None


def _is_ours(error: Exception) -> bool:
    """Whether an exception of this project carries a message for the user."""
    from score_sde.config import ConfigError
    from score_sde.data import DataError
    from score_sde.evaluation.likelihood import EvaluationError
    from score_sde.extras import MissingExtra
    from score_sde.files import WorkdirError
    from score_sde.training.loop import TrainingError

    ours = (UsageError, ConfigError, DataError, EvaluationError, MissingExtra, WorkdirError, TrainingError)
    ours += (FloatingPointError,)
    return isinstance(error, ours)


def parse(argv: list[str]):
    """(mode, workdir, config, overrides, trust) of a command line.

    Raises:
        UsageError: unknown flag, mode or config key; a value of the wrong type; a config file that does not load.
        ConfigError: the config of the run in the workdir is damaged, or names code that is not the user's.
    """
    from score_sde.config import get_config
    from score_sde.config.trust import own

    argv, file = take(argv, "config")
    argv, trust = take_switch(argv, "trust")
    _, workdir = take(argv, "workdir")
    if workdir is not None:
        leave(Path(workdir))
    if file is not None:
        config = load(file)
    elif workdir is None:
        raise UsageError("give --config=configs/NAME.py, or the --workdir of a run. See --help.")
    else:
        saved = Path(workdir) / "config.json"
        if not saved.is_file():
            raise UsageError(f"no run at {workdir}: expected {saved}. Train one with --config=... --mode=train.")
        config = get_config(saved, trust=trust or own({}, overridden(argv)))
    values, overrides = read_flags(argv, config)
    return values.mode, Path(values.workdir or Path("runs") / Path(file).stem), values.config, overrides, trust


def leave(workdir: Path) -> None:
    """Import nothing that lies in a workdir: where it is the current directory, Python would."""
    here = os.path.realpath(".")
    if Path(here).is_relative_to(os.path.realpath(workdir)):
        sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder or ".") != here]


def read_flags(argv: list[str], config):
    """(flag values, overrides of the config) of a command line; the overrides are applied to `config`.

    Raises:
        UsageError: unknown flag, mode or config key; a value of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    from score_sde.config import flatten
    from score_sde.config.validation import did_you_mean

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
    flags.DEFINE_enum("mode", "train", list(MODES), "what to do", flag_values=values)
    for name in overridden(argv):
        if name not in flatten(config):
            raise UsageError(f"unknown config key {name!r}.{did_you_mean(name, flatten(config))} See --help.")
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(["score_sde", *argv])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; flags are written --name=value. See --help.")
    return values, config_flags.get_override_values(values["config"])


def overridden(argv: list[str]) -> list[str]:
    """The keys of the config that a command line sets."""
    keys = (word.lstrip("-").partition("=")[0].partition(".") for word in argv if word.startswith("-"))
    return [name for first, _, name in keys if first in ("config", "noconfig")]


def take_switch(argv: list[str], name: str) -> tuple[list[str], bool]:
    """(argv without the switch, whether it was there)."""
    if any(word.startswith((f"--{name}=", f"-{name}=")) for word in argv):
        raise UsageError(f"--{name} takes no value. See --help.")
    rest = [word for word in argv if word not in (f"--{name}", f"-{name}")]
    return rest, len(rest) < len(argv)


def take(argv: list[str], name: str) -> tuple[list[str], str | None]:
    """(argv without the flag, the flag's last value or None), for --name=value, --name value and one dash."""
    rest, value, words = [], None, iter(argv)
    for word in words:
        flag, equals, text = word.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = text if equals else next(words, "")
            if value.startswith("-") or not value:
                raise UsageError(f"--{name} needs a value, got {value!r}; flags are written --name=value. See --help.")
        else:
            rest.append(word)
    return rest, value


def load(file: str):
    """The config of a file, complete and locked."""
    from ml_collections import ConfigDict

    from score_sde.config import base_config, flatten, use_preset

    if not Path(file).is_file():
        raise UsageError(f"no config file at {file!r}. Give --config=configs/NAME.py.")
    sys.path.insert(0, str(Path(file).resolve().parent))  # a config may import its neighbours, as a script may
    try:
        config = runpy.run_path(file)["get_config"]()
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f"{file}, line {lines[-1]}" if lines else file
        _, suggestion, rest = str(error).partition("Did you mean")  # ml_collections lists all keys before
        reason = suggestion + rest.rstrip("'\"") or f"{error!s:.200}"
        raise UsageError(f"{where} does not load: {type(error).__name__}: {reason}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{file}: get_config() must return a changed base_config(), got {type(config).__name__}.")
    if wrong := sorted(set(flatten(config)) ^ set(flatten(base_config()))):
        raise UsageError(f"{file}: expected the keys of base_config(); unknown or left out: {', '.join(wrong)}.")
    if config.sampling.preset is not None:
        use_preset(config, config.sampling.preset)
    sys.path.insert(0, str(Path(file).resolve().parent))  # for good: data.name may name a neighbour
    return config.lock()


def dispatch(mode: str, workdir: Path, config, overrides: dict, trust: bool) -> int:
    """Run a mode; returns the exit code."""
    from score_sde import modes

    config = modes.settle(mode, workdir, config, overrides, trust=trust)
    started = time.monotonic()
    if mode == "train":
        return modes.train_mode(workdir, config, overrides, command=_command(), started=started)
    elif mode == "eval":
        return modes.eval_mode(workdir, config)
    elif mode == "plot":
        return modes.plot_mode(workdir, config)
    elif mode == "restore":
        return modes.restore_mode(workdir, config, trust=trust)
    elif mode == "list":
        return modes.list_mode(workdir)
    else:
        return modes.sample_mode(workdir, config, trust=trust)


def _command() -> str:
    program = "score-sde" if os.path.basename(sys.argv[0]) == "score-sde" else "python -m score_sde.main"
    return " ".join([program, *sys.argv[1:]])


if __name__ == "__main__":
    run()
