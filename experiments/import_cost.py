"""What `import score_sde` adds to `import jax`: median over fresh processes, in turns."""

import statistics
import subprocess
import sys

from common import Figures, arguments

SECONDS = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def seconds(module: str) -> float:
    """Time to import `module` in a fresh process."""
    return float(subprocess.run([sys.executable, "-c", SECONDS.format(module)], capture_output=True, check=True).stdout)


if __name__ == "__main__":
    args = arguments(__doc__).parse_args()
    pairs = [(seconds("jax"), seconds("score_sde")) for _ in range(6)][1:]  # the first fills the file cache
    figures = Figures()
    extra = statistics.median(b for _, b in pairs) - statistics.median(a for a, _ in pairs)
    figures.at_most("import score_sde beyond import jax, s (median of 5)", extra, 0.2)
    figures.end(args.check)
