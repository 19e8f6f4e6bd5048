"""A small decoder, quantised once for all tests that value its bits."""

import pytest

from stic.compiler.decoding.cut import cut_decoder
from stic.compiler.decoding.quantize import quantize_decoder
from tests.compiler.decoding.test_quantize import ALONE, IDS, make_decoder

BITS = (2, 3, 4, 8)
SHORT = IDS[:2, :24]


@pytest.fixture(scope="package")
def quantized(tmp_path_factory):
    return quantize_decoder(cut_decoder(make_decoder()), BITS, BITS, IDS, tmp_path_factory.mktemp("codes"), ALONE)
