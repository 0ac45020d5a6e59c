"""Messages: English to every program, and sayable in another language whatever their values hold."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.sound import is_sound_event, sound_record
from mapsage_kaggle.errors import CheckpointError
from mapsage_kaggle.events import Event
from mapsage_kaggle.messages import Message, from_said, joined_by, say, text_of, with_said
from mapsage_kaggle.records import Exactness, SessionRecord

TABLE = {
    "{path} is empty.": "{path} 是空的。",
    "Copy it again.": "请重新复制。",
    "{path}: {why}": "{path}：{why}",
}
ODD = (
    "/kaggle/input/a. b/iter_5.pth",
    "{path} is empty.",
    "{",
    "}{0}",
    "Copy it again.",
    "x: " * 1000,
    "第。 一",
)


@pytest.mark.parametrize("value", ODD)
def test_a_value_may_hold_anything(value: str) -> None:
    message = Message("{path} is empty.", value)
    assert message == f"{value} is empty."
    assert say(message, TABLE) == f"{value} 是空的。"


def test_a_message_in_a_message_is_said_too_and_a_text_is_not() -> None:
    inner = Message("{path} is empty.", Path("/a"))
    assert say(Message("{path}: {why}", "/b", inner), TABLE) == "/b：/a 是空的。"
    assert say(Message("{path}: {why}", "/b", "Copy it again."), TABLE) == "/b：Copy it again."


def test_what_has_no_template_in_the_language_stays_english_around_what_has() -> None:
    message = Message("{why} So it is.", Message("{path} is empty.", "/a"))
    assert say(message, TABLE) == "/a 是空的。 So it is."


def test_a_full_stop_in_chinese_takes_no_space() -> None:
    both = joined_by(" ", (Message("{path} is empty.", "/a"), Message("Copy it again.")))
    assert both == "/a is empty. Copy it again."
    assert say(both, TABLE) == "/a 是空的。请重新复制。"


def test_a_finished_sentence_of_an_old_file_is_shown_as_it_is() -> None:
    assert say("/a is empty.", TABLE) == "/a is empty."


def test_a_thousand_lines_are_said() -> None:
    lines = [Message("{path} is empty.", f"/a/iter_{number}.pth") for number in range(1000)]
    error = CheckpointError("No checkpoint.", "Copy it again.", lines)
    said = say(error.text, TABLE).splitlines()
    assert said[1] == "  /a/iter_0.pth 是空的。"
    assert said[1000] == "  /a/iter_999.pth 是空的。"
    assert said[1001] == "请重新复制。"


def test_a_number_of_values_that_is_not_the_templates_is_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        Message("{path} is empty.")


@pytest.mark.parametrize("again", [copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
def test_a_copy_is_the_same_message(again: object) -> None:
    message = Message("{path}: {why}", "/b", Message("{path} is empty.", 3))
    other = again(message)  # type: ignore[operator]
    assert (other, say(other, TABLE)) == (message, say(message, TABLE))


def test_what_is_added_to_a_message_keeps_it() -> None:
    assert say("! " + Message("{path} is empty.", "/a") + "\n", TABLE) == "! /a 是空的。\n"


def test_a_message_that_is_turned_into_text_stays_one() -> None:
    message = Message("{path} is empty.", "/a")
    assert say(str(message), TABLE) == "/a 是空的。"


def test_an_error_raised_with_a_message_gives_it_back() -> None:
    message = Message("{path} is empty.", "/a")
    assert say(text_of(ValueError(message)), TABLE) == "/a 是空的。"
    assert say(text_of(CheckpointError(message)), TABLE) == "/a 是空的。"
    assert text_of(ValueError("/a is empty.")) == "/a is empty."


@pytest.mark.parametrize("value", ODD)
def test_json_keeps_the_english_text_and_brings_the_message_back(value: str) -> None:
    message = Message("{path}: {why}", value, Message("{path} is empty.", 3))
    document = json.loads(json.dumps(with_said({"message": message, "lines": [message, "plain"]})))
    assert document["message"] == message
    found = from_said(document)
    assert say(found["message"], TABLE) == say(message, TABLE)
    assert [say(line, TABLE) for line in found["lines"]] == [say(message, TABLE), "plain"]


@pytest.mark.parametrize(
    "said",
    [
        None, 3, [], {"message": None}, {"message": []}, {"message": ["{path} is empty."]},
        {"message": ["{path} is full.", "/a"]}, {"message": ["{path.__class__} is empty.", "/a"]},
        {"message": ["{path:>99999999999999} is empty.", "/a"]},
        {"message": ["{path}" * 10**5, "/a" * 10**5]},
        {"message": ["{path!r} is empty.", "/a"]}, {"message": ["{path[0]} is empty.", ["{a}", "/a"]]},
        {"message": [3, "/a"]}, {"message": ["{path!x} is empty.", "/a"]}, {"other": ["a"]},
    ],
)  # fmt: skip
def test_a_template_that_does_not_give_the_text_is_not_believed(said: object) -> None:
    found = from_said({"message": "/a is empty.", "said": said})
    assert type(found["message"]) is str
    assert found == {"message": "/a is empty."}


def test_an_event_and_a_record_bring_their_messages_back() -> None:
    message = Message("{path} is empty.", "/a")
    event = Event.from_line(Event(event="warning", iteration=3, data={"message": message}).to_line())
    assert say(event.data["message"], TABLE) == "/a 是空的。"
    assert is_sound_event(event)
    record = SessionRecord(
        run_id="r", fingerprint="f", message=message, exactness=Exactness(bitwise=False, reasons=(message,))
    )
    document = json.loads(json.dumps(record.to_json()))
    assert sound_record(document) == (record, 0)
    found = SessionRecord.from_json(document)
    assert say(found.message, TABLE) == "/a 是空的。"
    assert found.exactness.reasons is not None
    assert say(found.exactness.reasons[0], TABLE) == "/a 是空的。"


def test_a_refusal_is_said_in_the_language_of_the_notebook() -> None:
    with pytest.raises(CheckpointError) as caught, Words("zh").refusing():
        raise CheckpointError(Message("{path}, which --resume names, was rejected: {problem}.", "/a. b", "x"))
    assert str(caught.value) == "指定的检查点 /a. b 不可用：x。"
