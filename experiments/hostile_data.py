"""Hostile files of data: arrays, IDX files, CIFAR-10's archive, images and folders of them; and of a run."""

import bz2
import functools
import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from hostile import DEEP, add, add_all, add_not_files

# --- .npy and .npz ---------------------------------------------------------------------------------------------------


def npy(header: str | bytes, data: bytes = bytes(64), version: int = 1, length: int | None = None) -> bytes:
    written = header if isinstance(header, bytes) else header.encode()
    size = struct.pack("<H" if version == 1 else "<I", len(written) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + written + data


def described(descr: str = "'<f4'", shape: str = "(4, 4)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


REDUCE = b"cposix\nsystem\n(S'touch canary'\ntR."
ARRAYS = {
    "pickled objects": npy(described("'|O'", "(1,)"), REDUCE),
    "code for a header": npy("__import__('os').system('touch canary')\n"),
    "brackets in brackets": npy("(" * DEEP + "\n"), "shape 2^40": npy(described(shape=f"({2**40}, 4)")),
    "shape 2^32 x 2^32": npy(described(shape=f"({2**32}, {2**32})")),
    "shape 2^62 x 0": npy(described(shape=f"({2**62}, 0)")),
    "a shape below 0": npy(described(shape="(-4, -4)")), "a shape of fractions": npy(described(shape="(4.0, 4)")),
    "80 axes": npy(described(shape=str((4, 4) + (1,) * 78))), "numbers of 2 GB": npy(described(f"'|V{2**31 - 1}'")),
    "a header of 4 GB": npy(described(), version=2, length=2**32 - 1), "a header of no kind": npy("[1]\n"),
    "version 9": npy(described(), version=9),
    "records": npy(described("[('a', '<f4'), ('b', '|O')]")), "a dtype of no kind": npy(described("'__import__'")),
    "nan": npy(described(), b"\x00\x00\xc0\x7f" * 16), "half of it": npy(described())[:40],
}  # fmt: skip
add_all("arrays", {f".npy with {title}": data for title, data in ARRAYS.items()}, "x.npy")


def npz(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def entry(data: bytes, packed: bytes, method: int, name: bytes = b"x.npy", size: int | None = None) -> bytes:
    """A zip archive of one member that is packed already; `size` is what it says to have unpacked."""
    size = len(data) if size is None else size
    fields = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, zlib.crc32(data), len(packed), size, len(name), 0)
    local = b"PK\x03\x04" + fields + name + packed
    central = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    return local + central + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


@functools.cache
def zeros(start: bytes, count: int, kind: str) -> bytes:
    """`start` and many zeros, packed: 10 kB may be 10 MB (zlib), 70 MB (lzma) or 10 GB (bz2)."""
    packer = {"zlib": lambda: zlib.compressobj(9, wbits=-15), "gzip": lambda: zlib.compressobj(9, wbits=31),
              "bz2": bz2.BZ2Compressor}[kind]()  # fmt: skip
    out = packer.compress(start)
    for _ in range(count // 2**20):
        out += packer.compress(bytes(2**20))
    return out + packer.flush()


LARGE = described(shape=f"({2**20}, 100)")
PACKED_ARRAYS = {  # each made when it is needed: some take a second
    "x of 420 MB in bz2": lambda: entry(b"", zeros(npy(LARGE, b""), 100 * 2**22, "bz2"), 12, size=100 * 2**22 + 128),
    "x of 420 MB that it has not": lambda: entry(b"", zeros(npy(LARGE, b""), 2**22, "zlib"), 8, size=100 * 2**22 + 128),
    "a header of 3 GB": lambda: entry(b"", zeros(npy(b"", b"", 2, 3 * 2**30), 2**23, "zlib"), 8, size=3 * 2**30),
    "x in lzma": lambda: npz({"x.npy": npy(described(), bytes(2**24))}, zipfile.ZIP_LZMA),
    "x that is longer": lambda: npz({"x.npy": npy(described(), bytes(2**23))}),
    "labels of 2^40": lambda: npz({"x.npy": npy(described()), "labels.npy": npy(described("'<i8'", f"({2**40},)"))}),
    "labels that are pickled": lambda: npz(
        {"x.npy": npy(described()), "labels.npy": npy(described("'|O'", "(4,)"), REDUCE)}
    ),
    "no x": lambda: npz({"\x1b[2J.npy": b""}), "no members": lambda: npz({}),
    "x that is no array": lambda: npz({"x.npy": b"hello"}),
    "a directory of 10 GB": lambda: npz({"x.npy": npy(described())})[:-10] + struct.pack("<IIH", 2**32 - 2, 0, 0),
}  # fmt: skip
for title, make in PACKED_ARRAYS.items():
    add("arrays", f".npz with {title}", lambda folder, make=make: make(), "x.npz")
add_not_files("arrays", "x.npy", npy(described(shape=f"({2**33}, 1)"), b"", version=2, length=2**32 - 1))
add_not_files("arrays", "x.npz", b"PK\x03\x04")

# --- IDX and CIFAR-10 ------------------------------------------------------------------------------------------------

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(shape: tuple[int, ...], data: bytes = b"", kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data


GOOD = {LABELS: idx((2,), bytes(2))}
UNPACKED = {
    "2^32 images": idx((2**32 - 1, 28, 28)), "images of 2^64 pixels": idx((1, 2**32 - 1, 2**32 - 1)),
    "images of reals": idx((2, 28, 28), bytes(1568), 13),
    "255 axes": idx((1,) * 255), "images cut short": idx((2, 28, 28), bytes(9)), "nothing": b"",
    "no images": idx((0, 28, 28)),
}  # fmt: skip
PACKED = {
    "10 MB that it does not tell of": zeros(idx((2, 28, 28)), 10 * 2**20, "gzip"),
    "300 MB of images": zeros(idx((400_000, 28, 28)), 2**20, "gzip"),
    "gzip in gzip": gzip.compress(gzip.compress(idx((2, 28, 28), bytes(1568)))),
    "a name without end": b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 9_000, "2,000 empty parts": gzip.compress(b"") * 400,
    "half of it": gzip.compress(idx((2, 28, 28), bytes(range(256)) * 6))[:-30],
}  # fmt: skip
for file, cases in ((IMAGES, UNPACKED), (f"{IMAGES}.gz", PACKED)):
    for title, data in cases.items():

        def make(folder: Path, data=data) -> bytes:
            (folder / LABELS).write_bytes(GOOD[LABELS])
            return data

        add("mnist", f"{'.gz' if file.endswith('z') else 'images'} with {title}", make, file)
add_not_files("mnist", f"{IMAGES}.gz", gzip.compress(idx((2**32 - 1, 28, 28))), GOOD)
add_not_files("mnist", LABELS, idx((2**32 - 1,)), {IMAGES: idx((2, 28, 28), bytes(1568))})

ROWS = "data_batch_1.bin"


def tar(*members: tuple[str, dict, bytes]) -> bytes:
    out = io.BytesIO()
    for name, fields, data in members:
        info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
        for key, value in fields.items():
            setattr(info, key, value)
        out.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    return gzip.compress(out.getvalue() + bytes(1024), 9)


def holes() -> bytes:
    """A sparse member of 10 GB, of which the archive holds nothing."""
    header = bytearray(tarfile.TarInfo(ROWS).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410], header[483:495] = b"%011o\0%011o\0" % (2**33, 0), b"%011o\0" % 2**33
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:512]))
    return gzip.compress(bytes(header) + bytes(1024))


TARS = {
    "a member of 10 GB": tar((ROWS, dict(size=10 * 2**30), b"")),
    "a member of -512 bytes": tar((ROWS, dict(size=-512), b"")),
    "a member of holes": holes(), "a header of 10 GB": tar(("x", dict(type=tarfile.XHDTYPE, size=10 * 2**30), b"")),
    "a long name of 10 GB": tar(("x", dict(type=tarfile.GNUTYPE_LONGNAME, size=10 * 2**30), b"")),
    "a link out of it": tar((ROWS, dict(type=tarfile.SYMTYPE, linkname="/etc/passwd"), b"")),
    "a link to itself": tar((ROWS, dict(type=tarfile.LNKTYPE, linkname=f"cifar-10-batches-bin/{ROWS}"), b"")),
    "a device": tar((ROWS, dict(type=tarfile.CHRTYPE, devmajor=1, devminor=5), b"")),
    "a FIFO": tar((ROWS, dict(type=tarfile.FIFOTYPE), b"")),
    "200 members": tar(*[("x", {}, b"")] * 200), "10 MB of nothing": zeros(b"", 10 * 2**20, "gzip"),
    "no archive": gzip.compress(b"hello"),
    "a path out of it": tar((f"../../{ROWS}", dict(size=3073), bytes(3073))),
    "a pax header that is none": tar(("x", dict(type=tarfile.XHDTYPE, size=26), b"99999999999999999999 a=b\n\0")),
}  # fmt: skip
add_all("cifar10", {f"archive with {title}": data for title, data in TARS.items()}, "cifar-10-binary.tar.gz")
add_not_files("cifar10", "cifar-10-binary.tar.gz", b"\x1f\x8b\x08\x00")
add_not_files("cifar10", ROWS)

# --- images ----------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data) if length is None else length)
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def png(width: int, height: int, *chunks: bytes, colour: int = 2, depth: int = 8, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    return (
        b"\xff\xd8\xff\xc0"
        + struct.pack(">HBHHB", 17, 8, height, width, 3)
        + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0])
        + b"\xff\xd9"
    )


