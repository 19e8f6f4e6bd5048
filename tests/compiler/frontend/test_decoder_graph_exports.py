"""Decoders that torch exports, with caches and without, against onnxruntime and transformers."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from stic.compiler.decoder.forward import logits  # noqa: E402
from stic.compiler.frontend.decoder_graph import load_decoder  # noqa: E402
from stic.runtime.errors import UnsupportedModelError  # noqa: E402
from tests.compiler.frontend.families.models import VOCABULARY, build, expected, gap  # noqa: E402

Module: Any = torch.nn.Module


class WithCache(Module):
    """(ids, mask, past keys and values) -> (logits, all keys and values), as optimum exports one file."""

    def __init__(self, model: Any, forgets: bool) -> None:
        super().__init__()
        self.model, self.forgets = model, forgets

    def forward(self, ids: Any, mask: Any, *past: Any) -> Any:
        cache = transformers.DynamicCache(ddp_cache_data=list(zip(past[::2], past[1::2], strict=True)))
        places = {"position_ids": torch.arange(ids.shape[1])[None]} if self.forgets else {}
        found = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **places)
        return (found.logits, *(part for layer in cache.layers for part in (layer.keys, layer.values)))


class Plain(Module):
    """(ids, mask) -> logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def exported(model: Any, folder: Path, dialect: str) -> Path:
    """Export by TorchScript or, at an opset, by dynamo.

    "script" has no cache, "cache" has one, and positions of "forgets" do not count what is in it.
    """
    path, config = folder / "model.onnx", model.config
    ids, mask = torch.randint(3, VOCABULARY, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    free = {"input_ids": {0: "batch", 1: "tokens"}, "attention_mask": {0: "batch", 1: "total"}}
    options: dict[str, Any] = {"dynamo": False, "opset_version": 17, "input_names": list(free), "dynamic_axes": free}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dialect in ("cache", "forgets"):
            keys = getattr(config, "num_key_value_heads", config.num_attention_heads)
            size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            past = [torch.zeros(2, keys, 3, size) for _ in range(2 * config.num_hidden_layers)]
            numbers = range(config.num_hidden_layers)
            names = [f"past_key_values.{number}.{part}" for number in numbers for part in ("key", "value")]
            made = ["logits", *(name.replace("past_key_values", "present") for name in names)]
            free.update({name: {0: "batch", 2: "past"} for name in (*names, *made[1:])})
            options |= {"input_names": ["input_ids", "attention_mask", *names], "output_names": made}
            mask = torch.ones(2, 12, dtype=torch.long)
            torch.onnx.export(WithCache(model, dialect == "forgets").eval(), (ids, mask, *past), str(path), **options)
        elif dialect == "script":
            torch.onnx.export(Plain(model).eval(), (ids, mask), str(path), **options)
        else:
            axes = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("tokens", min=2, max=60)}
            feeds = {"input_ids": ids, "attention_mask": mask}
            torch.onnx.export(
                Plain(model).eval(), (), str(path), kwargs=feeds, dynamic_shapes=dict.fromkeys(feeds, axes),
                dynamo=True, verbose=False, opset_version=int(dialect),
            )  # fmt: skip
    model.config.save_pretrained(folder)
    return path


def window(decoder: Any) -> list[int | None]:
    return [block.window for block in decoder.architecture.blocks if hasattr(block, "window")]


@pytest.mark.parametrize(
    ("case", "dialect"),
    [
        ("llama", "cache"), ("llama-llama3", "cache"), ("qwen3", "cache"), ("gemma3_text-cap", "cache"),
        ("gpt2", "cache"), ("opt", "cache"), ("granite", "cache"), ("olmo2", "cache"), ("mistral-window", "cache"),
        ("gemma2", "script"), ("phi3", "script"), ("stablelm", "script"), ("llama-yarn", "script"),
        ("qwen2", "18"), ("gemma2", "18"), ("qwen3", "23"), ("phi3", "23"), ("gpt2-unscaled", "23"),
    ],
)  # fmt: skip
def test_exports(case: str, dialect: str, tmp_path: Path) -> None:
    model = build(case)
    decoder = load_decoder(exported(model, tmp_path, dialect))
    ids = np.random.default_rng(4).integers(0, VOCABULARY, (2, 32))
    assert gap(logits(decoder, ids), expected(model, ids)) < 1e-4
    assert decoder.architecture.stops == (2,)
    windows = {"gemma2": [9, None], "gemma3_text-cap": [None, 9], "mistral-window": [9, 9], "phi3": [9, 9]}
    assert window(decoder) == windows.get(case, [None, None])


def test_what_is_not_known_is_refused_by_its_node(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"project_out.* cannot be taken; expected"):
        load_decoder(exported(build("opt-350m"), tmp_path, "script"))


def test_positions_that_forget_the_past_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="positions that count the past tokens"):
        load_decoder(exported(build("gpt2"), tmp_path, "forgets"))


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.BertForMaskedLM(config).eval()
    with pytest.raises(UnsupportedModelError):
        load_decoder(exported(model, tmp_path, "script"))
