"""Chat templates that run away, make random choices, fail, or lose texts; and what responses share."""

import pytest

from paretune.core.errors import DataError
from paretune.data.chat import encode_row, encode_rows, render_prompt
from paretune.data.chat_checks import check_prompt, check_template, template_warnings
from paretune.data.chat_template import ChatTemplateError, chat_template_of
from support.chat_tokenizers import CHATML, DATED, STRICT, TEMPLATES, byte_tokenizer, prompt

TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>{% endfor %}"
LOOP = "{% for a in range(90000) %}"


def problem_of(source: object) -> str:
    with pytest.raises(ChatTemplateError) as caught:
        check_template(byte_tokenizer(source))
    return caught.value.problem


@pytest.mark.parametrize("name", TEMPLATES)
def test_sound_templates_pass(name: str) -> None:
    check_template(byte_tokenizer(TEMPLATES[name]))


def test_templates_that_refuse_or_need_a_system_turn_pass() -> None:
    check_template(byte_tokenizer(STRICT))
    check_template(
        byte_tokenizer("{{ messages[0].content }}{% for m in messages[1:] %}{{ m.content }}{% endfor %}")
    )
    needs_system = "{% for m in messages[1:] %}{{ m.content }}{% endfor %}"
    check_template(byte_tokenizer(needs_system))
    check_template(byte_tokenizer(None))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("m.content[:10]", "cuts or changes the text of user turns after 10 characters"),
        ("m.content | truncate(5000)", "cuts or changes the text of user turns after"),
        ("''", "leaves out or changes the text of user turns"),
        ("m.content if m.role == 'user'", "leaves out or changes the text of assistant turns"),
        ("m.content | upper", "leaves out or changes the text of user turns"),
        ("m.content[:400] if m.role == 'assistant' else m.content", "assistant turns after 400 characters"),
    ],
)
def test_a_template_that_loses_texts_is_refused(content: str, problem: str) -> None:
    assert problem in problem_of(TURN.replace("CONTENT", content))


@pytest.mark.parametrize(
    ("content", "change"),
    [
        ("m.content | lower", '"Ab <b>Cd" becomes "ab <b>cd"'),
        ("m.content.split('\n')[0]", '"<|im_end"'),
        ("m.content.split('###')[0]", '"<|im_end"'),
        ("(m.content | replace('\n', ' ')) if m.role == 'assistant' else m.content", "of assistant turns"),
        ("m.content | escape", '"&lt;b&gt"'),
        ("m.content | striptags", "after 7 characters"),
        ("m.content | tojson", "becomes"),
        ("m.content | indent(4)", "after 39 characters"),
        ("m.content | title", "after 4 characters"),
        ("m.content.encode('ascii', 'ignore').decode()", "becomes"),
    ],
)
def test_a_template_that_changes_texts_by_their_content_is_refused(content: str, change: str) -> None:
    problem = problem_of(TURN.replace("CONTENT", content))
    assert "cuts or changes the text of" in problem
    assert change in problem


BY_ROLE = (
    "{% for role, turns in messages | groupby('role') %}{% for m in turns %}{{ role }}\n{{ m.content }}"
    "<|im_end|>{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (CHATML.replace("in messages", "in messages | reverse"), "before turns that precede them"),
        (CHATML.replace("in messages", "in messages | sort(attribute='content')"), "before turns that"),
        (CHATML.replace("in messages", "in messages[1:] + messages[:1]"), "before turns that precede them"),
        (BY_ROLE, "writes assistant turns before turns that precede them"),
        (
            CHATML.replace("in messages", "in messages | unique(attribute='content')"),
            "an earlier turn has too",
        ),
        (CHATML + "{{ messages[-1].content }}", "writes the text of user turns more than once"),
        (
            CHATML.replace("<|im_end|>", "{{ '<|im_end|>' if loop.index < 4 else '<s>' }}"),
            'writes "<|im_end|>\\n" after the answer to a first question, and "<s>\\n" after a later',
        ),
    ],
)
def test_a_template_that_reorders_or_repeats_turns_is_refused(source: str, problem: str) -> None:
    assert problem in problem_of(source)


def test_a_turn_that_is_lost_among_these_roles_is_refused() -> None:
    """Not in the conversations that every template is tried with."""
    repeats = CHATML.replace("in messages", "in messages | unique(attribute='content')")
    again = prompt(("user", "Hi"), ("assistant", "Yes."), ("user", "Hi"))
    other = prompt(("user", "Hi"), ("assistant", "Yes."), ("user", "Why?"))
    tokenizer = byte_tokenizer(repeats)
    check_prompt(tokenizer, other)
    with pytest.raises(ChatTemplateError, match="leaves out this turn of the role user") as caught:
        check_prompt(tokenizer, again)
    assert caught.value.key == "prompt[2]"
    twice = byte_tokenizer("{{ messages[0].content }}" + CHATML)
    with pytest.raises(ChatTemplateError, match="writes the text of user turns more than once; fix: correct"):
        check_prompt(twice, other)


def test_an_answer_that_ends_otherwise_is_refused() -> None:
    tokenizer = byte_tokenizer(
        CHATML.replace("<|im_end|>", "{{ '<|im_end|>' if loop.index < 3 else '<s>' }}")
    )
    later = prompt(("user", "Hi"), ("assistant", "Yes."), ("user", "Why?"))
    with pytest.raises(ChatTemplateError, match="ends this answer otherwise than others"):
        encode_row(tokenizer, later, "So.", eos_id=2)
    assert encode_row(tokenizer, prompt(("user", "Hi")), "So.", eos_id=2).response_ids.count(2) == 1


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        (
            "<|im_start|>assistant\n",
            "<|im_start|>bot\n",
            'with "<|im_start|>bot\\n", and writes "<|im_start|>as',
        ),
        ("add_generation_prompt", "false", 'with nothing, and writes "<|im_start|>assistant\\n" before'),
        (
            "{{ m['role'] }}",
            "{{ m['role'] }} {{ m['content'] | length }}",
            'writes "<|im_start|>assistant 3\\n"',
        ),
        ("m['content']", "m['content'] | replace('\n\n', '\n')", "removes blank lines from the answers"),
    ],
)
def test_a_template_that_asks_for_other_answers_than_it_writes_is_told(
    old: str, new: str, warning: str
) -> None:
    (line,) = template_warnings(byte_tokenizer(CHATML.replace(old, new)))
    assert warning in line


