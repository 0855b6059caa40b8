"""The command line: modes end to end in one process, and one line for every mistake of a user."""

import contextlib
import io
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from score_sde import modes
from score_sde.config import datasets
from score_sde.config.template import checksum
from score_sde.data import ArraySource
from score_sde.evaluation.artefacts import artefacts, without_settings
from score_sde.evaluation.likelihood import LikelihoodReport
from score_sde.evaluation.samples import Generated, NonFiniteSamples
from score_sde.files import locked
from score_sde.main import MODES, Printable, main
from score_sde.training.progress import tell

CONFIG = """
from score_sde.config import base_config


def get_config():
    c = base_config()
    c.data.name = "swiss_roll"
    c.model.name, c.model.features, c.model.embedding_dim = "mlp", (8, 8), 8
    c.training.batch_size, c.training.steps, c.training.log_every = 16, 2, 1
    c.training.learning_rate, c.training.warmup, c.training.ema_rate = 0.03, 0, 0.0
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size = 8, 10, 8
    c.eval.divergence, c.eval.batch_size, c.eval.num_examples = "exact", 8, 10
    c.training.final_eval = True
    return c
"""
PROVENANCE = "kind what run config step average weights settings versions devices made".split()


def command(*argv):
    """(exit code, standard output, standard error) of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in argv])
    return code, out.getvalue(), err.getvalue()


def succeed(*argv):
    """What a command prints that ends well, and leaves no array and no picture without what made it."""
    code, out, err = command(*argv)
    assert code == 0, err
    for workdir in (str(a).partition("=")[2] for a in argv if str(a).startswith("--workdir=")):
        assert not without_settings(Path(workdir))
        assert all(set(PROVENANCE) <= said["provenance"].keys() for _, said in artefacts(Path(workdir)))
    return out, err


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def refused(folder, *argv):
    """The one line of a command that is refused before it compiles or changes anything under `folder`."""
    compiled, before = [], contents(folder)

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        code, out, err = command(*argv)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert code not in (0, None) and out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err
    assert not compiled
    assert contents(folder) == before
    return err


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """A finished run, not to be changed."""
    workdir = tmp_path_factory.mktemp("run") / "small"
    out, _ = succeed(f"--config={config}", "--mode=train", f"--workdir={workdir}")
    (workdir / "stdout").write_text(out)
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(trained, tmp_path / "run")


def samples_of(workdir, step=2):
    """Those of the last --mode=sample: what earlier ones wrote stays."""
    found = sorted((workdir / "samples").glob(f"sample_{step:08d}*.npz"), key=lambda p: (len(p.name), p.name))
    with np.load(found[-1], allow_pickle=False) as arrays:
        return arrays["samples"]


def report_of(workdir, split="test"):
    """(report, values per example) of the likelihood that was written last."""
    found = (workdir / "eval").glob(f"likelihood_{split}_step*[0-9a-f].json")
    path = max(found, key=lambda p: p.stat().st_mtime_ns)
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        return json.loads(path.read_text()), dict(arrays)


def values_of(workdir, split="test"):
    return report_of(workdir, split)[1]


def logged_steps(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved_config(workdir):
    return json.loads((workdir / "config.json").read_text())


def change_config(workdir, saved):
    """Write a config.json that says `saved`, with its checksum."""
    (workdir / "config.json").write_text(json.dumps({**saved, "sha256": checksum(saved)}))


def is_picture(path):
    with Image.open(path) as image:
        return len(np.unique(np.asarray(image.convert("L")))) > 1


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_is_quick():
    # It lists the samplers of score_sde/config, which costs the imports of flax and orbax, a second; no more.
    code = (
        "import sys; from score_sde.main import main; code = main(['--help'])\n"
        "heavy = {'grain', 'diffrax', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--config=FILE" in done.stdout and "--mode=MODE" in done.stdout


def test_help_is_there_with_other_flags_and_without_any():
    assert command("--mode=eval", "-h")[0] == 0
    code, out, _ = command()
    assert code == 2 and "--workdir=DIR" in out


# --- the modes -------------------------------------------------------------------------------------------------------


def test_training_leaves_what_the_help_says(trained, config):
    assert {p.name for p in trained.iterdir()} >= {"config.json", "metrics.jsonl", "checkpoints", "samples"}
    assert logged_steps(trained) == [1, 2]
    assert "trained 2 steps" in (trained / "stdout").read_text()
    assert (trained / "checkpoints" / "2").is_dir()
    assert {p.name for p in (trained / "samples").iterdir()} == {
        f"step_{step:08d}.{kind}" for step in (0, 2) for kind in ("json", "npz", "png")
    }
    saved = saved_config(trained)
    assert set(saved) == {"config", "overrides", "versions", "devices", "sha256"}
    assert saved["config"]["model"]["features"] == [8, 8] and saved["overrides"] == {}
    assert saved["versions"]["jax"] == jax.__version__ and "python" in saved["versions"]
    assert saved["devices"] == [f"{d.platform}:{d.device_kind}" for d in jax.devices()]


def test_training_ends_with_an_evaluation_where_asked(trained):
    report, values = report_of(trained)
    assert (report["step"], report["examples"], len(values["value"])) == (2, 10, 10)
    assert f"test {report['value']:.3f} +- {report['standard_error']:.3f} nats/dim" in (trained / "stdout").read_text()


def test_evaluation_needs_no_config_and_does_not_depend_on_the_batch(run, trained):
    before = contents(run / "eval")
    out, err = succeed(f"--workdir={run}", "--mode=eval", "--config.eval.batch_size=4")
    after = contents(run / "eval")
    assert {p: after[p] for p in before} == before, "the report at the end of training stays"
    report, values = report_of(run)
    assert len(values["value"]) == len(values["nfe"]) == report["examples"] == 10
    assert values["converged"].all()
    assert report["value"] == pytest.approx(values["value"].mean(), rel=1e-6)
    assert report["standard_error"] == pytest.approx(values["value"].std(ddof=1) / 10**0.5, rel=1e-5)
    assert (report["unit"], report["split"], report["step"]) == ("nats/dim", "test", 2)
    assert f"test {report['value']:.3f} +- {report['standard_error']:.3f} nats/dim (10 examples" in out
    assert "10/10" in err
    assert report["provenance"]["settings"]["examples"]["rows"] == values["index"].tolist() != list(range(10))
    (by_level,) = (run / "eval").glob("*_by_level.npz")
    assert out.count("by noise level") == 1 and f"{by_level.stem}.png\n" in out
    assert is_picture(by_level.with_suffix(".png"))
    with np.load(by_level, allow_pickle=False) as found:
        assert found["bound"].shape == found["bound_standard_error"].shape == (24,) and (found["bound"] > 0).all()
    assert values["value"].std() > 0.05, "the examples differ"
    in_batches_of_8 = values_of(trained)["value"]
    np.testing.assert_allclose(values["value"], in_batches_of_8, atol=1e-3)  # 30 times the tolerance of a step


def test_overrides_reach_the_evaluation(run):
    few = ["--config.eval.split=train", "--config.eval.num_examples=3", "--config.eval.bound=none"]
    out, _ = succeed("--workdir", run, "--mode", "eval", *few)
    assert "by noise level" not in out and not list((run / "eval").glob("*by_level*"))
    assert len(values_of(run, "train")["value"]) == 3
    assert len(values_of(run, "test")["value"]) == 10, "the other split's values stay"


def test_sampling_gives_as_many_as_asked_the_same_for_each_batch(run):
    out, _ = succeed(f"--workdir={run}", "--mode=sample")
    ten = samples_of(run)
    assert ten.shape == (10, 2) and ten.dtype == np.float32 and out.startswith("10 samples of step 2, 9 NFE: ")
    assert ten.std() > 0.1 and len(np.unique(ten)) == 20
    with Image.open(run / "samples" / "sample_00000002.png") as image:
        image.load()
    succeed(f"--workdir={run}", "--mode=sample", "--config.sampling.num_samples=7", "--config.sampling.batch_size=4")
    seven = samples_of(run)
    assert seven.shape == (7, 2)
    np.testing.assert_allclose(seven, ten[:7], rtol=1e-4, atol=1e-4)
    succeed(f"--workdir={run}", "--mode=sample", "--config.sampling.seed=1")
    assert np.abs(samples_of(run) - ten).min() > 0


def test_training_goes_on_with_more_steps(run, config):
    out, _ = succeed(
        f"--config={config}", f"--workdir={run}", "--config.training.steps=4", "--noconfig.training.final_eval",
        "--config.training.tensorboard=True",
    )  # fmt: skip
    assert "trained 4 steps" in out
    assert logged_steps(run) == [1, 2, 3, 4]
    assert (run / "checkpoints" / "4").is_dir()
    saved = saved_config(run)
    assert saved["config"]["training"]["steps"] == 4 and saved["overrides"] == {
        "training.steps": 4,
        "training.final_eval": False,
        "training.tensorboard": True,
    }
    (events,) = (run / "tensorboard").iterdir()  # switched on for the rest of the run
    assert b"loss" in events.read_bytes() and b"samples" in events.read_bytes()


def test_a_finished_run_is_left_as_it_is_and_needs_no_config(run):
    before = contents(run)
    out, _ = succeed(f"--workdir={run}")  # which evaluates again: the same result is the same report
    assert "trained 2 steps" in out and "test " in out
    after = contents(run)
    assert after.keys() == before.keys()
    for path in before.keys() - {run / ".lock", run / "config.json"}:
        assert after[path][1] == before[path][1]


def test_a_config_that_differs_is_noted_and_the_run_s_own_holds(run, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(CONFIG.replace("(8, 8)", "(4, 4)").replace("= 8, 10, 8", "= 8, 5, 8"))
    _, err = succeed(f"--config={other}", f"--workdir={run}", "--mode=sample", "--config.sampling.batch_size=4")
    assert "note: using the config saved in" in err and "model.features = [8, 8] there, [4, 4] here" in err
    assert len(samples_of(run)) == 10  # of the run's config: only overrides count


def test_other_versions_are_noted(run, config):
    saved = saved_config(run)
    saved["versions"]["jax"] = "0.0.1"
    change_config(run, saved)
    _, err = succeed(f"--config={config}", f"--workdir={run}", "--noconfig.training.final_eval")
    assert "note: devices or versions differ" in err
    assert saved_config(run)["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    "flags, nfe",
    [
        (["--config.sampling.sampler=unipc", "--config.sampling.grid=log_snr", "--config.sampling.steps=5"], "10 NFE"),
        (["--config.sampling.preset=song_ve", "--config.sampling.steps=5", "--config.sampling.t_end=0.01"], "11 NFE"),
        (["--config.sampling.sampler=adaptive_ode", "--config.sampling.rtol=0.1", "--config.sampling.atol=0.1"], "NFE"),
    ],
    ids=["sampler", "preset", "adaptive"],
)
def test_any_sampler_can_be_named_for_any_run(flags, nfe, run):
    out, _ = succeed(f"--workdir={run}", "--mode=sample", *flags)
    assert samples_of(run).shape == (10, 2) and f", {nfe}: " in out or nfe == "NFE" and " NFE: " in out
    assert saved_config(run)["config"]["sampling"]["sampler"] == "euler_maruyama"  # what was trained is left alone


def test_help_lists_the_samplers():
    out, _ = succeed("--help")
    assert "--config.sampling.sampler=" in out and "\n  unipc " in out and "\n  song_ve " in out


# --- pictures --------------------------------------------------------------------------------------------------------


def test_training_ends_with_pictures(trained):
    (by_level,) = (trained / "plots").glob("loss_by_level_test_step00000002_n256_*.png")
    curve = trained / "plots" / "learning_curve.png"
    assert set((trained / "plots").iterdir()) == {
        curve, curve.with_suffix(".json"), by_level, by_level.with_suffix(".json"), by_level.with_suffix(".npz"),
    }  # fmt: skip
    assert is_picture(curve) and is_picture(by_level) and str(by_level) in (trained / "stdout").read_text()


def test_plot_draws_them_again_while_a_trainer_is_at_work_and_touches_nothing_else(run):
    drawn = set((run / "plots").iterdir())
    shutil.rmtree(run / "plots")
    with locked(run):
        before = contents(run)
        out, _ = succeed(f"--workdir={run}", "--mode=plot")
    after = contents(run)
    assert after.keys() - before.keys() == drawn and str(run / "plots" / "learning_curve.png") in out
    assert {p: after[p] for p in before} == before


def test_plot_without_a_checkpoint_draws_the_learning_curve_alone(run):
    shutil.rmtree(run / "plots")
    shutil.rmtree(run / "checkpoints")
    _, err = succeed(f"--workdir={run}", "--mode=plot")
    assert {p.name for p in (run / "plots").iterdir()} == {"learning_curve.png", "learning_curve.json"}
    assert "no checkpoint" in err
    (run / "metrics.jsonl").unlink()
    assert "nothing to draw: no metrics" in refused(run, f"--workdir={run}", "--mode=plot")


def test_without_matplotlib_training_and_evaluation_go_on_and_plot_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "error: matplotlib is not installed" in refused(run, f"--workdir={run}", "--mode=plot")
    shutil.rmtree(run / "plots")
    out, err = succeed(f"--workdir={run}", "--noconfig.training.final_eval")
    assert "elapsed" in out and err.count("pip install 'score_sde[plots]'") == 1
    there, _ = report_of(run)
    fields = {k: there[k] for k in LikelihoodReport.__dataclass_fields__}
    report = LikelihoodReport(**{k: float("nan") if v is None else v for k, v in fields.items()})
    monkeypatch.setattr(modes.evaluation, "evaluate", lambda *_: (report, [run / "eval" / "some.json"]))
    out, err = succeed(f"--workdir={run}", "--mode=eval")
    assert "some_by_level.npz\n" in out and err.count("pip install 'score_sde[plots]'") == 1


def test_a_trajectory_is_a_strip_and_an_animation(run):
    out, _ = succeed(f"--workdir={run}", "--mode=sample")
    plain = samples_of(run)
    out, _ = succeed(f"--workdir={run}", "--mode=sample", "--config.sampling.trajectory=5")
    np.testing.assert_allclose(samples_of(run), plain, atol=1e-5)
    with Image.open(run / "samples" / "sample_00000002_2_strip.png") as image:
        assert image.size == (5 * 192, 192) and len(np.unique(np.asarray(image))) > 2
    with Image.open(run / "samples" / "sample_00000002_2.gif") as image:
        assert image.n_frames == 5
    assert "sample_00000002_2_strip.png" in out and "sample_00000002_2.gif" in out


def test_tensorboard_that_is_not_installed_is_told_before_anything(run, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    err = refused(run, f"--config={config}", f"--workdir={run}", "--config.training.tensorboard=True")
    assert "tensorboardX is not installed" in err and "score_sde[tensorboard]" in err


@pytest.mark.slow
def test_digits_end_to_end(tmp_path):
    config, workdir = tmp_path / "digits.py", tmp_path / "run"
    settings = """
    c.data.name = "digits"
    c.model.name, c.model.nf, c.model.ch_mult, c.model.num_res_blocks = "unet", 4, (1,), 1
    c.model.features, c.model.embedding_dim = None, None
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size = 2, 5, 4
    c.eval.divergence, c.eval.batch_size, c.eval.num_examples, c.eval.rtol = "hutchinson", 4, 6, 0.01
    c.training.snapshot_every = 2
    return c
