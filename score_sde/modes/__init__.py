"""The modes of the command line: train, plot, eval, sample, restore, list; `opening` is what all of them begin with."""

from .evaluation import eval_mode as eval_mode
from .listing import list_mode as list_mode
from .opening import prepare as prepare
from .opening import save_config as save_config
from .opening import settle as settle
from .opening import weights_of as weights_of
from .sampling import restore_mode as restore_mode
from .sampling import sample_mode as sample_mode
from .training import plot_mode as plot_mode
from .training import train_mode as train_mode
