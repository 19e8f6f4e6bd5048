"""Commands end to end on a tiny decoder with random weights: what they print, and what they refuse."""

import itertools
import json
import math
import re
import resource

import pytest

from stic.compiler import cli
from stic.compiler.language.scorers import SessionScorer
from stic.compiler.language.scoring import log_probabilities
from stic.compiler.text.packaged import coder_of
from stic.runtime.package import Package
from stic.runtime.session import Session
from tests.compiler.commands import small_decoder

CONTEXT = small_decoder.CONTEXT
COMPILED = ["--target", "host", "--planner", "preload", "--bits", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("decoders")


@pytest.fixture(scope="module")
def package(folder):
    return compiled(folder, "plain", small_decoder.TEMPLATE)


@pytest.fixture(scope="module")
def unruly(folder):
    """One whose template raises for the second turn, and whose head is its embedding."""
    raises = "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + small_decoder.TEMPLATE
    return compiled(folder, "unruly", raises, tied=True)


def compiled(folder, name, template, tied=False):
    small_decoder.write(folder / name, template, tied)
    assert cli.main(["compile", str(folder / name), *COMPILED, "-o", str(folder / f"{name}.stic")]) == 0
    return folder / f"{name}.stic"


@pytest.fixture
def stic(capfd):
    """Runs a command; returns its status, output and errors."""

    def run(*arguments):
        capfd.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def test_an_answer_has_its_tokens_times_and_memory(package, stic):
    asked = ["generate", package, "--prompt", "hello", "--greedy", "--max-tokens", 6]
    status, out, err = stic(*asked, "--json")
    assert status == 0, err
    answer = json.loads(out)
    assert len(answer["tokens"]) == 6 and answer["finish_reason"] == "length"
    assert answer["first_token_us"] > 0 and answer["next_token_us"] > 0
    assert 0 < answer["peak_bytes"] <= answer["claimed_bytes"]
    assert answer["text"] == coder_of(Package.open(package)).decode(answer["tokens"])
    assert stic(*asked)[1] == answer["text"] + "\n"  # what streams is the same text


def test_an_answer_ends_before_a_text_that_ends_it(package, stic):
    asked = ["generate", package, "--prompt", "hello", "--greedy", "--max-tokens", 12, "--json"]
    whole = json.loads(stic(*asked)[1])["text"]
    stop = whole[4:6]
    answer = json.loads(stic(*asked, "--stop", stop)[1])
    assert answer["text"] == whole[: whole.index(stop)] and answer["finish_reason"] == "stop"


def test_a_full_context_ends_an_answer(package, stic):
    answer = json.loads(stic("generate", package, "--ids", "5,6,7", "--greedy", "--max-tokens", 500, "--json")[1])
    assert answer["finish_reason"] in ("context", "stop") and len(answer["tokens"]) <= CONTEXT


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ids", "5,6,100000"], "100000"),
        (["--prompt", "word " * CONTEXT], f"a context of {CONTEXT}"),
        (["--ids", ",".join(["5"] * CONTEXT)], f"a context of {CONTEXT}"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--prompt", "a", "--ids", "5"], "give a text with --prompt or a file"),
        (["--prompt", "a", "--system", "b"], "--system belongs to --chat"),
        (["--ids", "5", "--chat"], "--chat puts text"),
        (["--prompt", "a", "--temperature", "-1"], "temperature"),
        (["--prompt", "a", "--memory", "1KiB"], "memory"),
        ([], "give a text with --prompt or a file"),
    ],
)
def test_what_cannot_be_generated_from_is_refused(package, stic, arguments, said):
    status, out, err = stic("generate", package, *arguments, "--max-tokens", 4)
    assert status in (1, 2) and not out and said in err and err.count("\n") == 1