"""
    config.write_text(CONFIG.replace("    return c\n", settings.lstrip("\n")))
    out, _ = succeed(f"--config={config}", f"--workdir={workdir}")
    report, _ = report_of(workdir)
    assert report["unit"] == "bits/dim" and report["examples"] == 6 and f"{report['value']:.3f}" in out
    with np.load(workdir / "samples" / "step_00000002.npz", allow_pickle=False) as found:
        assert found["samples"].shape == (5, 8, 8, 1) and found["samples"].dtype == np.uint8
        assert found["samples"].max() <= 16
    with Image.open(workdir / "samples" / "step_00000002.png") as image:
        assert image.size == (3 * 34, 2 * 34)


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "an unknown mode": (["--mode=trian"], "<train|eval|sample|restore|plot|list>"),
    "an unknown flag": (["--modee=train"], "Unknown command line flag 'modee'"),
    "a misspelt override": (["--config.training.stepz=3"], "'training.stepz'. Did you mean 'training.steps'?"),
    "an override without its section": (["--config.steps=3"], "'steps'. Did you mean"),
    "a misspelt section": (["--config.trainin.steps=3"], "Did you mean 'training.steps'?"),
    "a misspelt section and key": (["--config.smapling.stepz=3"], "Did you mean 'sampling.steps'?"),
    "another section's key": (["--config.model.learning_rate=1"], "Did you mean 'training.learning_rate'?"),
    "a misspelt switch": (["--noconfig.training.final_evl"], "Did you mean 'training.final_eval'?"),
    "a flag for a workdir": (["--workdir"], "--workdir needs a value") ,
    "a value for a switch": (["--trust=True"], "--trust takes no value") ,
    "a number beyond float32": (["--config.training.eps=1e-50"], "training.eps must be 0 or between 1e-37 and 1e+37"),
    "a number beyond int32": (["--config.sampling.num_samples=9999999999"], "must be at most 2^31 - 1 in size"),
    "more devices than can be": (["--config.training.cpu_devices=99999"], "cpu_devices must be at most 256"),
    "no level of noise": (["--config.sde.name=ve", "--config.sde.sigma_min=99"], "sigma_max"),
    "an override of a section": (["--config.model=3"], "unknown config key 'model'"),
    "a word for a number": (["--config.training.steps=many"], "--config.training.steps=many"),
    "a fraction for a count": (["--config.training.steps=1.5"], "--config.training.steps=1.5"),
    "a word for a switch": (["--config.training.final_eval=maybe"], "--config.training.final_eval=maybe"),
    "a value out of range": (["--config.training.steps=0"], "training.steps must be at least 1, got 0"),
    "an unknown SDE": (["--config.sde.name=vpp"], "Did you mean 'vp'?"),
    "an unknown data set": (["--config.data.name=swissroll"], "Did you mean 'swiss_roll'?"),
    "an unknown sampler": (["--config.sampling.sampler=eular_maruyama"], "Did you mean 'euler_maruyama'?"),
    "a part of a sampler's name": (["--config.sampling.sampler=langevin"], "sampling.sampler must be one of"),
    "an unknown preset": (["--config.sampling.preset=song_v"], "Did you mean 'song_vp'?"),
    "a setting of another sampler": (["--config.sampling.eta=0.5"], "sampling.eta is not a setting of"),
    "two at once": (["--config.sde.name=vpp", "--config.eval.rtol=nan"], "eval.rtol must be finite, got nan; sde.name"),
    "a batch for other devices": (["--config.training.batch_size=6"], "must be a multiple of the 4 devices, got 6"),
    "a stray word": (["train"], "unexpected argument 'train'"),
    "stray words after --": (["--", "--mode=train"], "unexpected argument '--mode=train'"),
    "evaluating no run": (["--mode=eval"], "no run at"),
    "sampling no run": (["--mode=sample"], "no run at"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_gets_one_line(case, config, tmp_path):
    flags, message = MISTAKES[case]
    assert message in refused(tmp_path, f"--config={config}", f"--workdir={tmp_path / 'run'}", *flags)


FILES = {
    "syntax": ("def get_config(:\n", "bad.py does not load: SyntaxError"),
    "an import": ("import no_such_module\n", "bad.py, line 1 does not load: ModuleNotFoundError: No module named"),
    "no get_config": ("x = 1\n", "'get_config'"),
    "an exception": ("def get_config():\n    return 1 / 0\n", "line 2 does not load: ZeroDivisionError: division"),
    "a wrong type": (CONFIG.replace('"swiss_roll"', "3"), "line 7 does not load: TypeError"),
    "a misspelt key": (CONFIG.replace("data.name", "data.nane"), ': AttributeError: Did you mean "name"'),
    "a missing file": ("def get_config():\n    return open('/no/such')\n", "line 2 does not load: FileNotFoundError"),
    "no return": (CONFIG.replace("return c", ""), "get_config() must return a changed base_config(), got NoneType"),
    "another dict": (
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'seed': 1})\n",
        "unknown or left out: data.channels, data.dir",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_config_file_that_does_not_load_gets_one_line(case, tmp_path):
    text, message = FILES[case]
    path = tmp_path / "bad.py"
    path.write_text(text)
    before = list(sys.path)
    with_dash = "--config" if case == "syntax" else "-config"
    assert message in refused(tmp_path, with_dash, path, f"--workdir={tmp_path / 'run'}")
    assert sys.path == before


@pytest.mark.parametrize("flags, message", [
    (["--config=no/such.py"], "no config file at"), (["--config="], "--config needs a value, got ''"),
    (["--config"], "--config needs a value"), (["--config", "--mode=eval"], "needs a value, got '--mode=eval'"),
])  # fmt: skip
def test_a_config_that_is_not_there(flags, message, tmp_path):
    assert message in refused(tmp_path, f"--workdir={tmp_path / 'run'}", *flags)


def test_the_default_workdir_has_the_name_of_the_config(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"no run at {os.path.join('runs', 'small')}" in refused(tmp_path, f"--config={config}", "--mode=eval")


def test_neither_config_nor_workdir(tmp_path):
    assert "give --config=" in refused(tmp_path, "--mode=eval")


def test_missing_data_are_told_before_the_workdir_is_made(tmp_path):
    config = tmp_path / "cifar.py"
    config.write_text(
        "from score_sde.config import base_config\n\ndef get_config():\n    c = base_config()\n    c.model.nf = 4\n"
        "    c.model.ch_mult, c.model.num_res_blocks, c.model.attn_resolutions = (1,), 1, ()\n    return c\n"
    )
    flags = [f"--config={config}", f"--config.data.dir={tmp_path / 'nowhere'}", f"--workdir={tmp_path / 'run'}"]
    err = refused(tmp_path, *flags)
    assert "nowhere" in err and "config.data.dir" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["eval", "sample"])
def test_no_checkpoint_yet(mode, trained, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copy(trained / "config.json", workdir)
    assert "put its checkpoints back" in refused(tmp_path, f"--workdir={workdir}", f"--mode={mode}")
    (workdir / "checkpoints").mkdir()
    assert "no checkpoint in" in refused(tmp_path, f"--workdir={workdir}", f"--mode={mode}")


def test_another_config_s_run_is_not_trained_on(run, config):
    flags = ["--config.training.ema_rate=0.5", "--config.seed=2"]
    err = refused(run, f"--config={config}", f"--workdir={run}", *flags)
    assert "holds another run" in err
    assert "training.ema_rate = 0.0 there, 0.5 here" in err and "seed = 0 there, 2 here" in err


@pytest.mark.parametrize("mode", ["eval", "sample"])
@pytest.mark.parametrize("given", [True, False])
def test_the_model_cannot_change_after_training(mode, given, run, config):
    flags = [f"--config={config}"] if given else []
    err = refused(run, *flags, f"--workdir={run}", f"--mode={mode}", "--config.model.features=(4,4)")
    assert f"model.features cannot change in --mode={mode}" in err


@pytest.mark.parametrize("mode", ["train", "eval", "sample"])
@pytest.mark.parametrize("given", [True, False])
def test_a_damaged_config_json(mode, given, run, config):
    path = run / "config.json"
    path.write_bytes(path.read_bytes()[:100])
    flags = [f"--config={config}"] if given else []
    err = refused(run, *flags, f"--workdir={run}", f"--mode={mode}")
    assert "config.json is damaged" in err and "--workdir" in err


@pytest.mark.parametrize("mode", MODES)
def test_a_digit_changed_in_config_json_is_told(mode, run):
    path = run / "config.json"
    path.write_text(path.read_text().replace('"learning_rate": 0.03,', '"learning_rate": 0.04,'))
    err = refused(run, f"--workdir={run}", f"--mode={mode}")
    assert "config.json was changed or damaged" in err and "its checksum does not match" in err and "Restore" in err


def test_a_config_json_without_a_checksum_is_told_once(run, caplog):
    saved = saved_config(run)
    del saved["sha256"]
    (run / "config.json").write_text(json.dumps(saved))
    (run / "checkpoints").rename(run / "elsewhere")
    assert command(f"--workdir={run}", "--mode=sample")[0] == 1  # it is read as far as to the weights, and twice
    (line,) = caplog.messages
    assert line.startswith(f"note: {run / 'config.json'} has no checksum")


def test_a_config_json_of_another_version(run):
    saved = saved_config(run)
    saved["config"]["sde"]["curl"] = 1.0
    change_config(run, saved)
    assert "does not know the key curl" in refused(run, f"--workdir={run}", "--mode=sample")


READ = ["config.json", "metrics.jsonl", ".lock", "checkpoints", "checkpoints/2/meta/metadata", "eval/likelihood.npz"]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ["fifo", "device", "circle"])
def test_what_is_no_file_is_an_error_and_no_hang(name, kind, run):
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)

    def hang(*_):
        raise AssertionError("it hangs")

    old = signal.signal(signal.SIGALRM, hang)
    signal.alarm(30)
    try:
        for mode in MODES:
            err = refused(run, f"--workdir={run}", f"--mode={mode}")
            assert str(path) in err
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def test_links_in_a_circle_have_an_end(run):
    (run / "checkpoints" / "3").symlink_to(run)
    assert "Remove it" in refused(run, f"--workdir={run}", "--mode=sample")


def test_no_control_character_of_a_name_reaches_the_terminal(trained, tmp_path, capfd):
    strange, no_text = "\x1b[2J\x07\x9b", os.fsdecode(b"\xff")
    assert main([f"--workdir={tmp_path / strange}{no_text}", "--mode=eval"]) == 1  # an error
    run = shutil.copytree(trained, tmp_path / strange)
    assert main([f"--workdir={run}", "--mode=sample"]) == 0  # results
    tell(f"note: {run}")
    shown = "".join(capfd.readouterr()) + Printable().format(logging.makeLogRecord({"msg": f"note: {run}"}))
    assert shown.count(r"\x1b[2J\x07\x9b") >= 4 and r"\udcff" in shown
    assert not [c for c in shown if not c.isprintable() and c not in "\n\r"]


def test_a_workdir_in_use(run, config):
    with locked(run):
        err = refused(run, f"--config={config}", f"--workdir={run}", "--config.training.steps=4")
    assert f"in use by a running trainer (process {os.getpid()})" in err


@pytest.mark.parametrize("below", ["", "run"])
def test_a_workdir_that_cannot_be_made(below, config, tmp_path):
    (tmp_path / "file").write_text("kept")  # read-only folders do not stop root
    err = refused(tmp_path, f"--config={config}", f"--workdir={tmp_path / 'file' / below}")
    assert "cannot write to the workdir" in err


@pytest.mark.parametrize("mode", ["eval", "sample"])
def test_results_that_cannot_be_written_are_told_before_the_work(mode, run, monkeypatch):
    def work(*_, **__):
        raise AssertionError("worked for nothing")

    monkeypatch.setattr(modes.evaluation, "evaluate_likelihood", work)
    monkeypatch.setattr(modes.sampling, "generate", work)
    folder = run / ("eval" if mode == "eval" else "samples")
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("a file in its place")
    code, _, err = command(f"--workdir={run}", f"--mode={mode}")
    assert code == 1 and err.startswith("error: cannot write to ") and err.count("\n") == 1
    assert folder.read_text() == "a file in its place"


def test_finite_samples_are_written_where_some_are_not(run, monkeypatch):
    x, good = np.zeros((4, 2), np.float32), np.array([True, True, False, True])

    def fail(*_, **__):
        raise NonFiniteSamples("1 of 4 samples are not finite (2).", Generated(x, np.full(4, 9), None, good))

    monkeypatch.setattr(modes.sampling, "generate", fail)
    code, out, err = command(f"--workdir={run}", "--mode=sample")
    assert code == 1 and "error: 1 of 4 samples are not finite (2). What there is has been written" in err
    with np.load(run / "samples" / "sample_00000002.npz") as found:
        np.testing.assert_array_equal(found["finite"], good)
    assert f"{run / 'samples' / 'sample_00000002.json'}" in out


def test_a_run_lists_what_it_has_left(run):
    out, err = succeed(f"--workdir={run}", "--mode=list")
    assert err == "" and [line.split()[:3] for line in out.splitlines()] == [
        ["step", "0", "snapshot"], ["step", "2", "likelihood"], ["step", "2", "learning"], ["step", "2", "loss"],
        ["step", "2", "snapshot"],
    ]  # fmt: skip
    assert "samples/step_00000002.json .npz .png" in out and "steps=8 grid=uniform" in out


@pytest.mark.parametrize("mode", ["eval", "restore", "plot"])
def test_an_empty_split_is_told(mode, config, run, monkeypatch):
    class Empty(ArraySource):
        def __len__(self):
            return 0

    draw = datasets.DATASETS["swiss_roll"]
    empty = (lambda split, directory: Empty(np.zeros((1, 2), np.float32)), *draw[1:])
    monkeypatch.setitem(datasets.DATASETS, "swiss_roll", empty)
    flags = ["--config.restore.operator=project", "--config.restore.measurements=1"] if mode == "restore" else []
    code, _, err = command(f"--workdir={run}", f"--mode={mode}", *flags)
    assert code == 1 and err.startswith("error: the test split has no examples") and err.count("\n") == 1


def test_a_defect_keeps_its_traceback(run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a defect")

    monkeypatch.setattr(modes.sampling, "generate", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        command(f"--workdir={run}", "--mode=sample")


# --- disks and machines ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training_leaves_a_run_to_resume(run, config, monkeypatch):
    from score_sde.training import loop

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = loop.Checkpoints.save

    def save_on_a_full_disk(*args, **notes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, old[1]))  # the system refuses Orbax's own writes
        save(*args, **notes)

    flags = [f"--config={config}", f"--workdir={run}", "--config.training.steps=4", "--noconfig.training.final_eval"]
    before = contents(run / "checkpoints" / "2")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", save_on_a_full_disk)
        try:
            code, _, err = command(*flags)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert code == 1 and err.splitlines()[-1].startswith("error: cannot write "), err
    assert "Traceback" not in err and contents(run / "checkpoints" / "2") == before
    succeed(*flags)
    assert logged_steps(run) == [1, 2, 3, 4] and (run / "checkpoints" / "4").is_dir()


def test_too_little_space_is_told_before_the_work(config, tmp_path, monkeypatch):
    from score_sde import files

    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    code, _, err = command(f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert code == 1 and "checkpoints take" in err and err.count("\n") == 1
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock"}


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl"])
def test_a_workdir_of_something_else_is_left_alone(name, config, tmp_path):
    (tmp_path / "run" / name / "7").mkdir(parents=True)
    err = refused(tmp_path, f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert f"has {name} of something else" in err and (tmp_path / "run" / name / "7").is_dir()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_more_examples_than_there_are(mode, run):
    flags = [f"--workdir={run}", f"--mode={mode}", "--config.eval.num_examples=5001"]
    assert "at most 5000, the size of the test split, got 5001" in refused(run, *flags)


@pytest.mark.parametrize("error, part", [
    (MemoryError(), "out of memory (no more)"), (OSError(28, "No space left on device", "/x"), "/x: No space left"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "Lower training.batch_size"),
])  # fmt: skip
def test_what_the_machine_lacks_gets_one_line(error, part, run, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(modes.sampling, "generate", fail)
    code, _, err = command(f"--workdir={run}", "--mode=sample")
    assert code == 1 and part in err and err.count("\n") == 1


def test_an_interrupted_command_has_no_traceback(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(modes.sampling, "generate", interrupt)
    assert command(f"--workdir={run}", "--mode=sample")[0::2] == (130, "interrupted\n")


# --- classifiers of noised data --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_classifier_is_trained_and_evaluated_by_noise_level_and_does_not_sample(config, tmp_path):
    workdir, moons = tmp_path / "run", ["--config.data.name=two_moons", "--config.model.name=mlp_classifier"]
    moons += ["--config.model.num_classes=2", "--config.training.batch_size=64", "--config.training.steps=60"]
    line = refused(tmp_path, f"--config={config}", f"--workdir={workdir}", *moons[:2], "--config.model.num_classes=3")
    assert "model.num_classes must be that of the data, 2, got 3" in line
    out, _ = succeed(f"--config={config}", f"--workdir={workdir}", *moons, "--config.eval.num_examples=200")
    assert "test accuracy" in out
    (accuracy,) = (workdir / "eval").glob("accuracy_test_step00000060_n200_*.npz")
    with np.load(accuracy) as found:
        clean, noise = found["accuracy"][-1], found["accuracy"][0]
    assert clean > 0.7 and abs(noise - 0.5) < 0.15  # two classes, of which pure noise tells nothing
    assert accuracy.with_suffix(".png").is_file() and not (workdir / "samples").exists()
    out, _ = succeed(f"--workdir={workdir}", "--mode=eval", "--config.eval.num_examples=100")
    assert "(100 examples)" in out
    line = refused(tmp_path, f"--workdir={workdir}", "--mode=sample")
    assert "holds a classifier, which does not sample" in line


@pytest.mark.slow
def test_samples_guided_to_a_class(config, tmp_path):
    moons = [f"--config={config}", "--config.data.name=two_moons", "--config.training.batch_size=64"]
    moons += ["--config.training.steps=60", "--config.training.final_eval=False"]
    score, classifier = tmp_path / "score", tmp_path / "classifier"
    succeed(*moons, f"--workdir={score}", "--config.model.features=(32,32)")
    succeed(*moons, f"--workdir={classifier}", "--config.model.name=mlp_classifier", "--config.model.num_classes=2")
    guided = [f"--workdir={score}", "--mode=sample", "--config.guidance.kind=classifier", "--config.sampling.label=0"]
    guided += [f"--config.guidance.workdir={classifier}", "--config.sampling.num_samples=64"]
    plain, _ = succeed(f"--workdir={score}", "--mode=sample")
    out, _ = succeed(*guided, "--config.guidance.scale=3")
    assert "of up to 3 networks each" in out and "networks" not in plain
    heights = [samples_of(score, 60)[:, 1].mean()]
    succeed(*guided, "--config.guidance.scale=3", "--config.sampling.label=1")
    heights.append(samples_of(score, 60)[:, 1].mean())
    assert heights[0] > heights[1] + 0.5  # the upper moon and the lower
    for change, message in [
        (["--config.sampling.label=2"], "it has classes 0..1, sampling.label is 2"),
        ([f"--config.guidance.workdir={score}"], "it holds a score network, not a classifier"),
        ([f"--config.guidance.workdir={tmp_path / 'none'}"], "guidance.workdir: no run at"),
        (["--config.guidance.kind=classifier_free"], "needs a class-conditional network"),
        (["--config.guidance.kind=autoguidance", "--config.guidance.step=7"], "needs a class-conditional network"),
        (["--config.guidance.scale=nan"], "guidance.scale must be finite"),
        (["--config.guidance.interval=(3.0,1.0)"], "guidance.interval must be two rising numbers"),
        (["--config.guidance.kind=clasifier"], "Did you mean 'classifier'?"),
    ]:
        assert message in refused(tmp_path, *guided, *change)
    unlabelled = [f"--workdir={score}", "--mode=sample", "--config.guidance.kind=autoguidance"]
    assert "no checkpoint of step 7" in refused(tmp_path, *unlabelled, "--config.guidance.step=7")


# --- restoring measured data ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_points_are_restored_from_a_projection(run):
    points = [f"--workdir={run}", "--mode=restore", "--config.restore.operator=project"]
    points += ["--config.restore.measurements=1", "--config.restore.samples=3", "--config.sampling.steps=5"]
    out, err = succeed(*points, "--config.restore.examples=2", "--config.restore.method=moment_matching")
    assert "2 x 3 samples" in out and "6 NFE of up to 7 networks each" in out and "spread / error" in out
    assert err.startswith("predicted data are kept in -")
    stem = run / "restored" / "project_moment_matching_00000002"
    with np.load(stem.with_suffix(".npz")) as found:
        assert found["samples"].shape == (2, 3, 2) and found["measurements"].shape == (2, 1)
        assert found["truth"].shape == (2, 2)
    np.save(run / "y.npy", np.array([[0.3]]))
    known = [f"--config.restore.input={run / 'y.npy'}", "--config.restore.measured=True"]
    out, _ = succeed(*points, *known, "--config.restore.method=projection")
    assert "1 x 3 samples" in out and "PSNR" not in out
    for change, message in [
        (["--config.restore.measurements=3"], "restore: expected restore.measurements in 1..2, got 3"),
        (["--config.restore.operator=inpaint"], "restore.measurements is not a setting of operator=inpaint"),
        ([f"--config.restore.input={run / 'none.npy'}"], "none.npy: expected a .npy array, got"),
        ([f"--config.restore.input={run / 'y.npy'}"], "y.npy: expected an array of shape (2,)"),
        (["--config.restore.examples=9999999"], "expected restore.examples of at most 5000"),
        (["--config.restore.method=repaint", "--config.sampling.sampler=unipc"], "RePaint needs a sampler of one"),
        (["--config.restore.noise=nan"], "restore.noise must be finite"),
        (["--config.restore.examples=2.5"], "restore.examples"),
    ]:
        assert message in refused(run, *points, *change), message
