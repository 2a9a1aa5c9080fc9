"""`python -m benchmarks` in a checkout is `python benchmarks/run_all.py`."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parent / "run_all.py"), run_name="__main__")
