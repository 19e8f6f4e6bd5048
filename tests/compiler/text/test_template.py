"""Chat templates: as transformers runs them, and within bounds."""

import time

import pytest

from stic.compiler.decoder.model import Text
from stic.compiler.text.template import MOST_SIZE, ChatTemplate
from stic.runtime.errors import InputError

CHAT = [{"role": "user", "content": "Hi <b> & 'é'"}, {"role": "assistant", "content": "Hm.\n"}]
CHATML = (
    "{% for message in messages %}\n    {{- '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>'"
    " + '\\n' }}\n{% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def template(source, **keys):
    return ChatTemplate(Text(template=source, **{"bos": "<s>", "eos": "</s>"} | keys), "the model")


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        LLAMA2,
        "{%- for m in messages %}{%- if loop.last %}{% break %}{% endif %}{{ loop.index ~ m.content }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages[0] | length }}",
        "{% macro say(m) %}<{{ m.role }}>{{ m.content }}{{ caller() }}{% endmacro %}"
        "{% for m in messages %}{% call say(m) %}!{% endcall %}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}",
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% endif %}{% endfor %}",
        "{% for n in range(3) recursive %}{{ n }}{% if n %}{{ loop(range(n)) }}{% endif %}{% endfor %}",
        "{{ '%s-%d' % ('a', 3) }}{{ '{:>5}'.format('b') }}{{ 'x' * 3 }}{{ [1] + [2] }}{{ 2 ** 5 }}{{ tools }}",
        "{% set x %}{{ messages[0].content }}{% endset %}{{ x | replace('b', 'c') | upper }}{{ undefined_name }}",
        "{{ messages[0].items() | list }}{{ messages | map(attribute='role') | join(', ') }}",
    ],
)
def test_as_transformers_renders(source, prompt):
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    wanted, _ = transformers.render_jinja_template(
        [CHAT], chat_template=source, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )
    assert template(source).render(CHAT, prompt) == wanted[0]


def test_the_date_can_be_had():
    assert template("{{ strftime_now('%Y') }}").render(CHAT) == time.strftime("%Y")


def test_messages_are_left_as_they_are():
    with pytest.raises(InputError, match="the chat template of the model fails"):
        template("{{ messages.append(1) }}").render(CHAT)
    assert len(CHAT) == 2


def test_other_variables_are_given():
    assert template("{{ tools[0].name }}{{ x }}").render(CHAT, tools=[{"name": "f"}], x=1) == "f1"


def test_tokens_that_the_model_does_not_name_are_empty():
    assert template("{{ bos_token }}a{{ eos_token }}", bos=None, eos=None).render(CHAT) == "a"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9].content.x }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include 'other' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_fails_is_one_sentence(source):
    with pytest.raises(InputError, match="the chat template of the model fails: ") as error:
        template(source).render(CHAT)
    assert "\n" not in str(error.value)


def test_what_a_template_raises_is_said():
    with pytest.raises(InputError, match="roles must alternate"):
        template("{{ raise_exception('roles must alternate') }}").render(CHAT)


@pytest.mark.parametrize(
    "source", ["{% for", "{{ a", "{% endfor %}", "{{ 'a' | nofilter }}", "{{ " + "(" * 5000, "{% for a in b %}" * 60]
)
def test_a_damaged_template_is_one_sentence(source):
    with pytest.raises(InputError, match="the model: its chat template is damaged: ") as error:
        template(source)
    assert "\n" not in str(error.value)


BIG = "{% set x = 'x' * 99999 %}"
DOUBLE = "{% set ns = namespace(x='xxxx') %}{% for i in range(60) %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for n in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% set ns = namespace(n=7) %}{% for i in range(999) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{{ range(10 ** 9) | list }}",
        "{{ 'x' | center(10 ** 9) }}",
        "{{ 'x'.ljust(10 ** 9) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '%999999999d' | format(1) }}",
        BIG + "{{ x.replace('x', x) }}",
        BIG + "{{ x | replace('x', x) }}",
        BIG + "{{ x | list | join(x) }}",
        BIG + "{{ ([x] * 99999) | join }}",
        BIG + "{{ ([x] * 99999) | tojson }}",
        "{% set ns = namespace(x=['x', 'x']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
        "{{ ns.x | tojson }}{{ ns.x }}",
        "{{ '{:{}}'.format(1, '999999999') }}",
        BIG + "{{ x.join(x) }}",
        DOUBLE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        DOUBLE + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        DOUBLE + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + DOUBLE + "{% set ns.x = m(ns.x) %}{% endfor %}",
    ],
)
def test_a_template_without_end_is_stopped(source):
    """In bounded memory, too: no value grows beyond a few times the greatest size."""
    with pytest.raises(InputError, match=r"(the chat template of the model fails|its chat template is damaged): "):
        template(source).render(CHAT)


def test_constants_are_not_folded_into_large_ones():
    with pytest.raises(InputError):
        template("{{ ('x' * 99999) * 99999 }}{{ 'x' | center(10 ** 9) }}").render(CHAT)


def test_a_template_that_is_missing_or_too_long_is_refused():
    with pytest.raises(InputError, match="the model has no chat template"):
        template(None)
    with pytest.raises(InputError, match="more than"):
        template("x" * (MOST_SIZE + 1))


@pytest.mark.parametrize(
    ("source", "end"), [(CHATML, "<|im_end|>\n\n"), (LLAMA2, "</s>"), ("{{ raise_exception('no') }}", ""), ("x", "")]
)
def test_what_follows_an_answer_is_found(source, end):
    assert template(source).end_of_turn() == end
