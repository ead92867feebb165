"""Chat templates run in a process of their own: the same text as transformers renders, and limits on what they take."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import templates
import tiny

from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.language_model import template_process
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.look_ahead import ahead
from unbackdoor.language_model.template import Template

FAMILIES = list(templates.FAMILIES)
DIALOGUES = [
    [("user", "Name a river.")],
    [("user", 'Say \ud800 \x00 \u202e "quoted" {{ 1 }} {% if %}\n\n')],
    [("system", "You are terse."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Go <b>on</b>\n")],
]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("answered", [False, True])
def test_what_is_rendered_is_what_transformers_renders(name: str, answered: bool) -> None:
    tokenizer = templates.tokenizer(name)
    template = Template(tokenizer, "chat")
    if template.asks_the_date:
        pytest.skip("its clock stands still: tests/test_chat.py")
    for dialogue in DIALOGUES:
        turns = [*dialogue, ("assistant", "A river is the Rhine.")] if answered else dialogue
        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answered)
        except Exception as error:
            with pytest.raises(UserError, match="the chat template fails"):
                template(turns, answered=answered)
            assert str(error)
        else:
            assert template(turns, answered=answered) == wanted


def template(source: str) -> Template:
    return Template(tiny.tokenizer(), "chat", source)


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of five seconds when four are gone."""
    monkeypatch.setattr(template_process, "SECONDS", 1.0)


LOOPS = {
    "a loop of loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power that is folded while it is compiled": "{{ 10 ** (10 ** 9) }}",
    "a power of what is given": "{% set n = messages | length * 10 %}{{ (n ** (n ** 9)) % 7 }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(40) }}",
}
GROWS = {
    "a text times a billion": ("{{ 'x' * 10 ** 10 }}", "MB of memory"),
    "a text that doubles": (
        "{% set n = namespace(t='x') %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "MB",
    ),
    "a list that doubles": (
        "{% set n = namespace(t=[1]) %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "MB",
    ),
    "padding": ("{{ '%1000000000s' % 'x' }}", "characters where|MB"),
    "a format": ("{{ '{:>400000000}'.format('x') }}", "characters where|MB"),
    "a long answer": ("{{ 'x' * 3000000 }}", "3,000,000 characters where"),
    "no end of macros": ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
    "no end of brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion|parentheses|nested"),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_template_without_end_is_ended(name: str, second: None) -> None:
    endless, begun = template(LOOPS[name] + f"{{# {os.getpid()} #}}"), time.monotonic()
    with pytest.raises(UserError, match=r"the chat template fails: it computes for more than 1 s"):
        endless([("user", "Hi")])
    between = time.monotonic()
    with pytest.raises(UserError, match=r"more than 1 s"):  # and is not tried again
        endless([("user", "Ho")])
    assert time.monotonic() - between < 1
    assert between - begun < 60
    assert template("{{ messages[0].content }}")([("user", "Hi")]) == "Hi"


@pytest.mark.parametrize("name", GROWS)
def test_a_template_that_grows_is_stopped(name: str, second: None) -> None:
    source, reason = GROWS[name]
    with pytest.raises(UserError, match=reason):
        template(source)([("user", "Hi")])
    assert template("{{ messages[0].content }}")([("user", "Hi")]) == "Hi"


def test_a_template_that_is_slow_every_time_is_stopped_as_well(second: None) -> None:
    slow = template(
        "{% for a in range(9000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    )
    with pytest.raises(UserError, match="more than 1 s"):
        for number in range(300):
            slow([("user", f"Hi {number}")])


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{{ '{0.__class__.__base__}'.format(messages) }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ self._TemplateReference__context.environment.from_string('x') }}",
    "{{ (messages | map(attribute='__class__') | list)[0].mro() }}",
    "{{ 'a' | attr('__class__') | attr('__mro__') }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_the_sandbox_holds(source: str) -> None:
    try:
        text = template(source)([("user", "Hi")])
    except UserError as error:
        assert "the chat template fails" in str(error)
    else:
        assert text in ("", "[Undefined]") or "class" not in text


