"""A version is published to a server only if it answers there as it was judged."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line_runs import run_in_process
from pydantic import ValidationError
from retraining_runs import events_of, retrained, retraining
from running_stack import wait_until
from vllm_stand_in import StandIn

from flows.cli.serving_commands import retried
from tasks.config import ServingSettings, TrackingSettings
from tasks.errors import PassingError, UserError
from tasks.records import Outcome, PublishedRecord, ServingOutcome
from tasks.serving.publishing import Judged, find_judged, publish, unload_older
from tasks.serving.server import Server
from tasks.tracking import published_to

pytestmark = pytest.mark.usefixtures("prefect_server")

TRACKING = TrackingSettings()


@pytest.fixture(scope="module")
def judged(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, prefect_server: None
) -> Judged:
    """Retrain once; all tests publish its version."""
    record = retrained(retraining(tiny_base, tmp_path_factory.mktemp("rows"), "asked"))
    assert record.version
    return find_judged(record.version.uri, TRACKING)


@pytest.fixture
def server(judged: Judged) -> Iterator[StandIn]:
    """Return a stand-in for vLLM that answers as was judged."""
    with StandIn(judged.reference) as one:
        yield one


def published(judged: Judged, server: StandIn, folder: Path | None = None) -> PublishedRecord:
    """Publish the version to the stand-in."""
    settings = ServingSettings(url=server.url, folder=folder and str(folder))
    return publish(judged.version.uri, settings, TRACKING)


def test_a_version_is_published_once_its_answers_are_those_judged(
    judged: Judged, server: StandIn
) -> None:
    """All held-out rows are asked as conversations, and the version remembers where it is."""
    record = published(judged, server)
    assert record.outcome is ServingOutcome.PUBLISHED, record.reason
    assert server.adapters == [record.served_as] == ["asked-1"]
    assert (record.server, record.num_rows, record.differing) == ("0.0-stand-in", 12, ())
    assert len(server.given) == 12
    assert {one["model"] for one in server.given} == {"asked-1"}
    assert server.given[0]["temperature"] == 0
    assert published_to(find_judged(judged.version.uri, TRACKING).version) == server.url
    again = published(judged, server)
    assert (again.outcome, server.adapters) == (ServingOutcome.PUBLISHED, ["asked-1"])


def test_another_base_is_found_before_anything_is_loaded(judged: Judged, server: StandIn) -> None:
    """Texts of which its log-probabilities are not ours tell it, whatever it is called."""
    server.shift = 0.06
    record = published(judged, server)
    assert record.outcome is ServingOutcome.WRONG_BASE
    assert "is not the one that the adapter was judged on" in record.reason
    assert (server.adapters, server.given) == ([], [])
    server.shift = 0.04
    assert published(judged, server).outcome is ServingOutcome.PUBLISHED


def test_log_probabilities_that_are_no_numbers_prove_nothing(
    judged: Judged, server: StandIn
) -> None:
    """A base that computes NaN is as far from ours as any other."""
    server.shift = float("nan")
    with pytest.raises(UserError, match="does not return the log-probabilities of a prompt"):
        published(judged, server)
    assert server.adapters == []


@pytest.mark.parametrize(
    "reply", [{"data": ["a"]}, {"data": [None]}, {"data": {"a": 1}}, {"data": [{"id": 3}]}, {}]
)
def test_a_reply_of_another_program_is_told(
    reply: dict[str, Any], judged: Judged, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever JSON a server answers with, one message says that it is none for this."""
    monkeypatch.setattr(server, "models", lambda: reply)
    with pytest.raises(UserError, match="give vLLM's address"):
        published(judged, server)


@pytest.mark.parametrize(
    "url", ["http://host:notaport", "http://[::1", "http://:8000", "http://host:99999"]
)
def test_an_address_that_can_be_none_is_refused_at_once(url: str) -> None:
    """No server is waited for where there can't be any."""
    with pytest.raises(ValidationError, match="it must be as http://HOST:PORT"):
        ServingSettings(url=url)


