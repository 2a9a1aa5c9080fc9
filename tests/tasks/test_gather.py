"""Processes of a run end at different times, some hours after others. Run as a script, this is such a process."""

import json
import subprocess
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed

from bigain.callbacks import FrequencyResponse

# Of the processes' own group, and by how much one of them comes later.
PATIENCE, LATE_S = timedelta(seconds=2), 4


def end(rank, folder):
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    # Imports take their time: both are here before the clock of the group runs.
    store.set(f"here {rank}", "yes")
    store.wait(["here 0", "here 1"], timedelta(minutes=2))
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=PATIENCE)
    measuring = FrequencyResponse()
    trainer = SimpleNamespace(world_size=2, is_global_zero=rank == 0, default_root_dir=folder, callbacks=[])
    measuring.on_predict_start(trainer, None)
    measuring._seen, measuring._images = 1, 3 + rank
    time.sleep(LATE_S * rank)
    measuring.on_predict_end(trainer, None)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_process_that_ends_late_is_waited_for(tmp_path):
    command = [sys.executable, __file__]
    processes = [subprocess.Popen([*command, rank, tmp_path], stderr=subprocess.PIPE, text=True) for rank in "01"]
    told = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert json.loads((tmp_path / "frequency_response.json").read_text())["images"] == 7


if __name__ == "__main__":
    end(int(sys.argv[1]), sys.argv[2])
