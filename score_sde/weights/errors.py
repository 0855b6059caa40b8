"""What is wrong with a file of weights, in one line."""

from score_sde.data import DataError


class WeightsError(DataError):
    """A file of weights cannot be read, or not be expressed; the message is one line that names the file or the key."""
