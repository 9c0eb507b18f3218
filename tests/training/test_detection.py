"""Detection: readers, the network against torchvision's own, training, average precision."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.errors import PictureError, UsageError, WeightsError
from collapsible.evaluation.boxed import clean_box, find_boxed
from collapsible.evaluation.detection import score_boxes
from collapsible.models.detector import create_detector, load_backbone, load_detector
from collapsible.models.registry import save_weights
from collapsible.models.trained import create_classifier
from collapsible.reproduce.drawn_boxes import draw_discs
from collapsible.training import read_recipe, train_detector
from collapsible.training.recipes import parse_recipe

pytest.importorskip("faster_coco_eval")

TINY = {
    "name": "tiny",
    "task": "detection",
    "steps": 6,
    "checkpoint_every": 3,
    "validate_every": 100,
    "log_every": 1,
    "average": 0.9,
    "network": {
        "name": "timm:resnet10t",
        "options": {
            "form": "fpn",
            "width": 64,
            "fpn_width": 32,
            "anchors": [12, 20, 28, 40, 60],
            "channels": [16, 32, 48, 64],
            "stem_width": 16,
        },
    },
    "data": {"size": 96, "batch": 4},
    "optimiser": {"kind": "adamw", "learning_rate": 2e-3, "clip": 5.0},
}


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    return draw_discs(tmp_path_factory.mktemp("discs") / "voc")


def voc(folder, boxes, name="a", size=(40, 30)):
    for part in ("Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / "JPEGImages" / f"{name}.png")
    objects = "".join(
        f"<object><name>{kind}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin>"
        f"<xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
        for kind, b in boxes
    )
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


def coco(folder, annotations, images=None):
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "val").mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / "val" / "a.png")
    record = {
        "images": images or [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": annotations,
    }
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(record))
    return folder


def test_voc_and_coco_say_the_same(tmp_path):
    boxes = [("dog", (1, 2, 11, 22)), ("cat", (5, 5, 40, 30))]
    a = find_boxed(voc(tmp_path / "voc", boxes), classes=("dog", "cat"))
    notes = [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20]},
        {"id": 2, "image_id": 7, "category_id": 9, "bbox": [5, 5, 35, 25], "iscrowd": 1},
    ]
    b = find_boxed(coco(tmp_path / "coco", notes), "val")
    assert a.classes == b.classes == ("dog", "cat")
    for one in (a.pictures[0], b.pictures[0]):
        assert one.boxes.tolist() == [[1, 2, 11, 22], [5, 5, 40, 30]]
        assert one.labels.tolist() == [1, 2]
        assert (one.width, one.height) == (40, 30)
    assert b.pictures[0].crowd.tolist() == [False, True]


def test_odd_boxes_are_named_and_refused_when_strict(tmp_path):
    boxes = [
        ("a", (-5, 2, 11, 22)),
        ("a", (8, 8, 8, 9)),
        ("a", (50, 1, 60, 9)),
        ("a", (1, 1, 9, 9)),
    ]
    folder = voc(tmp_path, boxes)
    found = find_boxed(folder)
    assert found.pictures[0].boxes.tolist() == [[0, 2, 11, 22], [1, 1, 9, 9]]
    reasons = [reason for _, reason in found.faults]
    assert len(reasons) == 3
    for reason, word in zip(reasons, ("clipped", "no area", "outside"), strict=True):
        assert word in reason
    assert all(path.name == "a.xml" for path, _ in found.faults)
    with pytest.raises(PictureError, match=r"a\.xml"):
        find_boxed(folder, strict=True)


def test_unreadable_pictures_are_named_and_refused_when_strict(tmp_path):
    folder = voc(voc(tmp_path, [("a", (1, 1, 9, 9))]), [("a", (1, 1, 9, 9))], "b")
    (folder / "JPEGImages" / "b.png").write_bytes(b"no picture")
    found = find_boxed(folder)
    assert len(found) == 1
    assert found.skipped[0][0].name == "b.png"
    with pytest.raises(PictureError, match=r"b\.png"):
        find_boxed(folder, strict=True)
    (folder / "Annotations" / "a.xml").write_text("<broken")
    with pytest.raises(UsageError, match="2 cannot be read"):
        find_boxed(folder)


def test_data_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="no data"):
        find_boxed(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="Pascal VOC"):
        find_boxed(tmp_path)
    (tmp_path / "x.json").write_text('{"images": []}')
    with pytest.raises(UsageError, match="not a COCO"):
        find_boxed(tmp_path / "x.json")
    with pytest.raises(UsageError, match=r"boxes of bird; .* known are a"):
        find_boxed(voc(tmp_path / "voc", [("bird", (1, 1, 9, 9))]), classes=("a",))


@given(st.tuples(*[st.floats(-50, 90, width=32)] * 4))
def test_a_clean_box_is_inside_and_its_own_clean_box(box):
    clean, _ = clean_box(box, 40, 30)
    if clean is None:
        x1, y1, x2, y2 = box
        sides = min(x2, 40) - max(x1, 0), min(y2, 30) - max(y1, 0)
        assert min(sides) < 0.01
        return
    assert 0 <= clean[0] < clean[2] <= 40
    assert 0 <= clean[1] < clean[3] <= 30
    assert clean_box(clean, 40, 30) == (clean, "")


def test_a_hair_of_a_box_is_named_and_not_trained_on(tmp_path):
    """In float32 its sides meet, which torchvision refuses in the middle of a run."""
    hair = (30, 5, 30 + 1e-7, 20)
    found = find_boxed(voc(tmp_path, [("a", hair), ("a", (1, 1, 9, 9))]))
    assert found.pictures[0].boxes.tolist() == [[1, 1, 9, 9]]
    assert "thinner than 0.01 pixels" in found.faults[0][1]


def test_average_precision_by_hand_and_by_pycocotools(tmp_path):
    # Two things; the best detection is right, the next wrong, the third right:
    # precision 1 up to recall 1/2, then 2/3: (51 * 1 + 50 * 2/3) / 101.
    found = find_boxed(voc(tmp_path, [("a", (1, 1, 11, 11)), ("a", (20, 1, 30, 11))]))
    given_boxes = {
        "boxes": [[1, 1, 11, 11], [1, 15, 11, 25], [20, 1, 30, 11]],
        "labels": [1, 1, 1],
        "scores": [0.9, 0.8, 0.7],
    }
    scores = score_boxes(found, [given_boxes])
    assert scores.map == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert scores.map50 == pytest.approx(scores.map)
    assert scores.small == pytest.approx(scores.map)
    assert scores.large is None
    assert score_boxes(found, [{"boxes": [], "labels": [], "scores": []}]).map == 0


def test_average_precision_is_that_of_pycocotools(tmp_path):
    peer = pytest.importorskip("pycocotools.cocoeval")
    from pycocotools.coco import COCO

    random = np.random.default_rng(3)
    images, results = [], []
    for number in range(6):
        corner = random.uniform(0, 100, (5, 2))
        boxes = np.concatenate([corner, corner + random.uniform(10, 130, (5, 2))], 1).round(1)
        voc(
            tmp_path,
            [(random.choice(["a", "b"]), b) for b in boxes.tolist()],
            f"p{number}",
            (260, 260),
        )
        moved = np.concatenate([boxes + random.normal(0, 6, boxes.shape), boxes[::-1]])
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        results.append(
            {
                "boxes": moved,
                "labels": random.integers(1, 3, 10),
                "scores": random.permutation(10) / 10,
            }
        )
    found = find_boxed(tmp_path)
    ours = score_boxes(found, results)
    truth, flat, notes = COCO(), [], []
    for number, (picture, one) in enumerate(zip(found.pictures, results, strict=True), 1):
        images.append({"id": number, "width": 260, "height": 260})
        for box, label in zip(picture.boxes.tolist(), picture.labels.tolist(), strict=True):
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            notes.append(
                {
                    "id": len(notes) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        for box, label, score in zip(one["boxes"], one["labels"], one["scores"], strict=True):
            corner = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            flat.append(
                {
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": corner,
                    "score": float(score),
                }
            )
    truth.dataset = {
        "images": images,
        "annotations": notes,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    truth.createIndex()
    measured = peer.COCOeval(truth, truth.loadRes(flat), "bbox")
    measured.evaluate()
    measured.accumulate()
    measured.summarize()
    theirs = [100 * value if value >= 0 else None for value in measured.stats[:6]]
    mine = [ours.map, ours.map50, ours.map75, ours.small, ours.medium, ours.large]
    assert mine == pytest.approx(theirs, abs=1e-9)
    assert 1 < ours.map < 99


@pytest.mark.parametrize("form", ["single", "fpn"])
def test_the_same_boxes_as_a_faster_rcnn_built_by_hand(form):
    import timm
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    torch.manual_seed(0)
    ours = create_detector(
        "ran_i_pico", 3, form=form, size=96, max_size=144, width=64, fpn_width=32
    ).eval()
    # Large scores, or nothing would pass the threshold.
    torch.nn.init.normal_(ours.rcnn.roi_heads.box_predictor.cls_score.weight, std=1)

    class Trunk(torch.nn.Module):
        def __init__(self):
            super().__init__()
            places = (3,) if form == "single" else (0, 1, 2, 3)
            self.body = timm.create_model("ran_i_pico", features_only=True, out_indices=places)
            self.out_channels = 128 if form == "single" else 32
            if form == "fpn":
                widths = [16, 32, 64, 128]
                self.fpn = FeaturePyramidNetwork(widths, 32, LastLevelMaxPool())

        def forward(self, x):
            maps = {str(i): m for i, m in enumerate(self.body(x))}
            return self.fpn(maps) if form == "fpn" else maps

    trunk = Trunk()
    sides = (32, 64, 128, 256, 512)
    one = form == "single"
    peer = FasterRCNN(
        trunk,
        min_size=96,
        max_size=144,
        rpn_anchor_generator=AnchorGenerator(
            (sides,) if one else tuple((s,) for s in sides),
            ((0.5, 1.0, 2.0),) * (1 if one else 5),
        ),
        box_roi_pool=MultiScaleRoIAlign(["0"] if one else ["0", "1", "2", "3"], 7, 2),
        box_head=TwoMLPHead(trunk.out_channels * 49, 64),
        box_predictor=FastRCNNPredictor(64, 4),
    ).eval()
    peer.load_state_dict(ours.rcnn.state_dict())
    picture = torch.rand(3, 100, 130)
    with torch.inference_mode():
        a, b = ours([picture])[0], peer([picture])[0]
    assert len(a["boxes"])
    for key in a:
        assert torch.equal(a[key], b[key])


def test_a_classifier_gives_its_backbone(tmp_path):
    torch.manual_seed(1)
    classifier = create_classifier("ran_i_pico", 10)
    save_weights(classifier, tmp_path / "c.safetensors")
    detector = create_detector("ran_i_pico", 2, form="single", size=64, max_size=96)
    load_backbone(detector, tmp_path / "c.safetensors")
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        got = detector.rcnn.backbone(x)["0"]
        assert torch.allclose(got, classifier.forward_features(x), atol=1e-6)
    with pytest.raises(WeightsError, match="another backbone"):
        load_backbone(create_detector("ran_i_nano", 2, form="single"), tmp_path / "c.safetensors")


def test_what_cannot_be_built():
    with pytest.raises(UsageError, match="single"):
        create_detector("ran_i_pico", 2, form="fnp")
    with pytest.raises(UsageError, match="ran_i_pico"):
        create_detector("ran_i_pco", 2)
    with pytest.raises(UsageError, match="5 levels"):
        create_detector("ran_i_pico", 2, anchors=(8, 16))
    with pytest.raises(UsageError, match="flip alone"):
        parse_recipe({**TINY, "augment": {"mixup": 0.2}})


def test_resuming_changes_no_bit(discs, tmp_path):
    recipe = parse_recipe(TINY)
    whole, _ = train_detector(recipe, discs, tmp_path / "whole")
    train_detector(recipe, discs, tmp_path / "parts", stop_after=3)
    parts, _ = train_detector(recipe, discs, tmp_path / "parts", resume=True)
    assert parts.started_at == 3
    assert parts.loss == whole.loss
    a, _ = load_detector(whole.weights)
    b, card = load_detector(parts.weights)
    # Asked again when it is done, the run trains nothing and its card keeps its figures.
    train_detector(recipe, discs, tmp_path / "parts", resume=True)
    assert card.metrics
    assert load_detector(parts.weights)[1].metrics == card.metrics
    for one, other in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_it_learns_and_the_commands_work(discs, tmp_path):
    recipe = replace(parse_recipe(TINY), steps=150, checkpoint_every=200, validate_every=200)
    report, _ = train_detector(recipe, discs, tmp_path / "run")
    # Chance is far below: the class and the place must both be right.
    assert report.metrics["val/mAP50"] > 50
    done = call("evaluate", report.weights, "--data", discs, "--json")
    assert done.exit_code == 0, done.output
    measured = json.loads(done.stdout)
    assert measured["scores"]["map50"] == pytest.approx(report.metrics["val/mAP50"])
    assert measured["pictures"] == 12
    source = discs / "JPEGImages" / "val000.png"
    # After so few steps scores are low, and how low hangs on the machine's rounding.
    output = ("-o", tmp_path / "o.png", "--json")
    done = call("detect", source, "--weights", report.weights, "--score", 0.05, *output)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["pictures"][0]
    assert min(found["scores"]) >= 0.05
    assert len(found["boxes"]) == len(found["labels"]) == len(found["scores"]) > 0
    assert set(found["labels"]) <= {"blue", "red"}
    drawn, plain = np.asarray(Image.open(tmp_path / "o.png")), np.asarray(Image.open(source))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.open(source).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"none")
    done = call("detect", folder, "--weights", report.weights)
    assert done.exit_code == 0
    assert [p.name for p in (tmp_path / "mixed-boxes").iterdir()] == ["a.png.png"]
    assert call("detect", folder, "--weights", report.weights, "--strict").exit_code == 1
    # Data with a class that it does not know.
    other = voc(tmp_path / "other", [("bird", (1, 1, 9, 9))])
    done = call("evaluate", report.weights, "--data", other)
    assert done.exit_code == 2
    with pytest.raises(UsageError, match="knows 2 classes"):
        train_detector(parse_recipe(TINY), other, tmp_path / "x", start=report.weights)
    card = json.loads(report.weights.with_suffix(".json").read_text())
    report.weights.with_suffix(".json").write_text(json.dumps({**card, "task": "classification"}))
    with pytest.raises(WeightsError, match="not a detector's card"):
        load_detector(report.weights)
    report.weights.with_suffix(".json").write_text(json.dumps({**card, "backbone": "ran_i_pico"}))
    with pytest.raises(UsageError, match="channels"):
        load_detector(report.weights)


def test_errors_of_the_commands(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    weights = tmp_path / "none.safetensors"
    done = call("detect", tmp_path / "a.png", "--weights", weights)
    assert done.exit_code == 1
    assert "no detector at" in done.output
    assert call("detect", tmp_path / "b.png", "--weights", weights).exit_code == 2
    assert call("detect", tmp_path / "a.png", "--weights", weights, "--score", 3).exit_code == 2
    assert call("detect", "--help").exit_code == 0
    done = call("train", "detect/bccd-ran-i", "--data", tmp_path)
    assert done.exit_code == 2
    assert "did you mean" in done.output
    assert call("train", "detect/bccd-ran-i-fpn", "--data", tmp_path).exit_code == 2


def test_blood_cells(shared_data):
    folder = shared_data / "det" / "BCCD"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    sizes = {}
    for part in ("train", "val", "test"):
        found = find_boxed(folder, part)
        assert found.classes == ("Platelets", "RBC", "WBC")
        sizes[part] = (len(found), found.boxes + len(found.faults))
        assert not found.skipped
    assert [n for n, _ in sizes.values()] == [205, 87, 72]
    assert sum(n for _, n in sizes.values()) == 4888
    assert len(find_boxed(folder).faults) == 2


@pytest.mark.parametrize("net", ["ran-i", "convnext"])
@pytest.mark.parametrize("form", ["single", "fpn"])
def test_shipped_recipes_build(net, form):
    recipe = read_recipe(f"detect/bccd-{net}-{form}")
    network = create_detector(
        recipe.network.name, 3, size=recipe.data.size, **recipe.network.options
    )
    assert tuple(network.rcnn.roi_heads.box_predictor.cls_score.weight.shape) == (4, 256)


def test_under_autocast_the_backbone_alone_is_less_precise():
    torch.manual_seed(0)
    network = create_detector("ran_i_pico", 2, size=64, max_size=96, width=32, fpn_width=16)
    trunk, seen = network.rcnn.backbone, []
    trunk.fpn.register_forward_hook(lambda _, __, maps: seen.extend(maps.values()))
    pictures = torch.rand(2, 3, 64, 80)
    # Height and width, then label and corners of a thing.
    targets = torch.tensor([[[64, 80, 0, 0, 0], [1, 8, 8, 40, 40]]] * 2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(pictures, targets)
        loss.backward()
        found = network.eval()([pictures[0]])[0]
    assert {value.dtype for value in seen} == {torch.bfloat16}
    assert loss.dtype == found["boxes"].dtype == torch.float32
    # Without autocast nothing of it stays behind.
    seen.clear()
    network([pictures[0]])
    assert {value.dtype for value in seen} == {torch.float32}


def test_regions_and_samples_bound_the_work():
    with pytest.raises(UsageError, match="regions=0"):
        create_detector("ran_i_pico", 2, regions=0)
    network = create_detector("ran_i_pico", 2, size=64, max_size=96, regions=7, samples=5)
    rcnn, seen = network.eval().rcnn, []
    rcnn.roi_heads.box_head.register_forward_hook(lambda _, __, out: seen.append(len(out)))
    network([torch.rand(3, 64, 80)])
    network.train()
    targets = torch.tensor([[[64, 80, 0, 0, 0], [1, 8, 8, 40, 40]]], dtype=torch.float32)
    network(torch.rand(1, 3, 64, 80), targets)
    assert seen == [7, 5]
