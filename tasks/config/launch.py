"""Where step 4 runs: in how many processes, and of which machines."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tasks.config.section import Section

_OF_CLUSTER = ("address", "cpus_each")
"""Settings that mean something on a cluster only."""


class Cluster(StrEnum):
    """What the nodes are managed by that processes are started on."""

    RAY = "ray"


class Strategy(StrEnum):
    """What each of several processes holds of the base."""

    REPLICATE = "replicate"
    FSDP = "fsdp"


class LaunchSettings(Section):
    """In how many processes the adapter is trained, and where; this changes no result but time."""

    model_config = ConfigDict(title="Launch")

    num_processes: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that train one adapter together, each with the base: at most one a GPU or, without
    GPUs, one a CPU core. `auto` is one a GPU of this machine, and 1 without GPUs."""

    strategy: Strategy = Strategy.REPLICATE
    """What each process holds of the base: all of it, or with `fsdp` a part of every weight, so
    that a base is trained which no single GPU can hold. The processes gather the weights of a layer
    when they compute it (FSDP2), and steps 1, 3, 5 and 6 have the base in the host's memory."""

    cluster: Cluster | None = None
    """Where the processes are: by default on this machine; with `ray`, on the nodes of a Ray
    cluster, each with a GPU of its own if the cluster has any. The home folder, the data and a
    local base must have the same paths on all nodes."""

    address: str = Field(default="auto", min_length=1)
    """On Ray: the cluster's address, `HOST:PORT`. `auto` is the cluster that this machine belongs
    to. The run itself is on one of the cluster's nodes in any case."""

    cpus_each: int = Field(default=1, ge=1, le=1024)
    """On Ray: CPU cores that each process reserves, and so many threads it computes with."""

    @model_serializer(mode="wrap")
    def _only_what_takes_effect(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is as it always was, so that earlier runs' records stay valid."""
        written: dict[str, Any] = handler(self)
        if self.strategy is Strategy.REPLICATE:
            written.pop("strategy", None)
        if self.cluster is None:
            for name in ("cluster", *_OF_CLUSTER):
                written.pop(name, None)
        return written

    @property
    def shards(self) -> bool:
        """Whether each process has a part of the base only."""
        return self.strategy is Strategy.FSDP

    @model_validator(mode="after")
    def _has_parts(self) -> Self:
        if self.shards and self.num_processes == 1:
            raise ValueError(
                "strategy is fsdp, which spreads the base over several processes, but "
                "num_processes is 1; set num_processes: auto, or 2 or more, or remove strategy"
            )
        if self.shards and self.cluster:
            raise ValueError(
                f"strategy is fsdp, which is for the processes of one machine, but cluster is "
                f"{self.cluster}; remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _is_on_a_cluster(self) -> Self:
        given = [name for name in _OF_CLUSTER if name in self.model_fields_set]
        defaults = {name: type(self).model_fields[name].default for name in given}
        set_otherwise = [name for name in given if getattr(self, name) != defaults[name]]
        if self.cluster is None and set_otherwise:
            raise ValueError(
                f"{set_otherwise[0]} is {getattr(self, set_otherwise[0])}, which is of a cluster, "
                "but cluster is not set; set cluster: ray, or remove it"
            )
        if self.cluster and self.num_processes == "auto":
            raise ValueError(
                "num_processes is auto, which counts the GPUs of one machine, but cluster is "
                f"{self.cluster}; set num_processes to a number"
            )
        if self.cluster and self.address.startswith("ray://"):
            raise ValueError(
                f"address is {self.address}; a client would end the training when the network "
                "fails for half a minute: start the run on a node of the cluster, with address: "
                "auto, or HOST:PORT of its head"
            )
        return self
