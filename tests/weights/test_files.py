"""Files that are damaged, cut short, foreign or malicious: one line, exit code 1, and nothing of them is run."""

import io
import json
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.weights.__main__ import main
from score_sde.weights.errors import WeightsError
from score_sde.weights.lazy import LazyTensor
from score_sde.weights.msgpack import read_msgpack
from score_sde.weights.naming import Slot, match
from score_sde.weights.opening import open_weights
from score_sde.weights.pickles import _KNOWN, read_torch
from score_sde.weights.tensors import read_safetensors, write_safetensors
from score_sde.weights.unpickling import NUMPY_SCALARS


@pytest.mark.parametrize("file", ["a.safetensors", "a.pth"])
def test_a_limit_that_is_met_is_no_damage(file, tmp_path, monkeypatch):
    path = tmp_path / file
    if file == "a.pth":
        Torch(path).save({"step": 1})
    else:
        write_safetensors(path, {"a/b": np.ones(1, np.float32)}, {})
    monkeypatch.setenv("SCORE_SDE_MAX_TEXT", "3")
    with pytest.raises(WeightsError, match=r"expected at most 3 .*set SCORE_SDE_MAX_TEXT.*\.$") as refused:
        open_weights(path)
    assert "damaged" not in str(refused.value)


class Torch:
    """Pickles as torch does, without torch: a call of _rebuild_tensor_v2 on a persistent storage."""

    class Call:
        def __init__(self, name, *args):
            self.name, self.args = name, args

    def __init__(self, path, **storages):
        self.path, self.storages = path, storages

    def save(self, value, compression=zipfile.ZIP_STORED):
        outer, buffer = self, io.BytesIO()

        class Pickler(pickle._Pickler):
            def persistent_id(self, obj):
                return obj.args if isinstance(obj, Torch.Call) and obj.name == "storage" else None

            def save(self, obj, *args, **kwargs):
                if isinstance(obj, Torch.Call) and obj.name != "storage":
                    module, _, name = obj.name.rpartition(".")
                    self.write(f"c{module}\n{name}\n".encode())
                    if obj.args != ("class",):
                        super().save(obj.args)
                        self.write(b"R")
                    return
                super().save(obj, *args, **kwargs)

        Pickler(buffer, protocol=2).dump(value)
        with zipfile.ZipFile(outer.path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", buffer.getvalue())
            for key, raw in outer.storages.items():
                archive.writestr(f"archive/data/{key}", raw)
        return outer.path

    def tensor(self, key, shape, strides, offset=0, kind="FloatStorage", numel=6):
        storage = Torch.Call("storage", "storage", Torch.Call(f"torch.{kind}", "class"), key, "cpu", numel)
        return Torch.Call("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, {})


NUMBERS = np.arange(6, dtype=np.float32)


def test_strides_offsets_and_shared_storages(tmp_path):
    file = Torch(tmp_path / "a.pth", k=NUMBERS.tobytes(), h=np.float16([1.5, -2.0]).tobytes(), b=b"\xc0\x3f\x00\xc0")
    found = read_torch(
        file.save(
            {
                "plain": file.tensor("k", (2, 3), (3, 1)),
                "transposed": file.tensor("k", (3, 2), (1, 3)),
                "part": file.tensor("k", (2,), (2,), offset=1),
                "half": file.tensor("h", (2,), (1,), kind="HalfStorage", numel=2),
                "bfloat16": file.tensor("b", (2,), (1,), kind="BFloat16Storage", numel=2),
                "step": 7,
            }
        )
    )
    np.testing.assert_array_equal(found["plain"], NUMBERS.reshape(2, 3))
    np.testing.assert_array_equal(found["transposed"], NUMBERS.reshape(2, 3).T)
    np.testing.assert_array_equal(found["part"], [1, 3])
    np.testing.assert_array_equal(found["half"], [1.5, -2.0])
    np.testing.assert_array_equal(found["bfloat16"], [1.5, -2.0])
    assert found["step"] == 7


@pytest.mark.parametrize(
    "shape, strides, offset", [((7,), (1,), 0), ((2,), (1,), 5), ((2,), (-1,), 3), ((-1,), (1,), 0)]
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, shape, strides, offset):
    file = Torch(tmp_path / "a.pth", k=NUMBERS.tobytes())
    with pytest.raises(WeightsError, match="outside its storage|from 0 up"):
        read_torch(file.save(file.tensor("k", shape, strides, offset)))


def test_a_storage_that_is_short_or_not_there_is_refused(tmp_path):
    file = Torch(tmp_path / "a.pth", k=NUMBERS[:3].tobytes())
    found = read_torch(file.save([file.tensor("k", (6,), (1,)), file.tensor("gone", (6,), (1,))]))
    for tensor, message in zip(found, ("3 of 6 numbers", "gone"), strict=True):
        with pytest.raises(WeightsError, match=message):
            np.asarray(tensor)


def test_a_tensor_that_does_not_fit_is_not_read():
    def read():
        raise AssertionError("its numbers were read")

    slot = Slot("a", (2, 3), (("a", "same"),))
    for shape in ((2**40,), (2**62, 0), (3, 2)):
        found = match([slot], {"a": LazyTensor(shape, read)})
        assert found.params is None and found.misshapen == [f"a {shape}, not (2, 3)"]


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_learning_rate_of_score_sde_is_a_numpy_scalar(tmp_path, module, protocol):
    """Its trainer sets `g["lr"] = lr * np.minimum(step / warmup, 1.0)`."""
    group = {"lr": 2e-4 * np.minimum(700 / 5000, 1.0), "betas": (0.9, 0.999), "step": np.int32(7), "on": np.bool_(True)}
    own = pickle.dumps({"optimizer": {"param_groups": [group]}, "step": 700}, protocol)
    here = type(group["lr"]).__reduce__(group["lr"])[0].__module__.encode()
    if protocol == 2:  # where names are lines of their own
        own = own.replace(b"c" + here + b"\n", f"c{module}\n".encode())
    with zipfile.ZipFile(path := tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", own)
    (found,) = read_torch(path)["optimizer"]["param_groups"]
    assert found == {"lr": 2e-4 * 0.14, "betas": (0.9, 0.999), "step": 7, "on": True}
    assert type(found["lr"]) is float and type(found["step"]) is int


def test_a_tensor_of_a_file_has_no_state(tmp_path):
    file = Torch(tmp_path / "a.pth", k=NUMBERS.tobytes())
    tensor = read_torch(file.save(file.tensor("k", (6,), (1,))))
    with pytest.raises(TypeError, match="no state"):
        tensor.__setstate__({"shape": (4096,)})
    with pytest.raises(AttributeError):
        tensor.more = 1


def test_msgpack_is_read_as_flax_reads_it(tmp_path):
    from flax import serialization, traverse_util

    kinds = ("f2", "f4", "f8", "i1", "u4", "i8", "?")
    arrays = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in kinds} | {
        "bf": jnp.arange(3, dtype=jnp.bfloat16)
    }
    arrays |= {"scalar": np.float64(0.5), "empty": np.zeros((0, 4)), "zero": np.array(3)}
    numbers = {"one": 1, "less": -40, "more": 2**40, "real": 0.1, "no": None, "yes": True, "s": "ü" * 300}
    data = serialization.msgpack_serialize({"arrays": arrays, "numbers": numbers})
    (tmp_path / "a").write_bytes(data)
    trees = read_msgpack(tmp_path / "a"), serialization.msgpack_restore(data)
    found, wanted = map(traverse_util.flatten_dict, trees)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if key[0] == "arrays":
            assert found[key].shape == np.shape(value)
            np.testing.assert_array_equal(np.asarray(found[key], float), np.asarray(value, float))
        else:
            assert found[key] == value


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_pickle_that_would_run_code_runs_nothing(tmp_path, capsys):
    """First that the bait works where pickles are trusted."""
    bait = tmp_path / "ran"
    pickle.loads(pickle.dumps(Malicious(bait))).close()
    assert bait.exists()
    bait.unlink()
    for path, wrap in ((tmp_path / "zip.pth", True), (tmp_path / "bare.pth", False)):
        if wrap:
            Torch(path).save({"model": Malicious(bait), "step": 1})
        else:
            path.write_bytes(pickle.dumps({"model": Malicious(bait)}))
        for command in (["inspect", str(path)], ["import", str(path), str(tmp_path / "run")]):
            assert main(command) == 1
            said = capsys.readouterr()
            assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
            assert "open" in said.err and "nothing was run" in said.err
        assert not bait.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "builtins.getattr", "torch.load", "numpy.load"])