def riff(kind: bytes, data: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp(width: int, height: int) -> bytes:
    """A lossless WebP of one colour."""
    from PIL import Image

    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "WEBP", lossless=True)
    data = bytearray(small.getvalue())
    at = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[at : at + 4], "little") >> 28 << 28 | (height - 1) << 14 | width - 1
    data[at : at + 4] = bits.to_bytes(4, "little")
    return bytes(data)


BOMB = zlib.compress(bytes(9 * 2**20), 9)
PICTURES = {
    "177 megapixels": png(13_300, 13_300, data=BOMB), "2^62 pixels": png(2**31 - 1, 2**31 - 1), "no pixels": png(0, 0),
    "a line of 2^31": png(2**31 - 1, 1),
    "79 megapixels of one bit": png(8_900, 8_900, colour=0, depth=1, data=zlib.compress(bytes(8_900 * 1_114), 9)),
    "text of 9 MB": png(8, 8, chunk(b"zTXt", b"a\0\0" + BOMB)),
    "a profile of 9 MB": png(8, 8, chunk(b"iCCP", b"a\0\0" + BOMB)),
    "a chunk of 2^31 bytes": png(8, 8, chunk(b"tEXt", b"a", 2**31 - 1)),
    "too many pixels in it": png(8, 8, data=BOMB)[:-20],
    "a palette that is missing": png(8, 8, colour=3, data=zlib.compress(bytes(72)))[:-12],
    "half of it": png(8, 8, data=zlib.compress(bytes(8 * 25)))[:-30], "nothing": b"",
    "a JPEG of 4 gigapixels": jpeg(65_500, 65_500), "a JPEG of nothing": jpeg(0, 0),
    "a JPEG of 400 scans": jpeg(4_000, 4_000)[:-2] + b"\xff\xda\0\x08\1\1\0\0\0\0" * 400,
    "a WebP of 268 megapixels": webp(16_383, 16_383),
    "an animation of 2^48 pixels": riff(b"VP8X", bytes([2, 0, 0, 0]) + b"\xff" * 6),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(canary) (w) file\n%%EOF\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
    "a TIFF": b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 64,
    "a GIF": b"GIF89a\xff\xff\xff\xff\0\0\0;",
    "a BMP": b"BM" + struct.pack("<IIIIii", 0, 0, 54, 40, 2**30, 2**30) + bytes(28),
}  # fmt: skip
for title, data in PICTURES.items():

    def make(folder: Path, data=data) -> None:
        for number in range(2):
            (folder / f"{number}.png").write_bytes(data)

    add("images", title, make, ".")
    add("an image", title, lambda folder, data=data: data, "x.jpg")
