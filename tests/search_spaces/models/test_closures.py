"""Functions that a network keeps find, in a copy, the parts of the copy: what they write is what it reads."""

from __future__ import annotations

import functools
import inspect
import logging
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from dnas import quantize_fixed, read_graph
from dnas.quantization.layers import QuantizedLayer
from search_spaces.assignments import LayerBits
from search_spaces.errors import InputError
from search_spaces.models.copies import copy_network
from tests.toys import seeded

WIDTH = 4


class Note:
    """An object that keeps what a hook gives it."""

    def __init__(self, net: Any = None) -> None:
        self.net, self.last = net, torch.zeros(())

    def take(self, module: nn.Module, given: Any, output: Tensor) -> None:
        self.last = output

    __call__ = take


class Net(nn.Module):
    """Two layers, ``tie`` of whose parts is left to functions that it makes, and what ``use`` makes of the whole."""

    def __init__(self, tie: Callable[[Any], Any], use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.use = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), use
        self.kept: dict[str, Tensor] = {}
        self.listed: list[Tensor] = []
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.held = tie(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, self.second(self.first(x).relu()))


def by_method(net: Any) -> None:
    net.first.register_forward_hook(lambda module, given, output: net.kept.update(last=output))


def by_default(net: Any) -> None:
    def hook(module: nn.Module, given: Any, output: Tensor, to: Any = net.kept, *, scale: Any = net.scale) -> None:
        to["last"] = output * scale

    net.first.register_forward_hook(hook)


def by_shared_names(net: Any) -> None:
    last = torch.zeros(())

    def hook(module: nn.Module, given: Any, output: Tensor) -> None:
        nonlocal last
        last = output

    net.first.register_forward_hook(hook)
    net.register_forward_hook(lambda module, given, output: output + last * net.scale)


def by_wrapping(net: Any) -> None:
    own = net.first.forward

    @functools.wraps(own)
    def forward(*given: Any) -> Tensor:
        return own(*given) * net.scale

    net.first.forward = forward


def by_list(net: Any) -> None:
    kept = net.listed
    net.first.register_forward_hook(lambda module, given, output: kept.append(output))


def by_note(make: Callable[[Note], Any]) -> Callable[[Any], Note]:
    def tie(net: Any) -> Note:
        note = Note(net)
        net.first.register_forward_hook(make(note))
        return note

    return tie


def by_hidden_note(net: Any) -> None:
    note = Note(net)
    net.first.register_forward_hook(lambda *given: note(*given))
    net.register_forward_hook(lambda module, given, output: output + note.last * note.net.scale)


def read(net: Any, y: Tensor) -> Tensor:
    return y + net.kept.get("last", 0)


def plain(net: Any, y: Tensor) -> Tensor:
    return y


def noted(net: Any, y: Tensor) -> Tensor:
    return y + net.held.last


def last_of_list(net: Any, y: Tensor) -> Tensor:
    return y + (net.listed[-1] if net.listed else 0)


