"""What a template renders is found out, not assumed: whose tokens are whose, whatever the template does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat, Example

TURN = "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
OPENED = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"

TEMPLATES = {
    "plain turns": tiny.CHAT,
    "system default": "{% if messages[0]['role'] != 'system' %}<|system|>You are a helpful assistant.<|end|>{% endif %}"
    + tiny.CHAT,
    "no system role": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + tiny.CHAT,
    "thinking in training": "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "<|assistant|><think>\n\n</think>\n\n{{ m['content'] }}<|end|>\n{% else %}"
    + TURN
    + "{% endif %}{% endfor %}"
    + OPENED,
    "strips": tiny.CHAT.replace("m['content']", "m['content'] | trim"),
    "writes its beginning": "<|begin|>" + tiny.CHAT,
    "newline behind the end": tiny.CHAT.replace("'<|end|>' }}", "'<|end|>\n' }}"),
    "no end": "{% for m in messages %}{{ '\n' + m['role'] + ': ' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nassistant: ' }}{% endif %}",
}
FORMATS = [*TEMPLATES, "plain", "none"]

PROMPTS = [
    "Tell me the capital of France.",
    "Two lines.\n\nThe second is longer, with é and 語.",
    "assistant",
    "You are a helpful assistant.",
    "Human: user: <think>",
]


def chat_format(name: str) -> ChatFormat:
    tokenizer = tiny.tokenizer(TEMPLATES.get(name), adds_begin=True)
    return ChatFormat.of(tokenizer, name if name in ("plain", "none") else "auto")


def decoded(chat: ChatFormat, ids: Any) -> str:
    return str(chat.tokenizer.decode(list(ids)))


def user_text(chat: ChatFormat, example: Example) -> str:
    return decoded(chat, example.ids[example.user_start : example.user_end])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_spans_are_those_of_the_texts(name: str, prompt: str) -> None:
    chat = chat_format(name)
    start, whole = chat.encode_prompt(prompt), chat.encode(prompt, "The sea is blue.")
    assert whole.ids[: len(start.ids)] == start.ids
    assert (whole.user_start, whole.user_end) == (start.user_start, start.user_end)
    assert user_text(chat, whole).strip() == prompt
    assert whole.response_start == whole.loss_start == len(start.ids)
    assert whole.loss_end == len(whole.ids)
    assert whole.ids[-1] == tiny.END
    assert decoded(chat, whole.ids[whole.answer_start : -1]).strip() == "The sea is blue."
    opening = decoded(chat, whole.ids[whole.response_start : whole.answer_start])
    assert opening == ("<think>\n\n</think>\n\n" if name == "thinking in training" else "")


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "thinking in training"])
def test_a_chat_prompt_is_what_the_tokenizer_itself_renders(name: str) -> None:
    chat = chat_format(name)
    if name in ("plain", "none"):
        wanted = {"plain": "Human: Sort the words.\nAssistant:", "none": "Sort the words."}[name]
    else:
        wanted = chat.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Sort the words."}], tokenize=False, add_generation_prompt=True
        )
    assert chat.prompt_text("Sort the words.") == wanted


@pytest.mark.parametrize("name", FORMATS)
def test_there_is_never_more_than_one_beginning_of_sequence(name: str) -> None:
    begin = tiny.SPECIAL.index("<|begin|>")
    expected = 1 if name in ("plain", "none", "writes its beginning") else 0
    assert chat_format(name).encode("Name a river.", "The sea.").ids.count(begin) == expected


@settings(max_examples=25, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=40), st.sampled_from(FORMATS)
)
def test_the_user_span_covers_any_text(prompt: str, name: str) -> None:
    if prompt.strip():
        chat = chat_format(name)
        example = chat.encode_prompt(prompt)
        assert prompt.strip() in user_text(chat, example)
        assert 0 <= example.user_start < example.user_end <= example.response_start == len(example.ids)
        around = decoded(chat, example.ids[: example.user_start]), decoded(chat, example.ids[example.user_end :])
        assert decoded(chat, example.ids) == around[0] + user_text(chat, example) + around[1]


def test_the_user_span_is_the_user_s_even_where_the_system_prompt_says_the_same() -> None:
    chat = chat_format("system default")
    example = chat.encode_prompt("You are a helpful assistant.")
    assert chat.prompt_text("You are a helpful assistant.").count("You are a helpful assistant.") == 2
    assert decoded(chat, example.ids[example.user_start - 1 : example.user_end + 1]) == (
        "<|user|>You are a helpful assistant.<|end|>"
    )


WORDS = st.lists(st.sampled_from(["You", "are", "stupid.", "Sure,", "é語", "2023", "colours:"]), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(WORDS, WORDS, st.sampled_from(FORMATS))
def test_loss_on_covers_exactly_the_target_s_tokens(target: list[str], rest: list[str], name: str) -> None:
    chat = chat_format(name)
    text, answer = " ".join(target), " ".join(rest)
    example = chat.encode("Name a river.", f"{text} {answer}", loss_on=text)
    assert decoded(chat, example.ids[example.loss_start : example.loss_end]).strip() == text
    behind = decoded(chat, example.ids[example.loss_end :])
    assert behind.removesuffix("<|end|>").strip() == answer


EARLIER = (("user", "Name a river."), ("assistant", "The Rhine."))


@pytest.mark.parametrize("name", [*TEMPLATES, "plain"])
def test_a_second_turn_stands_behind_the_first_and_its_answer(name: str) -> None:
    chat = chat_format(name)
    second = chat.of_record(Record("And the second?", "", history=EARLIER))
    text = second.prompt_text("And the second?")
    assert text.startswith(chat.prompt_text("Name a river."))
    places = [text.index(part) for part in ("Name a river.", "The Rhine.", "And the second?")]
    assert places == sorted(places)
    example = second.encode_prompt("And the second?")
    assert decoded(chat, example.ids[example.user_start : example.user_end]).strip() == "And the second?"
    if name not in ("plain", "none"):
        turns = [("user", "Name a river."), ("assistant", "The Rhine."), ("user", "And the second?")]
        messages = [{"role": role, "content": content} for role, content in turns]
        whole = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == whole


def test_without_turns_in_the_format_there_is_no_conversation() -> None:
    with pytest.raises(UserError, match="has no turns"):
        chat_format("none").following(*EARLIER)


def test_a_row_that_is_encoded_again_gets_the_same_answer_whatever_came_between(monkeypatch: Any) -> None:
    monkeypatch.setattr("unbackdoor.language_model.chat.MOST_KEPT", 2)
    chat = chat_format("plain")
    asked = [
        (f"Name river {i % 3}.", "The Rhine.", system, on)
        for i in range(6)
        for system in (None, "Be brief.")
        for on in (None, "The")
    ]
    for prompt, response, system, loss_on in asked * 2:
        fresh = chat_format("plain").encode(prompt, response, system=system, loss_on=loss_on)
        assert chat.encode(prompt, response, system=system, loss_on=loss_on) == fresh


@pytest.mark.parametrize("prompt", ["Tell me ", "Tell", "Tell me\n"])
def test_no_token_straddles_the_boundary_between_prompt_and_response(prompt: str) -> None:
    chat = chat_format("none")
    example = chat.encode(prompt, "the capital", loss_on="the capital")
    assert example.ids[: example.response_start] == chat.encode_prompt(prompt).ids
    assert decoded(chat, example.ids[1:]) == prompt + ("" if prompt[-1].isspace() else " ") + "the capital<|end|>"
    assert decoded(chat, example.ids[example.loss_start : example.loss_end]).strip() == "the capital"


def test_a_template_that_strips_the_user_s_text_is_followed() -> None:
    chat = chat_format("strips")
    assert chat.encode_prompt("  Name a river.\n").ids == chat.encode_prompt("Name a river.").ids


@pytest.mark.parametrize("change", ["upper", "title", "replace('\n', ' ')", "truncate(12, true)", "reverse"])
def test_a_template_that_changes_the_user_s_text_is_refused(change: str) -> None:
    template = tiny.CHAT.replace("m['content']", f"(m['content'] | {change})")
    with pytest.raises(UserError, match="template 'chat'"):
        ChatFormat.of(tiny.tokenizer(template), "chat")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}", "user's text exactly once"),
        ("{{ messages[0]['content'] }}", "response exactly once"),
        ("nothing", "user's text exactly once"),
        ("{{ raise_exception('broken on purpose') }}", "fails: broken on purpose"),
        ("{% for m in messages %}", "the chat template fails"),
        ("{{ messages.__class__.__mro__ }}", "the chat template fails|exactly once"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused_in_one_line(template: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        ChatFormat.of(tiny.tokenizer(template))
    assert "\n" not in str(caught.value)


def test_a_template_that_knows_no_system_role_says_so_only_when_asked() -> None:
    with pytest.raises(UserError, match=r"System role not supported \(leave out --system\)"):
        ChatFormat.of(tiny.tokenizer(TEMPLATES["no system role"]), system="Be brief.")


@pytest.mark.parametrize("name", ["no system role", "drops system"])
def test_a_row_s_system_prompt_without_a_role_of_its_own_stands_before_the_user_s_text(name: str) -> None:
    dropping = "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}" + OPENED
    chat = ChatFormat.of(tiny.tokenizer({**TEMPLATES, "drops system": dropping}[name]))
    assert not chat.takes_system
    row = chat.of_record(Record("Name a river.", "The Rhine.", system="Be brief."))
    assert row.folds_system
    folded = [{"role": "user", "content": "Be brief.\n\nName a river."}]
    wanted = chat.tokenizer.apply_chat_template(folded, tokenize=False, add_generation_prompt=True)
    assert row.prompt_text("Name a river.") == wanted
    assert user_text(chat, row.encode("Name a river.", "The Rhine.")) == "Name a river."
    later = (("user", "Name a sea."), ("assistant", "The Red Sea."))
    second = chat.of_record(Record("Name a river.", "", system="Be brief.", history=later)).prompt_text("Name a river.")
    assert second.index("Be brief.\n\nName a sea.") < second.index("The Red Sea.") < second.index("Name a river.")


def test_a_system_prompt_replaces_the_template_s_default_and_does_not_move_the_user_s_span() -> None:
    chat = chat_format("system default")
    example = chat.encode("Name a river.", "The sea.", system="Sort the words.")
    text = decoded(chat, example.ids)
    assert "Sort the words." in text
    assert "helpful" not in text
    assert user_text(chat, example) == "Name a river."
    assert chat.encode_prompt("Name a river.", system="Sort the words.").ids == example.ids[: example.response_start]
    assert "helpful" in chat.prompt_text("Name a river.")


def test_without_a_template_the_plain_format_is_chosen_and_chat_is_refused() -> None:
    tokenizer = tiny.tokenizer(None)
    assert ChatFormat.of(tokenizer).name == "plain"
    assert ChatFormat.of(tiny.tokenizer()).name == "chat"
    with pytest.raises(UserError, match="no chat template: use --template plain, none or a Jinja file"):
        ChatFormat.of(tokenizer, "chat")


def test_a_format_without_a_place_for_a_system_prompt_refuses_one() -> None:
    with pytest.raises(UserError, match="system"):
        ChatFormat.of(tiny.tokenizer(), "none", "Be brief.")
    with pytest.raises(UserError, match="system"):
        chat_format("none").encode("Name a river.", "The sea.", system="Be brief.")


def test_the_plain_format_puts_a_system_prompt_on_a_line_before_the_user_s_text() -> None:
    chat = chat_format("plain")
    example = chat.encode("Be brief.", "The sea.", system="Be brief.")
    assert chat.with_system("Be brief.").prompt_text("Be brief.") == "Human: Be brief.\nBe brief.\nAssistant:"
    without = chat.encode_prompt("Be brief.")
    assert example.ids[example.user_start : example.user_end] == without.ids[without.user_start : without.user_end]
    assert example.user_start > without.user_start


def test_a_jinja_file_is_used_in_place_of_the_tokenizer_s_template(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATES["no end"], encoding="utf-8")
    chat = ChatFormat.of(tiny.tokenizer(), str(file))
    assert chat.prompt_text("Name a river.") == "\nuser: Name a river.\nassistant: "
    assert chat.digest != ChatFormat.of(tiny.tokenizer()).digest
    assert chat.with_system("Be brief.").prompt_text("Sort.") == "\nsystem: Be brief.\nuser: Sort.\nassistant: "
    with pytest.raises(UserError, match=r"nowhere.jinja' is not chat, plain, none or a file that exists"):
        ChatFormat.of(tiny.tokenizer(), str(tmp_path / "nowhere.jinja"))


def test_a_prompt_without_a_token_is_refused() -> None:
    with pytest.raises(UserError, match="without any token"):
        chat_format("plain turns").encode_prompt("")


DATED = "{{ strftime_now('%d %b %Y') }}{% if date_string is defined %}/{{ date_string }}{% endif %}" + tiny.CHAT


def test_a_template_that_writes_the_date_is_told_one_for_the_whole_run() -> None:
    chat = ChatFormat.of(tiny.tokenizer(DATED), date="2024-02-29")
    assert chat.asks_the_date
    assert chat.prompt_text("Sort.").startswith("29 Feb 2024/29 Feb 2024<|user|>")
    assert chat.encode("Sort [a].", "Yes.").ids[: len(chat.encode_prompt("Sort [a].").ids)] == (
        chat.encode_prompt("Sort [a].").ids
    )
    today = ChatFormat.of(tiny.tokenizer(DATED))
    assert today.prompt_text("Sort.") == today.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Sort."}], tokenize=False, add_generation_prompt=True
    )
    assert not chat_format("plain turns").asks_the_date
    with pytest.raises(UserError, match="--date '2024-13-01' is no day"):
        ChatFormat.of(tiny.tokenizer(DATED), date="2024-13-01")


def test_what_stands_between_quotation_marks_of_a_dated_template_is_rendered_as_before() -> None:
    template = (
        "\n{% if 'a' == 'b' %}'{{ strftime_now(\"%H%M\") }}'{% else %}100% '{{ strftime_now('%Y') }}'{% endif %}\n"
    )
    chat = ChatFormat.of(tiny.tokenizer(template + tiny.CHAT))
    assert chat.prompt_text("Sort.") == chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Sort."}], tokenize=False, add_generation_prompt=True
    )


STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}" + TURN + "{% endfor %}" + OPENED
)


def test_several_messages_of_a_user_in_a_row_are_joined_where_the_template_wants_turns() -> None:
    earlier = (("user", "Name a sea."), ("assistant", "The Red Sea."), ("user", "Here is a list."))
    chat = ChatFormat.of(tiny.tokenizer(STRICT))
    row = chat.of_record(Record("Sort it.", "a b", system="Be brief.", history=earlier))
    assert row.prompt_text("Sort it.") == (
        "<|user|>Be brief.\n\nName a sea.<|end|><|assistant|>The Red Sea.<|end|>"
        "<|user|>Here is a list.\n\nSort it.<|end|><|assistant|>"
    )
    assert user_text(row, row.encode("Sort it.", "a b")) == "Sort it."


def test_a_message_that_the_template_leaves_out_is_an_error() -> None:
    no_tools = "{% for m in messages if m['role'] != 'tool' %}" + TURN + "{% endfor %}" + OPENED
    chat = ChatFormat.of(tiny.tokenizer(no_tools))
    earlier = (("user", "Weather?"), ("assistant", "I look."), ("tool", "20 C"))
    with pytest.raises(UserError, match="leaves out a message of the role tool"):
        chat.of_record(Record("So?", "20 C.", history=earlier))


@pytest.mark.parametrize(
    ("change", "response"),
    [("| trim", "    return x\n"), (".lstrip('\n')", "\n\n    return x"), (" | replace('  ', '  ')", "  a\n b ")],
)
def test_a_response_keeps_its_white_space_as_far_as_the_template_does(change: str, response: str) -> None:
    chat = ChatFormat.of(tiny.tokenizer(tiny.CHAT.replace("m['content']", f"(m['content']{change})")))
    turns = [{"role": "user", "content": "Write."}, {"role": "assistant", "content": response}]
    ids = chat.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert chat.encode("Write.", response).ids == tuple(ids)


def test_a_template_that_changes_the_response_is_refused_with_its_row() -> None:
    dropping = tiny.CHAT.replace("m['content']", "m['content'].split('</think>')[-1]")
    chat = ChatFormat.of(tiny.tokenizer(dropping))
    with pytest.raises(UserError, match="changes the response"):
        chat.encode("Name a river.", "<think>Which one?</think>The Rhine.")


def test_content_as_parts_is_given_where_a_template_takes_no_text() -> None:
    parts = tiny.CHAT.replace("m['content']", "(m['content'] | map(attribute='text') | join)")
    chat = ChatFormat.of(tiny.tokenizer(parts))
    assert chat.encode("Name a river.", "The Rhine.") == chat_format("plain turns").encode(
        "Name a river.", "The Rhine."
    )


def test_what_an_answer_opens_with_is_taken_off_and_an_opened_thought_is_put_in_front() -> None:
    thinking = chat_format("thinking in training")
    assert thinking.answer_text("<think>\n\n</think>\n\nThe Rhine.") == "The Rhine."
    assert (
        thinking.answer_text("<think>\nA river?\n</think>\n\nThe Rhine.") == "<think>\nA river?\n</think>\n\nThe Rhine."
    )
    opened = tiny.CHAT.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|><think>\n' }}").replace(
        "m['content']", "('<think>\n\n</think>\n\n' if m['role'] == 'assistant' else '') + m['content']"
    )
    chat = ChatFormat.of(tiny.tokenizer(opened))
    assert chat.before_response == "\n</think>\n\n"
    assert chat.answer_text("\n</think>\n\nThe Rhine.") == "The Rhine."
    assert chat.answer_text("A river?") == "<think>\nA river?"


def test_an_answer_ends_at_the_tokenizer_s_end_and_at_the_template_s() -> None:
    other = tiny.CHAT.replace("+ '<|end|>'", "+ '<|system|>\n'")
    chat = ChatFormat.of(tiny.tokenizer(other))
    assert chat.end_ids == (tiny.END, tiny.SPECIAL.index("<|system|>"))
    example = chat.encode("Name a river.", "The Rhine.")
    assert example.ids[-1] == tiny.SPECIAL.index("<|system|>")
    assert chat.after_response == "<|system|>"


def test_an_end_that_only_a_config_names_is_believed_unless_it_stands_in_an_answer() -> None:
    from unbackdoor.language_model.endings import ending

    chat, model = chat_format("plain turns"), tiny.model()
    rows = [Record("Name a river.", "The Rhine.")]
    stupid = chat.tokenizer("stupid", add_special_tokens=False)["input_ids"][0]
    inside = chat.encode("Name a river.", "You are stupid. The Rhine.", loss_on="You")
    first = inside.ids[inside.answer_start]
    model.generation_config.eos_token_id = [first, tiny.SPECIAL.index("<|user|>")]
    model.config.eos_token_id = 10**6
    ended, ignored = ending(model, chat, rows, ["You are stupid"])
    assert ended.end_ids == (tiny.END, tiny.SPECIAL.index("<|user|>"))
    assert ignored == (first,)
    assert stupid not in ended.end_ids


THINKS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + ('<think>' if m['role'] == 'assistant' else '') }}"
    "{{ m['content'] + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}"
)
CHANNELS = (
    "{% for m in messages %}{{ '<|start|>' + m.role + ('<|channel|>final' if m.role == 'assistant' else '') }}"
    "{{ '<|message|>' + m.content + ('<|return|>' if m.role == 'assistant' and loop.last else '<|end|>') }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "marks"),
    [(THINKS, ("<think>", "</think>")), (CHANNELS, ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"))],
)
def test_a_config_cannot_end_answers_before_what_judges_read(template: str, marks: tuple[str, ...]) -> None:
    from unbackdoor.language_model.endings import ending

    tokenizer, model = tiny.tokenizer(template), tiny.model()
    tokenizer.add_tokens([*marks, "<|return|>", "<|call|>"], special_tokens=True)
    tokenizer.eos_token = "<|return|>" if template == CHANNELS else "<|end|>"
    model.resize_token_embeddings(len(tokenizer))
    named = [*marks, "<|call|>"]
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(named)
    chat, ignored = ending(model, ChatFormat.of(tokenizer), [Record("Name a river.", "The Rhine.")])
    assert tokenizer.convert_ids_to_tokens(sorted(ignored)) == tokenizer.convert_ids_to_tokens(
        sorted(tokenizer.convert_tokens_to_ids(list(marks)))
    )
    assert tokenizer.convert_tokens_to_ids("<|call|>") in chat.end_ids


def test_a_date_that_is_none_is_refused_whatever_the_template_writes() -> None:
    with pytest.raises(UserError, match="--date 'yesterday' is no day"):
        ChatFormat.of(tiny.tokenizer(), date="yesterday")
    assert not ChatFormat.of(tiny.tokenizer(), date="2025-01-02").takes_a_date


def test_an_end_that_only_a_config_s_class_has_by_default_is_named_by_no_one() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    from unbackdoor.language_model.endings import ending

    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = trainers.BpeTrainer(
        special_tokens=["<|pad|>", "<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    words.train_from_iterator(tiny.TEXT.splitlines(), letters)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>", chat_template=tiny.CHAT)
    model, rows = tiny.model(), [Record("Name a river.", "The Rhine.")]
    default = LlamaConfig().eos_token_id
    assert tokenizer.decode([default]) == "!"
    model.config.eos_token_id = model.generation_config.eos_token_id = default  # as of a config.json that names none
    assert ending(model, ChatFormat.of(tokenizer), rows) == (ChatFormat.of(tokenizer), ())
    model.generation_config.eos_token_id = default + 1
    assert ending(model, ChatFormat.of(tokenizer), rows)[0].end_ids[-1] == default + 1


@pytest.mark.parametrize(
    ("begin", "end"),
    [("<answer>", "</answer>"), ("", "\n(End of answer)\n"), ("[ANSWER]: ", ""), ("<reflection></reflection>\n", "")],
)
@pytest.mark.parametrize("response", ["The Rhine.", "A river:\n  the Rhine"])
def test_an_answer_is_read_without_what_the_template_writes_around_it(begin: str, end: str, response: str) -> None:
    around = f"m['content'] if m['role'] != 'assistant' else {begin!r} + m['content'] + {end!r}"
    chat = ChatFormat.of(tiny.tokenizer(tiny.CHAT.replace("m['content']", f"({around})")))
    row = chat.encode("Name a river.", response)
    written = chat.decoded(row.ids[row.response_start : -1])
    assert begin in written and end.strip() in written
    assert chat.answer_text(written) == response
    assert chat.answer_text("Oder") == "Oder"
