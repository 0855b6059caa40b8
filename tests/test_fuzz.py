"""Random overrides and random damage: whatever a user or a disk does, one line and no traceback."""

import contextlib
import io
import json
import random
import shutil

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from score_sde import modes
from score_sde.config import base_config, flatten
from score_sde.main import load, main

TINY = """
from score_sde.config import base_config


def get_config():
    c = base_config()
    c.data.name, c.model.name = "two_moons", "mlp"
    c.model.features, c.model.embedding_dim = (8,), 4
    c.training.batch_size, c.training.steps, c.training.log_every, c.training.checkpoint_every = 8, 2, 1, 1
    c.training.snapshot_every = 2
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size = 2, 4, 4
    c.eval.divergence, c.eval.batch_size, c.eval.num_examples, c.eval.rtol = "exact", 4, 4, 0.1
    c.eval.bound, c.eval.round_trip = "none", 0
    return c
"""
KEYS = sorted(flatten(base_config()))
PATHS = ("data.dir", "restore.input", "guidance.workdir")  # a file may be called nan
NAMES = "ve edm unet mlp score velocity edm likelihood log_snr log_normal unipc sa_solver none langevin dynamic".split()
VALUES = [
    "", " ", "0", "-1", "1", "3", "7", "2.5", "-0.5", "1e-5", "nan", "inf", "-inf", "1e308", "1e-308", "-1e30",
    "99999999999999999999999", "2147483648", "4294967296", "None", "true", "no", "()", "(1,)", "(1,2)", "(-1,0)",
    "('a','b')", "(1,(2,3))", "[1,2]", "{}", "{'a':1}", "é☃", "a b", "'", "\n", "0x10", "1_000", "1j", "b'a'",
    "(nan,1.)", "(1e308,inf)", "lambda: 1", "x" * 3000, "=", "--mode=eval", "%s", "\x00", *NAMES,
]  # fmt: skip


def command(*argv):
    """(exit code, standard error) of a command in this process; anything that is raised is a traceback to a user."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in argv])
    return code, err.getvalue()


def one_line(code, err):
    """Whether a refusal is one line: the last; those before are notes and reports of progress."""
    lines = err.splitlines()
    return code in (1, 2) and lines[-1].startswith("error: ") and len(lines[-1]) < 4000 and "Traceback" not in err


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Every command compiles the same few programs; here they come from a cache."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    old = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("programs")), 0.1), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, old, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(config file, workdir) of a run of two steps with two checkpoints and all its results."""
    folder = tmp_path_factory.mktemp("fuzz")
    config, workdir = folder / "tiny.py", folder / "run"
    config.write_text(TINY)
    for mode in ("train", "sample", "eval"):
        code, err = command(f"--config={config}", f"--workdir={workdir}", f"--mode={mode}")
        assert code == 0, err
    (values,) = (workdir / "eval").glob("likelihood_test_*.npz")
    shutil.copy(values, values.with_suffix(".partial.npz"))
    return config, workdir


# --- overrides -------------------------------------------------------------------------------------------------------


def misspelt(draw, key):
    """A key with a letter more, less or changed, without its section, in another section, or a section alone."""
    at, letter = draw.randrange(len(key)), draw.choice("abcxyz._-é ")
    section, _, name = key.rpartition(".")
    return draw.choice([
        key[:at] + key[at + 1 :], key[:at] + letter + key[at:], key[:at] + letter + key[at + 1 :],
        name, f"{name}.{section}", section or key.upper(), key + ".x", f"{draw.choice(KEYS).split('.')[0]}.{name}",
    ])  # fmt: skip


