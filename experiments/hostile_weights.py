"""Hostile files of weights: torch.save's zip archives with pickles, safetensors, Flax's msgpack, diffusers' folders."""

import io
import json
import pickle
import struct
import zipfile
from typing import Any

from hostile import DEEP, add, add_all, add_not_files

# --- torch.save ------------------------------------------------------------------------------------------------------


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def name(dotted: str) -> bytes:
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def plain(value: Any) -> bytes:
    """The instructions that build a value, of which bytes are instructions already."""
    match value:
        case bytes():
            return value
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if abs(value) < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return text(value)
        case tuple():
            return b"(" + b"".join(map(plain, value)) + b"t"
        case dict():
            return b"}(" + b"".join(plain(k) + plain(v) for k, v in value.items()) + b"u"
        case list():
            return b"](" + b"".join(map(plain, value)) + b"e"
    return b"N"


def call(dotted: str, *args: Any) -> bytes:
    return name(dotted) + plain(args) + b"R"


def storage(kind: str = "FloatStorage", key: Any = "0", numel: Any = 4) -> bytes:
    return plain(("storage", name(f"torch.{kind}"), key, "cpu", numel)) + b"Q"


def tensor(shape: Any = (4,), strides: Any = (1,), offset: Any = 0, **of_storage: Any) -> bytes:
    ordered = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", storage(**of_storage), offset, shape, strides, False, ordered)


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for member, data in members.items():
            file.writestr(member, data)
    return out.getvalue()


def pth(value: Any, raw: bytes | None = None, **more: bytes) -> bytes:
    """A file of torch.save with a value, or with a raw pickle, and one storage of four numbers."""
    instructions = b"\x80\x02" + plain(value) + b"." if raw is None else raw
    return archive({"a/data.pkl": instructions, "a/data/0": struct.pack("<4f", 1, 2, 3, 4)} | more)


WEIGHT = "all_modules.0.weight"


def model(one: bytes) -> bytes:
    return plain({"model": {WEIGHT: one}, "step": 1})


def weights(one: bytes) -> bytes:
    return pth(model(one))


def dtype(code: str) -> bytes:
    return call("numpy.dtype", code, False, True)


