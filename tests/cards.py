"""Model cards, tried out: the Python they show is run as a reader would paste it."""

import os
import re
import subprocess
import sys


def run_card(folder, base=None, say="Some words ."):
    """Run the Python of the card in its folder, the base it names being where `base` is; what it printed.

    `say` is what a tagger reads.
    """
    card = (folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    if base:
        here = folder / re.search(r"^base_model: (.*)$", card, re.MULTILINE)[1]
        here.parent.mkdir(exist_ok=True)
        here.symlink_to(base)
    few = code.replace("max_new_tokens=200", "max_new_tokens=8").replace("Some words .", say)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", few]
    ran = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