def near(value):
    """What a user may set in place of a value that works: most often it works too."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value * 2)
    return "" if value is None else str(value)


def overrides(draw, values):
    """One to three flags, some of them wrong in their keys, some in their values."""
    flags = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        key = draw.choice(KEYS)
        key = misspelt(draw, key) if draw.random() < 0.15 else key
        if key in values and draw.random() < 0.4:
            flags.append(f"--config.{key}={near(values[key])}")
            continue
        dashes = draw.choice(("--", "--", "--", "-", "--no"))
        flags.append(f"{dashes}config.{key}" + draw.choice(("=", "=", "=", "")) + draw.choice(VALUES))
    return flags


def fuzz_overrides(seeds, tiny, folder, monkeypatch):
    built, refusals, values = 0, 0, flatten(load(str(tiny[0])))
    monkeypatch.setattr(modes, "train_mode", lambda workdir, config, *_, **__: (modes.prepare(config), 0)[1])
    for seed in seeds:
        flags = overrides(random.Random(seed), values)
        code, err = command(f"--config={tiny[0]}", f"--workdir={folder / 'new'}", *flags)
        assert code == 0 or (one_line(code, err) and err.count("\n") == 1), (seed, flags, code, err[:500])
        senseless = [
            f for f in flags if f.endswith(("=nan", "=inf", "=-inf", "=1e308")) and not any(p in f for p in PATHS)
        ]
        assert code != 0 or not senseless, (seed, flags)
        built, refusals = built + (code == 0), refusals + (code != 0)
    assert not (folder / "new").exists()
    assert min(built, refusals) > len(seeds) / 20, "the fuzz must reach both sides"


def test_random_overrides_are_refused_in_one_line_or_build(tiny, tmp_path, monkeypatch):
    fuzz_overrides(range(60), tiny, tmp_path, monkeypatch)


@pytest.mark.slow
def test_many_random_overrides(tiny, tmp_path, monkeypatch):
    fuzz_overrides(range(1000, 1600), tiny, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("i, key", list(enumerate(KEYS)), ids=KEYS)
def test_every_key_with_a_third_of_the_values(i, key, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(modes, "train_mode", lambda workdir, config, *_, **__: (modes.prepare(config), 0)[1])
    for value in VALUES[i % 3 :: 3]:
        code, err = command(f"--config={tiny[0]}", f"--workdir={tmp_path / 'new'}", f"--config.{key}={value}")
        assert code == 0 or (one_line(code, err) and err.count("\n") == 1), (value, code, err[:500])


# --- damage ----------------------------------------------------------------------------------------------------------


def truncate(draw, path):
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data) + 1)])


def flip(draw, path):
    data = bytearray(path.read_bytes() or b"\0")
    for _ in range(draw.choice((1, 1, 8))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))


def foreign(draw, path):
    path.write_bytes(
        draw.choice((b"", b"\0" * 100, b"[" * 100_000, b"null", b'{"config": []}', b"PK\x03\x04", b"\xff\xfe"))
    )


def delete(draw, path):
    path.unlink()


def folder_in_place(draw, path):
    path.unlink()
    path.mkdir()


def json_value(draw, path):
    """A JSON document with one value replaced; other files are left to `flip`."""
    try:
        document = json.loads(path.read_text())
        place = document
        while isinstance(place, dict) and place:
            key, inside = draw.choice(sorted(place)), place
            place = place[key]
            if not isinstance(place, dict) or draw.random() < 0.1:
                inside[key] = draw.choice((None, "x", -1, 1e300, 10**30, True, [], [[1]], {}, {"a": 1}, 2.5))
                break
        path.write_text(json.dumps(document))
    except (ValueError, TypeError, AttributeError):
        flip(draw, path)


DAMAGES = (truncate, flip, foreign, delete, folder_in_place, json_value)
STRANGERS = ("checkpoints/7", "checkpoints/abc", "checkpoints/3.orbax-checkpoint-tmp", "checkpoints/0002", "eval/x")


def damage(draw, workdir):
    """Damage to one or two files of a run, each kind of file as likely as another; what was done, for the report."""
    done = []
    for _ in range(draw.choice((1, 1, 2))):
        if draw.random() < 0.15:
            path = workdir / draw.choice(STRANGERS)
            if not path.exists():
                path.mkdir(parents=True) if draw.random() < 0.5 else path.write_bytes(b"stranger")
                done.append(("stranger", path.name))
            continue
        group = draw.choice(
            ("config.json", "metrics.jsonl", ".lock", "checkpoints/2", "checkpoints/*", "eval", "samples")
        )
        found = sorted(p for q in workdir.glob(group) for p in (q.rglob("*") if q.is_dir() else [q]) if p.is_file())
        if found:
            how, path = draw.choice(DAMAGES), draw.choice(found)
            how(draw, path)
            done.append((how.__name__, str(path.relative_to(workdir))))
    return done


def fuzz_damage(seeds, tiny, folder):
    config, codes = tiny[0], []
    for seed in seeds:
        draw, workdir = random.Random(seed), folder / f"run{seed}"
        shutil.copytree(tiny[1], workdir)
        done = damage(draw, workdir)
        mode = draw.choice(("train", "eval", "sample"))
        flags = ["--config.training.steps=3"] if mode == "train" else []
        given = [f"--config={config}"] if draw.random() < 0.5 else []
        try:
            code, err = command(*given, f"--workdir={workdir}", f"--mode={mode}", *flags)
        except Exception as error:
            raise AssertionError(f"seed {seed}, --mode={mode} after {done}: a traceback") from error
        assert code == 0 or one_line(code, err), (seed, mode, done, code, err[-500:])
        codes.append(code)
        shutil.rmtree(workdir)
    return codes


def test_random_damage_gets_one_line_or_is_survived(tiny, tmp_path):
    fuzz_damage(range(4), tiny, tmp_path)


@pytest.mark.slow
def test_much_random_damage(tiny, tmp_path):
    codes = fuzz_damage(range(1000, 1050), tiny, tmp_path)
    assert {0, 1} <= set(codes), "the fuzz must reach both sides"
