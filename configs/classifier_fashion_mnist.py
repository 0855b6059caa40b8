r"""A classifier of noised Fashion-MNIST images under the VP SDE, to guide configs/vp_fashion_mnist.py.

python -m score_sde.main --config=configs/classifier_fashion_mnist.py --mode=train
"""

from vp_fashion_mnist import get_config as vp_fashion_mnist


def get_config():
    c = vp_fashion_mnist()
    c.model.name, c.model.num_classes = "classifier", 10
    c.model.nf, c.model.ch_mult, c.model.num_res_blocks, c.model.dropout = 16, (1, 2, 4), 1, 0.1
    c.training.steps, c.training.final_eval = 4000, True
    return c
