"""Pre-processing against Pillow, scikit-image, PyWavelets and our own exact bicubic."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.restoration import denoise_wavelet
from torch import Tensor

from collapsible.defence import create_defence, list_stages, preprocessing_scaling
from collapsible.defence.preprocessing_jpeg import CHROMA, LUMA, quantisation_table
from collapsible.defence.preprocessing_scaling import SuperResolution
from collapsible.defence.preprocessing_wavelet import Wavelet
from collapsible.errors import UnknownNameError, UsageError, WeightsError
from collapsible.imaging import resize, rgb_to_ycbcr, ycbcr_to_rgb
from collapsible.models import create_model
from collapsible.models.registry import save_weights

SIZES = [(64, 64), (37, 50), (17, 16)]


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[np.ndarray]:
    files = sorted((shared_data / "cls" / "imagenet100").glob("*.jpg"))[:3]
    return [np.asarray(Image.open(file).convert("RGB"))[60:124, 40:137] for file in files]


def batch(picture: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].to(dtype) / 255


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
def test_jpeg_is_pillows(photographs: list[np.ndarray], quality: int) -> None:
    for picture in photographs:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=quality)
        expected = np.asarray(Image.open(stream))
        result = create_defence(f"jpeg:{quality}")(batch(picture))
        assert torch.equal((result * 255).round().byte(), (batch(expected) * 255).round().byte())


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_in_torch_agrees_with_pillow(photographs: list[np.ndarray], quality: int) -> None:
    defence = create_defence(f"jpeg:{quality}")
    for picture in photographs:
        exact = defence.set_form("exact")(batch(picture))
        apart = 255 * (defence.set_form("torch")(batch(picture)) - exact).abs()
        assert apart.mean() < 0.2
        assert (apart > 1.01).float().mean() < 0.02


@pytest.mark.parametrize("quality", [1, 25, 50, 80, 100])
def test_quantisation_tables_are_those_that_pillow_writes(quality: int) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG", quality=quality)
    written = Image.open(stream).quantization  # type: ignore[attr-defined]
    for number, base in enumerate((LUMA, CHROMA)):
        assert list(written[number]) == [
            v for row in quantisation_table(base, quality) for v in row
        ]


@pytest.mark.parametrize("sigma", [0.01, 0.04])
@pytest.mark.parametrize("size", SIZES)
def test_wavelet_is_scikit_images(
    photographs: list[np.ndarray], sigma: float, size: tuple[int, int]
) -> None:
    picture = photographs[0][: size[0], : size[1]]
    x = batch(picture, torch.float64)
    expected = denoise_wavelet(picture / 255, sigma, convert2ycbcr=True, channel_axis=-1)
    result = create_defence(f"wavelet:{sigma}")(x)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(result, expected.clip(0, 1), atol=1e-12)


@pytest.mark.parametrize("wavelet", ["db1", "db2", "sym4"])
@pytest.mark.parametrize("size", SIZES)
def test_wavelet_in_torch_agrees(wavelet: str, size: tuple[int, int]) -> None:
    x = noise(*size).double()
    x[1, :, :, 4:] = 0.5
    stage = Wavelet(0.05, wavelet)
    torch.testing.assert_close(stage.smooth(x), stage.exact(x), atol=1e-10, rtol=0)


def test_wavelet_leaves_a_flat_picture() -> None:
    x = torch.full((1, 3, 20, 20), 0.25)
    for form in ("exact", "torch"):
        torch.testing.assert_close(create_defence("wavelet").set_form(form)(x), x)


def test_the_wavelets_gradient_is_the_true_one() -> None:
    stage = Wavelet(0.05)
    x = (0.3 + 0.4 * noise(10, 12)[:1].double()).requires_grad_()
    assert torch.autograd.gradcheck(stage.smooth, (x,), eps=1e-7, atol=1e-4)


def test_bits_round_to_their_levels_and_pass_the_gradient() -> None:
    x = noise(5, 6).requires_grad_()
    y = create_defence("bits:3")(x)
    torch.testing.assert_close(y * 7, (x * 7).round())
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


def test_nearest_repeats_each_pixel() -> None:
    x = noise(3, 4)
    y = create_defence("nearest")(x)
    for i in (0, 1):
        for j in (0, 1):
            assert torch.equal(y[:, :, i::2, j::2], x)


@pytest.mark.parametrize("size", [(8, 9), (1, 2), (31, 17)])
def test_bicubic_is_our_exact_one(size: tuple[int, int]) -> None:
    x = noise(*size).double()
    expected = resize(x[0].permute(1, 2, 0).numpy(), scale=2).clip(0, 1)
    result = create_defence("bicubic")(x)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_resize_shrinks_with_antialiasing() -> None:
    x = noise(40, 30).double()
    expected = resize(x[1].permute(1, 2, 0).numpy(), size=(16, 16)).clip(0, 1)
    result = create_defence("resize:16")(x)[1].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_sesr_is_the_shipped_picture(photographs: list[np.ndarray]) -> None:
    """The network on Y with bicubic chroma, by the torch-free upscaler: the same picture."""
    from collapsible import upscale

    picture = photographs[1]
    expected = upscale(picture, scale=2, model="sesr-m5").astype(int)
    result = (create_defence("sesr-m5")(batch(picture)) * 255).round()[0].permute(1, 2, 0)
    # The engine may compute in bf16.
    assert np.abs(result.numpy() - expected).mean() < 0.6


def test_super_resolution_on_luma_by_hand() -> None:
    network = create_model("sesr_m2", scale=2, expansion=8).eval()
    x = noise(9, 7)[:1]
    ycc = rgb_to_ycbcr(x[0].permute(1, 2, 0).double().numpy() * 255)
    padded = torch.from_numpy(np.pad(ycc[..., 0], 6, mode="edge") / 255).float()[None, None]
    with torch.no_grad():
        luma = network(padded)[0, 0, 12:-12, 12:-12].double().numpy() * 255
    chroma = resize(ycc[..., 1:], scale=2)
    expected = ycbcr_to_rgb(np.concatenate([luma[..., None], chroma], 2)).clip(0, 255) / 255
    result = SuperResolution(network, "x")(x)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize("options", [{"colour": "rgb"}, {"colour": "y", "act": "relu"}])
@pytest.mark.parametrize("name", ["sesr_m2", "fsrcnn"])
def test_weights_from_a_file(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    network = create_model(name, scale=2, **options).eval()
    save_weights(network, tmp_path / "net.safetensors")
    typed = name.replace("_", "-")
    defence = create_defence(typed, weights={typed: tmp_path / "net.safetensors"})
    x = noise(20, 22)
    expected = SuperResolution(network, typed)(x)
    torch.testing.assert_close(defence(x), expected, atol=1e-4, rtol=0)


def test_weights_that_are_not_shipped_or_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FSRCNN has none on luma.
    monkeypatch.setattr(preprocessing_scaling, "WEIGHTS", tmp_path)
    with pytest.raises(UsageError, match=r"no x2 weights are shipped for fsrcnn.*sesr-m5.*FILE"):
        create_defence("fsrcnn")
    with pytest.raises(WeightsError, match="no weights for fsrcnn"):
        create_defence("fsrcnn", weights={"fsrcnn": tmp_path / "none.safetensors"})
    save_weights(create_model("fsrcnn"), tmp_path / "f.safetensors")
    with pytest.raises(WeightsError, match="does not fit"):
        create_defence("sesr-m2", weights={"sesr-m2": tmp_path / "f.safetensors"})


@pytest.mark.parametrize(
    ("name", "nearest"), [("jpg:75", "jpeg"), ("wavelets", "wavelet"), ("sesr-m6", "sesr-m")]
)
def test_unknown_names_get_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match="did you mean") as caught:
        create_defence(name)
    assert caught.value.nearest is not None
    assert caught.value.nearest.startswith(nearest)


@pytest.mark.parametrize(
    "name",
    [
        "jpeg:0",
        "jpeg:101",
        "jpeg:x",
        "wavelet:2",
        "bits:0",
        "nearest:2",
        "resize:0",
        "sesr-m5:int4",
    ],
)
def test_settings_out_of_range(name: str) -> None:
    with pytest.raises(UsageError, match=r"accepted|takes no setting"):
        create_defence(name)


def test_a_chain_is_its_stages_in_order() -> None:
    x = noise(24, 20)
    parts = ["jpeg:60", "wavelet:0.02", "sesr-m5"]
    chain = create_defence("+".join(parts))
    assert chain.name == "jpeg:60+wavelet:0.02+sesr-m5"
    expected = x
    for part in parts:
        expected = create_defence(part)(expected)
    assert torch.equal(chain(x), expected)
    assert chain(x).shape == (2, 3, 48, 40)
    assert torch.equal(create_defence("none")(x), x)
    assert {"jpeg", "wavelet", "sesr-xl", "fsrcnn", "none"} <= set(list_stages())


@pytest.mark.parametrize("surrogate", ["smooth", "identity", "none"])
def test_forward_is_exact_and_backward_is_the_surrogate(surrogate: str) -> None:
    x = noise(16, 16).requires_grad_()
    defence = create_defence("jpeg:50").set_form("exact", surrogate)
    y = defence(x)
    assert torch.equal(y.detach(), create_defence("jpeg:50")(x.detach()))
    weight = noise(16, 16, seed=1)
    (y * weight).sum().backward()
    assert x.grad is not None
    if surrogate == "smooth":
        twin = x.detach().clone().requires_grad_()
        (create_defence("jpeg:50").set_form("torch")(twin) * weight).sum().backward()
        assert torch.equal(x.grad, twin.grad)  # type: ignore[arg-type]
        assert x.grad.abs().max() > 0
    else:
        expected = weight if surrogate == "identity" else torch.zeros_like(weight)
        assert torch.equal(x.grad, expected)


def test_only_batches_of_rgb_floats() -> None:
    for bad in (torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8).byte()):
        with pytest.raises(UsageError, match="float"):
            create_defence("bits")(bad)
    with pytest.raises(UsageError, match="accepted are exact, torch"):
        create_defence("bits").set_form("onnx")  # type: ignore[arg-type]
