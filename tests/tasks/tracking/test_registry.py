"""The registered model: versions made once, aliases that move as promised, a way back."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.errors import PassingError, UserError
from tasks.records import Outcome
from tasks.tracking import Registry, ready_client


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a store."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def registry(uri: str, request: pytest.FixtureRequest) -> Registry:
    """Return a registered model of the test's own, without versions."""
    return Registry(uri, request.node.name.partition("[")[0])


@pytest.fixture
def log_model(uri: str) -> Callable[[], str]:
    """Return a function that logs an empty model, and gives its address."""

    def log() -> str:
        client, experiment = ready_client(uri, "registry")
        model = client.create_logged_model(experiment, name="adapter")
        client.finalize_logged_model(model.model_id, "READY")
        return f"models:/{model.model_id}"

    return log


def aliases(registry: Registry) -> dict[str, int]:
    """Return which version each alias means."""
    return {alias: one.version for one in registry.versions() for alias in one.aliases}


def promoted(registry: Registry, log_model: Callable[[], str], count: int) -> None:
    """Register and promote so many versions, one after the other."""
    for number in range(1, count + 1):
        registry.register(log_model(), None, {})
        assert registry.promote(number, number - 1 or None) is None


def test_a_name_nobody_registered_has_no_versions(registry: Registry) -> None:
    """Before the first registration there is nothing, and asking makes nothing."""
    assert registry.versions() == []


def test_registering_again_makes_no_second_version(
    registry: Registry, log_model: Callable[[], str]
) -> None:
    """A retry gets the version that the first try made, and may add tags."""
    source = log_model()
    first = registry.register(source, None, {"a": "1"})
    again = registry.register(source, None, {"a": "1", "b": "2"})
    assert (first.version, again.version, len(registry.versions())) == (1, 1, 1)
    assert again.tags == {"a": "1", "b": "2"}
    assert aliases(registry) == {"challenger": 1}


def test_the_first_promotion_makes_a_champion(
    registry: Registry, log_model: Callable[[], str]
) -> None:
    """The challenger becomes champion, and is challenger no longer."""
    promoted(registry, log_model, 1)
    assert aliases(registry) == {"champion": 1}


def test_the_former_champion_stays_reachable(
    registry: Registry, log_model: Callable[[], str]
) -> None:
    """After the next promotion the old champion is `previous`; promoting again changes nothing."""
    promoted(registry, log_model, 2)
    assert aliases(registry) == {"champion": 2, "previous": 1}
    assert registry.promote(2, 1) is None
    assert aliases(registry) == {"champion": 2, "previous": 1}


def test_a_champion_that_was_not_compared_is_not_replaced(
    registry: Registry, log_model: Callable[[], str]
) -> None:
    """Where another version became champion meanwhile, the promotion does not happen."""
    promoted(registry, log_model, 2)
    registry.register(log_model(), None, {})
    no = registry.promote(3, 1)
    assert no
    assert no.outcome is Outcome.OUTDATED
    assert "version 2 became champion" in no.reason
    assert aliases(registry) == {"champion": 2, "previous": 1, "challenger": 3}


def test_a_retry_does_not_undo_a_rollback(registry: Registry, log_model: Callable[[], str]) -> None:
    """A promotion that is repeated after somebody went back leaves the champion that they chose."""
    promoted(registry, log_model, 2)
    registry.roll_back("too polite")
    no = registry.promote(2, 1)
    assert no
    assert no.outcome is Outcome.REJECT
    assert "too polite" in no.reason
    assert aliases(registry) == {"champion": 1}


def test_a_retry_does_not_undo_a_later_promotion(
    registry: Registry, log_model: Callable[[], str]
) -> None:
    """What was champion and was replaced since was promoted, and stays replaced."""
    promoted(registry, log_model, 3)
    assert registry.promote(2, 1) is None
    assert aliases(registry) == {"champion": 3, "previous": 2}


