"""A diffusers folder of a tiny network: which file of it is read, what it leaves unsaid, and its table of classes."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from score_sde.config import build
from score_sde.main import load
from score_sde.models import UNet
from score_sde.weights.__main__ import main
from score_sde.weights.commands import read
from score_sde.weights.conventions import PUBLISHED, check_label
from score_sde.weights.errors import WeightsError
from score_sde.weights.naming import shapes, slots
from score_sde.weights.opening import STEM, Found
from score_sde.weights.unet2d import fields

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = dict(
    _class_name="UNet2DModel", sample_size=8, block_out_channels=[8], layers_per_block=1, norm_num_groups=4,
    down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], attention_head_dim=None, num_class_embeds=3,
    flip_sin_to_cos=False,
)  # fmt: skip


def save(folder, name, dtype, value=1.5):
    """The folder with a file of constant tensors, of a dtype; the class table has no row for a null class."""
    found, shape = fields(TINY)
    tensors, header, data = {}, {}, b""
    for slot in slots(UNet(**found), shape, "diffusers"):
        size = slot.shape if slot.names[0][1] != "torch" else (slot.shape[-1], slot.shape[-2], *slot.shape[:-2])
        size = (3, *size[1:]) if slot.path == "classes/embedding" else size
        tensors[slot.names[0][0]] = np.full(size, value, dtype)
    for key, tensor in tensors.items():
        kind = {"float16": "F16", "float32": "F32"}[tensor.dtype.name]
        end = len(data) + tensor.nbytes
        header[key] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(data), end]}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY))
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_variant_of_half_precision_is_found_and_told(tmp_path, capsys):
    folder = tmp_path / "folder"
    save(folder, f"{STEM}.fp16.safetensors", np.float16)
    reading, _ = read(folder, [], prepared=False)
    assert reading.found.kind == f"diffusers folder ({STEM}.fp16.safetensors)"
    kernel = reading.weights.params["Conv_0"]["kernel"]
    assert kernel.dtype == np.float32 and (kernel == 1.5).all()
    save(folder, f"{STEM}.safetensors", np.float32, 2.5)  # whole precision comes first
    assert (read(folder, [], prepared=False)[0].weights.params["Conv_0"]["kernel"] == 2.5).all()
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"({STEM}.safetensors)" in said and "assumed     no scheduler_config.json: a noise predictor" in said


def test_files_that_leave_a_choice_or_are_parts_are_refused(tmp_path, capsys):
    two, shards, of_a_variant = (tmp_path / name for name in ("two", "shards", "shards of a variant"))
    for variant in ("fp16", "ema"):
        save(two, f"{STEM}.{variant}.safetensors", np.float16)
    save(shards, f"{STEM}-00001-of-00002.safetensors", np.float16)
    (shards / f"{STEM}.safetensors.index.json").write_text("{}")
    save(of_a_variant, f"{STEM}.fp16-00001-of-00002.safetensors", np.float16)
    (of_a_variant / f"{STEM}.safetensors.index.fp16.json").write_text("{}")
    for folder, message in ((two, "expected one variant"), (shards, "got shards"), (of_a_variant, "got shards")):
        assert main(["inspect", str(folder)]) == 1
        assert message in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_a_table_of_classes_gets_a_null_class_that_adds_nothing(tmp_path):
    """Or has it, as its user says; a scheduler that is there leaves nothing to assume of the process."""
    save(tmp_path, f"{STEM}.safetensors", np.float32)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    reading, run = read(tmp_path, [], prepared=False)
    table = reading.weights.params["classes"]["embedding"]
    np.testing.assert_array_equal(table[:, 0], [1.5, 1.5, 1.5, 0.0])
    assert run.experiment.num_classes == 3
    assert len(reading.assumed) == 1 and "none of the 3 classes is the null class" in reading.assumed[0]
    reading, run = read(tmp_path, ["--config.model.num_classes=2"], prepared=False)
    assert (reading.weights.params["classes"]["embedding"] == 1.5).all() and run.experiment.num_classes == 2
    assert not reading.assumed


@pytest.mark.parametrize("layout", ["torch", "flax"])
def test_a_label_that_score_sde_does_not_feed_is_refused(layout):
    """By `ve_cifar.py` with a positional embedding, say, the discrete network is 87 % and more off."""
    found, config = Found("", layout, {}, {}), load(str(CONFIGS / "ve_cifar.py"))
    with config.unlocked():
        check_label(found, config)
        config.model.embedding_type, config.model.scale_by_sigma = "positional", False
        with pytest.raises(WeightsError, match="configs/ve_cifar_discrete.py"):
            check_label(found, config)
        config.model.sigma_levels = (50.0, 0.01, 1000.0)
        check_label(found, config)
        config.sde.name, config.model.embedding_type = "vp", "fourier"
        with pytest.raises(WeightsError, match="--config.model.log_label=True"):
            check_label(found, config)
        check_label(found._replace(config="{}"), config)  # of another code base, which says its own
        config.model.log_label = True
        check_label(found, config)


WITH_CONFIG = [n for n, (_, file) in PUBLISHED.items() if file.startswith("configs/")]


@pytest.mark.parametrize(  # each traces a whole network
    "parameters", [pytest.param(n, marks=[pytest.mark.slow] * (n > 50_000_000)) for n in WITH_CONFIG]
)
def test_the_config_of_a_published_network_has_its_parameters(parameters):
    file = CONFIGS.parent / PUBLISHED[parameters][1].partition(" ")[0]
    experiment = build(load(str(file))).experiment
    found = shapes(experiment.network, experiment.shape)
    assert sum(int(np.prod(shape)) for shape in found.values()) == parameters