def nested(depth: int) -> bytes:
    """A tuple of two of a tuple of two of ...: 2^depth leaves, of which a hash takes for ever."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth))


SHELL = "touch canary"
CALLS = {
    "os.system": ("posix.system", SHELL),
    "eval": ("builtins.eval", "open('canary', 'w')"),
    "exec by the old name": ("__builtin__.exec", "open('canary', 'w')"),
    "open": ("builtins.open", "canary", "w"),
    "a module": ("planted.load",),
    "a process": ("subprocess.getoutput", SHELL),
    "runpy": ("runpy.run_path", "planted.py"),
    "a name with dots": ("builtins.open.__call__", "canary", "w"),
    "torch's own loader": ("torch.storage._load_from_bytes", pickle.dumps(0)),
    "numpy's loader": ("numpy.load", "canary"),
    "codecs of another kind": ("_codecs.encode", "aa", "rot13"),
    "a codec that unpacks": ("_codecs.encode", "aa", "bz2"),
}
add_all("weights", {f".pth that calls {k}": pth({"step": 1, "model": call(*v)}) for k, v in CALLS.items()})
SYSTEM, SCALAR = name("posix.system"), "numpy.core.multiarray.scalar"
RAW = {  # instructions behind PROTO
    "INST": b"(S'touch canary'\niposix\nsystem\n.",
    "OBJ": b"(" + SYSTEM + b"S'touch canary'\no.",
    "NEWOBJ": SYSTEM + b"(S'touch canary'\nt\x81.",
    "NEWOBJ_EX": SYSTEM + b"(S'touch canary'\nt}\x92.",
    "STACK_GLOBAL": text("posix") + text("system") + b"\x93(S'touch canary'\ntR.",
    "EXT1": b"\x82\x01.", "EXT4": b"\x84\xff\xff\xff\x7f.",
    "PERSID": b"Pstorage\n.",
    "LONG_BINPUT of 2^31": b"}r\xfe\xff\xff\x7f.",
    "PUT of 2^40": b"}p1099511627776\n.",
    "BINUNICODE of 2^32": b"X\xff\xff\xff\xff.",
    "BINUNICODE8 of 2^40": b"\x8d" + struct.pack("<Q", 2**40) + b".",
    "BINBYTES of 2^32": b"B\xff\xff\xff\xff.",
    "BYTEARRAY8 of 2^40": b"\x96" + struct.pack("<Q", 2**40) + b".",
    "FRAME of 2^62": b"\x95" + struct.pack("<Q", 2**62) + b".",
    "LONG4 of 2^31": b"\x8b\xff\xff\xff\x7f.",
    "INT of 9,000 digits": b"I" + b"9" * 9_000 + b"\n.",
    "tuples in tuples": b")" + b"\x85" * 9_000 + b".",
    "marks in marks": b"(" * 9_000 + b".",
    "a key that is hashed for ever": b"}" + nested(60) + b"Ns.",
    "a set that is hashed for ever": b"\x8f(" + nested(60) + b"\x90.",
    "items that are hashed for ever": call("collections.OrderedDict", [(nested(60), 1)]) + b".",
    "a name printed for ever": b"}" + text("model") + nested(60) + b"s.",
    "REDUCE of a tensor": tensor() + b")R.",
    "REDUCE of a dictionary": b"})R.",
    "REDUCE without a tuple": name("torch.Size") + text("x") + b"R.",
    "BUILD of a tensor, with shape": model(tensor() + plain({"shape": (2**28,), "_strides": (1,)}) + b"b") + b".",
    "BUILD of a tensor, with slots": model(tensor() + b"N" + plain({"shape": (2**28,)}) + b"\x86b") + b".",
    "BUILD of a function": name("torch._utils._rebuild_tensor_v2") + plain({"__code__": 1}) + b"b.",
    "BUILD of a storage's kind": name("torch.FloatStorage") + plain({"dtype": "<f8"}) + b"b.",
    "APPEND to a dictionary": b"}Na.", "SETITEM of a list": b"]K\x00Ns.",
    "nothing on the stack": b"R.", "no end": b"}", "no memo": b"h\x07.",
    "objects of NumPy": call(SCALAR, dtype("O8"), b"C\x08AAAAAAAA") + b".",
    "a record of NumPy": dtype("V8") + plain((3, "|", b"N", ("a",), {"a": 1}, 8, 1, 0)) + b"b.",
    "a record by its state": dtype("f8") + plain((3, "|", b"N", ("a",), {"a": 1}, 8, 1, 0)) + b"b.",
    "a scalar of the wrong length": call(SCALAR, dtype("f8"), b"C\x01A") + b".",
    "a scalar of no dtype": call(SCALAR, "f8", b"C\x01A") + b".",
}  # fmt: skip
add_all("weights", {f".pth with {title}": pth(None, b"\x80\x02" + data) for title, data in RAW.items()})
TENSORS = {
    "strides of 0": tensor((2**30,), (0,)), "strides of 0 on two axes": tensor((2**20, 2**20), (0, 0)),
    "numbers beyond the storage": tensor((4096,)), "an offset beyond the storage": tensor((1,), (1,), 4096),
    "strides below 0": tensor((4,), (-1,), 3), "an offset below 0": tensor((1,), (1,), -8),
    "a shape beyond 2^63": tensor((2**70,), (0,)), "a shape whose size wraps": tensor((2**32, 2**32), (2**32, 1)),
    "80 axes": tensor((1,) * 80, (1,) * 80), "a shape of fractions": tensor((1.5,)), "a shape of words": tensor(("4",)),
    "no shape": tensor("ab", "ab"), "fewer strides": tensor((2, 2), (1,)),
    "a storage of 2^40": tensor((2**40,), numel=2**40),
    "a storage that is not there": tensor(key="../../x"), "a storage of no name": tensor(key=7),
    "a storage of a word": tensor(numel="4"), "a storage of no kind": tensor(kind="Size"),
    "no storage": call("torch._utils._rebuild_tensor_v2", 1, 0, (4,), (1,), False, {}),
    "a control character": tensor(key="\x1b[2J"),
}  # fmt: skip
add_all("weights", {f"tensor with {title}": weights(data) for title, data in TENSORS.items()})
ARCHIVES = {
    "no pickle": archive({"a/b": b""}), "two pickles": archive({"a/data.pkl": b"", "b/data.pkl": b""}),
    "a packed pickle": archive({"a/data.pkl": b"\x80\x02" + b"}0" * 10**6 + b"}."}, zipfile.ZIP_DEFLATED),
    "another byte order": pth({"step": 1}, **{"a/byteorder": b"big"}),
    "sizes of 4 GB": weights(tensor()).replace(struct.pack("<II", 16, 16), struct.pack("<II", 2**32 - 2, 2**32 - 2)),
    "a pickle of 70 MB": pth(None, b"\x80\x02" + b"}" * 9_000 + b"."),
    "a name like a path": archive({"../../data.pkl": b"\x80\x02}."}),
    "half of it": weights(tensor())[:-40],
    "a bare pickle": pickle.dumps({"model": 1}),
}  # fmt: skip


def module(class_name: str, modules: Any, options: bytes = b"}") -> bytes:
    """An object of NVlabs' persistent classes."""
    meta = {"class_name": class_name, "state": {"_modules": modules, "_init_kwargs": options}}
    return call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def modules_in_modules(levels: int) -> bytes:
    """A hundred times one module, which has a hundred times one, ..."""
    inside = module("Linear", b"}") + b"q\0"
    for level in range(levels):
        children = (
            b"}(" + text("0") + inside + b"".join(text(str(n)) + b"h" + bytes([level]) for n in range(1, 100)) + b"u"
        )
        inside = module("Block", children) + b"q" + bytes([level + 1])
    return plain({"ema": module("EDMPrecond", plain({"model": module("SongUNet", plain({"enc": inside}))}))})


