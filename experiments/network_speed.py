"""Forward pass and training step of the DDPM U-Net against the same network of diffusers in torch: images/s on a CPU.

    python experiments/network_speed.py --check --torch=ENVIRONMENT/bin/python

Two networks on 32x32x3 in float32: 32 channels, multipliers 1 2 2 2, two blocks, batch 32; and that of DDPM on CIFAR-10
(35,746,307 parameters), batch 8.  A training step is noising, the loss of noise prediction, its gradient, clipping by
norm, Adam and the moving average.  Each side has a process of its own, with all cores, and an environment of its own
(`--torch`: one with torch and diffusers, this one unless given).  They run in turns, one idle while the other works;
the ratio is the median over the turns.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

NETS = {"small": (32, (1, 2, 2, 2), 32), "ddpm_cifar": (128, (1, 2, 2, 2), 8)}  # channels, multipliers, batch
DEVICES = {"small": 0, "ddpm_cifar": 1}  # of JAX on a CPU, as training.cpu_devices: that of small configs; of this one
ROUNDS, SECONDS = 7, 3.0  # turns; how long one lasts, at least


def jax_side(net: str) -> tuple[int, dict[str, Callable[[], None]]]:
    """(parameters, what to time) of this project's network."""
    import dataclasses

    import jax
    import numpy as np
    from common import config_of, training_step

    from score_sde.config import build
    from score_sde.models.cpu import set_up_cpu
    from score_sde.training import mesh

    nf, ch_mult, batch = NETS[net]
    set_up_cpu((batch,), DEVICES[net])
    config = config_of("ddpm_cifar")
    config.model.nf, config.model.ch_mult, config.model.dropout = nf, ch_mult, 0.0
    run = build(config)
    state, dispatch, sliced = training_step(run, dataclasses.replace(run.training, batch_size=batch))
    levels = np.random.default_rng(0).integers(0, 256, (1, batch, 32, 32, 3)).astype(np.uint8)
    levels = jax.device_put({"x": levels}, sliced)
    x, t = jax.device_put(
        (np.ones((batch, 32, 32, 3), np.float32), np.full(batch, 500.0, np.float32)),
        mesh.batch_sharding(mesh.data_mesh()),
    )
    apply = jax.jit(lambda params, x, t: run.experiment.network.apply({"params": params}, x, t))
    params = jax.device_put(jax.device_get(state.params), mesh.replicated(mesh.data_mesh()))  # the step eats its own

    def train() -> None:
        nonlocal state
        state, measured = dispatch(state, levels)
        jax.block_until_ready(measured)

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return count, {"forward": lambda: jax.block_until_ready(apply(params, x, t)), "training step": train}


def torch_side(net: str) -> tuple[int, dict[str, Callable[[], None]]]:
    """The same of diffusers, trained as its examples do."""
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    nf, ch_mult, batch = NETS[net]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    down, up = ["DownBlock2D"] * 4, ["UpBlock2D"] * 4
    down[1], up[2] = "AttnDownBlock2D", "AttnUpBlock2D"
    model = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=[nf * m for m in ch_mult],
        layers_per_block=2, down_block_types=down, up_block_types=up, attention_head_dim=None, norm_eps=1e-6,
        norm_num_groups=min(nf // 4, 32), flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, dropout=0.0,
    )  # fmt: skip
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=2e-4)
    scheduler = DDPMScheduler(1000)
    levels = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    x, t = torch.ones(batch, 3, 32, 32), torch.full((batch,), 500)

    def forward() -> None:
        with torch.inference_mode():
            model(x, t)

    def train() -> None:
        data = (levels + torch.rand(batch, 3, 32, 32)) / 128 - 1
        noise, times = torch.randn_like(data), torch.randint(0, 1000, (batch,))
        loss = torch.nn.functional.mse_loss(model(scheduler.add_noise(data, noise, times), times).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-4)

    return sum(p.numel() for p in parameters), {"forward": forward, "training step": train}


def serve(side: str, net: str) -> None:
    """Warm up, say how many parameters there are, then time whatever a line of the input names, in seconds a call."""
    count, timed = {"jax": jax_side, "torch": torch_side}[side](net)
    first = {}
    for what, call in timed.items():
        began = time.perf_counter()
        call()
        first[what] = time.perf_counter() - began
        call()
    print(json.dumps({"parameters": count, "first": first}), flush=True)
    for line in sys.stdin:
        call, calls, began = timed[line.strip()], 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            call()
            calls += 1
        print(json.dumps((time.perf_counter() - began) / calls), flush=True)


class Side:
    """A process that serves one side."""

    def __init__(self, python: str, side: str, net: str):
        command = [python, __file__, "--serve", side, net]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args[0]} could not serve; see above")
        return json.loads(line)

    def seconds(self, what: str) -> float:
        """Seconds of one call."""
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        sys.exit(serve(*sys.argv[2:]))
    from common import Figures, arguments

    parser = arguments(__doc__)
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON", help="of an environment with diffusers")
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    args = parser.parse_args()
    figures = Figures()
    for net in args.nets:
        nf, ch_mult, batch = NETS[net]
        ours, theirs = Side(sys.executable, "jax", net), Side(args.torch, "torch", net)
        counts = [side.about["parameters"] for side in (ours, theirs)]
        first = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in ours.about["first"].items())
        print(f"{net}: {counts[0]:,} parameters, {counts[1]:,} in torch; batch {batch}; first calls: {first}")
        for what in ("forward", "training step"):
            pairs = [(ours.seconds(what), theirs.seconds(what)) for _ in range(ROUNDS)]
            us, them = (batch / statistics.median(side) for side in zip(*pairs, strict=True))
            print(f"  {what}: {us:.1f} images/s, {them:.1f} in torch; ratios "
                  + " ".join(f"{b / a:.2f}" for a, b in pairs))  # fmt: skip
            figures.at_least(f"{net}: {what}, images/s over torch's", statistics.median(b / a for a, b in pairs), 1.0)
        ours.close()
        theirs.close()
    figures.end(args.check)
