"""Integer arithmetic on the packed codes gives what the quantized layers give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dnas.export.integer_reference import (
    input_codes,
    integer_dot,
    layer_input,
    layer_weight,
    plane_dot,
    run_layer,
    signed_plane_dot,
    xnor_dot,
)
from dnas.export.save import save_packed
from dnas.export.unpack import load
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer
from dnas.quantization.quantizers import integer_grid
from results.packed.file import DEFAULT_PROFILE, PackedFile, read_packed
from search_spaces.errors import InputError
from tests.dnas.switchable.test_net import NESTED, assignments, net_of, pruned
from tests.known import known_graph
from tests.packed_nets import (
    CASES,
    assignment_of,
    inputs_for,
    load_packed,
    model_and_graph,
    packed_net,
    same_bits,
)
from tests.toys import seeded

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FAMILIES = [("lsq", "pact"), ("nested", "nested"), ("dorefa", "dorefa"), ("lsq", "lsq")]


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution, plain or transposed, or a linear layer, with the shape of one input."""
    if draw(st.integers(0, 7)) == 0:
        return nn.Linear(draw(st.integers(1, 20)), draw(st.integers(1, 5)), draw(st.booleans())), ()
    spatial, transposed = draw(st.sampled_from([1, 2, 2, 2, 3])), draw(st.integers(0, 3)) == 0
    groups = draw(st.integers(1, 3))
    inputs, filters = (groups * draw(st.integers(1, 2)) for _ in range(2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(spatial))

    kernel, stride, dilation, padding = each(1, 3), each(1, 2), each(1, 2), each(0, 2)
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    options["bias"] = draw(st.booleans())
    kinds: list[Any] = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
    if transposed:
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        options["padding"] = tuple(min(p, d * (k - 1)) for p, d, k in zip(padding, dilation, kernel, strict=True))
    else:
        kinds = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
        options["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
        if options["padding_mode"] == "reflect" and spatial == 3:
            options["padding_mode"] = "zeros"
        if draw(st.integers(0, 5)) == 0:
            options |= {"padding": "same", "stride": 1}
    return kinds[spatial - 1](inputs, filters, kernel, **options), (inputs, *each(5, 6))


def packed_layer(path: Path, layer: nn.Module, shape: tuple[int, ...], bits: Any, choice: QuantizerChoice) -> Any:
    """One layer alone as a quantized net, with clips and gains that are no round numbers, and its file."""
    model = nn.Sequential(layer)
    graph = known_graph(model, shape or (layer.in_features,))  # type: ignore[arg-type]
    entries = same_bits(graph, *bits)
    network: Any = quantize_fixed(model, graph, entries, choice)
    generator = seeded(bits[0] + 20 * bits[1])
    with torch.no_grad():
        for quantizer in (network[0].quantize_input, network[0].quantize_weight):
            if quantizer.quantizer.clip == "learned":
                quantizer.clip.copy_(0.4 + torch.rand(quantizer.clip.shape, generator=generator))
            quantizer.gain.copy_(0.7 + torch.rand(quantizer.gain.shape, generator=generator))
        network[0].quantize_input.set_sign(bool(torch.rand((), generator=generator) < 0.5))
    save_packed(path, network.eval(), graph, assignment_of(graph, entries, choice), choice)
    return graph, network, read_packed(path)


def is_close(found: np.ndarray, expected: Tensor, tolerance: float) -> bool:
    largest = max(1.0, float(expected.abs().max()))
    differences = np.abs(found - expected.numpy()) if found.shape == tuple(expected.shape) else np.inf
    return bool(np.max(differences) <= tolerance * largest)


@SETTINGS
@given(layers(), st.integers(1, 8), st.integers(1, 8), st.sampled_from(FAMILIES), st.booleans())
def test_random_layers(
    tmp_path: Path,
    drawn: tuple[nn.Module, tuple[int, ...]],
    weight_bits: int,
    activation_bits: int,
    family: tuple[str, str],
    per_channel: bool,
) -> None:
    layer, shape = drawn
    choice = QuantizerChoice(*family, per_channel)
    graph, network, packed = packed_layer(tmp_path / "a", layer, shape, (weight_bits, activation_bits), choice)
    x = torch.randn(2, *graph.input_shape, generator=seeded(9))
    with torch.inference_mode():
        expected = network(x)
    found = run_layer(packed, "0", x.numpy())
    assert is_close(found, expected, 1e-5)
    assert np.array_equal(run_layer(packed, "0", x.numpy(), dot=plane_dot), found)


@pytest.mark.parametrize("activation_bits", range(1, 9))
@pytest.mark.parametrize("family", FAMILIES)
def test_all_pairs_of_widths_with_zero_padding(tmp_path: Path, family: tuple[str, str], activation_bits: int) -> None:
    """In float64, with gains of one, so that nothing is rounded to fp32 on the way.

    Each family has every width of either kind, and each pair of widths is that of two families.
    """
    torch.manual_seed(activation_bits)
    layer, choice = nn.Conv2d(2, 4, 3, padding=2, stride=2, groups=2), QuantizerChoice(*family, per_channel=True)
    model = nn.Sequential(layer)
    graph = known_graph(model, (2, 5, 5))
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    for weight_bits in range(1 + (activation_bits + FAMILIES.index(family)) % 2, 9, 2):
        entries = same_bits(graph, weight_bits, activation_bits)
        network: Any = quantize_fixed(model, graph, entries, choice).eval()
        save_packed(tmp_path / "a", network, graph, assignment_of(graph, entries, choice), choice)
        packed = read_packed(tmp_path / "a")
        wide = network.double()
        with torch.inference_mode():
            weight = torch.tensor(layer_weight(packed, "0").values())
            inputs = layer_input(packed, "0", x.numpy())
            assert is_close(inputs.values(), wide[0].quantize_input(x), 1e-7)
            exact = nn.functional.conv2d(
                torch.tensor(inputs.values()), weight, wide[0].bias, stride=2, padding=2, groups=2
            )
        found = run_layer(packed, "0", x.numpy())
        assert is_close(found, exact, 1e-12)
        with torch.inference_mode():
            assert is_close(found, wide(x), 1e-6)


def noting(layer: str, seen: list[tuple[str, np.ndarray, Tensor]]) -> Callable[..., None]:
    """A hook that notes what a layer reads and gives."""
    return lambda module, given, output: seen.append((layer, given[0].numpy(), output.clone()))


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("own")])
@pytest.mark.parametrize(("family", "bits"), [(("lsq", "pact"), (3, 4)), (("nested", "nested"), (1, 2))])
def test_whole_nets_layer_by_layer(tmp_path: Path, name: str, family: tuple[str, str], bits: tuple[int, int]) -> None:
    found = packed_net(tmp_path / "a", name, bits, QuantizerChoice(*family, per_channel=True))
    network, x = found.network, inputs_for(found.graph)
    seen: list[tuple[str, np.ndarray, Tensor]] = []
    for layer in found.graph.layers:
        network.get_submodule(layer.name).register_forward_hook(noting(layer.name, seen))
    with torch.inference_mode():
        network(x)
    assert {layer for layer, _, _ in seen} == {layer.name for layer in found.graph.layers}
    for layer, read, output in seen:
        assert is_close(run_layer(found.file, layer, read), output, 1e-5)