BARE = {
    "items that are hashed for ever": call("dnnlib.util.EasyDict", [(nested(60), 1)]),
    "modules in modules": modules_in_modules(4),
    "an option printed for ever": module(
        "EDMPrecond", {"model": module("SongUNet", b"}", b"}" + text("x") + nested(60) + b"s")}
    ),
    "a call": call("posix.system", "touch canary"),
    "a module": name("planted.load"),
    "an object of no class": call("torch_utils.persistence._reconstruct_persistent_obj", {}),
}  # fmt: skip
add_all("weights", {f".pkl with {title}": b"\x80\x02" + data + b"." for title, data in BARE.items()})
add_all("weights", {f"zip with {title}": data for title, data in ARCHIVES.items()})
add_not_files("weights", "checkpoint.pth", b"PK\x03\x04")

# --- safetensors -----------------------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written) if length is None else length) + written + data


def entry(shape: Any = (4,), dtype: Any = "F32", offsets: Any = (0, 16)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def settings(**sections: dict) -> str:
    """A config of ours, as the header of a file holds it: the changed values alone are enough to be read."""
    return json.dumps({"config": sections})


KERNEL = "Dense_0/kernel"


def coded(name: str) -> dict:
    """A header whose config takes its data from the function `name`."""
    return {"__metadata__": {"score_sde_config": settings(data={"name": name})}, KERNEL: entry()}


HEADERS = {
    "no tensors": {}, "a list": b"[1]", "brackets in brackets": b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a number of 9,000 digits": b'{"a":' + b"9" * 9_000 + b"}", "no text": b"{\xff\xfe}",
    "an entry of no kind": {KERNEL: 7}, "an entry without a shape": {KERNEL: {"dtype": "F32"}},
    "shape [2^62, 0]": {KERNEL: entry([2**62, 0], offsets=(0, 0))}, "shape [2^40]": {KERNEL: entry([2**40])},
    "shape [2^32, 2^32]": {KERNEL: entry([2**32, 2**32])}, "shape [-4]": {KERNEL: entry([-4])},
    "shape [4.0]": {KERNEL: entry([4.0])}, "shape [true]": {KERNEL: entry([True, 4])},
    "shape null": {KERNEL: entry(None)},
    "80 axes": {KERNEL: entry([1] * 78 + [2, 2])}, "offsets that fall": {KERNEL: entry(offsets=(16, 0))},
    "offsets beyond the end": {KERNEL: entry([2**40], offsets=(0, 2**42))},
    "offsets below 0": {KERNEL: entry(offsets=(-16, 0))},
    "offsets of words": {KERNEL: entry(offsets=("0", "16"))}, "one offset": {KERNEL: entry(offsets=[0])},
    "a dtype of no kind": {KERNEL: entry(dtype="O")}, "a dtype that is a list": {KERNEL: entry(dtype=["F32"])},
    "two tensors of one place": {KERNEL: entry(), "Dense_0/bias": entry()},
    "numbers left over": {KERNEL: entry((2,), offsets=(0, 8))},
    "metadata of no kind": {"__metadata__": [1], KERNEL: entry()},
    "metadata of numbers": {"__metadata__": {"a": 1}, KERNEL: entry()},
    "a config that names code": coded("timeit:timeit"), "a config that names a module": coded("planted:load"),
    "a config that is none": {"__metadata__": {"score_sde_config": "{"}, KERNEL: entry()},
    "a config in brackets": {"__metadata__": {"score_sde_config": "[" * DEEP}, KERNEL: entry()},
    "a config of no sections": {"__metadata__": {"score_sde_config": '{"config": []}'}, KERNEL: entry()},
    "a config of 10,000 blocks": {
        "__metadata__": {"score_sde_config": settings(model=dict(ch_mult=[1] * 100, num_res_blocks=100))},
        KERNEL: entry(),
    },
    "a config of 2^31 pixels": {
        "__metadata__": {"score_sde_config": settings(data=dict(name="images", size=2**31 - 1, channels=3))},
        KERNEL: entry(),
    },
    "a step of 4,000 digits": {"__metadata__": {"score_sde_step": "9" * 4_000}, KERNEL: entry()},
    "control characters": {"\x1b[2J\x07\r" + KERNEL: entry()},
}  # fmt: skip
add_all("weights", {f"safetensors with {title}": safetensors(header) for title, header in HEADERS.items()})
LENGTHS = {"2^31": 2**31, "2^32 - 1": 2**32 - 1, "0": 0, "10^7": 10**7}
add_all("weights", {f"safetensors with a header of {k} bytes": safetensors({}, length=n) for k, n in LENGTHS.items()})
add_not_files("weights", "model.safetensors", safetensors({KERNEL: entry([2**31], offsets=(0, 2**33))}, b""))

