r"""Your own images: a small DDPM++ for 32x32 pixels on a CPU.  Copy this file and change what the comments name.

python -m score_sde.main --config=configs/custom_images.py --mode=train --config.data.dir=FOLDER

FOLDER holds train/ and test/, or images (a tenth of them is kept for testing); subfolders are classes; PNG, JPEG, WebP.
The first lines on the screen say what was found, and what standard deviation and largest distance it has.
"""

from score_sde.config import base_config


def get_config():
    c = base_config()
    c.data.name = "images"
    c.data.dir = "data/images"  # the folder
    c.data.channels = 3  # 1: grey, 3: RGB
    c.data.size = 32  # shorter side, then the middle square; None: as the images are, all of one size
    c.data.flip = True  # False where left and right differ: letters, digits, maps
    c.sde.name = "vp"
    # Height and width are halved len(ch_mult) - 1 times and must allow it.  On a GPU: nf 128, ch_mult (1, 2, 2, 2),
    # num_res_blocks 4 and attention at 16 are the published network for 32x32 (configs/vp_cifar.py).
    c.model.nf, c.model.ch_mult, c.model.num_res_blocks = 32, (1, 2, 2), 1
    c.model.attn_resolutions, c.model.dropout = (8,), 0.1
    c.objective.times = "stratified"
    c.training.batch_size, c.training.steps = 32, 20_000
    c.training.learning_rate, c.training.warmup, c.training.ema_rate = 5e-4, 500, 0.999
    c.training.log_every, c.training.checkpoint_every, c.training.snapshot_every = 50, 500, 2000
    c.sampling.sampler, c.sampling.grid, c.sampling.steps = "sde_dpm_solver_pp", "log_snr", 100
    c.sampling.num_samples, c.sampling.batch_size = 64, 64
    c.eval.batch_size, c.eval.num_examples = 32, 500
    c.eval.rtol = c.eval.atol = 3e-4
    return c