@pytest.mark.parametrize("name", ["residual", "shapes", "cube"])
def test_logits_of_integer_layers_are_those_of_the_exported_net(tmp_path: Path, name: str) -> None:
    found = packed_net(tmp_path / "a", name, (3, 4), QuantizerChoice("lsq", "pact", True))
    with torch.inference_mode():
        logits = in_integers(load_packed(found.path, found.model), found.file)(inputs_for(found.graph))
        assert is_close(logits.numpy(), found.network(inputs_for(found.graph)), 1e-4)


def in_integers(network: nn.Module, packed: PackedFile, profile: str = DEFAULT_PROFILE) -> nn.Module:
    """Let every layer's output be that of the integer reference."""

    def replace(layer: str) -> Callable[..., Tensor]:
        return lambda module, given, output: torch.tensor(
            run_layer(packed, layer, given[0].numpy(), profile=profile)
        ).to(output)

    for name, module in network.named_modules():
        if isinstance(module, QuantizedLayer):
            module.register_forward_hook(replace(name))
    return network


@pytest.mark.whole
@pytest.mark.parametrize(
    "choice", [NESTED, QuantizerChoice("nested", "nested", True), QuantizerChoice("dorefa", "lsq")]
)
@pytest.mark.parametrize("case", ["residual", "shapes", "line", "norm last"])
def test_every_profile_of_a_switchable_net(tmp_path: Path, case: str, choice: QuantizerChoice) -> None:
    """Logits of integer layers are those of the trained net, profile by profile, pruned ones too."""
    profiles = assignments(case, {"wide": (8, 7), "middle": (5, 3), "binary": (1, 1)}, choice)
    if choice.weights == "nested":
        profiles["pruned"] = pruned(case, (4, 6), choice)
    net = net_of(case, profiles, choice)
    packed = save_packed(tmp_path / "a", net)
    x = inputs_for(net.graph)
    for profile in profiles:
        seen: list[tuple[str, np.ndarray, Tensor]] = []
        view = net.alone(profile)
        for spec in net.graph.layers:
            view.get_submodule(spec.name).register_forward_hook(noting(spec.name, seen))
        with torch.inference_mode():
            view(x)
            for layer, read, output in seen:
                for dot in (integer_dot, plane_dot) if case == "residual" else (integer_dot,):
                    assert is_close(run_layer(packed, layer, read, dot, profile), output, 1e-5)
            loaded = load(tmp_path / "a", model_and_graph(case)[0], profile).view_of(profile)
            logits = in_integers(loaded, packed, profile)(x)
        assert is_close(logits.numpy(), net.view(profile)(x).detach(), 1e-4)


