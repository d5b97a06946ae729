"""What torchrun starts in the test of restarts: the command, which is killed once, before it logs step 8."""

import os
import sys

from rewarm.cli import main
from tests.training.killing import Fault

if __name__ == "__main__":
    if os.environ["RANK"] == "0" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        run = next(a for a in sys.argv if a.startswith("run_dir=")).removeprefix("run_dir=")
        Fault(f"{run}/metrics.jsonl", 9, "kill").install()
    main()