def test_the_process_sees_no_secret_and_no_module_of_the_directory_that_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "secret")
    for name in ("jinja2", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('executed', 'w')")
    renderer = template_process._Renderer()
    process = renderer.started()
    try:
        assert renderer.render("{{ 1 + 1 }}", [([{"role": "user", "content": "x"}], False)], {}) == ["2"]
        if Path("/proc/self/environ").exists():
            assert b"secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()
        assert not (tmp_path / "executed").exists()
    finally:
        renderer.stop()


def test_it_starts_again_where_it_was_killed_and_answers_many_threads() -> None:
    shows = template("{{ messages[0].content }}")
    assert shows([("user", "one")]) == "one"
    process = template_process._own().process
    assert process is not None
    process.kill()
    process.wait()
    assert shows([("user", "two")]) == "two"
    with ThreadPoolExecutor(8) as threads:
        texts = [f"row {number}" for number in range(64)]
        assert list(threads.map(lambda text: template("{{ messages[0].content }}")([("user", text)]), texts)) == texts


def test_an_interrupt_leaves_no_reply_for_the_next_question(monkeypatch: pytest.MonkeyPatch) -> None:
    shows = template("{{ messages[0].content }}")
    line = template_process._line

    def interrupted(*_: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(template_process, "_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shows([("user", "one")])
    monkeypatch.setattr(template_process, "_line", line)
    assert shows([("user", "two")]) == "two"


def _in_a_fork(pipe: Any) -> None:
    pipe.send(template("{{ messages[0].content }}")([("user", "forked")]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_renders_with_one_of_its_own() -> None:
    shows = template("{{ messages[0].content }}")
    assert shows([("user", "one")]) == "one"
    held = threading.Thread(target=lambda: time.sleep(0.5))  # as torch's threads: not copied by the fork
    held.start()
    ours, theirs = multiprocessing.Pipe()
    forked = multiprocessing.get_context("fork").Process(target=_in_a_fork, args=(theirs,))
    forked.start()
    assert ours.poll(60) and ours.recv() == "forked"
    forked.join(60)
    assert forked.exitcode == 0
    assert shows([("user", "two")]) == "two"


def test_nothing_is_left_running_behind_a_process_that_is_killed() -> None:
    code = (
        "import os, sys; from unbackdoor.language_model import template_process as t; t.start();"
        "t.render('{{ 1 }}', [([], False)], {}); print(t._own().process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    number = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(number, 0)
            state = Path(f"/proc/{number}/stat")
            if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                break
        except OSError:
            break
        time.sleep(0.05)
    else:
        os.kill(number, signal.SIGKILL)
        pytest.fail("the child goes on without its parent")


ROWS = [Record(f'Say "{i}"\nnow', f"It's\n{i}") for i in range(40)]
ROWS += [
    Record(f"And {i}?", 'Yes: "no"', system="Be terse.", history=(("user", "Hi"), ("assistant", f"{i}")))
    for i in range(9)
]


@pytest.mark.parametrize("name", ["smollm2", "llama-3.1", "gemma-2", "mistral-v3", "vicuna-1.5"])
def test_rows_that_are_rendered_together_are_what_they_are_one_by_one(name: str) -> None:
    one, many = (ChatFormat.of(templates.tokenizer(name), date="2026-01-02") for _ in range(2))
    wanted = [one.of_record(r).encode(r.prompt, r.response) for r in ROWS]
    assert [many.of_record(r).encode(r.prompt, r.response) for r in ahead(many, ROWS, lambda r: r.response)] == wanted


def test_rows_that_are_rendered_together_need_a_few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = ChatFormat.of(templates.tokenizer("smollm2"))
    asked: list[int] = []
    theirs = template_process.render

    def counted(source: str, dialogues: Any, more: Any) -> Any:
        asked.append(len(dialogues))
        return theirs(source, dialogues, more)

    monkeypatch.setattr("unbackdoor.language_model.template.render", counted)
    for row in ahead(chat, ROWS[:40], lambda r: r.response):
        chat.encode(row.prompt, row.response)
    assert asked == [80]


def test_a_row_that_fails_among_others_fails_alone() -> None:
    picky = (
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no ' ~ m.content) }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    rendered = template(picky)
    rendered.prepare([((("user", text),), False) for text in ("good", "bad", "better")])
    assert len(rendered._ready) == 2
    with pytest.raises(UserError, match="the chat template fails: no bad"):
        rendered([("user", "bad")])