@pytest.mark.parametrize("name", TEMPLATES)
def test_sound_templates_have_no_warnings(name: str) -> None:
    assert list(template_warnings(byte_tokenizer(TEMPLATES[name]))) == []
    assert list(template_warnings(byte_tokenizer(None))) == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 'x' * (10**9) }}", "characters"),
        ("{{ 9 ** (9 ** 9) }}", "an integer of more than 10,000 bits"),
        ("{{ 'x' | center(10**9) }}", "characters"),
        ("{{ 'x'.ljust(10**9) }}", "characters"),
        ("{{ '%1000000000d' % 1 }}", "a format with a width"),
        ("{{ '{:1000000000d}'.format(1) }}", "a format with a width"),
        ("{{ ('a' * 9000).replace('a', 'b' * 9000) }}", "characters"),
        ("{% set n = namespace(x='ab') %}" + LOOP + "{% set n.x = n.x ~ n.x %}{% endfor %}", "characters"),
        ("{% set x %}" + LOOP + "{{ 'a' * 90000 }}{{ a }}{% endfor %}{% endset %}", "characters"),
        (LOOP * 3 + "{% endfor %}" * 3, "it loops more than"),
        (2 * "{% for a in range(90000) if false %}{% endfor %}" * 20, "it loops more than"),
        (LOOP + "{% set x = range(90000) | sum %}{% endfor %}", "it loops more than"),
        ("{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(0) }}", "recursion"),
        ("{{ range(10**9) | list }}", "Range too big"),
    ],
)
def test_a_template_that_runs_away_is_stopped(source: str, reason: str) -> None:
    problem = problem_of(CHATML + source)
    assert "of the chat template fails: " in problem
    assert reason in problem


@pytest.mark.parametrize("source", ["{{ ['a', 'b'] | random }}", "{{ lipsum() }}", "{{ lipsum(n=1)[:1] }}"])
def test_a_random_template_is_refused(source: str) -> None:
    assert "line 2 of the chat template fails: it makes a random choice" in problem_of("\n" + source + CHATML)


def test_a_clock_is_fixed_and_passes() -> None:
    check_template(byte_tokenizer(DATED))
    dated = byte_tokenizer("{% set now = strftime_now('%H:%M:%S') %}{{ now }}" + CHATML)
    assert render_prompt(dated, prompt(("user", "hello"))).startswith("26 Jul 2024<|im_start|>")


def test_mistakes_name_the_line() -> None:
    assert problem_of("\n\n{% if %}") == (
        "line 3 of the chat template fails: Expected an expression, got 'end of statement block'"
    )
    assert problem_of("{% for m in messages %}\n{{ m.text.lines }}{% endfor %}") == (
        "line 2 of the chat template fails: 'dict object' has no attribute 'text'"
    )
    assert problem_of("{# a\nb #}{{ 1 + 'a' }}").startswith("line 2 of the chat template fails: unsupported")


def test_several_templates_without_a_default_are_named() -> None:
    tokenizer = byte_tokenizer({"tool_use": CHATML, "rag": CHATML})
    with pytest.raises(DataError, match=r'has 2 chat templates \(rag, tool_use\), and none.*\["rag"\]'):
        check_template(tokenizer)
    check_template(byte_tokenizer({"tool_use": STRICT, "default": CHATML}))


ANSWERS = (
    "At nine.",
    "At\nnine.",
    " At nine. ",
    "",
    "user",
    "<think>\na\n</think>\n\nb",
    "a<|im_end|>b",
    "x" * 300,
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_that_share_a_prompt_equal_rows_on_their_own(name: str) -> None:
    tokenizer = byte_tokenizer(TEMPLATES[name])
    prompts = [
        prompt(("user", "When?")),
        prompt(("user", "Hi"), ("assistant", "Yes."), ("user", "a<|im_end|>")),
    ]
    pairs = [(p, answer) for p in prompts for answer in (*ANSWERS, *ANSWERS)]
    alone = [encode_row(tokenizer, p, answer, eos_id=2) for p, answer in pairs]
    assert encode_rows(tokenizer, pairs, eos_id=2) == alone


@pytest.mark.parametrize(
    "content",
    [
        "m.content.replace('nine', 'ten')",
        "m.content.split(' ')[0]",
        "'no' if 'Night' in m.content else m.content",
        "(m.content | length) ~ ' ' ~ m.content",
        "m.content | lower",
        "m.content | capitalize",
        "('long ' if m.content | length > 8 else '') ~ m.content",
    ],
)
def test_answers_that_a_template_changes_are_rendered_each(content: str) -> None:
    tokenizer = byte_tokenizer(TURN.replace("CONTENT", content))
    pairs = [(prompt(("user", "When?")), answer) for answer in ("Soon.", "At nine.", "At Night.", "Later.")]
    alone = [encode_row(tokenizer, p, answer, eos_id=2) for p, answer in pairs]
    assert encode_rows(tokenizer, pairs, eos_id=2) == alone
    assert chat_template_of(tokenizer).writes_unchanged("Soon.")
