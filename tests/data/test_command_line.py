"""Users' data and the published archives through the command line."""

import contextlib
import gzip
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_sde.data import fetch
from score_sde.evaluation.artefacts import fullest, reports
from score_sde.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = """
    c.model.features, c.model.embedding_dim = (8, 8), 8
    c.training.batch_size, c.training.steps, c.training.log_every = 16, 2, 1
    c.training.steps_per_dispatch, c.training.final_eval = 1, False
    c.training.snapshot_every, c.training.checkpoint_every = 2, 2
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size = 4, 8, 8
    c.eval.divergence, c.eval.batch_size, c.eval.num_examples = "exact", 8, 8
    return c
"""


@pytest.fixture(autouse=True)
def no_network_and_a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "cache"))
    for name, published in fetch.PUBLISHED.items():
        monkeypatch.setitem(fetch.PUBLISHED, name, fetch.Published("http://127.0.0.1:9/", published.sha256))


def command(*argv):
    """(exit code, standard output, standard error) of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in argv])
    return code, out.getvalue(), err.getvalue()


def succeed(*argv):
    code, out, err = command(*argv)
    assert code == 0, err
    return out, err


def changed(name, folder, settings=SHORT):
    """A shipped config with other settings, in `folder`."""
    path = folder / f"{name}.py"
    path.write_text((CONFIGS / f"{name}.py").read_text().replace("    return c\n", settings.lstrip("\n")))
    return path


@pytest.mark.slow
def test_arrays_from_training_to_sampling(tmp_path):
    x = np.random.default_rng(0).normal(2.0, 3.0, (200, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    workdir = tmp_path / "run"
    config = changed("custom_arrays", tmp_path)
    _, err = succeed(f"--config={config}", f"--config.data.dir={tmp_path / 'x.npy'}", f"--workdir={workdir}")
    assert "data: 180 examples of shape (4,), real numbers from" in err and "(objective.sigma_data)" in err
    out, _ = succeed(f"--workdir={workdir}", "--mode=eval")
    assert "8 examples" in out
    succeed(f"--workdir={workdir}", "--mode=sample")
    with np.load(workdir / "samples" / "sample_00000002.npz", allow_pickle=False) as found:
        assert found["samples"].shape == (8, 4) and found["samples"].dtype == np.float32


MODULE = """
import numpy as np

class Points:
    shape, levels, num_classes = (2,), None, None

    def __len__(self):
        return 40

    def __getitem__(self, indices):
        return {"x": np.stack([np.sin(indices), np.cos(indices)], axis=1).astype(np.float32)}

def points(split, directory):
    return Points()
"""


@pytest.mark.slow
def test_a_source_of_the_user_beside_the_config(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "my_points.py").write_text(MODULE)
    settings = SHORT.replace("    return c", '    c.data.name, c.data.dir = "my_points:points", None\n    return c')
    config = changed("custom_arrays", tmp_path, settings)
    _, err = succeed(f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert "data: 40 examples of shape (2,), real numbers" in err
    (tmp_path / "my_points.py").unlink()
    del sys.modules["my_points"]
    code, _, err = command(f"--workdir={tmp_path / 'run'}", "--mode=sample")
    assert code == 1 and err.count("\n") == 1 and "my_points.py" in err and "my_points:points" in err


def test_an_unusable_image_is_told_before_the_workdir_is_made(tmp_path):
    for n in range(3):
        Image.fromarray(np.full((32, 32, 3), n, np.uint8)).save(tmp_path / f"{n}.png")
    (tmp_path / "0.png").write_bytes(b"")  # a test image
    flags = [
        f"--config={CONFIGS / 'custom_images.py'}",
        f"--config.data.dir={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    ]
    code, out, err = command(*flags)
    assert (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1
    assert "0.png (an empty file)" in err and not (tmp_path / "run").exists()


def test_published_data_without_network(tmp_path):
    code, out, err = command(f"--config={CONFIGS / 'vp_cifar.py'}", f"--workdir={tmp_path / 'run'}")
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert "cannot fetch cifar-10-binary.tar.gz from http://127.0.0.1:9/cifar-10-binary.tar.gz" in err
    assert fetch.PUBLISHED["cifar10"].sha256["cifar-10-binary.tar.gz"] in err and "config.data.dir" in err
    assert not (tmp_path / "run").exists()


def cifar_archive(path, rows=8):
    """Noise in the layout of CIFAR-10's binary archive."""
    rng, plain = np.random.default_rng(0), io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            data = rng.integers(0, 256, (rows, 3073), dtype=np.uint8)
            data[:, 0] %= 10
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = data.size
            tar.addfile(info, io.BytesIO(data.tobytes()))
    path.write_bytes(gzip.compress(plain.getvalue(), 1))


SMALL = """
    c.model.nf, c.model.ch_mult, c.model.num_res_blocks, c.model.attn_resolutions = 4, (1, 1), 1, ()
    c.training.batch_size, c.training.steps, c.training.log_every = 8, 2, 1
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size = 3, 4, 4
    c.eval.batch_size, c.eval.num_examples, c.eval.rtol, c.eval.round_trip = 4, 4, 0.03, 0
    c.eval.bound_draws, c.eval.atol = 2, 0.03
    return c
"""


@pytest.mark.slow  # compiles a U-Net for three modes
def test_vp_cifar_runs_on_a_generated_archive(tmp_path):
    cifar_archive(tmp_path / "cifar-10-binary.tar.gz")
    config, workdir = changed("vp_cifar", tmp_path, SMALL), tmp_path / "run"
    _, err = succeed(f"--config={config}", f"--config.data.dir={tmp_path}", f"--workdir={workdir}")
    assert "(objective.sigma_data)" not in err  # known data need no description
    succeed(f"--workdir={workdir}", "--mode=eval")
    report = json.loads(fullest(reports(workdir)).read_text())
    assert report["unit"] == "bits/dim" and report["examples"] == 4 and report["value"] > 0
    succeed(f"--workdir={workdir}", "--mode=sample")
    with np.load(workdir / "samples" / "sample_00000002.npz", allow_pickle=False) as found:
        assert found["samples"].shape == (4, 32, 32, 3) and found["samples"].dtype == np.uint8
    assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()] == [1, 2]