NETWORKS: dict[str, Callable[[], Net]] = {
    "a hook that knows the network": lambda: Net(by_method, read),
    "defaults": lambda: Net(by_default, read),
    "names that functions share": lambda: Net(by_shared_names, plain),
    "a wrapped forward": lambda: Net(by_wrapping, plain),
    "a list": lambda: Net(by_list, last_of_list),
    "an object": lambda: Net(by_note(lambda note: note), noted),
    "its method": lambda: Net(by_note(lambda note: note.take), noted),
    "a partial": lambda: Net(by_note(lambda note: functools.partial(Note.take, note)), noted),
    "a lambda": lambda: Net(by_note(lambda note: lambda *given: note.take(*given)), noted),
    "an object that only functions know": lambda: Net(by_hidden_note, plain),
    "methods of a list": lambda: Net(
        lambda net: (net.listed.append, {"clear": net.listed.clear}),
        lambda net, y: (net.held[1]["clear"](), net.held[0](y), net.listed[0] * 2)[2],
    ),
    "steps": lambda: Net(lambda net: [lambda y: net.second(y), (torch.tanh,)], lambda net, y: net.held[0](y)),
    "a bound function": lambda: Net(
        lambda net: setattr(net, "use", types.MethodType(lambda own, net, y: y * own.scale, net)), plain
    ),
    "a forward in its place": lambda: Net(
        lambda net: setattr(net, "forward", lambda x: net.second(net.first(x).tanh())), plain
    ),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def made(name: str, ran: bool = False) -> Net:
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    if ran:
        net(torch.randn(3, WIDTH))
    return net


def images() -> Tensor:
    return torch.randn(3, WIDTH, generator=seeded())


@every_network
@pytest.mark.parametrize("ran", [False, True])
def test_a_copy_is_the_network_and_leaves_it_alone(name: str, ran: bool) -> None:
    """What hooks of a copy wrote into the original the copy never read: it gave what an earlier run had left."""
    net, expected = made(name, ran), made(name)(images())
    before, listed = dict(net.kept), list(net.listed)
    again = copy_network(copy_network(net))
    assert torch.equal(again(images()), expected)
    assert net.kept == before
    assert all(one is other for one, other in zip(net.listed, listed, strict=True))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(again(images()), expected)


@every_network
def test_its_twin_is_quantized_in_every_call(name: str) -> None:
    net = made(name, ran=True)
    graph = read_graph(net, (WIDTH,))
    assert set(graph.by_name) == {"first", "second"}
    twin = quantize_fixed(net, graph, {layer: LayerBits(2, 32) for layer in graph.by_name}).eval()
    assert not torch.allclose(twin(images()), made(name)(images()))
    for module in twin.modules():
        if isinstance(module, QuantizedLayer):
            cast(Any, module.quantize_weight).pass_through()
    torch.testing.assert_close(twin(images()), made(name)(images()))


def test_ids_that_a_hook_keeps_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    names = {id(module): name for name, module in model.named_modules()}
    model[0].register_forward_hook(lambda module, given, output: output * (2 if names.get(id(module)) == "0" else 1))
    with pytest.raises(InputError, match=r"'_forward_hooks' of module '0' finds modules or parameters by id\(\)"):
        copy_network(model)


def test_what_is_no_part_of_the_network_stays_what_it_is() -> None:
    teacher, data, counted = nn.Linear(WIDTH, WIDTH), list(range(20_000)), [0]

    def hook(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        counted[0] += 1
        return output + teacher(given[0]) + data[5]

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    model[0].register_forward_hook(hook)
    twin = copy_network(model)
    assert torch.equal(twin(images()), model(images()))
    assert counted == [2]
    assert next(iter(twin[0]._forward_hooks.values())) is hook


class Counting(logging.Handler):
    """Notes on a network what is logged."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def emit(self, record: logging.LogRecord) -> None:
        self.net.kept["logged"] = torch.ones(())


class Registry(dict[str, Any]):
    """There is one of it, whoever copies it."""

    def __copy__(self) -> Registry:
        return self


def test_what_there_is_one_of_is_never_written_into() -> None:
    """A logger leads to whatever its handlers hold, and is the caller's."""
    log, registry = logging.Logger("of a network"), Registry()

    def tie(net: Any) -> None:
        log.addHandler(Counting(net))
        registry["net"] = net
        net.first.register_forward_hook(lambda *_: (log.warning("first"), registry.get("net")) and None)

    net = Net(tie, lambda net, y: y)
    handlers = list(log.handlers)
    copy_network(net)
    assert log.handlers == handlers
    assert registry["net"] is net


def shares_a_store(net: Any) -> None:
    """A function in a dictionary that another function takes from."""
    net.store = {}
    net.store["whole"] = lambda: net
    net.first.register_forward_hook(functools.partial(lambda store, *given: store.update(last=given[-1]), net.store))


def uses_weak_references(net: Any) -> None:
    here = weakref.ref(net)
    net.first.register_forward_hook(lambda module, given, output: here().store.update(last=output))  # type: ignore[union-attr]
    net.store = {}


def queues(net: Any) -> None:
    net.store, net.waiting = {}, deque([lambda output: net.store.update(last=output)])
    net.first.register_forward_hook(lambda module, given, output: module_of(net).waiting[0](output))


def sets(net: Any) -> None:
    net.store, net.waiting = {}, {lambda output: net.store.update(last=output)}
    net.first.register_forward_hook(lambda module, given, output: next(iter(net.waiting))(output))


def module_of(net: Any) -> Any:
    return net


@pytest.mark.parametrize("tie", [shares_a_store, uses_weak_references, queues, sets])
def test_a_copy_keeps_what_its_functions_share(tie: Callable[[Any], None]) -> None:
    net = Net(tie, lambda net, y: y + net.store["last"])
    x = torch.rand(3, WIDTH, generator=seeded())
    expected = net(x)
    net.store["last"] = None
    twin = copy_network(net)
    assert torch.equal(twin(x), expected)
    assert twin.store["last"] is not None
    assert net.store["last"] is None


def test_a_wrapped_forward_keeps_its_signature() -> None:
    def tie(net: Any) -> None:
        own = net.first.forward
        net.first.forward = functools.update_wrapper(functools.partial(lambda module, x: own(x), net.first), own)

    twin = copy_network(Net(tie, lambda net, y: y))
    assert [*inspect.signature(twin.first.forward).parameters] == ["input"]


def test_a_proxy_of_what_is_gone_is_left_alone() -> None:
    def tie(net: Any) -> None:
        gone = weakref.proxy(nn.Linear(1, 1))
        net.first.register_forward_hook(lambda *_, module=gone: None)

    net = Net(tie, lambda net, y: y)
    hooks = [next(iter(each.first._forward_hooks.values())) for each in (net, copy_network(net))]
    one, other = (hook.__kwdefaults__["module"] for hook in hooks)  # type: ignore[index]
    assert one is other


def test_looking_for_functions_takes_no_longer_the_more_they_share() -> None:
    """Each of many hooks keeps the same thousands of lists: they are looked into once."""
    looked = 0

    class Lists(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            nonlocal looked
            looked += 1
            return super().__iter__()

    words = [Lists([str(number)]) for number in range(200)]

    def tie(net: Any) -> None:
        for _ in range(50):
            net.first.register_forward_hook(lambda *_, held=words: None)

    copy_network(Net(tie, lambda net, y: y))
    assert looked < 10 * len(words)
