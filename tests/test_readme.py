"""README's code runs, and its links and configs exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_block_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(block, names)
    assert names["out"].x.shape == (64, 2) and names["losses"].shape == (64,)
    assert names["learned"](names["out"].x, names["out"].x[:, 0] * 0 + 0.5).shape == (64, 2)
    assert len(capsys.readouterr().out.split()) == 3


def test_every_file_it_names_is_there():
    rooms = "configs|experiments|score_sde|tests"
    named = re.findall(rf"\]\(([\w/.]+)\)|`((?:{rooms})/[\w/.]+)`|`(\w+_digits\.py)`", README)
    paths = [link or code or f"configs/{config}" for link, code, config in named]
    assert len(paths) > 5
    missing = [p for p in paths if not (ROOT / p).exists()]
    assert not missing, missing