def test_a_promotion_in_the_same_moment_is_noticed(
    registry: Registry, log_model: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server, which has no lock, whoever moved the alias last is champion, and alone says so.

    A stand-in for the other program: its move comes right after ours.
    """
    promoted(registry, log_model, 1)
    for _ in range(2):
        registry.register(log_model(), None, {})
    move = MlflowClient.set_registered_model_alias

    def both_move(client: MlflowClient, name: str, alias: str, version: str) -> None:
        move(client, name, alias, version)
        if alias == "champion":
            move(client, name, alias, "3")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", both_move)
    no = registry.promote(2, 1)
    assert no
    assert no.outcome is Outcome.OUTDATED
    assert "version 3 became champion" in no.reason
    assert aliases(registry)["champion"] == 3


def test_of_two_promotions_at_once_one_happens(
    registry: Registry, log_model: Callable[[], str]
) -> None:
    """Two challengers that both beat the same champion do not replace each other unseen."""
    promoted(registry, log_model, 1)
    for _ in range(2):
        registry.register(log_model(), None, {})
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda version: registry.promote(version, 1), (2, 3)))
    assert sum(one is None for one in done) == 1
    assert aliases(registry)["champion"] == 2 + done.index(None)


@pytest.mark.parametrize("lost_at", range(1, 6))
def test_a_promotion_that_breaks_off_is_finished_by_a_retry(
    registry: Registry,
    log_model: Callable[[], str],
    lost_at: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever the connection is lost there is one champion, and the retry ends as planned."""
    registry = Registry(registry.uri, f"{registry.name}-{lost_at}")
    promoted(registry, log_model, 1)
    registry.register(log_model(), None, {})
    with monkeypatch.context() as patch:
        _lose_connection_at(lost_at, patch)
        with pytest.raises(PassingError):
            registry.promote(2, 1)
    assert aliases(registry)["champion"] in {1, 2}
    assert registry.promote(2, 1) is None
    assert aliases(registry) == {"champion": 2, "previous": 1}


def _lose_connection_at(call: int, patch: pytest.MonkeyPatch) -> None:
    """Let the n-th change of the registry fail."""
    made: list[str] = []
    names = ("set_registered_model_alias", "set_model_version_tag", "delete_registered_model_alias")
    for name in names:
        real = getattr(MlflowClient, name)

        def change(*args: object, real: Callable[..., None] = real) -> None:
            made.append("change")
            if len(made) == call:
                raise ConnectionError("lost")
            real(*args)

        patch.setattr(MlflowClient, name, change)


def test_a_rollback_goes_back_step_by_step(
    registry: Registry, log_model: Callable[[], str]
) -> None:
    """Each rollback brings the champion before; the reason stays with who was rolled back."""
    promoted(registry, log_model, 3)
    assert registry.roll_back("too polite") == (3, 2)
    assert aliases(registry) == {"champion": 2, "previous": 1}
    assert "too polite" in registry.versions()[2].tags["champion.rolled_back"]
    assert registry.roll_back("too rude") == (2, 1)
    assert aliases(registry) == {"champion": 1}
    with pytest.raises(UserError, match="can't be rolled back from version 1"):
        registry.roll_back("worse still")


def test_a_person_may_promote_what_was_rejected(
    registry: Registry, log_model: Callable[[], str]
) -> None:
    """Tags and aliases are as after any promotion, and the decision that was overruled stays.

    The former champion can be restored, and whoever is champion is not promoted again.
    """
    promoted(registry, log_model, 1)
    registry.register(log_model(), None, {})
    registry.tag(2, {"decision.outcome": "reject", "decision.reason": "rejected: worse"})
    registry.withdraw(2)
    assert aliases(registry) == {"champion": 1}
    done = registry.promote_by_hand(2, "they prefer it", "ada")
    assert done
    assert done.former == 1
    assert aliases(registry) == {"champion": 2, "previous": 1}
    tags = registry.versions()[1].tags
    assert tags["decision.outcome"] == "promote"
    assert tags["decision.reason"] == "promoted by ada: they prefer it"
    assert tags["decision.overruled"] == "rejected: worse"
    assert tags["champion.replaced"] == "1"
    assert "champion.since" in tags
    assert registry.promote_by_hand(2, "again", "ada") is None
    model = MlflowClient(registry.uri, registry.uri).get_registered_model(registry.name)
    assert "version 2" in model.description
    assert "promoted by ada: they prefer it" in model.description
    assert registry.roll_back("they do not") == (2, 1)
    assert registry.promote_by_hand(2, "they do after all", "ada")
    assert aliases(registry) == {"champion": 2, "previous": 1}
    assert "champion.rolled_back" not in registry.versions()[1].tags


def test_a_version_that_is_not_there_is_not_promoted_by_hand(
    registry: Registry, log_model: Callable[[], str]
) -> None:
    """An unknown version is answered with those there are, an unknown name with the names."""
    promoted(registry, log_model, 1)
    with pytest.raises(UserError, match=r"has no version 7 in .*; versions: 1"):
        registry.promote_by_hand(7, "why not", "ada")
    with pytest.raises(UserError, match=rf"no registered model 'other' .*{registry.name}"):
        Registry(registry.uri, "other").promote_by_hand(1, "why not", "ada")
    assert aliases(registry) == {"champion": 1}


@pytest.mark.parametrize("number", [3, 4, 7])
def test_only_what_was_champion_can_be_gone_back_to(
    registry: Registry, log_model: Callable[[], str], number: int
) -> None:
    """The champion itself, one that never was, and one that is not there are mistakes."""
    registry = Registry(registry.uri, f"{registry.name}-{number}")
    promoted(registry, log_model, 3)
    registry.register(log_model(), None, {})
    with pytest.raises(UserError, match=f"from version 3 to {number}; former champions: 1, 2"):
        registry.roll_back("why not", to=number)
    assert registry.roll_back("why not", to=1) == (3, 1)
    assert aliases(registry) == {"champion": 1, "challenger": 4}


def test_a_rollback_can_be_taken_back(registry: Registry, log_model: Callable[[], str]) -> None:
    """Who is champion again no longer counts as rolled back, and has the `previous` of then."""
    promoted(registry, log_model, 2)
    registry.roll_back("too polite")
    assert registry.roll_back("it was not the model", to=2) == (1, 2)
    assert aliases(registry) == {"champion": 2, "previous": 1}
    first, second = registry.versions()
    assert "it was not the model" in first.tags["champion.rolled_back"]
    assert "champion.rolled_back" not in second.tags


def test_a_version_that_is_gone_is_not_promoted(
    registry: Registry, log_model: Callable[[], str]
) -> None:
    """One that somebody deleted is reported as such, at once; the champion stays."""
    promoted(registry, log_model, 1)
    registry.register(log_model(), None, {})
    MlflowClient(registry.uri, registry.uri).delete_model_version(registry.name, "2")
    with pytest.raises(UserError, match=r"version 2 of .* was deleted .* versions: 1;"):
        registry.promote(2, 1)
    assert aliases(registry) == {"champion": 1}


def test_an_error_of_ours_is_no_outage(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no server said and no connection lost is not waited for."""

    def failing(*_: object) -> None:
        raise KeyError("99")

    monkeypatch.setattr(MlflowClient, "get_registered_model", failing)
    with pytest.raises(KeyError, match="99"):
        registry.versions()


def test_without_a_champion_there_is_no_rollback(
    registry: Registry, log_model: Callable[[], str]
) -> None:
    """A model without a champion is reported as such."""
    registry.register(log_model(), None, {})
    with pytest.raises(UserError, match="has no champion"):
        registry.roll_back("reason")


def test_a_registry_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """A server that can't be reached is no mistake: the step may be tried again."""
    with pytest.raises(PassingError, match="registry at http"):
        Registry("http://127.0.0.1:9", "name").versions()