def test_no_name_of_another_module_is_known(tmp_path, name):
    file = Torch(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="nothing was run"):
        read_torch(file.save(Torch.Call(name, "x")))
    known = {"collections", "torch", "torch._utils", *NUMPY_SCALARS}
    assert all(module in known or (module, name) in known for module, name in _KNOWN)


def test_other_archives_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=NUMBERS)
    with pytest.raises(WeightsError, match="another zip archive"):
        open_weights(tmp_path / "a.npz")
    with pytest.raises(WeightsError, match="compressed"):
        open_weights(Torch(tmp_path / "b.pth").save({"step": 1}, zipfile.ZIP_DEFLATED))


def write_all(folder):
    """A good file of each format that opens."""
    from flax import serialization

    torch = Torch(folder / "a.pth", k=NUMBERS.tobytes())
    weights = {"module.all_modules.0.weight": torch.tensor("k", (2, 3), (3, 1))}
    torch.save({"model": weights, "ema": {"shadow_params": list(weights.values())}, "step": 3})
    write_safetensors(folder / "a.safetensors", {"Dense_0/kernel": NUMBERS}, {"score_sde_step": "3"})
    tree = {"Dense_0": {"kernel": NUMBERS}}
    state = {"step": 3, "optimizer": {"target": {"params": tree}}, "params_ema": tree}
    (folder / "checkpoint_3").write_bytes(serialization.msgpack_serialize(state))
    return [folder / name for name in ("a.pth", "a.safetensors", "checkpoint_3")]


