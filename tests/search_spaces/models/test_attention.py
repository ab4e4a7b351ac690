"""Unfolded attention is nn.MultiheadAttention with two real layers: same arithmetic, and both are searched."""

import copy

import pytest
import torch
from torch import nn

from search_spaces.models.attention import UnfoldedAttention, unfold_attention
from search_spaces.models.copies import fresh_copy
from search_spaces.network.graph import read_graph


def unfolded(attention: nn.MultiheadAttention) -> nn.Module:
    holder = nn.Sequential(copy.deepcopy(attention))
    unfold_attention(holder)
    return holder[0]


def attention(batch_first: bool, **options) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, batch_first=batch_first, **options).double()
    if module.in_proj_bias is not None:
        nn.init.normal_(module.in_proj_bias)
    return module


MASKS = ("none", "boolean", "per head", "padding", "both")


def masks(kind: str, images: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    blocked = torch.rand(length, length, generator=generator) > 0.6
    padding = torch.rand(images, length, generator=generator) > 0.6
    blocked[:, 0], padding[:, 0] = False, False
    return {
        "none": {},
        "boolean": {"attn_mask": blocked},
        "per head": {"attn_mask": torch.randn(3 * images, length, length, generator=generator).double()},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": blocked, "key_padding_mask": padding},
    }[kind]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_unfolded_attention_gives_the_same_output_and_weights(batch_first, need_weights, kind):
    original = attention(batch_first)
    x = torch.randn(4, 5, 12).double()
    images, length = (4, 5) if batch_first else (5, 4)
    options = masks(kind, images, length)
    expected = original(x, x, x, need_weights=need_weights, **options)
    found = unfolded(original)(x, x, x, need_weights=need_weights, **options)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
    if need_weights:
        torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-12)


def test_it_attends_to_another_sequence_and_without_a_batch():
    original = attention(True, bias=False)
    x, other = torch.randn(2, 5, 12).double(), torch.randn(2, 7, 12).double()
    torch.testing.assert_close(unfolded(original)(x, other, other)[0], original(x, other, other)[0])
    torch.testing.assert_close(unfolded(original)(x[0], x[0], x[0])[0], original(x[0], x[0], x[0])[0])


def test_an_unusual_attention_stays_as_it_is():
    unusual = nn.Sequential(
        nn.MultiheadAttention(12, 3, kdim=8, vdim=8), nn.MultiheadAttention(12, 3, add_bias_kv=True)
    )
    unfold_attention(unusual)
    assert all(isinstance(module, nn.MultiheadAttention) for module in unusual)


def test_a_transformer_encoder_is_searched_whole_and_its_copy_computes_the_same():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    graph = read_graph(encoder, (5, 16))
    assert not graph.unsupported
    assert "layers.0.self_attn.in_proj" in graph.by_name
    assert graph["layers.0.self_attn.in_proj"].macs == 5 * 16 * 48
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(fresh_copy(encoder)(x), encoder(x), rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, UnfoldedAttention) for module in encoder.modules())
