"""The command `python -m score_sde.weights`: look at published weights, take them in, hand ours out."""

import sys
from pathlib import Path

HELP = """\
Published weights in and out: Score-SDE (.pth of PyTorch, checkpoint_N of JAX), .pkl of NVlabs' edm, diffusers folders,
safetensors.

  python -m score_sde.weights inspect PATH            what it is, and whether it fits
  python -m score_sde.weights import PATH WORKDIR     a run, for --mode=sample, eval and train of score_sde.main
  python -m score_sde.weights export WORKDIR OUT      the EMA weights: OUT.safetensors, or a diffusers folder OUT

Diffusers folders say what network and process they hold, and so do .pkl of edm and our .safetensors:

  python -m score_sde.weights import ddpm-cifar10-32 runs/ddpm
  python -m score_sde.main --workdir=runs/ddpm --mode=sample --config.sampling.num_samples=16

Checkpoints of Score-SDE do not say it.  A config does, by which they are read:

  python -m score_sde.weights import checkpoint_24.pth runs/ncsnpp --config=configs/ve_cifar.py
      (configs/vp_cifar.py, subvp_cifar.py: DDPM++ continuous; ve_cifar.py: NCSN++ continuous; *_deep.py: the deep ones;
      vp_cifar_ddpm.py: DDPM; ve_cifar_discrete.py: NCSN++ of discrete levels; `inspect` tells by the parameters)

flags of inspect and import:
  --config=FILE.py     network, process and data; wins over what the file says
  --config.KEY=VALUE   one value, as in score_sde.main:
                         --config.sde.sigma_max=348  --config.data.dir=FOLDER  --config.data.name=images
  --trust              run code that the file's config names, of export too (see below)

Settings travel with the weights: process, label, scaling of the data, and the published sampler are in the run's
config.json.  Fine-tuning starts with a fresh optimizer at the step of the file; --config.training.steps says where it
ends.  A run never overwrites: WORKDIR and OUT must not be there yet.

Nothing in a file is executed.  A .safetensors, or a run to export, whose config names code (data.name=my_data:load) is
refused unless your record says that you wrote it; --trust lets it name code of modules on your Python's path.
"""


def main(argv: list[str]) -> int:
    """Run the command that `argv` (without the program's name) asks for; returns the exit code."""
    if not argv or {"--help", "-h"} & set(argv):
        print(HELP)
        return 0 if argv else 2
    from score_sde.main import telling

    return telling(lambda: _run(argv))


def _run(argv: list[str]) -> int:
    from score_sde.main import UsageError, take_switch
    from score_sde.weights import commands

    flags = [word for word in argv if word.startswith("-")]
    command, *paths = [word for word in argv if not word.startswith("-")]
    wanted = {"inspect": ["PATH"], "import": ["PATH", "WORKDIR"], "export": ["WORKDIR", "OUT"]}
    if command not in wanted:
        raise UsageError(f"expected inspect, import or export, got {command!r}. See --help.")
    if len(paths) != len(wanted[command]):
        raise UsageError(f"{command} needs {' and '.join(wanted[command])}, got {paths}. See --help.")
    if command == "export":
        flags, trust = take_switch(flags, "trust")
        if flags:
            raise UsageError(f"export takes no flag but --trust, got {flags[0]}. See --help.")
        return commands.export(Path(paths[0]), Path(paths[1]), trust=trust)
    if command == "inspect":
        return commands.inspect(Path(paths[0]), flags)
    return commands.import_run(Path(paths[0]), Path(paths[1]), flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
