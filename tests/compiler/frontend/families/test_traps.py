"""What broke other importers, one test each: random models of two layers against transformers."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402

from stic.compiler.decoder.forward import logits  # noqa: E402
from stic.compiler.frontend.decoders import read_decoder  # noqa: E402
from stic.compiler.frontend.families.known import FAMILIES  # noqa: E402
from stic.compiler.frontend.families.llama import LLAMA  # noqa: E402
from stic.compiler.frontend.gate import transformers_reference  # noqa: E402
from stic.compiler.frontend.recipes import halves  # noqa: E402
from stic.runtime.architecture import Attention  # noqa: E402
from stic.runtime.errors import UnsupportedModelError  # noqa: E402
from tests.compiler.frontend.families.models import (  # noqa: E402
    CASES,
    LONGROPE,
    build,
    expected,
    gap,
    in_chunks,
    save,
    tokens,
)

CLOSE = 1e-4
IDS = tokens(1)


def same(folder, model):
    return gap(logits(read_decoder(folder), IDS), expected(model, IDS)) < CLOSE


def edit(folder, **changes):
    """Change config.json; what is None is taken out."""
    path = folder / "config.json"
    keys = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in keys.items() if value is not None}))


def rewrite(folder, change):
    """Change the tensors of a directory."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_the_permutation_of_keys_counts_key_heads(tmp_path):
    """llama.cpp #3364: keys of grouped queries are permuted over their own heads."""
    model = build("llama")
    folder = save(model, tmp_path / "model")
    plain = load_file(folder / "model.safetensors")
    for name, heads in (("q_proj", 6), ("k_proj", 2)):
        weight = plain[f"model.layers.0.self_attn.{name}.weight"]
        size = len(weight) // heads
        pairs = weight.reshape(heads, 2, size // 2, -1).swapaxes(1, 2).reshape(weight.shape)  # as GGUF has them
        assert np.array_equal(halves(pairs, heads), weight)


def test_the_head_is_tied_where_the_file_has_none_whatever_the_key_says(tmp_path):
    """sglang #1508, mlx-lm: defaults of tie_word_embeddings differ between readers."""
    model = build("llama-tied")
    for said in (True, False, None):
        folder = save(model, tmp_path / str(said))
        edit(folder, tie_word_embeddings=said)
        assert read_decoder(folder).architecture.head.tied and same(folder, model)


def test_an_equal_head_is_tied(tmp_path):
    model = build("llama-tied")
    folder = save(model, tmp_path / "model")
    rewrite(folder, lambda held: {**held, "lm_head.weight": held["model.embed_tokens.weight"].copy()})
    assert read_decoder(folder).architecture.head.tied and same(folder, model)


def test_a_head_of_its_own_is_used_though_the_key_says_tied(tmp_path):
    model = build("llama")
    folder = save(model, tmp_path / "model")
    edit(folder, tie_word_embeddings=True)
    assert not read_decoder(folder).architecture.head.tied and same(folder, model)


@pytest.mark.parametrize("case", ["qwen2", "llama-one-key-head-and-biases", "stablelm-parallel", "gpt2", "opt"])
def test_biases_that_the_family_has_must_be_there(case, tmp_path):
    """Qwen2's biases were dropped by ANEForge #253, candle-vllm #167: no key tells of them."""
    folder = save(build(case), tmp_path / "model")
    biases = [name for name in load_file(folder / "model.safetensors") if name.endswith(".bias")]
    assert biases
    rewrite(folder, lambda held: {name: held[name] for name in held if name != biases[0]})
    with pytest.raises(UnsupportedModelError, match=biases[0].replace(".", r"\.")):
        read_decoder(folder)


def test_heads_need_not_fill_the_hidden_size(tmp_path):
    """optimum #1714: head_dim is not hidden_size / heads."""
    folder = save(build("llama-wide-heads"), tmp_path / "model")
    block = read_decoder(folder).architecture.blocks[0]
    assert isinstance(block, Attention) and block.head_dim == 20 != 36 // 6


@pytest.mark.parametrize(
    "key", ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"]
)
def test_granite_s_constants_must_be_told(key, tmp_path):
    """ferrox #186: a missing constant is not 1."""
    folder = save(build("granite"), tmp_path / "model")
    edit(folder, **{key: None})
    with pytest.raises(UnsupportedModelError, match=key):
        read_decoder(folder)


def test_gemma_2_slides_in_even_layers(tmp_path):
    """mistral.rs #486: the first layer has the window, by HF's arithmetic on a text longer than the window."""
    folder = save(build("gemma2"), tmp_path / "model", version=4)
    windows = [block.window for block in read_decoder(folder).architecture.blocks if isinstance(block, Attention)]
    assert windows == [9, None]


@pytest.mark.parametrize("version", [4, 5])
def test_gemma_3_sees_everything_in_every_sixth_layer_with_a_base_of_its_own(version, tmp_path):
    folder = save(build("gemma3_text"), tmp_path / "model", version)
    blocks = [block for block in read_decoder(folder).architecture.blocks if isinstance(block, Attention)]
    assert [(block.window, block.rotary) for block in blocks] == [(9, 1)] * 5 + [(None, 0), (9, 1)]


def test_gemma_adds_one_to_its_norms_once(tmp_path):
    folder = save(build("gemma"), tmp_path / "model")
    stored = load_file(folder / "model.safetensors")["model.norm.weight"]
    decoder = read_decoder(folder)
    assert np.array_equal(decoder.weights.read(4, "input_gamma"), stored + np.float32(1))


@pytest.mark.parametrize("case", ["mistral-window", "qwen2-windows", "phi3", "gemma2"])
def test_windows_matter_at_this_length(case, tmp_path):
    """vllm #5908: an ignored window agrees on short texts. Without it, this text's logits differ."""
    folder = save(build(case), tmp_path / "model")
    decoder = read_decoder(folder)
    blocks = [block.window for block in decoder.architecture.blocks if isinstance(block, Attention)]
    assert any(window is not None and window < IDS.shape[1] for window in blocks)
    wide = read_decoder(save(build(case, sliding_window=1000), tmp_path / "wide"))
    assert gap(logits(wide, IDS), logits(decoder, IDS)) > 10 * CLOSE


def test_longrope_is_chosen_by_the_context_of_a_session(tmp_path):
    """mlxcel #1358, MLC #3375: the long factors hold beyond the original context, and only there, for all keys."""
    model = build("phi3", original_max_position_embeddings=40, rope_parameters=LONGROPE, sliding_window=None)
    decoder = read_decoder(save(model, tmp_path / "model"))
    rotary = decoder.architecture.rotaries[0]
    assert rotary.at(40).frequencies == rotary.frequencies != rotary.at(41).frequencies
    for count in (40, 41):
        ids = IDS[:, :count]
        assert gap(logits(decoder, ids), expected(model, ids)) < CLOSE
    assert gap(in_chunks(decoder, IDS), expected(model, IDS)) < CLOSE


def test_buffers_are_no_weights(tmp_path):
    """Old files hold masks and frequencies."""
    model = build("gpt2")
    folder = save(model, tmp_path / "gpt2")
    mask = np.tril(np.ones((1, 1, 128, 128), np.uint8))
    rewrite(
        folder,
        lambda held: {
            **held, "transformer.h.0.attn.bias": mask, "transformer.h.0.attn.masked_bias": np.float32(-1e4).reshape(1),
        },
    )  # fmt: skip
    assert same(folder, model)
    model = build("llama")
    folder = save(model, tmp_path / "llama")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda held: {**held, name: np.ones(3, np.float32)})
    assert same(folder, model)


