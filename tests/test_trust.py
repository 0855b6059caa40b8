"""Code that a file names does not run unless the user says so, or wrote the file: every mode, every door, every key."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import score_sde
from score_sde import modes
from score_sde.config import ConfigError, base_config, build, flatten, get_config, trust
from score_sde.config.template import checksum
from score_sde.main import MODES, load, main
from score_sde.weights import commands
from score_sde.weights.__main__ import main as weights
from score_sde.weights.errors import WeightsError
from score_sde.weights.opening import CONFIG_KEY
from score_sde.weights.tensors import write_safetensors

ROOT = Path(score_sde.__file__).parent
MY_DATA = """
import numpy as np
import pathlib
pathlib.Path(__file__).with_suffix(".ran").touch()

class Points:
    shape, levels, num_classes = (2,), None, 0
    def __len__(self): return 64
    def __getitem__(self, i): return {"x": np.random.default_rng(0).normal(size=(64, 2)).astype("float32")[i]}

def load(split, directory):
    return Points()
"""
CONFIG = """
from score_sde.config import base_config

def get_config():
    c = base_config()
    c.data.name = "MODULE:load"
    c.model.name, c.model.features, c.model.embedding_dim = "mlp", (4,), 4
    c.training.batch_size, c.training.steps, c.training.warmup = 8, 1, 0
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size, c.eval.batch_size = 2, 4, 4, 4
    return c
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path_factory):
    """No record, no modules and no folders of one test in the next."""
    monkeypatch.setenv("SCORE_SDE_STATE", str(tmp_path_factory.mktemp("state")))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("mine_", "evil")):
            del sys.modules[name]


def write_run(workdir, **values):
    """A config.json with its checksum, as anybody can write one."""
    config = base_config().to_dict()
    config["model"] |= {"name": "mlp", "features": [4], "embedding_dim": 4}
    for key, value in values.items():
        section, name = key.split("__")
        config[section][name] = value
    workdir.mkdir(parents=True)
    saved = {"config": config, "overrides": {}, "versions": {}, "devices": []}
    (workdir / "config.json").write_text(json.dumps({**saved, "sha256": checksum(saved)}))
    return workdir


