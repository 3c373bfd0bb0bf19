"""Chat templates that run on or blow up are one line, soon; all others give the text that transformers gives."""

import time
from pathlib import Path

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from foredraft import template_limits
from foredraft.template_limits import BoundedEnvironment
from foredraft.tokenization import template_errors

ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "loops over a string": "{% set s = 'x' * 999999 %}{% for i in s %}{% for j in s %}{% for k in s %}{% endfor %}{% endfor %}{% endfor %}",
    "two macros": "{% macro a(n) %}{% for i in range(9) %}{{ a(n - 1) if n else '' }}{% endfor %}{% endmacro %}{{ a(30) }}",
}
HUGE = {
    "times": "{{ 'x' * 10 ** 11 }}",
    "a list": "{{ ([0] * 10 ** 11) | length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "powers": "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "doubling by ~": "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "doubling by +": "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "doubling lists": "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "written again": "{% set s = 'x' * 60000000 %}{% for i in range(9999) %}{{ s }}{% endfor %}",
    "set again": "{% set s = 'x' * 60000000 %}{% set t %}{% for i in range(9999) %}{{ s }}{% endfor %}{% endset %}",
    "center": "{{ 'x' | center(10 ** 11) }}",
    "ljust": "{{ 'x'.ljust(10 ** 11) }}",
    "indent": "{{ ('\\n' * 999999) | indent(999999, true) }}",
    "tojson": "{{ [[[1]]] | tojson(indent=10 ** 10) }}",
    "batch": "{{ [1] | batch(10 ** 11, 'x') | list }}",
    "replace": "{% set s = 'x' * 999999 %}{{ s | replace('', s) }}",
    "method replace": "{% set s = 'x' * 999999 %}{{ s.replace('x', s) }}",
    "join": "{% set s = 'x' * 999999 %}{{ ([s] * 999999) | join }}",
    "method join": "{% set s = 'x' * 999999 %}{{ s.join([s] * 999999) }}",
    "width": "{{ '%100000000000d' % 1 }}",
    "star": "{{ '%*d' % (10 ** 11, 1) }}",
    "format": "{{ '{:100000000000}'.format(1) }}",
    "format filter": "{{ '%100000000000d' | format(1) }}",
    "a long template": "x" * (2**20 + 1),
}
USUAL = """{%- set ns = namespace(n=0) -%}
{% for m in messages recursive %}{{ loop.index0 }}/{{ loop.length }}{{ loop.last }}{{ m.role | upper ~ ': ' + m.content | trim }}
{% if m.parts %}{{ loop(m.parts) }}{% endif %}{% set ns.n = ns.n + 2 * 3 %}{% endfor %}{{ ns.n }} {{ ['a', 'b'] | join(', ') }}
{{ '%05d|%s' % (7, 'x') }} {{ 'a-b'.split('-')[1].replace('b', 'cc').ljust(4) }}| {{ 7 // 2 ** 2 }} {{ '%s' | format('y') }}
{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% if loop.first %}{% continue %}{% endif %}{% endfor %}
{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }} {{ messages | map(attribute='role') | list }} {{ {'a': [1, 'é']} | tojson }}
{{ messages | selectattr('role', 'eq', 'user') | list | length }}{{ undefined }}"""
MESSAGES = [
    {"role": "user", "content": " hi "},
    {"role": "assistant", "content": "yo", "parts": [{"role": "tool", "content": "t"}]},
]


def rendered(environment: ImmutableSandboxedEnvironment, template: str) -> str:
    return environment.from_string(template).render(messages=MESSAGES)


@pytest.mark.parametrize("name", [*ENDLESS, *HUGE])
def test_a_template_without_end_is_one_line_soon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.1)
    began = time.thread_time()
    with pytest.raises(ValueError, match=r"^the chat template fails: [^\n]{,200}$") as error, template_errors():
        rendered(BoundedEnvironment(), {**ENDLESS, **HUGE}[name])
    assert time.thread_time() - began < 2.0
    assert name not in ENDLESS or "runs for more than 0.1 s" in str(error.value)


def test_any_other_gives_the_text_that_it_gave() -> None:
    plain, limited = (
        of(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        for of in (ImmutableSandboxedEnvironment, BoundedEnvironment)
    )
    with template_errors():
        assert rendered(limited, USUAL) == rendered(plain, USUAL)


def test_transformers_renders_within_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own function, marks of what is generated too."""
    from transformers.utils.chat_template_utils import render_jinja_template

    monkeypatch.setattr(template_limits, "SECONDS", 0.1)
    marked = "{% for m in messages %}<{% generation %}{{ m.content }}{% endgeneration %}>{% endfor %}"
    with template_errors():
        texts, blocks = render_jinja_template([MESSAGES], chat_template=marked, return_assistant_tokens_mask=True)  # pyright: ignore[reportArgumentType, reportAssignmentType]
    assert (texts, blocks) == (["< hi ><yo>"], [[(1, 5), (7, 9)]])
    with pytest.raises(ValueError, match="runs for more than"), template_errors():
        render_jinja_template([MESSAGES], chat_template=ENDLESS["loops that write"])  # pyright: ignore[reportArgumentType]


def test_the_guide_tells_the_limits_as_they_are():
    guide = (Path(__file__).parents[2] / "docs/guides/data.md").read_text(encoding="utf-8")
    told = guide.split("## A template's limits\n")[1].split("\n## ")[0]
    for limit in (
        f"{template_limits.SECONDS:g} s", f"{template_limits.CHARACTERS:,} characters", f"{template_limits.ITEMS:,} items",
        f"{template_limits.SOURCE:,} characters", f"{template_limits.COUNT:,}", f"an indent {template_limits.INDENT}",
    ):  # fmt: skip
        assert limit in told