def test_fp32_inputs_and_weights_are_their_own_codes(tmp_path: Path) -> None:
    for bits in ((32, 4), (4, 32), (32, 32)):
        found = packed_net(tmp_path / "a", "line", bits)
        layer = found.network.get_submodule("0")
        x = inputs_for(found.graph)
        with torch.inference_mode():
            assert is_close(run_layer(found.file, "0", x.numpy(), dot=plane_dot), layer(x), 1e-5)


def test_a_layer_with_a_forward_of_its_own_is_refused(tmp_path: Path) -> None:
    found = packed_net(tmp_path / "a", "own forward", (4, 4))
    with pytest.raises(InputError, match="layer '0' does more than a Conv2d"):
        run_layer(found.file, "0", inputs_for(found.graph).numpy())


def test_input_codes_fit_their_width() -> None:
    grid = integer_grid(3, signed=True)
    codes = input_codes(np.linspace(-9, 9, 50, dtype=np.float32), 2.0, vars(grid), signed=True)
    assert (codes.min(), codes.max()) == (0, 7)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_the_identities_of_planes(weight_bits: int, activation_bits: int, length: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    windows = random.integers(0, 2**activation_bits, (2, 2, 3, length))
    codes = random.integers(0, 2**weight_bits, (2, 4, length))
    assert np.array_equal(plane_dot(windows, codes), integer_dot(windows, codes))
    odd = 2 * codes - 2**weight_bits + 1
    assert np.array_equal(signed_plane_dot(windows, codes, weight_bits), integer_dot(windows, odd))
    inside = random.integers(0, 2, (1, 2, 3, length))
    signs = (2 * (windows & 1) - 1) * inside
    assert np.array_equal(xnor_dot(windows & 1, codes & 1, inside), integer_dot(signs, 2 * (codes & 1) - 1))


def test_negative_codes_have_no_planes() -> None:
    with pytest.raises(ValueError, match="not negative"):
        plane_dot(np.full((1, 1, 1, 2), -1), np.ones((1, 1, 2), dtype=int))