@pytest.fixture
def evil(tmp_path):
    """A module on the path of Python that leaves a mark where it is imported; the mark."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "evil.py").write_text(MY_DATA)
    sys.path.insert(0, str(folder))
    return folder / "evil.ran"


def refused(capsys, command, *argv):
    """The one line of a command that is refused."""
    assert command([str(word) for word in argv]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


# --- files that name code ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_run_cannot_name_code(mode, tmp_path, evil, capsys):
    run = write_run(tmp_path / "run", data__name="evil:load", data__dir=str(tmp_path))
    line = refused(capsys, main, f"--workdir={run}", f"--mode={mode}")
    assert f"{run / 'config.json'}: data.name names code, evil:load" in line
    assert "--config" in line and "--trust" in line and not evil.exists() and "evil" not in sys.modules


@pytest.mark.parametrize("name", ["timeit:timeit", "shutil:rmtree", "os:system", "builtins:exec", "evil:", "evil:a.b"])
def test_nor_any_code_of_python(name, tmp_path, evil):
    run = write_run(tmp_path / "run", data__name=name, data__dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="names code"):
        get_config(run / "config.json")
    assert not evil.exists() and (run / "config.json").exists()


def test_no_key_stays_out():
    """Whatever key will once name a class: its name is checked today."""
    plain = flatten(base_config())
    for key in plain:
        for value in ("evil:load", ["a", "evil:load"], {"inner": ("evil:load",)}):
            with pytest.raises(ConfigError, match=f"{key}.* names code, evil:load"):
                trust.check_names({**plain, key: value}, Path("config.json"), b"")


def test_paths_and_plain_names_are_no_code():
    for value in ("/data:/x", "C:\\data", "a b:c", "vp", "1:2", "a/b:c", "https://a.b/c", ":x", "3x:y", "a:b:c"):
        assert not list(trust.named({"key": value})), value
        with pytest.raises(ValueError):
            trust.resolve(value)


def test_one_place_imports_what_a_name_says():
    """What runs code by a name or a text; beside `resolve` only `--config` files, which the user gives."""
    running = {"resolve_name", "import_module", "__import__", "run_path", "run_module", "exec", "eval", "compile"}
    running |= {"exec_module", "load_module", "spec_from_file_location", "locate", "system", "Popen"}
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func if isinstance(node, ast.Call) else None
            if getattr(name, "attr", getattr(name, "id", None)) in running and ast.unparse(name) != "re.compile":
                found.add((path.relative_to(ROOT).as_posix(), ast.unparse(name)))
    assert found == {("config/trust.py", "pkgutil.resolve_name"), ("main.py", "runpy.run_path")}


@pytest.fixture
def no_weights(monkeypatch):
    """Runs need no checkpoint."""
    for room in (modes.sampling, modes.evaluation):
        monkeypatch.setattr(room, "weights_of", lambda *_: (None, 0))


def test_a_guide_cannot_name_code(tmp_path, evil, no_weights, capsys):
    run = write_run(tmp_path / "run", data__name="two_moons")
    guide = write_run(tmp_path / "guide", data__name="evil:load", model__name="mlp_classifier", model__num_classes=2)
    flags = ["--mode=sample", "--config.sampling.label=0", "--config.guidance.kind=classifier"]
    line = refused(capsys, main, f"--workdir={run}", f"--config.guidance.workdir={guide}", *flags)
    assert f"{guide / 'config.json'}: data.name names code, evil:load" in line and not evil.exists()


@pytest.mark.parametrize("command", ["inspect", "import"])
def test_a_weights_file_cannot_name_code(command, tmp_path, evil, monkeypatch, capsys):
    def far_enough(*_, **__):
        raise WeightsError("the file was read")

    monkeypatch.setattr(commands, "slots", far_enough)
    run, file = write_run(tmp_path / "run", data__name="evil:load"), tmp_path / "net.safetensors"
    header = {CONFIG_KEY: (run / "config.json").read_text()}
    write_safetensors(file, {"a/kernel": np.zeros((2, 2), np.float32)}, header)
    to = [tmp_path / "new"] if command == "import" else []
    line = refused(capsys, weights, command, file, *to)
    assert f"{file}: data.name names code, evil:load" in line and not evil.exists()
    # What the user says in its place holds: the file's name comes to nothing.
    assert "the file was read" in refused(capsys, weights, command, file, *to, "--config.data.name=two_moons")
    assert not evil.exists()
    assert "the file was read" in refused(capsys, weights, command, file, *to, "--trust")
    assert evil.exists()


def test_a_run_to_export_cannot_name_code(tmp_path, evil, capsys):
    run = write_run(tmp_path / "run", data__name="evil:load")
    line = refused(capsys, weights, "export", run, tmp_path / "out.safetensors")
    assert "data.name names code, evil:load" in line and not evil.exists()


@pytest.mark.parametrize("flag", ["--trust", "--config.data.name=evil:load"])
def test_code_runs_where_the_user_says_so(flag, tmp_path, evil, no_weights, capsys):
    run = write_run(tmp_path / "run", data__name="evil:load")
    main([f"--workdir={run}", "--mode=plot", flag])  # which has nothing to draw
    assert "names code" not in capsys.readouterr().err
    assert evil.exists()
    assert get_config(run / "config.json", trust=True).data.name == "evil:load"


def test_the_name_of_another_config_file_vouches_for_none(tmp_path, evil, capsys):
    run, config = write_run(tmp_path / "run", data__name="evil:load"), tmp_path / "mine.py"
    config.write_text(CONFIG.replace("MODULE:load", "evil:other"))
    line = refused(capsys, main, f"--config={config}", f"--workdir={run}", "--mode=eval")
    assert "names code, evil:load" in line and not evil.exists()


# --- what is the user's own -------------------------------------------------------------------------------------------


class Own:
    """A run of the user's, with a config file and a module beside it, as training leaves it."""

    def __init__(self, folder, name, inside=False):
        self.workdir = folder / "runs" / name
        self.code = (self.workdir if inside else folder / "mine") / f"{name}.py"
        self.code.parent.mkdir(parents=True, exist_ok=True)
        self.code.write_text(MY_DATA)
        self.config = self.code.with_name(f"{name}_config.py")
        self.config.write_text(CONFIG.replace("MODULE", name))
        self.name, self.saved = f"{name}:load", self.workdir / "config.json"
        path = list(sys.path)
        config = load(str(self.config))
        build(config)
        modes.save_config(self.workdir, config, {})
        sys.path[:] = path
        self.forget()

    def forget(self):
        """As in a new process."""
        sys.modules.pop(self.name.partition(":")[0], None)
        self.code.with_suffix(".ran").unlink(missing_ok=True)

    def open(self, workdir=None):
        return get_config((workdir or self.workdir) / "config.json")


@pytest.fixture
def mine(tmp_path):
    return Own(tmp_path, "mine_data")


def test_the_user_s_own_run_opens_with_the_user_s_own_module(mine, tmp_path):
    other = tmp_path / "current"  # directory, with a module of the same name
    other.mkdir()
    (other / "mine_data.py").write_text(MY_DATA)
    sys.path.insert(0, str(other))
    config = mine.open()
    assert not mine.code.with_suffix(".ran").exists()
    build(config)
    assert mine.code.with_suffix(".ran").exists() and not (other / "mine_data.ran").exists()


def test_a_link_to_the_user_s_own_run_is_that_run(mine, tmp_path):
    (tmp_path / "link").symlink_to(mine.workdir)
    assert mine.open(tmp_path / "link").data.name == mine.name


def copied(mine, tmp_path):
    return shutil.copytree(mine.workdir, tmp_path / "copy")


