"""Segmentation against brute force and PyTorch's own loss; auxiliary heads; pixels that count nowhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchmetrics
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter

from dnas import QuantizerChoice, build_costs, build_space, calibrate, quantize_fixed, read_graph
from dnas.config.training import TrainingSection
from dnas.data.image_sets import DataSplits
from dnas.data.mask_files import MaskFiles
from dnas.data.shapes import shapes
from dnas.data.target_images import HeldItems, TargetImages, held_images, looked_at
from dnas.search.supernet import Supernet
from dnas.training.rehearsal import rehearse
from dnas.training.task import outputs_of, smoothed, task_of
from dnas.training.task_segmentation import Confusion, Segmentation
from dnas.training.trainer import Trainer, evaluate
from search_spaces import CostTable, SpaceOptions
from search_spaces.channels.slicing import remove_filters
from search_spaces.errors import InputError
from search_spaces.models.dense_zoo import TinyBackbone
from search_spaces.models.load import load_model
from search_spaces.spaces import matches
from tests.dnas.training.test_task_detection import Published

TASK = Segmentation()
SHAPE = (3, 8, 8)


class Heads(nn.Module):
    """What torchvision's networks return: the main head and an auxiliary one."""

    def __init__(self, classes: int = 3, scale: int = 1) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, stride=scale, padding=1)
        self.classifier, self.aux_classifier = nn.Conv2d(4, classes, 1), nn.Conv2d(4, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.features(x).relu()
        return {"out": self.classifier(features), "aux": self.aux_classifier(features)}


def pictures(count: int = 24, classes: int = 3) -> TargetImages:
    """Each pixel's class is the channel that is brightest."""
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(count))
    found = held_images(images, images.argmax(1) % classes, (0.0,) * 3, (1.0,) * 3)
    assert isinstance(found, TargetImages)
    return found


def test_the_metric_is_the_mean_of_intersections_over_unions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 7, 4, generator=generator)
    maps = torch.randint(0, 4, (6, 7, 4), generator=generator)  # class 4 is taken for others, class 5 does not exist
    maps[0, 0], found = 255, logits.argmax(1)
    counted = maps != 255
    shares = []
    for each in range(5):
        both = int(((found == each) & (maps == each) & counted).sum())
        shares.append(both / int((((found == each) | (maps == each)) & counted).sum()))
    meter, accuracy = Confusion(), TASK.beside[0].make()
    for part in (slice(0, 4), slice(4, 6)):
        for each in (meter, accuracy):
            each.update({"out": logits[part]}, maps[part])
    assert meter.compute() == pytest.approx(sum(shares) / 5, abs=1e-12)
    assert accuracy.compute() == pytest.approx(float((found == maps)[counted].float().mean()))
    theirs = torchmetrics.JaccardIndex("multiclass", num_classes=5, ignore_index=255)
    assert meter.compute() == pytest.approx(float(theirs(logits, maps)), abs=1e-6)


def test_a_class_that_nobody_speaks_of_counts_nowhere_and_nan_is_seen() -> None:
    logits = F.one_hot(torch.zeros(1, 2, 2, dtype=torch.int64), 3).permute(0, 3, 1, 2).float()
    meter = Confusion()
    meter.update({"out": logits}, torch.zeros(1, 2, 2, dtype=torch.uint8))
    assert meter.compute() == 1.0
    meter.update({"out": logits * float("nan")}, torch.zeros(1, 2, 2, dtype=torch.uint8))
    assert meter.compute() != meter.compute()


def test_the_loss_is_that_of_torchvision_with_its_auxiliary_heads() -> None:
    out, aux = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    maps = torch.randint(0, 3, (2, 4, 4))
    maps[0, 1] = 255
    own = F.cross_entropy(out, maps, ignore_index=255)
    other = F.cross_entropy(aux, maps, ignore_index=255)
    for given in ({"out": out, "aux": aux}, (out, aux), [out, aux]):
        assert TASK.loss(TASK.outputs(given), maps) == pytest.approx(float(own + 0.5 * other), rel=1e-5)
    assert TASK.loss(TASK.outputs(out.bfloat16()), maps).dtype == torch.float32
    nothing = TASK.loss(TASK.outputs(out), torch.full((2, 4, 4), 255))
    assert float(nothing) == 0
    smooth = smoothed(TASK, 0.1).loss({"out": out}, maps)
    assert float(smooth) == pytest.approx(
        float(F.cross_entropy(out, maps, ignore_index=255, label_smoothing=0.1)), rel=1e-5
    )