def test_files_that_can_not_be_kept_are_told(
    judged: Judged, server: StandIn, tmp_path: Path
) -> None:
    """A file in the place of the server's folder is one message."""
    (tmp_path / "taken").write_text("")
    settings = ServingSettings(url=server.url, folder=str(tmp_path / "taken"))
    with pytest.raises(UserError, match=r"can't be kept in .*taken"):
        publish(judged.version.uri, settings, TRACKING)


def test_an_adapter_that_the_server_ignores_is_unloaded(judged: Judged, server: StandIn) -> None:
    """It is listed and answers, but as the base does: no client could tell."""
    server.ignores_adapters = True
    record = published(judged, server)
    assert record.outcome is ServingOutcome.IGNORED
    assert "lists asked-1 and ignores it" in record.reason
    assert server.adapters == []


def test_stale_weights_under_the_version_s_name_are_found(judged: Judged, server: StandIn) -> None:
    """They are neither the base's nor those judged; what was loaded before stays loaded."""
    server.adapters.append("asked-1")
    server.adapter_shift = 1.0
    record = published(judged, server)
    assert record.outcome is ServingOutcome.ANOTHER_ADAPTER
    assert server.adapters == ["asked-1"]


def test_answers_that_differ_are_listed_and_the_version_is_unloaded(
    judged: Judged, server: StandIn
) -> None:
    """The primary metric decides (here exact match, as the loss is not in an answer)."""
    expected = judged.reference.rows[4]
    wrong = "no" if expected.answer.strip() == expected.expected.strip() else expected.expected
    server.answers[expected.row] = wrong
    server.adapters.append("other-7")
    record = published(judged, server)
    assert record.outcome is ServingOutcome.DIFFERS
    assert [(one.row, one.judged, one.served) for one in record.differing] == [
        (expected.row, expected.answer, wrong)
    ]
    assert f"1 answer differs (row {expected.row})" in record.reason
    assert server.adapters == ["other-7"]


def test_an_answer_of_other_words_and_equal_score_is_listed_only(
    judged: Judged, server: StandIn
) -> None:
    """Rounding changes single words of answers on any other machine."""
    wrong = [one for one in judged.reference.rows if one.answer.strip() != one.expected.strip()]
    server.answers[wrong[0].row] = "another wrong answer"
    record = published(judged, server)
    assert record.outcome is ServingOutcome.PUBLISHED
    assert [one.row for one in record.differing] == [wrong[0].row]


def test_another_chat_template_is_told_by_the_number_of_tokens(
    judged: Judged, server: StandIn
) -> None:
    """It may cost little on these rows, and much on others."""
    server.more_prompt_tokens = 1
    record = published(judged, server)
    assert record.outcome is ServingOutcome.DIFFERS
    assert "another chat template" in record.reason


def test_a_try_is_recorded_with_its_version_and_run(judged: Judged, server: StandIn) -> None:
    """So is one that failed, with the rows that differ and the server's version, and no token."""
    from tasks.tracking import ready_client, tracking_uri

    server.shift = 1.0
    published(judged, server)
    version = find_judged(judged.version.uri, TRACKING).version
    assert version.tags["serving.outcome"] == "wrong base"
    client, _ = ready_client(tracking_uri(TRACKING), TRACKING.experiment)
    assert version.run_id
    files = [one.path for one in client.list_artifacts(version.run_id, "serving")]
    path = client.download_artifacts(version.run_id, max(files))
    recorded = json.loads(Path(path).read_text())
    assert (recorded["outcome"], recorded["server"]) == ("wrong base", "0.0-stand-in")


