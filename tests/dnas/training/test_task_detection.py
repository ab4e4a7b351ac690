"""Detection by torchvision's detectors unedited: losses in either mode, boxes, COCO's metric, what does not fit."""

from __future__ import annotations

import contextlib
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.anchor_utils import AnchorGenerator

from dnas import build_costs, build_space, calibrate, quantize_fixed, read_graph
from dnas.config.training import TrainingSection
from dnas.data.box_files import Annotated, BoxFiles
from dnas.data.image_sets import DataSplits
from dnas.data.shapes import shapes
from dnas.data.target_images import HeldItems, TargetImages
from dnas.jobs.planning import keeping_exact
from dnas.quantization.conversion import QuantizerChoice
from dnas.search.supernet import Supernet
from dnas.training.detectors import Detected, detect
from dnas.training.rehearsal import rehearse
from dnas.training.task import outputs_of, task_of
from dnas.training.task_detection import Detection, FoundBoxes
from dnas.training.trainer import Trainer, evaluate
from search_spaces import CostTable, SpaceOptions
from search_spaces.channels.slicing import remove_filters
from search_spaces.errors import InputError
from search_spaces.models.dense_zoo import TinyBackbone, tiny_ssd
from search_spaces.models.load import load_model
from search_spaces.registry import importing_only

SHAPE = (3, 32, 32)
TASK = Detection()


def pictures(count: int = 8) -> TargetImages:
    drawn = shapes(count, 32)
    return TargetImages.of(HeldItems(drawn.images, drawn.targets), classes=4)


