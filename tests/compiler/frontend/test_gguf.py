"""GGUF files of every architecture hold what the directories that they were converted from hold."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from stic.compiler.decoder.forward import logits  # noqa: E402
from stic.compiler.frontend.decoders import read_decoder  # noqa: E402
from stic.compiler.frontend.gguf import read_gguf  # noqa: E402
from stic.compiler.frontend.gguf_config import ARCHITECTURES  # noqa: E402
from stic.runtime.architecture import tensors  # noqa: E402
from stic.runtime.errors import InputError, UnsupportedModelError  # noqa: E402
from tests.compiler.frontend import gguf_files  # noqa: E402
from tests.compiler.frontend.families.models import CASES, build, expected, gap, save  # noqa: E402
from tests.compiler.frontend.families.models import tokens as random_tokens  # noqa: E402

# What GGUF cannot say: llama.cpp converts no OPT, and has no key for these.
LACKING = (
    "opt", "mistral", "llama-dynamic", "yarn-mscale", "yarn-attention-factor", "yarn-untruncated", "windows",
    "window-not-used", "smollm3-list", "gemma2-all-slide", "gemma3_text-cap", "gpt2-deeper", "gpt2-unscaled",
)  # fmt: skip
CONVERTED = [case for case in CASES if not any(part in case for part in LACKING)]
GEMMA_SCALE = {"gemma2": {"query_pre_attn_scalar": 12}, "gemma3_text": {"query_pre_attn_scalar": 12}}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """case -> (the model, its directory, its GGUF file), made once."""
    made = {}

    def make(case):
        if case not in made:
            folder = tmp_path_factory.mktemp("gguf")
            model = build(case, **GEMMA_SCALE.get(case, {}))
            save(model, folder / "hf")
            made[case] = model, folder / "hf", gguf_files.convert(folder / "hf", folder / f"{case}.gguf")
        return made[case]

    return make


def test_every_architecture_has_a_case():
    families = {CASES[case][0] for case in CONVERTED}
    assert {arch.model_type for arch in ARCHITECTURES.values()} == families


@pytest.mark.parametrize("case", CONVERTED)
def test_architecture_and_weights_are_those_of_the_directory(case, pairs):
    _, folder, path = pairs(case)
    found, wanted = read_gguf(path), read_decoder(folder)
    assert _plain(found.architecture) == _plain(wanted.architecture)
    for one, other in zip(found.architecture.rotaries, wanted.architecture.rotaries, strict=True):
        for mine, theirs in ((one, other), *([(one.long, other.long)] if other.long else [])):
            np.testing.assert_allclose(mine.frequencies, theirs.frequencies, rtol=3e-7)
            assert mine.magnitude == pytest.approx(theirs.magnitude, rel=1e-7)
        assert one.switch == other.switch
    for tensor in tensors(wanted.architecture):
        held, source = (decoder.weights.read(tensor.block, tensor.role) for decoder in (found, wanted))
        assert (held is None) == (source is None), tensor
        if source is not None:
            np.testing.assert_allclose(held, source, rtol=2e-7, atol=1e-7, err_msg=str(tensor))
    np.testing.assert_allclose(found.weights.rows("embedding", 3, 5), wanted.weights.rows("embedding", 3, 5))


def _plain(architecture):
    """An architecture without numbers that float32 rounds."""
    shown = [
        type(block).__name__ + repr([getattr(block, name) for name in block.__dataclass_fields__ if name != "norms"])
        for block in architecture.blocks
    ]
    return architecture.hidden, architecture.vocabulary, architecture.context, shown, architecture.embedding.positions


@pytest.mark.parametrize("case", ["llama-one-key-head-and-biases", "qwen2", "gemma2", "llama-llama3", "granite"])
def test_logits_are_those_of_transformers(case, pairs):
    model, _, path = pairs(case)
    ids = random_tokens()
    assert gap(logits(read_gguf(path), ids), expected(model, ids)) < 1e-4


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1, Kind.Q5_0, Kind.MXFP4, Kind.Q4_0])
def test_quantised_rows_are_those_of_the_whole_matrix(kind, tmp_path):
    model = build("qwen2", hidden_size=96, intermediate_size=64, num_key_value_heads=3, num_attention_heads=3)
    path = gguf_files.convert(save(model, tmp_path / "hf"), tmp_path / "m.gguf", kind)
    decoder = read_gguf(path)
    whole = decoder.weights.read(None, "embedding")
    np.testing.assert_array_equal(decoder.weights.rows("embedding", 7, 20), whole[7:27])
    original = read_decoder(tmp_path / "hf").weights.read(None, "embedding")
    assert np.abs(whole - original).max() < 0.35 * np.abs(original).max()


def test_a_head_of_its_own_is_not_tied(pairs):
    assert not read_gguf(pairs("llama")[2]).architecture.head.tied
    assert read_gguf(pairs("llama-tied")[2]).architecture.head.tied


def test_projections_may_be_fused_in_any_architecture(tmp_path):
    import gguf

    folder = save(build("llama-one-key-head-and-biases"), tmp_path / "hf")
    path = gguf_files.convert(folder, tmp_path / "m.gguf")
    held = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    for layer in range(2):
        for part in ("weight", "bias"):
            parts = [held.pop(f"blk.{layer}.attn_{one}.{part}") for one in "qkv"]
            held[f"blk.{layer}.attn_qkv.{part}"] = np.concatenate(parts)
    keys = {
        "block_count": 2, "context_length": 128, "embedding_length": 36, "feed_forward_length": 52,
        "attention.head_count": 6, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 500.0,
    }  # fmt: skip
    fused = read_gguf(gguf_files.write(tmp_path / "fused.gguf", "llama", keys, held))
    plain = read_gguf(path)
    for role in ("query", "key", "value", "key_bias"):
        np.testing.assert_array_equal(fused.weights.read(2, role), plain.weights.read(2, role))


@pytest.mark.parametrize(("layers", "scale"), [(46, 24**-0.5), (2, 12**-0.5)])
def test_scores_of_the_largest_gemma_are_scaled_by_hidden_by_heads(layers, scale, tmp_path):
    """As no key says; recognised by its layers."""
    model = build("gemma2", num_hidden_layers=layers, hidden_size=48, num_attention_heads=2, num_key_value_heads=2)
    path = gguf_files.convert(save(model, tmp_path / "hf"), tmp_path / "m.gguf")
    raw = dict(model.state_dict())["model.layers.0.self_attn.q_proj.weight"].numpy()
    np.testing.assert_allclose(read_gguf(path).weights.read(0, "query"), raw * np.float32(scale), rtol=1e-6)


@pytest.mark.parametrize("said", [3, [True, False, True, True, False, True, False]])
def test_windows_are_where_the_file_says(said, tmp_path):
    folder = save(build("gemma3_text"), tmp_path / "hf")
    path = gguf_files.convert(folder, tmp_path / "m.gguf", **{"attention.sliding_window_pattern": said})
    blocks = read_gguf(path).architecture.blocks[0:-1:2]
    wanted = said if isinstance(said, list) else [True, True, False, True, True, False, True]
    assert [block.window is not None for block in blocks] == wanted
    assert [block.rotary for block in blocks] == [int(slides) for slides in wanted]


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        ("llama", {"general.type": "adapter"}, "it holds a 'adapter', not a model"),
        ("llama", {"split.count": 3}, "it is one of 3 parts"),
        ("llama", {"expert_count": 8}, "llama.expert_count is 8; mixtures of experts"),
        ("llama", {"attention.causal": False}, "only models that continue text"),
        ("llama", {"attention.something_new": 1}, "llama.attention.something_new is 1; it is not known"),
        ("llama", {"embedding_length": 37}, "'token_embd.weight' has rows of 36"),
        ("llama", {"attention.head_count": [6, 5]}, "one whole number for all layers"),
        ("llama", {"attention.head_count": 4_000_000_000}, "expected one whole number"),
        ("llama", {"attention.head_count_kv": 4}, "expected a divisor of 6 heads"),
        ("llama", {"block_count": 4_000_000_000}, "expected one whole number"),
        ("llama", {"block_count": 3}, "it has no weight 'blk.2."),
        ("llama", {"block_count": 1}, "it holds 'blk.1."),
        ("llama", {"rope.dimension_count": 8}, "rope.dimension_count is 8; a head has 6 features"),
        ("llama", {"attention.value_length": 4}, "expected that of keys"),
        ("llama", {"feed_forward_length": 50}, "the configuration says"),
        ("llama", {"rope.freq_base": float("nan")}, "expected a number above 1"),
        ("llama", {"rope.freq_base": 1.0}, "expected a number above 1"),
        ("llama", {"rope.scaling.type": "magic"}, "none, linear, yarn and longrope are supported"),
        ("llama", {"rope.scaling.factor": 2.0}, "it is not said how positions are scaled"),
        ("llama", {"attention.layer_norm_rms_epsilon": None}, "is not there; expected a number above 0"),
        ("llama", {"attention.layer_norm_rms_epsilon": 0.0}, "expected a number above 0"),
        ("llama", {"context_length": "long"}, "expected one whole number"),
        ("granite", {"residual_scale": None}, "granite.residual_scale is not there"),
        ("granite", {"rope.scaling.finetuned": False}, "granite without rotary positions"),
        ("olmo2", {"attention.sliding_window": 4096}, "olmo2.attention.sliding_window is 4096; it is not known"),
        ("phi3-longrope-long", {"rope.scaling.original_context_length": 1}, "expected 2 tokens or more"),
        ("phi3-longrope-long", {"rope.dimension_count": 4}, "expected a tensor 'rope_factors_short.weight' of 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_key(case, changes, said, pairs, tmp_path):
    path = gguf_files.convert(pairs(case)[1], tmp_path / "m.gguf", **changes)
    with pytest.raises(UnsupportedModelError, match=said) as error:
        read_gguf(path)
    assert "\n" not in str(error.value)


def test_an_unknown_architecture_is_refused_with_those_that_are_known(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", "mamba", {"block_count": 1}, {"token_embd.weight": np.zeros((2, 2))})
    with pytest.raises(UnsupportedModelError, match=r"its architecture is 'mamba'; llama, qwen2, .*gpt2 are supported"):
        read_gguf(path)


@pytest.mark.parametrize("missing", ["blk.1.ffn_down.weight", "output_norm.weight", "token_embd.weight"])
def test_a_missing_tensor_is_named(missing, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_files, "_tensors", _without(gguf_files._tensors, missing))
    with pytest.raises(InputError, match=missing):
        read_gguf(gguf_files.convert(pairs("llama")[1], tmp_path / "m.gguf"))


def _without(function, name):
    return lambda *values: {key: array for key, array in function(*values).items() if key != name}


def test_a_tensor_that_has_no_place_is_refused(pairs, tmp_path, monkeypatch):
    own = gguf_files._tensors
    more = {"blk.0.attn_output.scale": np.ones(1, np.float32)}
    monkeypatch.setattr(gguf_files, "_tensors", lambda *values: own(*values) | more)
    with pytest.raises(UnsupportedModelError, match=r"'blk.0.attn_output.scale', which its architecture has no place"):
        read_gguf(gguf_files.convert(pairs("llama")[1], tmp_path / "m.gguf"))


def test_a_tokenizer_of_another_size_than_the_embedding_is_refused(pairs, tmp_path):
    path = gguf_files.convert(pairs("llama")[1], tmp_path / "m.gguf", **gguf_files.tokens(100))
    with pytest.raises(UnsupportedModelError, match=r"has 100 tokens, but 'token_embd.weight' has 101 rows"):
        read_gguf(path)


CHATML = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


@pytest.mark.parametrize(
    ("keys", "stops"),
    [
        ({}, (2,)),
        ({"tokenizer.ggml.eot_token_id": 0}, (0, 2)),
        ({"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 5}, (0, 2, 5)),
        ({"tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": CHATML}, (0, 2)),
        ({"tokenizer.ggml.eos_token_id": None, "tokenizer.chat_template": CHATML}, (2,)),
        ({"tokenizer.chat_template": "{% for"}, (2,)),
    ],
)
def test_every_end_that_the_file_knows_stops(keys, stops, pairs, tmp_path):
    path = gguf_files.convert(pairs("llama")[1], tmp_path / "m.gguf", **gguf_files.tokens(101) | keys)
    decoder = read_gguf(path)
    assert decoder.architecture.stops == stops and decoder.architecture.bos == 1
    assert decoder.text.bos == "<s>" and decoder.text.template == keys.get("tokenizer.chat_template")


def test_a_file_without_tokens_is_a_model_without_text(pairs):
    decoder = read_gguf(pairs("llama")[2])
    assert decoder.text.tokenizer is None and decoder.architecture.stops == ()
