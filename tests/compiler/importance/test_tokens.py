"""Where a tokenizer and a model disagree: a sentence that names the text, or the answer that transformers gives."""

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from stic.compiler.importance.examples import Examples, encode, open_tokenizer
from stic.compiler.importance.tokens import Tables, tokenise
from stic.compiler.inputs import read_model
from stic.compiler.options import longest_input
from stic.runtime.errors import InputError

WORD = "embeddings.word_embeddings.weight"
TYPE = "embeddings.token_type_embeddings.weight"


@pytest.fixture
def coder(tiny_dir):
    return open_tokenizer(tiny_dir / "tokenizer.json")


def cut(tiny_dir, folder, name, rows):
    """The tiny encoder with fewer rows in one table."""
    shutil.copytree(tiny_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensors[name][:rows]}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("texts", "tables", "message"),
    [
        ([("the cat", None)], Tables(6, 2, "M"), "the text 'the cat': token 'the' has id 6, .* word table of M has 6"),
        ([("a", None), ("a", "here there")], Tables(23, 2, "M"), "the text 'a': token 'here' has id 2[0-9]"),
        ([("a", "a")], Tables(2, 2, "M"), r"token '\[CLS\]' has id 2"),
        ([("", None)], None, None),
    ],
)
def test_ids_beyond_the_word_table(coder, texts, tables, message):
    if message is None:
        assert [len(one.ids) for one in tokenise(coder, texts, tables)] == [2]
        return
    with pytest.raises(InputError, match=message):
        tokenise(coder, texts, tables)


def test_only_a_text_that_uses_such_an_id_is_refused(coder):
    (kept,) = tokenise(coder, [("a", None)], Tables(6, 2, "M"))
    assert kept.ids.max() == 5 < coder.get_vocab_size() - 1


def test_added_tokens_beyond_the_table(coder):
    tables = Tables(coder.get_vocab_size(), 2, "M")
    coder.add_tokens(["zebra"])
    tokenise(coder, [("the cat", None)], tables)
    with pytest.raises(InputError, match="token 'zebra' has id"):
        tokenise(coder, [("the zebra", None)], tables)


@pytest.mark.parametrize(("rows", "types"), [(2, [0, 0, 0, 1, 1]), (1, [0] * 5), (0, [0] * 5)])
def test_a_model_that_tells_no_types_apart_takes_type_0(coder, rows, types):
    (pair,) = tokenise(coder, [("a", "the")], Tables(99, rows, "M"))
    assert pair.types.tolist() == types


def test_a_type_beyond_the_table(coder):
    text = json.loads(coder.to_str())
    for piece in text["post_processor"]["pair"]:
        next(iter(piece.values()))["type_id"] *= 3
    with pytest.raises(InputError, match="token 'the' has token type 3, but the type table of M has 2 rows"):
        tokenise(Tokenizer.from_str(json.dumps(text)), [("a", "the")], Tables(99, 2, "M"))


def test_padding_of_the_tokenizer_plays_no_part(coder):
    coder.enable_padding(pad_id=5000, length=12)
    (one,) = tokenise(coder, [("a", None)], Tables(6, 2, "M"))
    assert one.ids.tolist() == [2, 5, 3]
    examples = Examples("unlabelled", (("a", None), ("a a", None)), None, "here")
    (batch,) = encode(examples, coder, 8, tables=Tables(6, 2, "M"))
    assert batch.ids[~batch.mask].tolist() == [0]


def test_a_tokenizer_that_fails_on_a_text(coder):
    text = json.loads(coder.to_str())
    del text["model"]["vocab"]["[UNK]"]
    with pytest.raises(InputError, match=r"fails on the text 'zebra': WordLevel error: Missing \[UNK\]"):
        tokenise(Tokenizer.from_str(json.dumps(text)), [("zebra", None)])


def test_a_text_without_tokens(coder):
    text = json.loads(coder.to_str()) | {"post_processor": None}
    with pytest.raises(InputError, match="makes no token of the text '  '"):
        tokenise(Tokenizer.from_str(json.dumps(text)), [("  ", None)])


@pytest.mark.parametrize(("pair", "length", "least"), [(None, 1, 3), ("the", 2, 4)])
def test_no_room_for_text(coder, pair, length, least):
    with pytest.raises(InputError, match=f"inputs of {length} tokens .* --max-length {least} or more"):
        tokenise(coder, [("a cat", pair)], max_length=length)


