r"""VP SDE on a 2-D swiss roll with an MLP: two minutes on two cores, and a picture to look at.

python -m score_sde.main --config=configs/vp_toy.py --mode=train
2 CPU cores (Intel Xeon, JAX 0.12.0.1): test 0.690 +- 0.007 nats/dim.
"""

from score_sde.config import base_config


def get_config():
    c = base_config()
    c.data.name = "swiss_roll"
    c.sde.name, c.sde.beta_min, c.sde.beta_max = "vp", 0.1, 20.0
    c.model.name, c.model.features = "mlp", (128, 128, 128)
    c.objective.times = "stratified"
    c.training.batch_size, c.training.steps, c.training.steps_per_dispatch = 512, 10_000, 10
    c.training.learning_rate, c.training.warmup, c.training.ema_rate = 2e-3, 200, 0.999
    c.training.log_every, c.training.checkpoint_every, c.training.snapshot_every = 1000, 5000, 5000
    c.training.final_eval = True
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size = 500, 5000, 5000
    c.eval.divergence, c.eval.batch_size, c.eval.num_examples = "exact", 1000, 2000
    return c
