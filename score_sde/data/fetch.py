"""Published files, fetched once into a cache and checked against their sha256.

    python -m score_sde.data.fetch cifar10                 into the cache, where configs without data.dir look
    python -m score_sde.data.fetch mnist --dir=FOLDER      into a folder, for --config.data.dir=FOLDER

The cache is $SCORE_SDE_DATA, or the user's cache directory.  A download that breaks off leaves a `.part`, from which
the next one goes on; a file gets its name only when its checksum is right.  A file that is there is never replaced.

names: cifar10, fashion_mnist, mnist
"""

import fcntl
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from score_sde.data.sources import DataError
from score_sde.reading import RegularFile, check_limit, printable

_TIMEOUT = 5.0  # seconds without an answer


@dataclass(frozen=True)
class Published:
    """Files below a URL, each with its sha256 (published beside the data, or found by all who read them)."""

    url: str
    sha256: dict[str, str]


PUBLISHED = {
    "cifar10": Published(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    ),
    "fashion_mnist": Published(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "mnist": Published(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
}


def cache_directory() -> Path:
    """Where fetched files and decoded images are kept: $SCORE_SDE_DATA, or the user's cache directory."""
    if chosen := os.environ.get("SCORE_SDE_DATA"):
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("score_sde"))


def fetch(name: str, directory: str | os.PathLike | None = None) -> Path:
    """The folder that holds the published files of a data set, each downloaded unless it is there.

    Args:
        name: 'cifar10', 'fashion_mnist' or 'mnist'.
        directory: where the files go; by default a folder of the cache.

    Raises:
        ValueError: another data set is asked for.
        DataError: a file cannot be downloaded or written, or is not the published one.
    """
    if name not in PUBLISHED:
        raise ValueError(f"expected a published data set among {', '.join(PUBLISHED)}, got {name!r}.")
    directory = cache_directory() / name if directory is None else Path(directory)
    for file, sha256 in PUBLISHED[name].sha256.items():
        _fetch(PUBLISHED[name].url + file, directory / file, sha256)
    return directory


def _fetch(url: str, path: Path, sha256: str) -> None:
    try:
        if path.exists():
            if (found := _sha256(path)) != sha256:
                raise DataError(
                    f"{path}: expected the file of {url} with sha256 {sha256}, got {found}; move it away and fetch "
                    "again, or set config.data.dir to read it as it is"
                )
            return
        import pooch

        pooch.get_logger().setLevel("WARNING")  # the bar says what it would
        pooch.retrieve(url, f"sha256:{sha256}", fname=path.name, path=path.parent, downloader=_Resuming(path))
    except DataError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: pooch's, for a wrong checksum
        reason = printable(getattr(error, "reason", None) or getattr(error, "strerror", None) or error, 500)
        raise DataError(
            f"cannot fetch {path.name} from {url}: {reason}; run again to try again, or get the file with sha256 "
            f"{sha256} some other way and set config.data.dir to the folder that holds it"
        ) from error


def _sha256(path: Path) -> str:
    with RegularFile(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Resuming:
    """A downloader for pooch that keeps what it has in `path`.part, and asks only for the rest."""

    path: Path

    def __call__(self, url: str, output: str, pooch) -> None:
        part = self.path.with_name(self.path.name + ".part")
        with open(part, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o644)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(f"{part} is being downloaded by another process; wait for it") from None
            _download(url, file)
            os.replace(part, output)


def _download(url: str, file) -> None:
    """Append to `file` what is missing of `url`, with a bar.

    Raises:
        OSError: no connection, an error of the server, or the end came too early.
    """
    from tqdm import tqdm

    have = file.tell()
    try:
        answer = _open(url, have)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not have:
            raise ConnectionError(f"the server says {error.code} {error.reason}") from None
        if error.headers.get("Content-Range") == f"bytes */{have}":  # nothing lies beyond what is there
            return
        answer = _open(url, have := 0)
    with answer:
        if not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            have = 0  # the server sends all of it
        file.truncate(have)
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        name = os.path.basename(url)
        with tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True, leave=False) as bar:
            while data := answer.read(1 << 16):
                file.write(data)
                bar.update(len(data))
                check_limit("SCORE_SDE_MAX_BYTES", file.tell(), "bytes of a published file")
    file.flush()
    if total is not None and (size := file.tell()) < total:
        raise ConnectionError(f"the connection broke off at {size:,} of {total:,} bytes")


def _open(url: str, first: int):
    headers = {"User-Agent": "score_sde", **({"Range": f"bytes={first}-"} if first else {})}
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)


def main(argv: list[str]) -> int:
    """`python -m score_sde.data.fetch NAME [--dir=FOLDER]`: exit code 0, 1 for a failure, 2 for a mistake."""
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return 0
    folders = [word.removeprefix("--dir=") for word in argv if word.startswith("--dir=")]
    names = [word for word in argv if not word.startswith("--dir=")]
    if len(names) != 1 or len(folders) > 1 or "" in folders or names[0] not in PUBLISHED:
        print(f"error: expected one of {', '.join(PUBLISHED)} and at most --dir=FOLDER, got {' '.join(argv)!r}. "
              "See --help.", file=sys.stderr)  # fmt: skip
        return 2
    try:
        print(fetch(names[0], *folders))
    except DataError as error:
        print(f"error: {printable(error, 1000)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
