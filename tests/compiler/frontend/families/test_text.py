"""Tokenizer, template, and the tokens that begin and end, from whichever file says so."""

import pytest

from stic.compiler.decoder.model import Text
from stic.compiler.frontend.decoders import read_decoder
from tests.compiler.frontend.families.folders import write, write_json

ADDED = [
    {"id": 1, "content": "<s>", "special": True},
    {"id": 2, "content": "</s>", "special": True},
    {"id": 7, "content": "<|im_end|>", "special": True},
]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
PROCESSOR = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}


def tokenizer(folder, processor=None):
    content = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": ADDED, "post_processor": processor}
    write_json(folder / "tokenizer.json", content)


def test_a_directory_without_text(tmp_path):
    decoder = read_decoder(write(tmp_path / "model", eos_token_id=9, bos_token_id=3))
    assert vars(decoder.text) == vars(Text()) and decoder.name == "model" and decoder.source == tmp_path / "model"
    assert decoder.architecture.stops == (9,) and decoder.architecture.bos == 3


def test_stops_are_what_any_file_names(tmp_path):
    folder = write(tmp_path / "model", eos_token_id=[9, 5])
    tokenizer(folder)
    write_json(folder / "generation_config.json", {"eos_token_id": [5, 11]})
    write_json(folder / "tokenizer_config.json", {"eos_token": {"content": "</s>"}, "bos_token": "<s>"})
    assert read_decoder(folder).architecture.stops == (2, 5, 9, 11)
    (folder / "chat_template.jinja").write_text(TEMPLATE)  # which ends turns in another one
    assert read_decoder(folder).architecture.stops == (2, 5, 7, 9, 11)


def test_tokens_beyond_the_vocabulary_are_none(tmp_path):
    decoder = read_decoder(write(tmp_path / "model", eos_token_id=[2, 400], bos_token_id=400, pad_token_id=-1))
    assert decoder.architecture.stops == (2,) and decoder.architecture.bos is None


def test_transformers_defaults_hold_where_nothing_is_said(tmp_path):
    architecture = read_decoder(write(tmp_path / "model")).architecture
    assert architecture.bos == 1 and architecture.stops == (2,)


@pytest.mark.parametrize("place", ["file", "string", "list", "file-before-string"])
def test_the_template_in_both_places(place, tmp_path):
    folder = write(tmp_path / "model")
    said = {
        "file": {},
        "string": {"chat_template": TEMPLATE},
        "list": {
            "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}],
        },
        "file-before-string": {"chat_template": "older"},
    }[place]
    write_json(folder / "tokenizer_config.json", said)
    if place.startswith("file"):
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert read_decoder(folder).text.template == TEMPLATE


@pytest.mark.parametrize(
    ("flag", "processor", "adds"),
    [
        (None, None, False),
        (None, PROCESSOR, True),
        (None, {"type": "Sequence", "processors": [{"type": "ByteLevel"}, PROCESSOR]}, True),
        (True, None, True),
        (False, PROCESSOR, False),
    ],
)
def test_whether_a_prompt_starts_with_bos(flag, processor, adds, tmp_path):
    folder = write(tmp_path / "model")
    tokenizer(folder, processor)
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": flag})
    text = read_decoder(folder).text
    assert (text.add_bos, text.bos, text.eos) == (adds, "<s>", "</s>")
    assert text.tokenizer == (folder / "tokenizer.json").read_bytes()


def test_names_of_tokens_come_from_their_numbers_where_no_file_names_them(tmp_path):
    folder = write(tmp_path / "model")
    tokenizer(folder)
    assert (read_decoder(folder).text.bos, read_decoder(folder).text.eos) == ("<s>", "</s>")


def test_added_tokens_of_the_settings(tmp_path):
    folder = write(tmp_path / "model")
    decoder = {"12": {"content": "<end>"}}
    write_json(folder / "tokenizer_config.json", {"eos_token": "<end>", "added_tokens_decoder": decoder})
    assert read_decoder(folder).architecture.stops == (2, 12)