# --- Flax's msgpack --------------------------------------------------------------------------------------------------


def packed(value: Any) -> bytes:
    """A value in msgpack, of which bytes are written already."""
    match value:
        case bytes():
            return value
        case dict():
            return b"\xdf" + struct.pack(">I", len(value)) + b"".join(packed(k) + packed(v) for k, v in value.items())
        case list() | tuple():
            return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(packed, value))
        case str():
            return b"\xdb" + struct.pack(">I", len(value)) + value.encode()
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return (b"\xd3" + struct.pack(">q", value)) if value < 2**63 else (b"\xcf" + struct.pack(">Q", value))
        case float():
            return b"\xcb" + struct.pack(">d", value)
    return b"\xc0"


def array(shape: Any = (4,), dtype: Any = "float32", data: bytes = bytes(16), code: int = 1) -> bytes:
    inside = b"\x93" + packed(shape) + packed(dtype) + b"\xc6" + struct.pack(">I", len(data)) + data
    return b"\xc9" + struct.pack(">Ib", len(inside), code) + inside


def state(target: Any, ema: Any = None, step: Any = 1) -> bytes:
    ema = target if ema is None else ema
    return packed({"step": step, "optimizer": {"target": {"params": target}}, "params_ema": {"params": ema}})


DENSE = {"Dense_0": {"kernel": array()}}
STATES = {
    "keys that are numbers": state({0: {1: array()}}), "parameters in a list": state([array()]),
    "no parameters": state({}),
    "words as parameters": state({"Dense_0": "x"}), "averages that are a list": state(DENSE, [array()]),
    "a step that is a list": state(DENSE, step=[1]), "a step that is nan": state(DENSE, step=float("nan")),
    "a step that is a word": state(DENSE, step="x"), "a step beyond int64": state(DENSE, step=2**64 - 1),
    "a step that is empty": state(DENSE, step=array((0,), data=b"")),
    "a step that is an array": state(DENSE, step=array()),
    "shape [2^62, 0]": state({"Dense_0": {"kernel": array([2**62, 0], data=b"")}}),
    "shape [2^40]": state({"a": array([2**40])}), "shape [-4]": state({"a": array([-4])}),
    "80 axes": state({"a": array([1] * 78 + [2, 2])}),
    "a shape that is a word": state({"a": array("4")}), "objects": state({"a": array(dtype="object")}),
    "records": state({"a": array(dtype="f4,f4")}), "a dtype that is a list": state({"a": array(dtype=["f4"])}),
    "complex numbers": state({"a": array(code=2)}), "a map of 2^32": b"\x82\xa4step\x01\xa1a\xdf\xff\xff\xff\xff",
    "a list of 2^32": b"\x82\xa4step\x01\xa1a\xdd\xff\xff\xff\xff",
    "lists of 2^31 in each other": b"\x82\xa1a" + b"\xdd\x7f\xff\xff\xff" * 1_000,
    "a text of 2^32": b"\x82\xa1a\xdb\xff\xff\xff\xff", "bytes of 2^32": b"\x82\xa1a\xc6\xff\xff\xff\xff",
    "an array of 2^32": b"\x82\xa1a\xc9\xff\xff\xff\xff\x01\x93", "lists in lists": b"\x82\xa1a" + b"\x91" * 9_000,
    "no text": b"\x82\xa1\xff\x01", "more behind its end": state(DENSE) + b"\x01",
    "a byte that is nothing": b"\x82\xc1\xc1",
}  # fmt: skip
add_all("weights", {f"msgpack with {title}": data for title, data in STATES.items()})
add_not_files("weights", "checkpoint_1", b"\x82\xa1a\xc6\xff\xff\xff\xff")