def small(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return tiny_ssd(width=width, size=32)


def batch(count: int = 4) -> Any:
    return next(iter(pictures(count).batches(count)))


class Plain(nn.Module):
    """A detector of one's own: it has torchvision's way to be called and nothing else of theirs."""

    def __init__(self, found: Any = None, losses: Any = None) -> None:
        super().__init__()
        self.layer, self.found, self.losses = nn.Conv2d(3, 4, 3), found, losses

    def forward(self, images: Any, targets: Any = None) -> Any:
        score = self.layer(torch.stack(list(images))).mean()
        if self.training:
            wanted = torch.cat([target["boxes"] for target in targets]).mean()
            return {"boxes": (score - wanted).square()} if self.losses is None else self.losses
        one = {"boxes": torch.rand(1, 4), "scores": torch.rand(1), "labels": torch.ones(1, dtype=torch.int64)}
        return [one] * len(images) if self.found is None else self.found


def test_the_metric_is_that_of_coco_itself() -> None:
    generator = torch.Generator().manual_seed(5)

    def boxes(count: int) -> Tensor:
        corners = torch.rand(count, 2, generator=generator) * 60
        return torch.cat([corners, corners + 4 + 30 * torch.rand(count, 2, generator=generator)], 1)

    wanted: list[dict[str, Tensor]] = []
    found: list[dict[str, Tensor]] = []
    for number in range(12):
        truth = boxes(number % 4)
        crowd = torch.zeros(len(truth), dtype=torch.int64)
        crowd[:1] = number % 3 == 1
        labels = torch.randint(1, 4, (len(truth),), generator=generator)
        wanted.append({"boxes": truth, "labels": labels, "iscrowd": crowd})
        near = truth + 3 * torch.randn(truth.shape, generator=generator)
        guesses = torch.cat([near, boxes(3)])
        told = torch.cat([labels, torch.randint(1, 4, (3,), generator=generator)])
        scores = torch.rand(len(guesses), generator=generator)
        found.append({"boxes": guesses, "labels": told, "scores": scores})
    meter = FoundBoxes()
    for part in (slice(0, 5), slice(5, 12)):
        meter.update(Detected(len(wanted[part]), {}, {}, partial(found.__getitem__, part)), wanted[part])
    assert meter.compute() == pytest.approx(coco_precision(wanted, found), abs=1e-6)
    assert 0.05 < meter.compute() < 0.95


def coco_precision(wanted: Sequence[Any], found: Sequence[Any]) -> float:
    """pycocotools' own answer, from annotations written as COCO has them."""

    def sides(box: Tensor) -> list[float]:
        x0, y0, x1, y1 = box.tolist()
        return [x0, y0, x1 - x0, y1 - y0]

    truth: dict[str, Any] = {"images": [{"id": n} for n in range(len(wanted))], "annotations": [], "info": {}}
    truth["categories"] = [{"id": n, "name": str(n)} for n in range(1, 4)]
    results = []
    for image, (real, guess) in enumerate(zip(wanted, found, strict=True)):
        for box, label, crowd in zip(real["boxes"], real["labels"].tolist(), real["iscrowd"].tolist(), strict=True):
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            entry = {"id": len(truth["annotations"]) + 1, "image_id": image, "bbox": sides(box), "area": area}
            truth["annotations"].append({**entry, "category_id": label, "iscrowd": crowd})
        for box, label, score in zip(guess["boxes"], guess["labels"].tolist(), guess["scores"].tolist(), strict=True):
            results.append({"image_id": image, "bbox": sides(box), "category_id": label, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO()
        theirs.dataset = truth
        theirs.createIndex()
        evaluation = COCOeval(theirs, theirs.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def test_of_many_boxes_the_best_hundred_count_without_a_word() -> None:
    """torchmetrics warns of more than COCO counts; warnings are errors here."""
    corners = torch.rand(150, 2) * 20 + 30
    guesses = torch.cat([corners, corners + 5], 1)
    guesses[140] = torch.tensor([1.0, 1.0, 9.0, 9.0])
    labels, scores = torch.ones(150, dtype=torch.int64), torch.linspace(1, 0.1, 150)
    wanted = [{"boxes": guesses[140:141], "labels": labels[:1]}]
    for score, precision in ((scores[140], 0.0), (torch.tensor(2.0), 1.0)):
        scores[140] = score
        meter = FoundBoxes()
        found = [{"boxes": guesses, "labels": labels, "scores": scores.clone()}]
        meter.update(Detected(1, {}, {}, lambda found=found: found), wanted)  # type: ignore[misc]
        assert meter.compute() == pytest.approx(precision)


def test_nothing_to_be_found_is_no_score() -> None:
    meter = FoundBoxes()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    meter.update(Detected(1, {}, {}, lambda: [{**empty, "scores": torch.zeros(0)}]), [empty])
    assert meter.compute() == 0.0


def test_losses_are_the_detectors_own_and_modes_stay() -> None:
    network, (x, targets) = small(), batch()
    modes = [module.training for module in network.train().modules()]
    expected = sum(network(list(x), targets).values())
    outputs = outputs_of(TASK, network, x, targets)
    assert torch.equal(TASK.loss(outputs, targets), expected)
    assert torch.equal(TASK.loss_sum(outputs, targets), 4 * expected)
    assert [module.training for module in network.modules()] == modes
    network.eval()
    own = outputs_of(TASK, network, x, targets)
    assert not any(module.training for module in network.modules())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    twin = network.train()
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert torch.equal(TASK.loss(own, targets), sum(twin(list(x), targets).values()))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_boxes_are_those_of_eval_mode_and_are_found_once(training: bool) -> None:
    network, (x, targets) = small().eval(), batch()
    expected = network(list(x))
    network.train(training)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    outputs = outputs_of(TASK, network, x, targets)
    assert outputs.boxes is outputs.boxes
    for ours, theirs in zip(outputs.boxes, expected, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_heads_are_comparable_and_crowds_are_not_learned() -> None:
    network, (x, targets) = small().eval(), batch()
    network.requires_grad_(False)
    told = TASK.comparable(outputs_of(TASK, network, x, targets))
    assert [leaf.shape[:2] for leaf in tree_leaves(told)] == [(4, 336)] * 2
    assert float(TASK.divergence(told, told)) == 0
    crowded = [{**target, "iscrowd": torch.zeros(len(target["labels"]))} for target in targets]
    extra = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    more = [
        {
            "boxes": torch.cat([target["boxes"], extra]),
            "labels": torch.cat([target["labels"], torch.tensor([3])]),
            "iscrowd": torch.cat([torch.zeros(len(target["labels"])), torch.ones(1)]),
        }
        for target in targets
    ]
    losses = [TASK.loss(outputs_of(TASK, network, x, each), each).item() for each in (targets, crowded, more)]
    assert losses[0] == losses[1] == losses[2]


def test_a_detector_learns_to_find_shapes_and_measures_alike_twice() -> None:
    network = small(8)
    before = evaluate(network, pictures(12), task="detection")
    section = TrainingSection(epochs=6, optimizer="AdamW", learning_rate=0.01)
    for _ in Trainer(network, section, images=pictures(24), batch_size=12, task="detection").epochs():
        pass
    after = evaluate(network, pictures(12), 5, task="detection")
    assert after.loss < 0.8 * before.loss
    assert after.map50_95 > before.map50_95
    assert after == evaluate(network, pictures(12), 5, task="detection")
    assert 0 <= after.map50_95 <= 1


def check(network: nn.Module, targets: Any = None) -> None:
    drawn = shapes(4, 32)
    sets = TargetImages.of(HeldItems(drawn.images, targets or drawn.targets))
    rehearse(network, DataSplits(sets, sets, sets, 0, SHAPE), {"training": sets}, 2, task=TASK)


def target(boxes: Any, labels: Any = (1,)) -> list[Any]:
    return [{"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}] * 4


NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def crowds(marks: list[int]) -> list[Any]:
    return [{**each, "iscrowd": torch.tensor(marks)} for each in target([[1.0, 1.0, 4.0, 9.0]])]


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (
            target([[1.0, 1.0, 40.0, 9.0]]),
            r"box \[1.0, .* 9.0\] of image 1 of the training images lies outside",
        ),
        (target([[-1.0, 1.0, 4.0, 9.0]]), "lies outside the image, 32 x 32 pixels"),
        (target([[1.0, 1.0, 1.0, 9.0]]), "has no area; write x0, y0, x1, y1"),
        (target([[9.0, 1.0, 1.0, 9.0]]), "has no area"),
        (target([[1.0, 5.0, 9.0, 5.0]]), "has no area"),
        (target([[1.0, 1.0, 9.0, 32.5]]), "lies outside the image"),
        (target([[1.0, 1.0, float("inf"), 9.0]]), "lies outside"),
        (target([[1, 1, 4, 9]]), r"give floats \(K, 4\)"),
        (target([[1.0, 1.0, 4.0, 9.0]], [1.0]), r"int64 \(K,\)"),
        ([None] * 4, "must be a dict of 'boxes' and 'labels'; got"),
        (target([[float("nan"), 1.0, 1.0, 9.0]]), "lies outside"),
        (target([[1.0, 1.0, 4.0, 9.0]], [4]), "class 4 of image 1 .* it has 4 with the background, so 1 to 3"),
        (target([[1.0, 1.0, 4.0, 9.0]], [0]), "class 0 of image 1 .* or count classes from 1"),
        (target([[1.0, 1.0, 4.0, 9.0]], [1, 2]), r"has boxes .* \(1, 4\) and labels .* \(2,\)"),
        (target([1.0, 1.0, 4.0, 9.0]), r"give floats \(K, 4\)"),
        ([{"box": torch.zeros(1, 4)}] * 4, "must be a dict of 'boxes' and 'labels'; got a dict of 'box'"),
        ([NOTHING] * 4, "there is no box in the first 4 of the training images"),
        (crowds([1]), "there is no box but crowds and difficult ones in the first 4 of the training images"),
        (crowds([0, 1]), r"image 1 of the training images has iscrowd .* \(2,\); give a number for each of 1 boxes"),
        ([{**NOTHING, "iscrowd": None}] * 4, "has iscrowd .*; give a number for each of 0 boxes"),
        ([*target([[1.0, 1.0, 4.0, 9.0]])[:3], {**NOTHING, "labels": torch.zeros(1)}], "image 4 of the training"),
    ],
)
def test_targets_that_do_not_fit_are_told_before_training(targets: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check(small(), targets)


def test_every_annotation_is_looked_at_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in memory, however many images have to be read."""
    monkeypatch.setattr("dnas.data.target_images._MOST_LOOKED_AT", 1)
    files = [Annotated("unread", 32, 32, ((1, 1, 9, 9),), (label,), (False,)) for label in (1, 2, 7)]
    images = TargetImages(BoxFiles(files, (32, 32)), torch.arange(3), SHAPE, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(InputError, match="class 7 of image 3 of the training images does not fit the network's head"):
        TASK.check_targets({"training": images}, small())


def test_images_without_a_box_are_fine_among_others() -> None:
    check(small(), [*shapes(3, 32).targets, NOTHING])


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), r"the network \(Sequential\) is no detector: its forward takes no targets"),
        (Plain(losses=torch.zeros(2)), "a detector returns a dict of losses"),
        (Plain(losses={"boxes": torch.zeros(2)}), "a detector returns a dict of losses"),
        (Plain(found={"boxes": 1}), "a detector returns for each image a dict of 'boxes'"),
        (Plain(found=[]), "a detector returns for each image"),
    ],
)
def test_networks_that_are_no_detectors_are_told(network: nn.Module, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check(network)


def test_a_detector_of_ones_own_is_trained_without_a_head() -> None:
    check(Plain())
    x, targets = batch()
    outputs = detect(Plain().train(), x, targets)
    assert float(TASK.divergence(TASK.comparable(outputs), {})) == 0


def test_a_missing_library_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(InputError, match=r"needs torchmetrics and pycocotools: pip install 'dnas\[det") as caught:
        task_of("detection")
    assert str(caught.value).count("pip install") == 1


def of_family(family: str) -> nn.Module:
    """torchvision's own class of a family, on a backbone of five convolutions."""
    torch.manual_seed(0)
    if family == "ssd":
        return tiny_ssd(width=4, size=64)
    body = TinyBackbone(3, 4)
    body.out_channels = [8, 16, 16]
    fpn = torchvision.models.detection.backbone_utils.BackboneWithFPN(
        body, {"level1": "0", "level2": "1", "level3": "2"}, [8, 16, 16], 32
    )
    sizes = {"min_size": 64, "max_size": 64, "num_classes": 4}
    if family == "fcos":
        one = AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4)
        return torchvision.models.detection.FCOS(fpn, anchor_generator=one, **sizes)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 4)
    if family == "retinanet":
        return torchvision.models.detection.RetinaNet(fpn, anchor_generator=anchors, **sizes)
    pool = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2"], 3, 2)
    head = torchvision.models.detection.faster_rcnn.TwoMLPHead(32 * 9, 16)
    predictor = torchvision.models.detection.faster_rcnn.FastRCNNPredictor(16, 4)
    return torchvision.models.detection.FasterRCNN(
        fpn, rpn_anchor_generator=anchors, box_roi_pool=pool, box_head=head, box_predictor=predictor,
        min_size=64, max_size=64,
    )  # fmt: skip


def searched(network: nn.Module, size: int) -> tuple[float, float, float]:
    """Read, search, quantize and prune a detector: the sum of θ's gradients, the share of parameters left, the loss."""
    drawn = shapes(2, size)
    x, targets = next(iter(TargetImages.of(HeldItems(drawn.images, drawn.targets)).batches(2)))
    graph = read_graph(network, (3, size, size))
    assert not graph.channels.unknown
    assert graph.channels.groups
    options = SpaceOptions((4, 8), (4, 8), last_layer="search")
    space = build_space(graph, keeping_exact(options, graph, TASK.exact_layers))
    exact = {name for name, pair in space.fixed.items() if pair == (32, 32)}
    assert exact
    assert all("bbox" in name or "regression_head" in name for name in exact)
    table = CostTable(graph, space, build_costs())
    supernet = Supernet(network, graph, space, table, QuantizerChoice())
    calibrate(supernet.network, [x])
    supernet.train()
    with supernet.sampled(supernet.sample(1.0, "gumbel", torch.Generator().manual_seed(0))):
        TASK.loss(outputs_of(TASK, supernet, x, targets), targets).backward()
    gradients = [parameter.grad for parameter in supernet.theta.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    reached = sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None)
    fixed = quantize_fixed(network, graph, space.uniform(4))
    calibrate(fixed, [x])
    assert TASK.loss(outputs_of(TASK, fixed.eval(), x, targets), targets).isfinite()
    group = graph.channels.groups[0]
    smaller = remove_filters(fixed, graph.channels, {group.name: tuple(range(group.units // 2))})
    outputs = outputs_of(TASK, smaller, x, targets)
    assert len(outputs.boxes) == 2
    return reached, parameters(smaller) / parameters(fixed), float(TASK.loss(outputs, targets).detach())


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.whole
@pytest.mark.parametrize("family", ["ssd", "retinanet", "fcos", "faster_rcnn"])
def test_every_family_of_torchvision_is_searched_quantized_and_pruned(family: str) -> None:
    reached, left, loss = searched(of_family(family), 64)
    assert reached > 0
    assert 0 < left < 1
    assert math.isfinite(loss)


@pytest.mark.parametrize(
    "family", ["ssd", *(pytest.param(name, marks=pytest.mark.whole) for name in ("retinanet", "fcos", "faster_rcnn"))]
)
def test_channels_are_read_at_the_size_that_the_detector_itself_gives_its_images(family: str) -> None:
    """SSD300 makes 300 pixels of any image, and its last layers fit no smaller one."""
    network = of_family(family)
    last = network.get_submodule("backbone.level3.conv" if family == "ssd" else "backbone.body.level3.conv")
    assert isinstance(last, nn.Conv2d)
    last.padding = (0, 0)
    channels = read_graph(network, (3, 16, 16)).channels
    assert channels.groups
    assert channels == read_graph(network, (3, 64, 64)).channels
    assert not network.get_submodule("backbone")._forward_pre_hooks


@pytest.mark.parametrize("family", ["ssd", "retinanet", "fcos", "faster_rcnn"])
def test_a_batch_without_a_box_is_learned_from(family: str) -> None:
    network, x = of_family(family).train(), shapes(2, 64).images / 255
    outputs = outputs_of(TASK, network, x, [NOTHING, NOTHING])
    loss = TASK.loss(outputs, [NOTHING, NOTHING])
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())
    assert len(outputs.boxes) == 2


def test_operations_without_a_second_derivative_are_told_before_training() -> None:
    drawn = shapes(4, 64)
    sets = TargetImages.of(HeldItems(drawn.images, drawn.targets))
    data = DataSplits(sets, sets, sets, 0, (3, 64, 64))
    rehearse(of_family("ssd"), data, {"training": sets}, 2, task=TASK, curved=True)
    with pytest.raises(InputError, match=r"no second derivatives, of which controls.ilp is made \(.*roi_align"):
        rehearse(of_family("faster_rcnn"), data, {"training": sets}, 2, task=TASK, curved=True)


@dataclass(frozen=True)
class Published:
    """Arguments of a network of torchvision without its weights, and the side of the images that it is given here."""

    size: int
    arguments: dict[str, Any]


NO_WEIGHTS = {"num_classes": 4, "weights": None, "weights_backbone": None}
SMALL_SIDES = {"min_size": 64, "max_size": 64}
DETECTORS = {
    "ssdlite320_mobilenet_v3_large": Published(64, NO_WEIGHTS),  # both are stretched to the side that they are made for
    "ssd300_vgg16": Published(64, NO_WEIGHTS),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Published(64, {**NO_WEIGHTS, **SMALL_SIDES}),
    "retinanet_resnet50_fpn": Published(64, {**NO_WEIGHTS, **SMALL_SIDES}),
    "fcos_resnet50_fpn": Published(64, {**NO_WEIGHTS, **SMALL_SIDES}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_torchvisions_detectors_are_searched_quantized_and_pruned_unedited(name: str) -> None:
    torch.manual_seed(0)
    network = load_model(f"torchvision:{name}", arguments=DETECTORS[name].arguments).module
    reached, left, loss = searched(network, DETECTORS[name].size)
    assert reached > 0
    assert 0 < left < 1
    assert math.isfinite(loss)


def test_what_measures_is_ours_also_where_nothing_of_the_users_is_imported() -> None:
    with importing_only(set(), "the run is from elsewhere"):
        assert isinstance(task_of("detection"), Detection)
