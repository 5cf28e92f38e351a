"""Launch configurations for the kernels of a run: measured by one process, the same on all."""

from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed, nn

import atm_triton
from atm_triton.tuning import tables

PATIENCE = timedelta(hours=2)  # of the others, while the first process measures


def tune_kernels(accelerator: Accelerator, model: nn.Module, images: tuple[int, ...]) -> None:
    """Tunes before the first step, for the shape of a batch; what has been measured before is not measured again. Nothing happens on a CPU.

    Should it fail, the run goes on with the kernels' own choice. So does a deterministic run: a measurement may come out otherwise.
    """
    device = next(model.parameters()).device
    if tables.gpu_slug(device) is None:
        return
    if torch.are_deterministic_algorithms_enabled():
        tables.set_table(device, {})
        return
    shared: list[dict[str, dict[str, int]]] = [{}]
    if accelerator.is_main_process:
        try:
            with accelerator.autocast():
                atm_triton.tune(model, torch.zeros(images, device=device))
            shared = [tables.table(device)]
        except Exception as error:  # of a compiler, of a full GPU, of a folder: none is worth the run
            said = (str(error).splitlines() or [""])[0]
            print(f"tuning failed ({type(error).__name__}: {said}): training with the default launch configurations", flush=True)
    if accelerator.num_processes > 1:
        # Not over NCCL, which gives up after ten minutes.
        group: Any = distributed.new_group(backend="gloo", timeout=PATIENCE)
        distributed.broadcast_object_list(shared, src=0, group=group)
        distributed.destroy_process_group(group)
    tables.set_table(device, shared[0])  # processes may have read different files
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()  # the run reports its own
