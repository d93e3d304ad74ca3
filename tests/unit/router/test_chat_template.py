from __future__ import annotations

import json

import pytest
from octavo.errors import InvalidRequest
from octavo_router.chat_template import MAX_TEMPLATE_BYTES, ChatTemplate, Message

HELLO = [Message("user", "hello")]


def test_blocks_are_trimmed_and_special_tokens_are_at_hand():
    source = "{% for message in messages %}\n    {% if true %}\n{{ bos_token }}{{ message.content }}\n    {% endif %}\n{% endfor %}"
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(HELLO) == "<s>hello\n"


def test_generation_blocks_and_loop_controls_are_known():
    source = "{% generation %}{{ messages[0].content }}{% endgeneration %}{% for i in [1, 2] %}{% break %}{% endfor %}"
    assert ChatTemplate(source, {}).render(HELLO) == "hello"


def test_tojson_escapes_no_html():
    assert ChatTemplate("{{ messages[0].content | tojson }}", {}).render([Message("user", "<é>")]) == '"<é>"'


def test_refusal_of_the_template_names_the_messages_but_not_their_text():
    source = "{{ raise_exception('no ' + messages[0].content) }}"
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(source, {}).render([Message("user", "secret")])
    assert caught.value.field == "input.chat.messages"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ missing.attribute }}",
    ],
)
def test_sandbox_refuses_what_templates_need_not(source):
    with pytest.raises(InvalidRequest):
        ChatTemplate(source, {}).render(HELLO)


def test_output_is_bounded():
    template = ChatTemplate("{% for i in range(1000) %}{{ messages[0].content }}{% endfor %}", {}, max_chars=100)
    with pytest.raises(InvalidRequest) as caught:
        template.render(HELLO)
    assert caught.value.reason == "chat_too_large"


def test_time_is_bounded():
    source = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(source, {}, max_s=0.05).render(HELLO)
    assert caught.value.reason == "chat_too_large"


def test_enormous_template_is_refused():
    with pytest.raises(ValueError, match="limit"):
        ChatTemplate("x" * (MAX_TEMPLATE_BYTES + 1), {})


@pytest.mark.parametrize(
    ("config", "rendered"),
    [
        ({"chat_template": "plain"}, "plain"),
        ({"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]}, "yes"),
        ({"chat_template": "{{ eos_token }}", "eos_token": {"content": "</s>"}}, "</s>"),
    ],
)
def test_template_is_found_in_the_tokenizer_configuration(config, rendered, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path).render(HELLO) == rendered


def test_template_file_wins_over_the_configuration(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    (tmp_path / "chat_template.jinja").write_text("file")
    assert ChatTemplate.load(tmp_path).render(HELLO) == "file"


def test_directory_without_a_template_has_none(tmp_path):
    assert ChatTemplate.load(tmp_path) is None