@pytest.mark.parametrize(("case", "prefix"), [("gpt2", "transformer."), ("opt", "model."), ("llama-tied", "model.")])
def test_files_of_the_bare_model_lack_its_prefix(case, prefix, tmp_path):
    model = build(case)
    folder = save(model, tmp_path / "model")
    rewrite(folder, lambda held: {name.removeprefix(prefix): tensor for name, tensor in held.items()})
    assert same(folder, model)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_gemma_3_inside_a_model_that_sees(prefix, tmp_path):
    model = build("gemma3_text")
    folder = save(model, tmp_path / "model", version=4)
    path = folder / "config.json"
    outer = {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {"a": 1},
        "eos_token_id": [2, 5], "text_config": json.loads(path.read_text()),
    }  # fmt: skip
    path.write_text(json.dumps(outer))
    apart = {"vision_tower.a.weight": np.ones(3, np.float32), "multi_modal_projector.b": np.ones(2, np.float32)}
    rewrite(folder, lambda held: {**{prefix + n.removeprefix("model."): t for n, t in held.items()}, **apart})
    assert same(folder, model) and read_decoder(folder).architecture.stops == (2, 5)


def test_a_bfloat16_checkpoint_is_computed_in_float32(tmp_path):
    """transformers #36832: residual streams of bfloat16 models overflow in float16."""
    folder = save(build("gemma2").bfloat16(), tmp_path / "model")
    wanted = transformers_reference(folder)(IDS)  # opened in float32: what was bfloat16 keeps rounded constants
    assert gap(logits(read_decoder(folder), IDS), wanted) < CLOSE