def test_tables_of_a_model(tiny_dir, tmp_path):
    model = read_model(cut(tiny_dir, tmp_path / "few", TYPE, 1))
    assert Tables.of(model) == Tables(model.embeddings.word.shape[0], 1, str(tmp_path / "few"))


@pytest.mark.parametrize(
    ("asked", "positions", "length"), [(None, 512, 128), (None, 64, 64), (64, 64, 64), (200, 512, 200), (None, 9, 9)]
)
def test_longest_input(asked, positions, length):
    assert longest_input(asked, positions) == length


@pytest.mark.parametrize(("asked", "positions", "limit"), [(65, 64, 64), (1000, 512, 512), (5000, 8192, 4096)])
def test_longer_than_possible(asked, positions, limit):
    with pytest.raises(InputError, match=f"--max-length is {asked}, .* {limit} tokens: give at most {limit}"):
        longest_input(asked, positions)


HOST = ["--target", "host", "--memory", "16MiB", "--trial-tokens", 0, "--calibration-tokens", 64]


def test_calibration_and_a_run_say_it_alike(stic, tiny_dir, tmp_path):
    """Of a model with rows for the first words only."""
    few = cut(tiny_dir, tmp_path / "few", WORD, 10)
    status, _, err = stic("compile", few, *HOST, "-o", tmp_path / "p.stic")
    assert status == 1 and "has id" in err and f"word table of {few} has 10 rows" in err
    (tmp_path / "texts.txt").write_text("sentence\na the movie\nfilm cat film\n" * 3)
    arguments = [*HOST, "--calibration", tmp_path / "texts.txt", "--planner", "preload", "--bits", 6]
    assert stic("compile", few, *arguments, "-o", tmp_path / "p.stic")[0] == 0
    assert stic("run", tmp_path / "p.stic", "--text", "a cat")[0] == 0
    status, out, err = stic("run", tmp_path / "p.stic", "--text", "a cat", "--text", "a dog")
    assert status == 1 and out == "" and "the text 'a dog': token 'dog' has id 10" in err
    (tmp_path / "data.tsv").write_text("score\tsentence1\tsentence2\n5\ta cat\ta dog\n1\ta cat\tthe film\n")
    status, _, err = stic("eval", tmp_path / "p.stic", "--data", tmp_path / "data.tsv")
    assert status == 1 and "the text 'a dog': token 'dog' has id 10" in err


@pytest.mark.parametrize("command", ["compile", "plan", "importance", "probe"])
def test_max_length_beyond_the_positions(stic, tiny_dir, tmp_path, command):
    more = [] if command == "importance" else ["--target", "host"]
    output = [] if command == "plan" else ["-o", tmp_path / "out"]
    status, _, err = stic(command, tiny_dir, *more, "--max-length", 65, *output)
    assert status == 1 and "--max-length is 65, but the model has positions for 64 tokens" in err
    assert not list(tmp_path.iterdir())


def test_advice_of_a_run_can_be_followed(stic, tiny_dir, tmp_path):
    arguments = ["--planner", "preload", "--bits", 6, "--max-length", 32]
    assert stic("compile", tiny_dir, *HOST, *arguments, "-o", tmp_path / "p.stic")[0] == 0
    for words, larger in ((40, True), (62, True), (63, False)):
        status, _, err = stic("run", tmp_path / "p.stic", "--text", "cat " * words)
        assert status == 1 and ("larger --max-length" in err) == larger and "--truncate" in err
    assert stic("run", tmp_path / "p.stic", "--text", "cat " * 63, "--truncate")[0] == 0


def test_one_token_type_takes_pairs(stic, tiny_dir, tmp_path):
    few = cut(tiny_dir, tmp_path / "few", TYPE, 1)
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\na cat\ta dog\nthe film\tbad\n" * 3)
    arguments = [*HOST, "--calibration", tmp_path / "pairs.tsv", "--planner", "preload", "--bits", 6]
    assert stic("compile", few, *arguments, "-o", tmp_path / "p.stic")[0] == 0
    paired = stic("run", tmp_path / "p.stic", "--text", "a cat", "--pair", "a dog", "--json")
    numbers = stic("run", tmp_path / "p.stic", "--ids", "2,5,9,3,5,10,3", "--json")
    assert paired[0] == numbers[0] == 0
    assert json.loads(paired[1])["outputs"] == json.loads(numbers[1])["outputs"]