# decoded whole before they are refused, for their size
LARGEST = {
    "WebP": webp(5_000, 5_000),
    "PNG": png(5_000, 5_000, chunk(b"PLTE", bytes(6)), chunk(b"tRNS", b"\7"), colour=3, depth=1,
               data=zlib.compress(bytes(5_000 * 626), 9)),
}  # fmt: skip
add_all("a large image", {f"25 megapixels of {title}": data for title, data in LARGEST.items()}, "x.jpg")
add_not_files("images", "pictures/0.png", b"\x89PNG\r\n\x1a\n", {})
add_not_files("an image", "0.png", b"\x89PNG\r\n\x1a\n")


def circle(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "c").symlink_to(folder / "a", target_is_directory=True)


def deep(folder: Path) -> None:
    os.makedirs(folder.joinpath(*"a" * 900))


def doubling(folder: Path) -> None:
    """2^30 paths to one picture."""
    for number in range(30):
        (folder / str(number)).mkdir()
        for link in "xy":
            (folder / str(number) / link).symlink_to(folder / str(number + 1), target_is_directory=True)
    (folder / "30").mkdir()
    (folder / "30" / "0.png").write_bytes(b"")


def terminal(folder: Path) -> None:
    for number in range(2):
        (folder / f"{number}\x1b[2J\r\x07.png").write_bytes(b"")
    (folder / os.fsdecode(b"\xff\x1b.png")).write_bytes(b"")
    (folder / "\x1b]0;x\x07.txt").write_bytes(b"")


for title, make in {
    "a link in a circle": circle,
    "links that double": doubling,
    "900 folders in folders": deep,
    "names that move the cursor": terminal,
}.items():
    add("images", title, make, "." if title != "links that double" else "0")

# --- runs ------------------------------------------------------------------------------------------------------------

SAVED = {
    "brackets in brackets": b"[" * DEEP + b"]" * DEEP, "no text": b"\xff\xfe", "a list": b"[]",
    "no sections": b'{"config": {}}',
    "a number of 9,000 digits": b'{"config": ' + b"9" * 9_000 + b"}",
    "numbers that are none": json.dumps({"config": {"seed": float("nan")}}).encode(),
    "control characters": json.dumps({"config": {"data": {"name": "\x1b[2J"}}}).encode(),
    "code": json.dumps({"config": {"data": {"name": "timeit:timeit"}}}).encode(),
    "a module": json.dumps({"config": {"data": {"name": "planted:load"}}}).encode(),
}  # fmt: skip
for title, data in SAVED.items():

    def make(folder: Path, data=data) -> None:
        (folder / "config.json").write_bytes(data)

    add("run", f"config.json with {title}", make, ".")
    add("weights", f"a run with {title} in config.json", make, ".")