def moved(mine, tmp_path):
    return mine.workdir.rename(tmp_path / "moved")


def linked(mine, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").symlink_to(mine.saved)
    return tmp_path / "other"


def replaced(mine, tmp_path):
    shutil.rmtree(mine.workdir)
    return write_run(mine.workdir, data__name=mine.name)


def vouching_for_itself(mine, tmp_path):
    saved = json.loads(mine.saved.read_text())
    saved |= {"trust": True, "names": {mine.name: {"file": str(mine.code), "sha256": ""}}}
    mine.saved.write_text(json.dumps({**saved, "sha256": checksum(saved)}))
    return mine.workdir


def of_an_older_version(mine, tmp_path):
    saved = json.loads(mine.saved.read_text())
    del saved["sha256"]
    mine.saved.write_text(json.dumps(saved))
    return mine.workdir


def with_the_record_inside(mine, tmp_path):
    state = shutil.copytree(os.environ["SCORE_SDE_STATE"], mine.workdir / "state")
    os.environ["SCORE_SDE_STATE"] = str(state)  # restored by the fixture that set it
    return mine.workdir


def with_a_damaged_record(mine, tmp_path):
    for entry in (Path(os.environ["SCORE_SDE_STATE"]) / "runs").iterdir():
        entry.write_text("[]")
    return mine.workdir


CHANGES = [copied, moved, linked, replaced, vouching_for_itself, of_an_older_version]
CHANGES += [with_the_record_inside, with_a_damaged_record]


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_is_of_one_run_in_one_place(change, mine, tmp_path):
    workdir = change(mine, tmp_path)
    with pytest.raises(ConfigError, match="no record of yours says that you trained or wrote it") as told:
        mine.open(workdir)
    assert "\n" not in str(told.value) and not mine.code.with_suffix(".ran").exists()


def edit(mine):
    mine.code.write_text(MY_DATA + "\n")


def take_away(mine):
    mine.code.unlink()


def import_another(mine):
    sys.modules["mine_data"] = ast


@pytest.mark.parametrize("change, message", [
    (edit, "that file has changed since"), (take_away, "cannot be read there now"), (import_another, "and is now /"),
])  # fmt: skip
def test_another_module_than_at_training_is_told(change, message, mine):
    change(mine)
    with pytest.raises(ConfigError, match=message) as told:
        mine.open()
    assert f"was {mine.code} when you trained" in str(told.value) and not mine.code.with_suffix(".ran").exists()


def test_modules_inside_a_run_are_not_taken_from_a_record(tmp_path):
    inside = Own(tmp_path, "mine_inside", inside=True)
    with pytest.raises(ConfigError, match="inside the run"):
        inside.open()


def test_nothing_is_imported_from_a_workdir_that_is_the_current_folder(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", data__name="evil_here:load")
    (run / "evil_here.py").write_text(MY_DATA)
    monkeypatch.chdir(run)
    sys.path.insert(0, "")  # as `python -m` does, or with the folder's name
    sys.path.insert(0, str(run))
    line = refused(capsys, main, "--workdir=.", "--mode=plot", "--trust")
    assert "No module named 'evil_here'" in line and not (run / "evil_here.ran").exists()


def test_where_no_record_can_be_kept_training_goes_on(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    for state, why in [(str(tmp_path / "file" / "state"), "Not a directory"), ("here", "must be an absolute path")]:
        monkeypatch.setenv("SCORE_SDE_STATE", state)
        Own(tmp_path, "mine_unkept")
        assert "will need --trust" in caplog.text and why in caplog.text
    assert not list(Path().glob("here"))


@pytest.mark.slow
def test_users_code_from_training_to_another_machine(tmp_path):
    """What a user does, in processes of their own and from several folders."""

    def command(room, *argv, cwd=tmp_path, **env):
        env = {**os.environ, "SCORE_SDE_STATE": str(tmp_path / "state"), "PYTHONPATH": str(ROOT.parent), **env}
        words = [sys.executable, "-m", f"score_sde.{room}", *map(str, argv)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine_points.py").write_text(MY_DATA)
    (tmp_path / "mine" / "c.py").write_text(CONFIG.replace("MODULE", "mine_points"))
    run, ran = tmp_path / "run", tmp_path / "mine" / "mine_points.ran"
    assert command("main", "--config=mine/c.py", "--workdir=run")[0] == 0
    out = tmp_path / "net.safetensors"
    for argv in (
        ["main", "--workdir=../run", "--mode=sample"],
        ["weights", "export", run, out],
        ["weights", "inspect", out],
    ):
        code, err = command(*argv, cwd=tmp_path / "elsewhere")
        assert code == 0, err
    ran.unlink()
    for argv in (["main", "--workdir=run", "--mode=sample"], ["weights", "inspect", out]):
        code, err = command(*argv, SCORE_SDE_STATE=str(tmp_path / "other"))  # machine
        assert code == 1 and "mine_points:load" in err and "--trust" in err and not ran.exists()
