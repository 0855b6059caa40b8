r"""VP SDE on CIFAR-10 with a small DDPM++, sized for two CPU cores: to try things in colour.

python -m score_sde.main --config=configs/vp_cifar_small.py --mode=train

17 min for 1,000 steps on 2 cores with other work on them, at 73 images/s in quiet stretches (Intel Xeon, JAX 0.12.0.1);
far too few for good samples, enough to colour grey images.  The kept weights are of the images re-encoded as JPEG, from
a folder: --config.data.name=images --config.data.channels=3 --config.data.size=32 --config.data.dir=FOLDER.
"""

from vp_fashion_mnist import get_config as vp_fashion_mnist


def get_config():
    c = vp_fashion_mnist()
    c.data.name, c.data.flip = "cifar10", True
    c.model.num_res_blocks, c.model.attn_resolutions = 1, (8,)
    c.training.steps, c.training.learning_rate, c.training.warmup, c.training.snapshot_every = 1000, 2e-3, 200, 1000
    c.eval.batch_size, c.eval.num_examples = 50, 500
    return c
