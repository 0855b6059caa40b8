"""What a network predicts, and how to turn it into a score.

With x_t = alpha x_0 + sigma eps, all usual targets are linear in the data and the noise, F = u(t) x_0 + w(t) eps:

    noise     F = eps                              u = 0         w = 1
    data      F = x_0                              u = 1         w = 0
    score     F = -eps / sigma                     u = 0         w = -1/sigma
    velocity  F = alpha' x_0 + sigma' eps          u = alpha'    w = sigma'     (the flow's dx/dt given x_0)
    v         F = alpha eps - sigma x_0            u = -sigma    w = alpha
    EDM's F   F = (sigma x_0/sd - alpha sd eps)/r  r^2 = sigma^2 + alpha^2 sd^2, sd the standard deviation of the data

Together with x_t this is a 2 x 2 system.  Its determinant d = alpha w - sigma u vanishes for no kind, so each converts
into each:  eps = (alpha F - u x)/d,  x_0 = (w x - sigma F)/d,  score = -eps/sigma.

The velocity of RectifiedFlow is flow matching's eps - x_0; EDM's F with VP and sd = 1 is minus v.
EDM's F is stated by Karras et al. (2022, eq. 7) for alpha = 1; here it is the same for x/alpha.
"""

from abc import abstractmethod
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_sde.arrays import expand
from score_sde.sdes import AffineSDE, Times, _slope
from score_sde.trees import Frozen, Number

State = Float[Array, "b ..."]
Predict = Callable[[Array, Array], Array]  # predict(x, t): x (B, *event), t (B,) -> F like x


class Prediction(Frozen):
    """A quantity F = u(t) x_0 + w(t) eps that a network may predict from (x_t, t).  A subclass states u and w."""

    @abstractmethod
    def coefficients(self, sde: AffineSDE, t: Times) -> tuple[Times, Times]:
        """(u, w) at times t."""
        raise TypeError(f"{type(self).__name__} must define coefficients(sde, t)")

    def input_scale(self, sde: AffineSDE, t: Times) -> Times:
        """What the network's input is multiplied with (1 unless the kind comes with a preconditioning)."""
        return jnp.ones_like(t)

    def target(self, sde: AffineSDE, x0: State, noise: State, t: Float[Array, " b"]) -> State:
        """F of the pair (x_0, eps)."""
        u, w = self.coefficients(sde, t)
        return expand(u, x0) * x0 + expand(w, x0) * noise

    def data_and_noise(self, sde: AffineSDE, output: State, x: State, t: Float[Array, " b"]) -> tuple[State, State]:
        """The (x_0, eps) that belong to an output F at x_t."""
        u, w = self.coefficients(sde, t)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        d = alpha * w - sigma * u
        x0 = expand(w / d, x) * x - expand(sigma / d, x) * output
        noise = expand(alpha / d, x) * output - expand(u / d, x) * x
        return x0, noise

    def score(self, sde: AffineSDE, output: State, x: State, t: Float[Array, " b"]) -> State:
        """The score -eps/sigma that belongs to an output F at x_t."""
        return -self.data_and_noise(sde, output, x, t)[1] / expand(sde.sigma(t), x)

    def score_gain(self, sde: AffineSDE, t: Times) -> Times:
        """|d score / d F| = alpha / (sigma |d|): an error of F times this is the error of the score."""
        u, w = self.coefficients(sde, t)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return jnp.abs(alpha / (sigma * (alpha * w - sigma * u)))


class Noise(Prediction):
    """F = eps (DDPM; the published VP and sub-VP networks)."""

    def coefficients(self, sde, t):
        return jnp.zeros_like(t), jnp.ones_like(t)


class Data(Prediction):
    """F = x_0."""

    def coefficients(self, sde, t):
        return jnp.ones_like(t), jnp.zeros_like(t)


class Score(Prediction):
    """F = grad log p_t(x_t | x_0) = -eps / sigma(t) (the published VE networks, which divide by sigma themselves)."""

    def coefficients(self, sde, t):
        return jnp.zeros_like(t), -1 / sde.sigma(t)


class Velocity(Prediction):
    """F = alpha'(t) x_0 + sigma'(t) eps, the velocity of the probability flow (flow matching)."""

    def coefficients(self, sde, t):
        return _slope(sde.alpha, t)[1], _slope(sde.sigma, t)[1]


class V(Prediction):
    """F = alpha(t) eps - sigma(t) x_0, diffusers' v_prediction (Salimans & Ho 2022, appendix D)."""

    def coefficients(self, sde, t):
        return -sde.sigma(t), sde.alpha(t)


class EDM(Prediction):
    """EDM's F with its preconditioning: input, output and skip scaled so that all have unit variance.

    D = c_skip x/alpha + c_out F estimates x_0 from s = sigma/alpha, c_skip = sd^2/(s^2 + sd^2),
    c_out = s sd/sqrt(s^2 + sd^2), and the network sees c_in x/alpha, c_in = 1/sqrt(s^2 + sd^2)
    (Karras et al. 2022, table 1).
    """

    sigma_data: Number = 0.5

    def check(self):
        if not self.sigma_data > 0:
            raise ValueError(f"predictions.EDM: sigma_data must be positive, got {self.sigma_data}.")

    def coefficients(self, sde, t):
        scale = self.input_scale(sde, t)
        return sde.sigma(t) / self.sigma_data * scale, -sde.alpha(t) * self.sigma_data * scale

    def input_scale(self, sde, t):
        return 1 / jnp.sqrt(sde.sigma(t) ** 2 + (sde.alpha(t) * self.sigma_data) ** 2)


def convert(
    sde: AffineSDE, output: State, x: State, t: Float[Array, " b"], source: Prediction, to: Prediction
) -> State:
    """An output of kind `source` at (x_t, t) as the output of kind `to`."""
    x0, noise = source.data_and_noise(sde, output, x, t)
    return to.target(sde, x0, noise, t)


class Network(Frozen):
    """A network as a prediction `F(x, t)`: `apply(c_in(t) x, label(t))`, with the label convention of the SDE.

    `apply(x, label)` takes arrays (B, *event) and (B,); `jax.tree_util.Partial(fn, params)` keeps weights traced.
    """

    apply: Predict
    sde: AffineSDE
    prediction: Prediction

    def __call__(self, x: State, t: Float[Array, " b"]) -> State:
        return self.apply(expand(self.prediction.input_scale(self.sde, t), x) * x, self.sde.label(t))


class PredictedScore(Frozen):
    """The score of a prediction: `score(x, t)` from `predict(x, t) -> F`, usable wherever a score is.

    >>> import jax.numpy as jnp, score_sde as ss
    >>> score = ss.PredictedScore(lambda x, t: x, ss.VP(), ss.predictions.Noise())
    >>> score(jnp.ones((1, 2)), jnp.array([1.0])).shape
    (1, 2)
    """

    predict: Predict
    sde: AffineSDE
    prediction: Prediction

    def __call__(self, x: State, t: Float[Array, " b"]) -> State:
        return self.prediction.score(self.sde, self.predict(x, t), x, t)