@pytest.mark.parametrize("case", CASES)
def test_keys_that_are_the_class_s_defaults_may_be_missing(case, tmp_path):
    """Readers with other defaults compute something else."""
    folder = save(build(case), tmp_path / "model")
    keys = json.loads((folder / "config.json").read_text())
    family = next(family for family in FAMILIES if keys["model_type"] in family.types)
    wanted = read_decoder(folder).architecture
    left = {key: value for key, value in keys.items() if family.defaults.get(key) != value or key == "model_type"}
    assert len(left) < len(keys)
    (folder / "config.json").write_text(json.dumps(left))
    assert read_decoder(folder).architecture == wanted


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.types[0])
def test_defaults_are_those_of_transformers(family):
    config = transformers.AutoConfig.for_model(family.types[0])
    for key, value in family.defaults.items():
        if key in ("rope_theta", "partial_rotary_factor", "rope_local_base_freq", "sliding_window_pattern"):
            continue  # version 5 keeps them in rope_parameters and layer_types, which the tests of logits compare
        found = getattr(config, key)
        if key == "sliding_window" and not getattr(config, "use_sliding_window", True):
            assert found is None  # read, and of no effect
            continue
        assert found == value, key


def test_the_first_gemma_says_gelu_and_means_its_tanh_form(tmp_path):
    model = build("gemma")
    folder = save(model, tmp_path / "model")
    for said in ({"hidden_act": "gelu"}, {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}):
        edit(folder, **said)
        assert same(folder, model)


def test_a_family_makes_its_architecture_without_files():
    """Readers of other formats call `make` with keys of their own."""
    from stic.compiler.frontend.families.config import Config

    made = LLAMA.make(Config({"model_type": "llama", "num_hidden_layers": 1}, "a GGUF file", LLAMA.defaults))
    assert made.architecture.hidden == 4096 and made.factors == {(0, "query"): 128**-0.5, (0, "query_bias"): 128**-0.5}


def test_rows_of_a_fused_matrix_that_nothing_reads_are_refused(tmp_path):
    """Fewer key heads than the file has would read queries, keys and values from wrong rows."""
    folder = save(build("phi3"), tmp_path / "model")
    edit(folder, num_key_value_heads=1)
    with pytest.raises(UnsupportedModelError, match=r"qkv_proj.*uses 48 rows"):
        read_decoder(folder)


def test_projections_that_do_not_fit_are_refused(tmp_path):
    folder = save(build("opt-350m"), tmp_path / "model")
    rewrite(folder, lambda held: {**held, "model.decoder.project_in.weight": np.ones((36, 7), np.float32)})
    with pytest.raises(UnsupportedModelError, match=r"embed_tokens.weight' has shape \(101, 20\)"):
        read_decoder(folder)


def test_a_window_that_two_keys_contradict_is_refused(tmp_path):
    folder = save(build("qwen2"), tmp_path / "model")
    edit(folder, layer_types=["sliding_attention", "full_attention"], sliding_window=9)
    with pytest.raises(UnsupportedModelError, match="use_sliding_window is false"):
        read_decoder(folder)
