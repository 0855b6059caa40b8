"""From a config to objects: the only room where strings become things.

`base_config()` is a complete config; a file under configs/ starts from it, sets what its experiment needs and returns
it from `get_config()`.  Settings of one particular SDE, network, weighting ... are None unless set; setting one that
the chosen kind does not have is an error, as is every other value that makes no sense: `build` reports all problems in
one message, before anything runs.

A name that a config may hold has its line in `names` (data sets: `datasets`, presets of samplers: `presets`); the
fields of the class that it stands for are the settings.
"""

from .build import Run as Run
from .build import build as build
from .samplers import choose_sampler as choose_sampler
from .samplers import describe_sampling as describe_sampling
from .samplers import use_preset as use_preset
from .template import ConfigError as ConfigError
from .template import base_config as base_config
from .template import flatten as flatten
from .template import from_json as from_json
from .template import get_config as get_config