def test_files_cut_short_or_changed(tmp_path):
    for path in write_all(tmp_path):
        found, data = open_weights(path), path.read_bytes()
        assert found.step == 3 and all(np.size(np.asarray(v)) == 6 for v in found.tensors.values())
        for length in [0, 1, 4, 9, len(data) // 2, len(data) - 1]:
            path.write_bytes(data[:length])
            with pytest.raises(WeightsError) as refused:
                open_weights(path)
            assert "\n" not in str(refused.value) and str(path) in str(refused.value)
        rng = np.random.default_rng(0)
        for _ in range(200):
            wrong = bytearray(data)
            for at in rng.integers(0, len(data), 3):
                wrong[at] = rng.integers(256)
            path.write_bytes(wrong)
            try:
                [np.asarray(v) for v in open_weights(path).tensors.values()]
            except WeightsError as refused:
                assert "\n" not in str(refused)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "another format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "of another format"),
        (struct.pack("<Q", 2**31) + b"{", "damaged"),
        (b"\x85\xa4step\x01", "damaged"),
    ],
)
def test_foreign_files(tmp_path, content, message, capsys):
    path = tmp_path / "weights"
    path.write_bytes(content)
    assert main(["inspect", str(path)]) == 1
    assert message in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_folders_and_paths_that_are_no_weights(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"config": {}}')
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    cases = dict(empty="expected a diffusers folder", run="workdir of score_sde", bad="damaged", gone="No such file")
    for name, message in (cases | {"none": "diffusion_pytorch_model"}).items():
        assert main(["inspect", str(tmp_path / name)]) == 1
        assert message in (said := capsys.readouterr().err) and said.count("\n") == 1, said


def test_safetensors_of_every_kind(tmp_path):
    values = dict(f32=NUMBERS, f16=NUMBERS.astype(np.float16), f64=NUMBERS.astype(float), i64=NUMBERS.astype(int))
    header, data = {}, b""
    for name, value in values.items():
        header[name] = {"dtype": name.upper(), "shape": [2, 3], "data_offsets": [len(data), len(data) + value.nbytes]}
        data += value.tobytes()
    bits = (NUMBERS.view(np.uint32) >> 16).astype(np.uint16)
    header["bf16"] = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [len(data), len(data) + 12]}
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data + bits.tobytes())
    found, metadata = read_safetensors(path)
    assert metadata == {} and np.asarray(found["bf16"]).dtype == np.float32
    for name in header:
        np.testing.assert_array_equal(found[name], NUMBERS.reshape(2, 3))