def test_an_empty_prompt_is_refused(folder, stic):
    """Where the model wants no bos, nothing is left of it."""
    source = small_decoder.write(folder / "bare")
    settings = source / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"add_bos_token": False}))
    assert cli.main(["compile", str(source), *COMPILED, "-o", str(folder / "bare.stic")]) == 0
    (folder / "empty.txt").write_text("")
    status, out, err = stic("generate", folder / "bare.stic", "--prompt-file", folder / "empty.txt")
    assert status == 1 and not out and "the prompt is empty" in err


def talk(stic, package, monkeypatch, *lines, options=()):
    """What a conversation of these lines prints."""
    said = itertools.chain(lines, [EOFError()])

    def answered(_prompt):
        line = next(said)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", answered)
    return stic("chat", package, "--greedy", "--max-tokens", 3, *options)


def test_a_conversation_goes_on_saves_and_begins_anew(package, stic, monkeypatch, tmp_path):
    status, out, err = talk(
        stic, package, monkeypatch, "hi", "/stats", f"/save {tmp_path / 'talk.state'}", "/reset", "hi", "/exit", "never"
    )
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == lines[-1]  # after /reset the same question has the same answer
    assert "the last answer" in out and f"of {CONTEXT} tokens" in out and (tmp_path / "talk.state").stat().st_size


def test_a_conversation_is_taken_up_where_it_was_saved(package, stic, monkeypatch, tmp_path):
    kept = tmp_path / "talk.state"
    status, whole, _ = talk(stic, package, monkeypatch, "hi", f"/save {kept}", "and then")
    assert status == 0
    status, by_command, err = talk(stic, package, monkeypatch, "another", f"/load {kept}", "and then")
    assert status == 0 and not err and "after turn 1" in by_command
    status, by_option, _ = talk(stic, package, monkeypatch, "and then", options=("--load", kept))
    assert status == 0
    assert whole.splitlines()[-1] == by_command.splitlines()[-1] == by_option.splitlines()[-1]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (None, "cannot be read as text"),
        ("{", "is not what /save writes"),
        ('{"messages": [{"role": "user"}], "tokens": []}', "is not what /save writes"),
        ('{"messages": [], "tokens": [1]}', "were not saved together"),
    ],
)
def test_a_conversation_of_other_files_is_refused(package, stic, monkeypatch, tmp_path, said, why):
    kept, beside = tmp_path / "talk.state", tmp_path / "talk.state.json"
    talk(stic, package, monkeypatch, "hi", f"/save {kept}")
    beside.unlink()
    if said is not None:
        beside.write_text(said)
    status, out, err = talk(stic, package, monkeypatch, "hi", f"/load {kept}", "/reset", "hi")
    lines = out.splitlines()
    assert status == 0 and why in err and lines[0] == lines[-1]


def test_a_conversation_outlives_what_it_cannot_do(package, stic, monkeypatch, tmp_path):
    nowhere = tmp_path / "nowhere" / "talk.state"
    status, out, err = talk(
        stic, package, monkeypatch, "/dance", "/save", f"/save {nowhere}", "word " * CONTEXT, KeyboardInterrupt(), "hi"
    )
    assert status == 0 and out.strip()
    for said in ("there is no /dance", "/save needs the name", str(nowhere), "begin a new one (/reset)"):
        assert said in err


def test_a_full_disk_ends_no_conversation(package, stic, monkeypatch, tmp_path):
    """A limit on the size of files stands for the disk: nothing is left of a state that was not written whole."""
    state, limits = tmp_path / "talk.state", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        status, out, err = talk(stic, package, monkeypatch, "hi", f"/save {state}", "/reset", "hi")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 0 and str(state) in err and not list(tmp_path.iterdir())
    lines = out.splitlines()
    assert lines[0] == lines[-1]


def test_a_template_that_raises_ends_no_conversation(unruly, stic, monkeypatch):
    status, out, err = talk(stic, unruly, monkeypatch, "hi", "again", "/reset", "hi")
    assert status == 0 and "one turn only" in err
    lines = out.splitlines()
    assert lines[0] == lines[-1]


