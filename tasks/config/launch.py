"""Where step 4 runs: in how many processes."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tasks.config.section import Section


class LaunchSettings(Section):
    """In how many processes the adapter is trained; this changes the time, not the meaning."""

    model_config = ConfigDict(title="Launch")

    num_processes: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes of this machine that train one adapter together, each with the base: at most one a
    GPU or, without GPUs, one a CPU core. `auto` is one a GPU, and 1 without GPUs."""
