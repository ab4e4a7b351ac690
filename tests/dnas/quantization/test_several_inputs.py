"""A network with several inputs is read on an example, quantized, calibrated on batches of them, and applied again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dnas.quantization.calibration import calibrate, recalibrate_batchnorm
from dnas.quantization.conversion import QuantizerChoice, apply, quantize_fixed
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError
from search_spaces.network.graph import read_graph
from tests.toys import seeded


class Attending(nn.Module):
    """Looks up words in an image, but not those that the mask leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.words, self.attend = nn.Embedding(9, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor, words: Tensor, mask: Tensor | None = None) -> Tensor:
        seen = self.norm(self.look(image)).relu().flatten(2).transpose(1, 2)
        told = self.words(words)
        both = torch.cat([seen, told], 1)
        return self.head(self.attend(told, both, both, key_padding_mask=mask)[0].mean(1))


def batch(seed: int, count: int = 6) -> dict[str, Tensor]:
    mask = torch.zeros(count, 16 + 5)
    mask[:, -1] = -torch.inf
    image = torch.randn(count, 1, 6, 6, generator=seeded(seed))
    return {"image": image, "words": torch.randint(0, 9, (count, 5), generator=seeded(seed)), "mask": mask}


def test_a_network_with_several_inputs_from_the_example_to_the_assignment() -> None:
    torch.manual_seed(0)
    model, choice = Attending().eval(), QuantizerChoice()
    graph = read_graph(model, batch(0))
    assert [spec.name for spec in graph.layers] == ["look", "attend.in_proj", "attend.out_proj", "head"]
    layers = {name: LayerBits(32, 32) for name in graph.by_name}
    expected = model(**batch(1))
    torch.testing.assert_close(quantize_fixed(model, graph, layers, choice)(**batch(1)), expected)

    assignment = BitAssignment(
        "mine", ModelReference("tests", graph.input_shape), {name: LayerBits(8, 8) for name in layers}
    )
    network = apply(model, assignment, choice, example=batch(0))
    calibrate(network, [batch(1), batch(2)])
    recalibrate_batchnorm(network, [batch(1), batch(2)])
    model.train()
    recalibrate_batchnorm(model, [batch(1), batch(2)])
    found, expected = network.eval()(**batch(1)), model.eval()(**batch(1))
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_batch_of_another_kind_is_refused() -> None:
    model = Attending()
    graph = read_graph(model, batch(0))
    network = quantize_fixed(model, graph, {name: LayerBits(4, 4) for name in graph.by_name}, QuantizerChoice())
    with pytest.raises(InputError, match="batch 1 is str; a batch is a tensor of images"):
        calibrate(network, ["image"])
