"""Before the inputs are validated: find the champion that a retraining begins with."""

from tasks.config import RegistrySettings, RetrainAdapterConfig, TrackingSettings
from tasks.durability.step import step
from tasks.records import CHAMPION, ChampionRecord
from tasks.runtime.progress import logger
from tasks.tracking import Registry, tracking_uri


@step
def find_champion(registry: RegistrySettings, tracking: TrackingSettings) -> ChampionRecord:
    """Find the champion; whichever it is later, a resumed run begins with the same version.

    Raises:
        PassingError: the registry can't be reached.
    """
    versions = Registry(tracking_uri(tracking), registry.name).versions()
    champion = next((one for one in versions if CHAMPION in one.aliases), None)
    if champion is None:
        logger().info("%s has no champion yet: the training begins fresh", registry.name)
    return ChampionRecord(champion=champion)


def beginning_with(found: ChampionRecord, config: RetrainAdapterConfig) -> RetrainAdapterConfig:
    """Return the configuration of a training that begins with the champion, if there is one."""
    if found.champion is None:
        return config
    lora = config.lora.model_copy(update={"from_": found.champion.uri})
    return config.model_copy(update={"lora": lora})
