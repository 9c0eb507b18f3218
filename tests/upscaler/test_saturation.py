"""int8 graphs give what they state, whatever the CPU's own int8 arithmetic does."""

from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest
from exact_onnx import run_exactly
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from collapsible.imaging import read_picture
from collapsible.upscaler import engines, find_graph, int8, open_engine
from collapsible.weights import find_card

COFFEE = Path(__file__).parents[2] / "examples" / "coffee.jpg"
KERNELS = arrays(np.int8, array_shapes(min_dims=4, max_dims=4, max_side=4))


@pytest.mark.parametrize(
    ("engine", "saturates"), [("onnxruntime", None), ("openvino", None), ("openvino", True)]
)
@pytest.mark.parametrize("name", ["sesr-m5", "sesr-cpu", "sesr-m11"])
def test_engines_compute_what_the_graph_states(name, engine, saturates, monkeypatch):
    if saturates is not None:
        monkeypatch.setattr(engines, "int8_saturates", lambda: saturates)
    picture = np.ascontiguousarray(read_picture(COFFEE).pixels[40:160, 60:200])
    wanted = run_exactly(onnx.load(str(find_card(name, 2).int8_path)), picture).astype(float)
    got = open_engine(find_graph(name, 2, "int8"), engine, "int8").run(picture).astype(float)
    # Sums that saturate are off by 10 and more.
    assert ((got - wanted) ** 2).mean() < 1


def test_saturation_is_found_where_the_cpu_has_no_vnni(cpu_flags):
    assert int8.int8_saturates() == (not {"avx512_vnni", "avx_vnni"} & cpu_flags)


@given(KERNELS)
def test_no_pair_of_weights_overflows(weight):
    codes, steps = int8.without_overflow(weight)
    assert codes.shape == weight.shape
    assert steps.shape == weight.shape[:1]
    assert (steps >= 1).all()
    for row in codes.reshape(len(codes), -1).astype(int):
        pairs = [*combinations(row, 2), *((code, 0) for code in row)]
        # The greatest unsigned byte with each: what vpmaddubsw adds up in 16 bits.
        assert all(-(2**15) <= 255 * (a + b) < 2**15 for a, b in pairs)


@given(KERNELS, st.integers(1, 60))
def test_weights_within_the_bound_stay(weight, largest):
    small = np.clip(weight, -largest, largest)
    codes, steps = int8.without_overflow(small)
    assert np.array_equal(codes, small)
    assert (steps == 1).all()


@given(KERNELS)
def test_flat_areas_keep_their_level(weight):
    codes, steps = int8.without_overflow(weight)
    kept = codes.sum((2, 3)) * steps[:, None].astype(float)
    step = steps[:, None].astype(float)
    assert (np.abs(kept - weight.astype(float).sum((2, 3))) <= 0.5 * step + 1e-3).all()
    # To one step each, twice what rounding alone would do.
    error = np.abs(codes * steps.reshape(-1, 1, 1, 1).astype(float) - weight)
    assert (error <= steps.reshape(-1, 1, 1, 1) + 1e-3).all()
