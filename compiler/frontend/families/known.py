"""The families that stic takes; adding one means adding a line."""

from __future__ import annotations

from stic.compiler.frontend.families.family import Family
from stic.compiler.frontend.families.gemma import GEMMA
from stic.compiler.frontend.families.gemma2 import GEMMA2
from stic.compiler.frontend.families.gemma3 import GEMMA3
from stic.compiler.frontend.families.gpt2 import GPT2
from stic.compiler.frontend.families.granite import GRANITE
from stic.compiler.frontend.families.llama import LLAMA
from stic.compiler.frontend.families.mistral import MISTRAL
from stic.compiler.frontend.families.olmo2 import OLMO2
from stic.compiler.frontend.families.opt import OPT
from stic.compiler.frontend.families.phi3 import PHI3
from stic.compiler.frontend.families.qwen2 import QWEN2
from stic.compiler.frontend.families.qwen3 import QWEN3
from stic.compiler.frontend.families.smollm3 import SMOLLM3
from stic.compiler.frontend.families.stablelm import STABLELM
from stic.runtime.errors import UnsupportedModelError

FAMILIES: tuple[Family, ...] = (
    LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, GEMMA, GEMMA2, GEMMA3, PHI3, GRANITE, OLMO2, STABLELM, GPT2, OPT,
)  # fmt: skip


def family_of(model_type: object, where: str) -> Family:
    """The family that a configuration's model_type names. Raises UnsupportedModelError for one that is not known."""
    for family in FAMILIES:
        if model_type in family.types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.types)
    raise UnsupportedModelError(f"{where}: model_type {model_type!r} is no decoder that stic takes; {known} are")