def test_a_token_comes_from_the_environment_and_is_recorded_nowhere(
    judged: Judged, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, or with another one, one message names the variables."""
    server.token = "hunter22"  # noqa: S105 - the stand-in's
    with pytest.raises(UserError, match="set its token in ADAPTERFLOW_SERVING_TOKEN or VLLM_API"):
        published(judged, server)
    monkeypatch.setenv("VLLM_API_KEY", "hunter22")
    record = published(judged, server)
    assert record.outcome is ServingOutcome.PUBLISHED
    assert "hunter22" not in record.model_dump_json()
    assert "hunter22" not in str(find_judged(judged.version.uri, TRACKING).version)


def test_a_token_in_the_address_is_refused() -> None:
    """It would be recorded with each run."""
    with pytest.raises(ValueError, match="set ADAPTERFLOW_SERVING_TOKEN"):
        ServingSettings(url="http://user:hunter22@127.0.0.1:8000")


def test_a_server_without_runtime_lora_is_told(judged: Judged, server: StandIn) -> None:
    """The message names the variable that it has to be started with."""
    server.loads_adapters = False
    with pytest.raises(UserError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        published(judged, server)


def test_a_server_that_does_not_see_the_files_is_told(judged: Judged, server: StandIn) -> None:
    """As on another machine without shared storage."""
    server.sees_files = False
    with pytest.raises(UserError, match=r"No adapter found .* set serving\.folder \(--folder\)"):
        published(judged, server)


def test_a_server_that_refuses_the_adapter_is_told(judged: Judged, server: StandIn) -> None:
    """With vLLM's status 500 it looks like an outage, but another attempt would change nothing."""
    server.refuses = "LoRA rank 8 is greater than max_lora_rank 4."
    with pytest.raises(UserError, match=r"can't load asked-1 .*greater than max_lora_rank 4"):
        published(judged, server)


def test_the_version_before_stays_loaded_and_older_ones_do_not(
    judged: Judged, server: StandIn
) -> None:
    """Clients still name it; what others loaded is not touched."""
    server.adapters += ["asked-6", "asked-7", "asked-8", "asked-9", "theirs-1"]
    made = {7: "2026-03", 8: "2026-05", 9: "2026-04"}
    others = tuple(
        judged.version.model_copy(
            update={
                "version": number,
                "tags": {
                    "serving.outcome": "published",
                    "serving.url": server.url,
                    "serving.at": at,
                },
            }
        )
        for number, at in made.items()
    )
    real = Server(server.url)
    unload_older(real, real.state(), judged._replace(others=others))
    assert server.adapters == ["asked-6", "asked-8", "theirs-1"]


def test_an_address_that_is_no_such_server_is_told(judged: Judged) -> None:
    """MLflow's or Prefect's address is as easily given."""
    from prefect.settings import PREFECT_API_URL

    prefect = str(PREFECT_API_URL.value()).removesuffix("/api")
    with pytest.raises(UserError, match="does not answer /v1/models"):
        publish(judged.version.uri, ServingSettings(url=prefect), TRACKING)


def test_a_server_that_dies_in_the_middle_can_be_published_to_again(
    judged: Judged, server: StandIn
) -> None:
    """It is an outage, and no verdict: nothing is recorded."""
    server.dies_after = 3
    with pytest.raises(PassingError, match="can't be reached"):
        published(judged, server)
    server.dies_after = None
    assert published(judged, server).outcome is ServingOutcome.PUBLISHED


def test_only_a_version_that_was_judged_can_be_published(server: StandIn, tmp_path: Path) -> None:
    """A folder has no answers that a server could be compared with."""
    settings = ServingSettings(url=server.url)
    with pytest.raises(UserError, match="is no version of a registered model"):
        publish(str(tmp_path), settings, TRACKING)


def test_the_command_says_what_differs_and_sends_an_event(
    judged: Judged,
    server: StandIn,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit status 1 with the rows where the answers differ; 0 with the name for requests."""
    command = ("publish", "models:/asked@champion", "--to", server.url)
    wrong = [one for one in judged.reference.rows if one.answer.strip() != one.expected.strip()]
    row, answer, expected = wrong[0].row, wrong[0].answer, wrong[0].expected
    server.answers[row] = expected
    status, out, err = run_in_process(capsys, monkeypatch, *command)
    assert status == 1
    assert f"row {row}: judged {answer!r}, served {expected!r}" in out
    assert "error: asked-1 is not published: exact_match" in err
    server.answers.clear()
    status, out, _ = run_in_process(capsys, monkeypatch, *command)
    assert status == 0
    assert out.endswith('requests name it as "model": "asked-1"\n')
    # Prefect stores events a moment after it has received them.
    sent = ("adapterflow.adapter.unpublished", 1)
    wait_until(lambda: sent in events_of("asked"), "the event", 60)


def test_a_server_that_is_away_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Each further attempt is announced; the last one's error is the command's."""
    left = [PassingError("away"), PassingError("still away")]

    def attempt() -> str:
        if left:
            raise left.pop(0)
        return "there"

    assert retried(attempt, (0.0, 0.0)) == "there"
    assert capsys.readouterr().err == (
        "away; trying again in 0 s\nstill away; trying again in 0 s\n"
    )
    left += [PassingError("gone")] * 2
    with pytest.raises(PassingError, match="gone"):
        retried(attempt, (0.0,))


@pytest.mark.slow
def test_a_retraining_publishes_what_it_promoted_and_a_rollback_the_one_before(
    server: StandIn,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that can't take it costs neither the promotion nor the run.

    One that loads no adapters at all is told before anything is trained.
    """
    config = retraining(tiny_base, tmp_path, "served", serving={"url": server.url})
    server.loads_adapters = False
    with pytest.raises(UserError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        retrained(config)
    server.loads_adapters, server.sees_files = True, False
    first = retrained(config)
    assert (first.decision.outcome, first.published) == (Outcome.PROMOTE, None)
    server.sees_files = True
    assert first.version
    again = publish(first.version.uri, config.serving, TRACKING)
    assert again.outcome is ServingOutcome.PUBLISHED, again.reason

    second = retrained(config, force=True)
    assert second.version
    assert server.adapters == ["served-1"], "a version that is not promoted is not published"
    by_hand = ("promote", "served", "2", "--reason", "tone")
    status, out, _ = run_in_process(capsys, monkeypatch, *by_hand)
    assert (status, server.adapters) == (0, ["served-1", "served-2"]), out
    server.adapters.remove("served-1")
    back = ("rollback", "served", "--reason", "tone after all")
    status, out, _ = run_in_process(capsys, monkeypatch, *back)
    assert (status, server.adapters) == (0, ["served-2", "served-1"]), out


def test_a_retraining_s_server_is_no_part_of_its_fingerprint(
    tiny_base: Path, tmp_path: Path
) -> None:
    """A version that is published elsewhere is not trained again."""
    plain = retraining(tiny_base, tmp_path, "served")
    served = retraining(tiny_base, tmp_path, "served", serving={"url": "http://127.0.0.1:8000"})
    assert plain.sha256() == served.sha256()


@pytest.mark.parametrize(
    ("section", "changed", "named"),
    [
        ("lora", {"use_dora": True}, "lora.use_dora"),
        ("lora", {"modules_to_save": ["lm_head"]}, "lora.modules_to_save"),
        ("base_model", {"new_tokens": ["<new>"]}, "base_model.new_tokens"),
    ],
)
def test_a_retraining_of_what_vllm_can_t_serve_is_refused(
    tiny_base: Path, tmp_path: Path, section: str, changed: Mapping[str, object], named: str
) -> None:
    """The configuration alone tells it, hours before the adapter is there."""
    serving = {"url": "http://127.0.0.1:8000"}
    sections: dict[str, Mapping[str, object]] = {section: changed, "serving": serving}
    with pytest.raises(ValueError, match=f"vLLM can't serve adapters with {named}"):
        retraining(tiny_base, tmp_path, "served", **sections)