def test_ctrl_c_ends_an_answer_and_not_the_conversation(package, stic, monkeypatch):
    from stic.runtime.text_session import TextSession

    sample, calls = TextSession.sample, itertools.count()

    def interrupted(*arguments):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return sample(*arguments)

    monkeypatch.setattr(TextSession, "sample", interrupted)
    status, out, err = talk(stic, package, monkeypatch, "hi", "hi", "/reset", "hi")
    assert status == 0, err
    assert out.count("[interrupted]") == 1


def test_a_state_of_another_plan_is_refused(package, unruly, folder):
    from stic.runtime.errors import SticError

    with Session(package) as session:
        session.extend([5, 6, 7])
        session.save(folder / "one.state")
    small_decoder.write(folder / "wider")
    other = [*COMPILED[:-1], "3", "-o", str(folder / "wider.stic")]
    assert cli.main(["compile", str(folder / "wider"), *other]) == 0
    with Session(folder / "wider.stic") as session, pytest.raises(SticError, match=r"one\.state"):
        session.load(folder / "one.state")


def test_perplexity_is_that_of_the_logits(package, stic, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text("hello hello, says the text, and goes on to say hello. " * 3)
    status, out, err = stic(
        "eval", package, "--task", "perplexity", "--data", data, "--window", 20, "--tokens", 60, "--json"
    )
    assert status == 0, err
    found = json.loads(out)
    ids = coder_of(Package.open(package)).encode(data.read_text())[:60]
    with Session(package) as session:
        scorer, windows = SessionScorer(session), [ids[start : start + 20] for start in (0, 20, 40)]
        losses = [-log_probabilities(scorer.logits(window)[:-1], window[1:]).sum() for window in windows]
    assert (found["metric"], found["n"]) == ("perplexity", 57)
    assert found["value"] == pytest.approx(math.exp(sum(losses) / 57), rel=1e-6)
    default = json.loads(stic("eval", package, "--task", "perplexity", "--data", data, "--json")[1])
    assert default["n"] >= CONTEXT - 1  # a window is 512 tokens, or the context where that is less


def test_questions_and_last_words_are_counted(package, stic, tmp_path):
    (tmp_path / "q.tsv").write_text("question\tchoice0\tchoice1\tanswer\nhello?\the\tllo\t0\nhe?\thello\tno\t1\n")
    (tmp_path / "w.tsv").write_text("context\ttarget\nhello\thello\nhe says\thello\n")
    for task, data in (("choice", "q.tsv"), ("lastword", "w.tsv")):
        found = json.loads(stic("eval", package, "--task", task, "--data", tmp_path / data, "--json")[1])
        assert found["metric"] == "accuracy" and found["n"] == 2 and found["value"] in (0, 0.5, 1)
        one = json.loads(stic("eval", package, "--task", task, "--data", tmp_path / data, "--limit", 1, "--json")[1])
        assert one["n"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --task perplexity, choice or lastword"),
        (["--task", "similarity"], "which --task similarity is not for"),
        (["--task", "choice"], "multiple choice needs question"),
        (["--task", "lastword"], "last words need context and target"),
        (["--task", "choice", "--tokens", 9], "belong to --task perplexity"),
        (["--task", "perplexity", "--limit", 9], "give --tokens"),
        (["--task", "perplexity", "--window", CONTEXT + 1], f"--window 2 to {CONTEXT}"),
        (["--task", "perplexity", "--devices", 2], "belong to --tracker"),
        (["--task", "perplexity", "--tracker", "127.0.0.1:1"], "leave out --tracker"),
    ],
)
def test_what_a_decoder_is_not_evaluated_by_is_refused(package, stic, tmp_path, arguments, said):
    (tmp_path / "text.txt").write_text("hello\nhello")
    status, out, err = stic("eval", package, "--data", tmp_path / "text.txt", *arguments)
    assert status in (1, 2) and not out and said in err


