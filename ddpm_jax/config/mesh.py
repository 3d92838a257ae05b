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
    """A mesh of devices, and the form of the train step on it; see `ddpm_jax.parallel`."""

    affects: ClassVar[Affects] = Affects.ROUNDING
    data: Annotated[
        int, Bound(lambda value: value == -1 or value >= 1, "1 or more, or -1 for all")
    ] = -1
    """Devices that share each batch and hold the same parameters; -1 for all there are."""
    fsdp: Annotated[int, COUNT] = 1
    """Devices that share each batch and the parameters, too; neighbours."""
    reduction: Reduction = "float32"
    """In which dtype gradients are averaged over devices; "bfloat16" if the network is in it."""

    @abc.abstractmethod
    def make(self, devices: Devices, shardings: Any, compute: Reduction) -> Form:
        """How the train step is taken over the devices, placed and compiled.

        Args:
            devices: the mesh, with the axes "data" and "fsdp".
            shardings: of each array of the training state.
            compute: dtype of the network's computation.
        """

    def check(self, config: Any) -> None:
        """Gradients are not averaged in less than they are computed in."""
        if self.reduction != "float32" and config.network.compute_dtype != "bfloat16":
            raise ConfigError(
                f"mesh.reduction is {self.reduction}; it has to be 'float32' where the network"
                " computes in float32"
            )


@dataclasses.dataclass(frozen=True)
class Jit(Mesh):
    """The compiler places everything."""

    def make(self, devices: Devices, shardings: Any, compute: Reduction) -> Form:
        """`parallel.jit_form`."""
        return parallel.jit_form(devices, shardings, self.reduction, compute=compute)


@dataclasses.dataclass(frozen=True)
class ShardMap(Mesh):
    """What is gathered and averaged over devices is written out."""

    def make(self, devices: Devices, shardings: Any, compute: Reduction) -> Form:
        """`parallel.shard_map_form`."""
        return parallel.shard_map_form(devices, shardings, self.reduction)


@dataclasses.dataclass(frozen=True)
class Pmap(Mesh):
    """The classic form in one process, which keeps all parameters on each device."""

    def check(self, config: Any) -> None:
        """No parameters are split."""
        super().check(config)
        if self.fsdp != 1:
            raise ConfigError(
                f"mesh.fsdp is {self.fsdp}; it has to be 1 where mesh is Pmap, which keeps all"
                " parameters on each device"
            )

    def make(self, devices: Devices, shardings: Any, compute: Reduction) -> Form:
        """`parallel.pmap_form`."""
        return parallel.pmap_form(devices, self.reduction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts(Member):
    """The processes that train together, one for each host as a rule."""

    affects: ClassVar[Affects] = Affects.PLACE

    @abc.abstractmethod
    def join(self) -> None:
        """Joins the others; has to come before any other use of JAX.

        Raises:
            UserError: the others cannot be found or reached.
        """

    @property
    @abc.abstractmethod
    def several(self) -> bool:
        """Whether there may be others."""


@dataclasses.dataclass(frozen=True)
class JaxHosts(Hosts):
    """Processes that `jax.distributed` brings together. Alone if no field is set."""

    detect: bool = False
    """Let JAX find the others, as it can under SLURM, on Cloud TPUs, on GKE and under Open MPI."""
    coordinator: str | None = None
    """host:port of process 0, reachable from all; needs `count` and `index`."""
    count: int | None = None
    """How many processes there are."""
    index: int | None = None
    """Which of them this one is, from 0."""
    heartbeat_seconds: int = 10
    """A process that is silent for so long counts as dead, and the others end."""
    start_seconds: int = 300
    """A process waits so long for the others to start, and then ends: before all have joined, none
    can tell one that died from one that comes late."""

    def join(self) -> None:
        """`parallel.hosts.join`."""
        hosts.join(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    @property
    def several(self) -> bool:
        """More than one, or as many as JAX finds."""
        return self.detect or (self.count or 1) > 1
