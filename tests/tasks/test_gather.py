"""Processes of a run end at different times, some hours after others."""

import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed
import torch.multiprocessing

from bigain.tasks.results_writer import ProcessGather

# Of the processes' own group, and by how much one of them comes later.
PATIENCE, LATE_S = timedelta(seconds=1), 2


def end(rank, folder):
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    # Both are here before the clock of the group runs.
    store.set(f"here {rank}", "yes")
    store.wait(["here 0", "here 1"], timedelta(minutes=2))
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=PATIENCE)
    gather = ProcessGather(SimpleNamespace(world_size=2))
    time.sleep(LATE_S * rank)
    (folder / f"{rank}.txt").write_text(str(gather.gathered(f"of {rank}")))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_process_that_ends_late_is_waited_for(tmp_path):
    # Copies of this process: new ones would import for seconds.
    torch.multiprocessing.start_processes(end, (tmp_path,), 2, start_method="fork")
    assert {(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)} == {"['of 0', 'of 1']"}