# --- diffusers' folders ----------------------------------------------------------------------------------------------

UNET = dict(
    _class_name="UNet2DModel", sample_size=8, block_out_channels=[8, 8], layers_per_block=1, attention_head_dim=None,
    down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2, norm_num_groups=8,
)  # fmt: skip
CONV = {"conv_in.weight": entry((8, 3, 3, 3), offsets=(0, 864))}
MODEL = "diffusion_pytorch_model.safetensors"
CONFIGS = {
    "norm_num_groups 0": UNET | dict(norm_num_groups=0), "layers_per_block 10^9": UNET | dict(layers_per_block=10**9),
    "layers_per_block 100": UNET | dict(layers_per_block=100),
    "layers_per_block nan": UNET | dict(layers_per_block=float("nan")),
    "widths of 2^40": UNET | dict(block_out_channels=[2**40] * 2), "sample_size 2^62": UNET | dict(sample_size=2**62),
    "sample_size 0": UNET | dict(sample_size=0), "dropout nan": UNET | dict(dropout=float("nan")),
    "norm_eps []": UNET | dict(norm_eps=[]),
    "100 levels": UNET | {key: UNET[key] * 50 for key in ("block_out_channels", "down_block_types", "up_block_types")},
    "block types that are numbers": UNET | dict(down_block_types=[0, 0]),
    "block types that are null": UNET | dict(up_block_types=None),
    "attention_head_dim -8": UNET | dict(attention_head_dim=-8), "a list": [1],
    "code in the name": UNET | dict(_class_name="\x1b[2J__import__"),
}  # fmt: skip
for title, found in CONFIGS.items():
    add(
        "weights", f"diffusers with {title}",
        lambda folder, found=found: (folder / MODEL).write_bytes(safetensors(CONV, bytes(864)))
        and (folder / "config.json").write_text(json.dumps(found)) and None,
        ".",
    )  # fmt: skip
VE = UNET | dict(time_embedding_type="fourier")
CHAIN, SIGMAS = dict(_class_name="DDPMScheduler"), dict(_class_name="ScoreSdeVeScheduler", sigma_max=348.0)
SCHEDULERS = {
    "betas that are words": (UNET, CHAIN | dict(beta_start="x")),
    "infinite betas": (UNET, CHAIN | dict(beta_end=float("inf"))), "a list": (UNET, [1]),
    "infinite steps": (VE, SIGMAS | dict(num_train_timesteps=float("inf"))),
    "no sigma": (VE, SIGMAS | dict(sigma_max="x")), "sigma nan": (VE, SIGMAS | dict(sigma_max=float("nan"))),
    "code for a class": (UNET, dict(_class_name="planted.load")),
}  # fmt: skip
for title, (unet, found) in SCHEDULERS.items():
    add(
        "weights", f"diffusers' scheduler with {title}",
        lambda folder, unet=unet, found=found: (folder / MODEL).write_bytes(safetensors(CONV, bytes(864)))
        and (folder / "config.json").write_text(json.dumps(unet))
        and (folder / "scheduler_config.json").write_text(json.dumps(found)) and None,
        ".",
    )  # fmt: skip