def test_logits_of_another_size_are_scaled() -> None:
    small, maps = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 8, 8))
    large = F.interpolate(small, (8, 8), mode="bilinear")
    assert TASK.loss({"out": small}, maps) == pytest.approx(float(F.cross_entropy(large, maps)), rel=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_network_with_auxiliary_heads_learns(scale: int) -> None:
    torch.manual_seed(0)
    network = Heads(scale=scale)
    before = evaluate(network, pictures(8), task="segmentation")
    section = TrainingSection(epochs=6, optimizer="AdamW", learning_rate=0.05)
    for _ in Trainer(network, section, images=pictures(), batch_size=8, task="segmentation").epochs():
        pass
    after = evaluate(network, pictures(8), task="segmentation")
    assert after.miou > before.miou + 0.1
    assert 0 <= after.pixel_accuracy <= 1
    assert after.metric.text(after.miou).endswith("%")


def check(sets: Any, network: nn.Module) -> None:
    rehearse(network, DataSplits(sets, sets, sets, 0, SHAPE), {"training": sets}, 4, task=TASK)


class Returning(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.layer, self.change = nn.Conv2d(3, 3, 1), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.layer(x))


def test_what_cannot_be_a_segmentation_is_told_before_training() -> None:
    check(pictures(), Heads())
    with pytest.raises(InputError, match=r"class 2 in the maps of the training images has no output: .* has 2"):
        check(pictures(), Heads(classes=2))
    images = torch.rand(8, *SHAPE)
    wrong = TargetImages.of(type(pictures().items)(images, [torch.zeros(7, 8, dtype=torch.int64)] * 8))
    with pytest.raises(InputError, match=r"must be maps of classes, integers \(8, 8\); got an int64 .* \(7, 8\)"):
        check(wrong, Heads())
    floats = held_images(images, torch.rand(8, 8, 8), (0.0,), (1.0,))
    with pytest.raises(InputError, match="must be maps of classes"):
        check(floats, Heads())
    with pytest.raises(InputError, match=r"a segmentation needs logits, alone or as 'out'"):
        TASK.outputs({"logits": torch.rand(1, 3, 8, 8)})
    with pytest.raises(InputError, match=r"a segmentation needs logits \(N, classes, H, W\)"):
        check(pictures(), Returning(lambda y: y.mean((2, 3))))
    with pytest.raises(InputError, match="NaN before any training"):
        check(pictures(), Returning(lambda y: {"out": y * float("nan")}))


def maps_of(*classes: int) -> TargetImages:
    """Maps of one class each."""
    maps = torch.tensor(classes)[:, None, None].expand(-1, *SHAPE[1:])
    found = held_images(torch.rand(len(classes), *SHAPE), maps, (0.0,) * 3, (1.0,) * 3)
    assert isinstance(found, TargetImages)
    return found


@pytest.mark.parametrize(
    ("maps", "sentence"),
    [
        (maps_of(255, 255, 255, 255), "every pixel in the maps of the training images is 255, which counts nowhere"),
        (maps_of(0, 255, 255, 0), r"every pixel that counts .* is of class 0; give others their class \(255 is none"),
        (maps_of(0, 1, -1, 0), "class -1 in the maps of the training images has no output: .*; count from 0"),
        (maps_of(0, 1, 254, 0), "class 254 in the maps .*num_classes = 255"),
    ],
)
def test_maps_that_nothing_can_be_learned_from_are_told(maps: TargetImages, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check(maps, Heads())


def test_one_class_or_none_in_an_image_is_fine_among_others() -> None:
    check(maps_of(0, 1, 255, 0), Heads())
    single = maps_of(1, 1, 1, 1)
    rehearse(Heads(), DataSplits(maps_of(0, 1, 0, 1), single, single, 0, SHAPE), {"training": single}, 4, task=TASK)
    with pytest.raises(InputError, match="the maps of the validation images is 255"):
        rehearse(
            Heads(), DataSplits(pictures(), maps_of(255, 255), single, 0, SHAPE), {"training": single}, 4, task=TASK
        )


def test_of_maps_that_are_not_all_looked_at_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of files that are sorted by their classes."""
    monkeypatch.setattr("dnas.data.target_images._MOST_LOOKED_AT", 2)
    monkeypatch.setattr(HeldItems, "targets_held", False)
    maps = [torch.full(SHAPE[1:], each, dtype=torch.int64) for each in (0, 0, 1)]
    images = TargetImages.of(HeldItems(torch.rand(3, *SHAPE), maps))
    monkeypatch.setattr("dnas.training.task_segmentation._maps", looked_at)
    TASK.check({"training": images}, {"out": torch.zeros(1, 3, *SHAPE[1:])})
    with pytest.raises(InputError, match="is of class 0"):
        TASK.check({"training": images.subset(torch.arange(2))}, {"out": torch.zeros(1, 3, *SHAPE[1:])})


def test_the_classes_of_every_file_of_maps_are_known_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnas.data.target_images._MOST_LOOKED_AT", 0)
    files = TargetImages(MaskFiles([], SHAPE[1:]), torch.arange(0), SHAPE, (0.0,) * 3, (1.0,) * 3, classes=9)
    with pytest.raises(InputError, match="class 8 in the maps of the training images has no output"):
        TASK.check({"training": files}, {"out": torch.zeros(1, 3, *SHAPE[1:])})


def test_it_is_made_of_a_jobs_words() -> None:
    found = task_of("segmentation")
    assert (found.metric.name, [gauge.metric.name for gauge in found.beside]) == ("miou", ["pixel_accuracy"])


def segmenter_of(family: str) -> nn.Module:
    """torchvision's own class of a family, on a backbone of five convolutions."""
    torch.manual_seed(0)
    known, body = torchvision.models.segmentation, TinyBackbone(3, 4)
    if family == "lraspp":
        levels = IntermediateLayerGetter(body, {"level1": "low", "level3": "high"})
        return known.LRASPP(levels, 8, 16, 4, inter_channels=8)
    levels = IntermediateLayerGetter(body, {"level2": "aux", "level3": "out"})
    auxiliary = known.fcn.FCNHead(16, 4)
    if family == "deeplabv3":
        return known.DeepLabV3(levels, known.deeplabv3.DeepLabHead(16, 4, (1, 2, 3)), auxiliary)
    return known.FCN(levels, known.fcn.FCNHead(16, 4), auxiliary)


NO_WEIGHTS = {"num_classes": 4, "weights": None, "weights_backbone": None}
SEGMENTERS = {
    "lraspp_mobilenet_v3_large": Published(64, NO_WEIGHTS),
    "deeplabv3_mobilenet_v3_large": Published(64, {**NO_WEIGHTS, "aux_loss": True}),
    "fcn_resnet50": Published(64, {**NO_WEIGHTS, "aux_loss": True}),
}


def searched(network: nn.Module, size: int) -> tuple[float, list[float], list[int]]:
    """Read, search, quantize and prune a segmenter: the pull on θ; losses and weights of the last two nets."""
    drawn = shapes(4, size)
    found = held_images(drawn.images, drawn.maps, (0.5,) * 3, (0.25,) * 3)
    x, maps = next(iter(found.batches(4)))
    graph = read_graph(network, (3, size, size))
    assert not graph.channels.unknown
    space = build_space(graph, SpaceOptions((4, 8), (4, 8)))
    supernet = Supernet(network, graph, space, CostTable(graph, space, build_costs()), QuantizerChoice())
    calibrate(supernet.network, [x])
    supernet.train()
    with supernet.sampled(supernet.sample(1.0, "gumbel", torch.Generator().manual_seed(0))):
        TASK.loss(outputs_of(TASK, supernet, x), maps).backward()
    pull = sum(float(parameter.grad.abs().sum()) for parameter in supernet.theta.parameters())  # type: ignore[union-attr]
    fixed = quantize_fixed(network, graph, space.uniform(4))
    calibrate(fixed, [x])
    group = max(graph.channels.groups, key=lambda group: group.units)
    smaller = remove_filters(fixed, graph.channels, {group.name: tuple(range(group.units // 2))})
    losses = []
    for each in (fixed.eval(), smaller.eval()):
        outputs = outputs_of(TASK, each, x)
        assert outputs["out"].shape == (4, 4, size, size)
        losses.append(float(TASK.loss(outputs, maps).detach()))
    auxiliary = sum(spec.weight_elements for spec in graph.layers if matches(TASK.auxiliary_layers, spec))
    assert (auxiliary > 0) == hasattr(network, "aux_classifier")
    return pull, losses, [sum(weight.numel() for weight in each.parameters()) for each in (fixed, smaller)]


def are_sound(pull: float, losses: list[float], weights: list[int]) -> bool:
    return 0 < pull < math.inf and all(math.isfinite(loss) for loss in losses) and weights[1] < weights[0]


@pytest.mark.parametrize("family", ["lraspp", pytest.param("deeplabv3", marks=pytest.mark.slow), "fcn"])
def test_every_family_of_torchvision_is_searched_quantized_and_pruned(family: str) -> None:
    assert are_sound(*searched(segmenter_of(family), 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTERS)
def test_torchvisions_segmenters_are_searched_quantized_and_pruned_unedited(name: str) -> None:
    torch.manual_seed(0)
    known = SEGMENTERS[name]
    assert are_sound(*searched(load_model(f"torchvision:{name}", arguments=known.arguments).module, known.size))
