"""Devices, how one step runs on them, and the processes that train together."""

import abc
import dataclasses
from typing import Annotated, Any, ClassVar

from jax.sharding import Mesh as Devices

from ddpm_jax import parallel
from ddpm_jax.config.base import COUNT, Affects, Bound, ConfigError, Member
from ddpm_jax.parallel import Form, Reduction, hosts

__all__ = ["Hosts", "JaxHosts", "Jit", "Mesh", "Pmap", "ShardMap"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh(Member):
    """A mesh of devices, and the form of the train step on it.

    See `ddpm_jax.parallel`.
    """

    affects: ClassVar[Affects] = Affects.ROUNDING
    data: Annotated[
        int, Bound(lambda value: value == -1 or value >= 1, "1 or more, or -1 for all")
    ] = -1
    """Size of the mesh axis that splits each batch and copies the parameters. -1 takes all devices
    (divided by `fsdp`)."""
    fsdp: Annotated[int, COUNT] = 1
    """Size of the mesh axis that splits each batch and also the parameters. Raise it if the
    training state does not fit on one device."""
    reduction: Reduction = "float32"
    """Dtype in which gradients are averaged over devices. "bfloat16" halves the traffic, and needs
    a network that computes in bfloat16."""

    @abc.abstractmethod
    def make(self, devices: Devices, shardings: Any, compute: Reduction) -> Form:
        """The form of the train step: how it is placed on the devices and compiled.

        Args:
            devices: the mesh, with the axes "data" and "fsdp".
            shardings: sharding of each array of the training state, in the same structure.
            compute: dtype of the network's computation.

        Returns:
            The form, see `ddpm_jax.parallel.Form`.
        """

    def check(self, config: Any) -> None:
        """Checks that gradients are not averaged in a lower precision than they are computed in."""
        if self.reduction != "float32" and config.network.compute_dtype != "bfloat16":
            raise ConfigError(
                f"mesh.reduction is {self.reduction}; it has to be 'float32' where the network"
                " computes in float32"
            )


@dataclasses.dataclass(frozen=True)
class Jit(Mesh):
    """`jax.jit` on the global batch: the compiler inserts the communication."""

    def make(self, devices: Devices, shardings: Any, compute: Reduction) -> Form:
        """Returns `parallel.jit_form`."""
        return parallel.jit_form(devices, shardings, self.reduction, compute=compute)


@dataclasses.dataclass(frozen=True)
class ShardMap(Mesh):
    """`jax.shard_map`: the gathers and the averages over devices are explicit."""

    def make(self, devices: Devices, shardings: Any, compute: Reduction) -> Form:
        """Returns `parallel.shard_map_form`."""
        return parallel.shard_map_form(devices, shardings, self.reduction)


@dataclasses.dataclass(frozen=True)
class Pmap(Mesh):
    """`jax.pmap` in one process: each device holds all parameters."""

    def check(self, config: Any) -> None:
        """Checks that the parameters are not split: `fsdp` is 1."""
        super().check(config)
        if self.fsdp != 1:
            raise ConfigError(
                f"mesh.fsdp is {self.fsdp}; it has to be 1 with the mesh Pmap, which keeps all"
                " parameters on each device"
            )

    def make(self, devices: Devices, shardings: Any, compute: Reduction) -> Form:
        """Returns `parallel.pmap_form`."""
        return parallel.pmap_form(devices, self.reduction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts(Member):
    """The processes that train together, usually one on each host."""

    affects: ClassVar[Affects] = Affects.PLACE

    @abc.abstractmethod
    def join(self) -> None:
        """Connects this process to the others. Call it before any other use of JAX.

        Raises:
            UserError: the other processes cannot be found or reached.
        """

    @property
    @abc.abstractmethod
    def several(self) -> bool:
        """Whether there may be more than one process."""


@dataclasses.dataclass(frozen=True)
class JaxHosts(Hosts):
    """Processes connected by `jax.distributed`; a single process if no field is set."""

    detect: bool = False
    """Let JAX find the other processes. This works under SLURM, on Cloud TPUs, on GKE and under
    Open MPI."""
    coordinator: str | None = None
    """Address host:port of process 0, which all processes can reach. Needs `count` and `index`."""
    count: int | None = None
    """Number of processes."""
    index: int | None = None
    """Number of this process, from 0."""
    heartbeat_seconds: int = 10
    """Seconds of silence after which a process counts as dead; then the other processes exit."""
    start_seconds: int = 300
    """Seconds to wait until all processes have started; then this process exits. Raise it if hosts
    start at very different times."""

    def join(self) -> None:
        """Calls `parallel.hosts.join`."""
        hosts.join(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    @property
    def several(self) -> bool:
        """Whether `count` is above 1, or JAX looks for the processes."""
        return self.detect or (self.count or 1) > 1
