r"""A classifier of noised CIFAR-10 images under the VP SDE, to guide configs/vp_cifar.py.

python -m score_sde.main --config=configs/classifier_cifar.py --mode=train

Not trained here.
"""

from vp_cifar import get_config as vp_cifar


def get_config():
    c = vp_cifar()
    c.model.name, c.model.num_classes = "classifier", 10
    c.model.nf, c.model.ch_mult, c.model.num_res_blocks, c.model.dropout = 64, (1, 2, 3, 4), 2, 0.1
    c.model.attn_resolutions = (16, 8)
    c.training.steps, c.training.final_eval = 200_000, True
    return c