def test_bench_measures_first_and_next_token(package, stic):
    asked = ["bench", package, "--prompt-tokens", 20, "--new-tokens", 8]
    status, out, err = stic(*asked, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["prompt_tokens"], found["new_tokens"]) == (20, 8)
    times = "first_token_us next_token_us predicted_next_token_us prefill_tokens_per_s tokens_per_s rss_bytes".split()
    assert all(found[name] > 0 for name in times) and found["io_bytes_per_token"] >= 0
    assert found["peak_bytes"] <= found["claimed_bytes"]
    assert "next token" in stic(*asked)[1]
    plain = json.loads(stic("bench", package, "--json")[1])
    assert plain["prompt_tokens"] + plain["new_tokens"] <= CONTEXT


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "--prompt-tokens", CONTEXT], f"context of {CONTEXT}"),
        (["bench", "--runs", 2], "give --prompt-tokens"),
        (["bench", "--cold"], "give --prompt-tokens"),
        (["run", "--text", "hello"], "use `stic generate`"),
    ],
)
def test_what_is_for_encoders_is_refused(package, stic, arguments, said):
    command, *more = arguments
    status, out, err = stic(command, package, *more)
    assert status in (1, 2) and not out and said in err


def test_inspect_says_what_a_decoder_is(package, stic):
    status, out, err = stic("inspect", package, "--verify")
    assert status == 0, err
    grid = [line for line in out.splitlines() if re.match(r" *\d+  (attention|feed-forward|vocabulary) ", line)]
    shapes = Package.open(package).shapes
    assert [len(line.split()[2]) for line in grid] == [shape.slices for shape in shapes]
    assert "next token" in out and "predicted for 1 token:" in out and "keys and values" in out
    whole = json.loads(stic("inspect", package, "--json")[1])
    facts = whole["decoder"]
    assert (facts["family"], facts["context"], facts["stops"]) == ("llama", CONTEXT, [1, 2])
    assert facts["kv_bytes"] == whole["memory"]["cache"] and facts["template"] and facts["tokenizer"]


def test_a_tied_head_is_stored_once(package, unruly, stic):
    for path, kind, words in ((package, "int8", "int8"), (unruly, "tied", "the vocabulary")):
        status, out, err = stic("inspect", path, "--verify")
        assert status == 0 and f"the word table is {words}" in " ".join(out.split()), err
        facts = json.loads(stic("inspect", path, "--json")[1])
        assert facts["row_type"] == kind and (facts["files"]["embeddings.bin"] == 0) == (kind == "tied")
        assert facts["format"] == "3.1"


def test_another_machine_s_times_are_estimated(tmp_path, stic):
    model, output = small_decoder.write(tmp_path / "model"), tmp_path / "pi.stic"
    asked = ["compile", model, "--target", "raspberry-pi-4", "--planner", "preload", "--bits", 4, "-o", output]
    status, _, err = stic(*asked)
    assert status == 0, err
    assert Package.open(output).entry.predicted_us > 0


@pytest.mark.parametrize("option", [("--context", 64), ("--chunk", 16), ("--kv", "int8"), ("--head-bits", "8")])
def test_an_encoder_has_no_options_of_decoders(tmp_path, stic, tiny_classifier_dir, option):
    given = ["plan", tiny_classifier_dir, "--target", "host", *option]
    status, _, err = stic(*given)
    assert status == 1 if option[0] != "--kv" else status in (0, 1)  # int8 is what it is without being asked for
    assert status == 0 or "are a decoder's" in err


def test_a_decoder_has_a_context_and_no_max_length(tmp_path, stic):
    model = small_decoder.write(tmp_path / "model")
    status, _, err = stic("plan", model, "--target", "host", "--max-length", 16, "--planner", "preload", "--bits", 4)
    assert status == 1 and "--context" in err
    status, _, err = stic("plan", model, "--target", "host", "--context", 500, "--planner", "preload", "--bits", 4)
    assert status == 1 and "takes 64 tokens" in err
