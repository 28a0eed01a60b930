"""The processes of a run: started by Fabric, by torchrun, or by srun on a SLURM cluster.

Who has started them says how many there are; where nobody has, ``devices`` does, and the first
process starts the others.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning_fabric.strategies import DDPStrategy, Strategy

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import ConfigError, DeviceError
from cellseg_cli.networks.devices import computes_bf16, resolve_device

#: One process validates while the others wait at their next step; the usual
#: limit of half an hour would end a run with many held-out fields.
LONGEST_WAIT = timedelta(days=1)


@dataclass(frozen=True)
class Launch:
    """How many processes there are, and who has started them; `by` is empty if Fabric shall."""

    by: str
    per_node: int
    nodes: int = 1

    @property
    def processes(self) -> int:
        """All processes of the run."""
        return self.per_node * self.nodes

    @property
    def sharing(self) -> int:
        """How many processes share the cores that this one may use; srun gives each its own."""
        return 1 if self.by == "srun" else self.per_node


def launch_of(environment: Mapping[str, str], devices: int) -> Launch:
    """Return who has started this process, told by its environment.

    The variables of a SLURM step count, not those of its job: a batch script sees the latter
    too, where no other process is there to wait for.

    Raises
    ------
    ConfigError
        `devices` is more than one and not what has been started, or tasks are spread unevenly.

    Examples
    --------
    >>> launch_of({"SLURM_NTASKS": "4"}, devices=2)
    Launch(by='', per_node=2, nodes=1)
    >>> launch_of({"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "8"}, 1)
    Launch(by='torchrun', per_node=2, nodes=4)
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        by, per_node = "torchrun", int(environment["LOCAL_WORLD_SIZE"])
        nodes = int(environment["WORLD_SIZE"]) // per_node
    elif (tasks := int(environment.get("SLURM_STEP_NUM_TASKS", "1"))) > 1:
        by, nodes = "srun", int(environment.get("SLURM_STEP_NUM_NODES", "1"))
        per_node = tasks // nodes
        if per_node * nodes != tasks:
            raise ConfigError(
                f"srun has started {tasks} tasks on {nodes} nodes; each node must have as many: "
                "use --ntasks-per-node"
            )
    else:
        return Launch("", devices)
    if devices not in (1, per_node):
        raise ConfigError(
            f"--devices {devices}: {by} has started {per_node} processes on each node; "
            f"leave --devices out, or give {per_node}"
        )
    return Launch(by, per_node, nodes)


def make_fabric(settings: TrainSettings) -> Fabric:
    """Return what holds the processes, not yet launched.

    Raises
    ------
    ConfigError
        One device is named where several are asked for; and as :func:`launch_of`.
    DeviceError
        More devices than there are.
    """
    device = resolve_device(settings.device)
    launch = launch_of(os.environ, settings.devices)
    wanted = launch.per_node
    asks = f"{launch.by} with {wanted} processes" if launch.by else f"--devices {wanted}"
    if device.index is not None and launch.processes > 1:
        raise ConfigError(
            f"--device {settings.device} is one device, {asks} asks for several; "
            "use --device cuda, or --devices 1"
        )
    if device.type == "cuda" and wanted > (there := torch.cuda.device_count()):
        raise DeviceError(
            f"{asks}: PyTorch sees {there} CUDA devices; use --devices {there} or fewer"
        )
    several = launch.processes > 1
    strategy: str | Strategy = DDPStrategy(timeout=LONGEST_WAIT) if several else "auto"
    with warnings.catch_warnings():
        # Said on every node of a SLURM cluster, where one process per task is not what is wanted.
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        return Fabric(
            accelerator="cuda" if device.type == "cuda" else "cpu",
            strategy=strategy,
            devices=[device.index] if device.index is not None else wanted,
            num_nodes=launch.nodes,
            precision="bf16-mixed" if uses_bf16(settings, device) else "32-true",
            plugins=[_environment(launch)],
        )


def uses_bf16(settings: TrainSettings, device: torch.device) -> bool:
    """Whether the network computes in bfloat16; weights and losses never do."""
    return computes_bf16(device) if settings.precision == "auto" else settings.precision == "bf16"


def _environment(launch: Launch) -> ClusterEnvironment:
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if launch.by == "torchrun":
        return TorchElasticEnvironment()
    if launch.by == "srun":
        # Fabric asks for what srun sets only where --ntasks-per-node was given.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(launch.per_node))
        os.environ["SLURM_NNODES"] = str(launch.nodes)
        os.environ["SLURM_NTASKS"] = str(launch.processes)
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()
