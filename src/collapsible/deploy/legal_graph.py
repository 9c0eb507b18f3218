"""The graph side of ``legalise``: finds what a form replaces, and puts the form in its place."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from collapsible.deploy import legal_forms as forms
from collapsible.folding.trace import Traced, record, shape_of, trace

TAILS = ("kept", "stages", "direct", "folded")
REPEATS = ("kept", "broadcast")
BENDS = ("kept", "maximum", "two relus", "doubled")
_ADDS = (operator.add, torch.add, "add")
# Layers that one module may do at several places: each place gets its own.
_SHARED = (nn.PReLU, nn.LeakyReLU, nn.PixelShuffle)


@dataclass(frozen=True)
class Rewrite:
    """One rewrite: the layer's path (or the operation's name) in the network, and its new form."""

    place: str
    was: str
    form: str


@dataclass
class Draft:
    """A traced network under rewriting. ``shapes`` are those of its values on the input."""

    traced: Traced
    rewrites: list[Rewrite] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    added: int = 0
    dtype: torch.dtype = torch.float64

    @classmethod
    def of(cls, network: nn.Module, probe: Tensor) -> Draft:
        """Traces a copy of a network and notes shapes; raises ``UsageError`` if that fails."""
        traced = trace(copy.deepcopy(network))
        record(traced, (probe,))
        draft = cls(traced, dtype=probe.dtype)
        draft._give_each_its_own()
        return draft

    def copy(self) -> Draft:
        """A copy to go on from in two directions."""
        module = copy.deepcopy(self.traced.module)
        for old, new in zip(self.traced.graph.nodes, module.graph.nodes, strict=True):
            new.meta = dict(old.meta)
        traced = Traced(module, self.traced.inplace)
        return Draft(traced, list(self.rewrites), list(self.left), self.added, self.dtype)

    def _give_each_its_own(self) -> None:
        """A bend or a depth to space that is called at several places becomes one for each."""
        seen: set[str] = set()
        for node in self.graph.nodes:
            if node.op != "call_module":
                continue
            module = self.traced.module.get_submodule(str(node.target))
            if str(node.target) in seen and isinstance(module, _SHARED):
                self.added += 1
                name = f"legal_{self.added}"
                self.traced.module.add_submodule(name, copy.deepcopy(module))
                node.target = name
            seen.add(str(node.target))

    @property
    def graph(self) -> fx.Graph:
        return self.traced.graph

    def finish(self) -> fx.GraphModule:
        module = self.traced.module
        self.graph.eliminate_dead_code()
        self.graph.lint()
        module.delete_all_unused_submodules()
        module.recompile()
        return module

    def module_of(self, node: object, kind: type[nn.Module]) -> nn.Module | None:
        """The module that a node calls, if it is of a kind and called nowhere else."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        calls = [n for n in self.graph.nodes if n.op == "call_module" and n.target == node.target]
        module = self.traced.module.get_submodule(str(node.target))
        return module if isinstance(module, kind) and len(calls) == 1 else None

    def replace(
        self, node: fx.Node, layers: list[nn.Module], source: fx.Node | None = None
    ) -> None:
        """Put layers, one after another, in a node's place; the first reads ``source``."""
        value = source if source is not None else _first(node)
        assert isinstance(value, fx.Node)
        place = node
        for layer in layers:
            self.added += 1
            name = f"legal_{self.added}"
            self.traced.module.add_submodule(name, layer.to(self.dtype))
            with self.graph.inserting_after(place):
                value = place = self.graph.call_module(name, (value,))
        place.meta["shape"] = shape_of(node)
        node.replace_all_uses_with(value)
        self.graph.erase_node(node)

    def note(self, node: fx.Node, was: str, form: str) -> None:
        place = str(node.target) if node.op == "call_module" else node.name
        self.rewrites.append(Rewrite(place, was, form))

    def repeats(self) -> list[fx.Node]:
        """Nodes that repeat values (``repeat_interleave``)."""
        return [
            node
            for node in self.graph.nodes
            if node.op in ("call_method", "call_function")
            and getattr(node.target, "__name__", node.target) == "repeat_interleave"
        ]

    def rewrite_repeats(self, form: str) -> bool:
        """Repeated channels in a form of ``REPEATS``: addition's broadcast, or a convolution."""
        if form == "kept":
            return True
        for node in self.repeats():
            given: list[object] = list(node.args)
            times = given[1] if len(given) > 1 else node.kwargs.get("repeats")
            axis = given[2] if len(given) > 2 else node.kwargs.get("dim")
            source = _first(node)
            shape = shape_of(source) if isinstance(source, fx.Node) else None
            if axis != 1 or not isinstance(times, int) or shape is None or len(shape) != 4:
                return False
            if shape[1] == 1 and all(_broadcasts(user, node) for user in node.users):
                assert isinstance(source, fx.Node)
                node.replace_all_uses_with(source)
                self.note(node, "repeat_interleave", "the addition's own broadcast")
                self.graph.erase_node(node)
            else:
                self.note(node, "repeat_interleave", "1x1 convolution with fixed weights")
                self.replace(node, [forms.repeat_channels(shape[1], times)])
        return True

    def rewrite_deconvolutions(self, needed: Callable[[nn.ConvTranspose2d], bool]) -> None:
        """Transposed convolutions, where needed, as convolutions to phases and a shuffle."""
        for node in list(self.graph.nodes):
            deconv = self.module_of(node, nn.ConvTranspose2d)
            if not isinstance(deconv, nn.ConvTranspose2d) or not needed(deconv):
                continue
            phases = forms.as_phases(deconv)
            if phases is None:
                self.left.append(
                    f"{node.target}: a transposed convolution that does not enlarge by its stride"
                )
                continue
            stride = int(deconv.stride[0])
            self.note(node, "ConvTranspose2d", f"convolution to {stride**2} phases and a shuffle")
            shuffle = nn.PixelShuffle(stride)
            self.replace(node, [phases, shuffle])

    def shuffles(self) -> list[tuple[fx.Node, int]]:
        """Nodes that are a depth to space (``pixel_shuffle``), and by how much."""
        found = []
        for node in self.graph.nodes:
            module = self.module_of(node, nn.PixelShuffle)
            if isinstance(module, nn.PixelShuffle):
                found.append((node, module.upscale_factor))
            elif node.op == "call_function" and node.target in (
                F.pixel_shuffle,
                torch.pixel_shuffle,
            ):
                scale = node.args[1] if len(node.args) > 1 else node.kwargs["upscale_factor"]
                found.append((node, int(scale)))  # type: ignore[arg-type]
        return found

    def rewrite_shuffles(self, tail: str) -> bool:
        """Each depth to space in a form of ``TAILS``. False where that form is not to be had."""
        if tail == "kept":
            return True
        scales = [scale for _, scale in self.shuffles()]
        if tail == "direct" and all(
            len(forms.shuffle_stages(s, direct=False)) == 1 for s in scales
        ):
            return False  # the same as "stages"
        for node, scale in self.shuffles():
            shape = shape_of(node)
            if shape is None:
                return False
            layers = forms.depth_to_space(shape[1], scale, direct=tail != "stages")
            strides = " then ".join(str(layer.stride[0]) for layer in layers)
            if tail != "folded":
                self.note(
                    node, "depth to space", f"transposed convolution of ones, stride {strides}"
                )
                self.replace(node, list(layers))
                continue
            source = _first(node)
            conv = self.module_of(source, nn.Conv2d)
            if not isinstance(source, fx.Node) or conv is None or len(source.users) > 1:
                return False
            assert isinstance(conv, nn.Conv2d)
            layers = forms.depth_to_space(shape[1], scale, direct=scale == 2)
            folded = forms.fold_stage(conv, layers[0])
            if folded is None:
                return False
            strides = " then ".join(str(layer.stride[0]) for layer in layers)
            self.note(node, "depth to space", f"in {source.target}'s own stride, {strides}")
            self.replace(node, [folded, *layers[1:]], source=_first(source))
        return True

    def bends(self) -> list[tuple[fx.Node, Tensor]]:
        """Nodes that are a PReLU or leaky ReLU, and the slope of each channel."""
        found = []
        for node in self.graph.nodes:
            shape = shape_of(node)
            if shape is None or len(shape) != 4:
                continue
            module = self.module_of(node, nn.Module)
            slope: Tensor | None = None
            if isinstance(module, nn.PReLU):
                slope = module.weight.detach()
            elif isinstance(module, nn.LeakyReLU):
                slope = torch.tensor([module.negative_slope], dtype=torch.float64)
            elif node.target is F.leaky_relu:
                given = (
                    node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
                )
                slope = torch.tensor([float(given)], dtype=torch.float64)  # type: ignore[arg-type]
            elif node.target in (torch.prelu, F.prelu):
                weight = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
                slope = weight.meta.get("constant") if isinstance(weight, fx.Node) else None
            if slope is not None:
                found.append((node, slope.detach().to(self.dtype).expand(shape[1])))
        return found

    def rewrite_bends(self, form: str) -> bool:
        """Each PReLU or leaky ReLU in a form of ``BENDS``. False where that cannot be had."""
        if form == "kept":
            return True
        for node, slope in self.bends():
            if form == "maximum":
                if bool((slope > 1).any()):
                    return False
                self.note(node, "PReLU", "max(x, slope x)")
                self.replace(node, [forms.ScaledMaximum(slope)])
            elif form == "two relus":
                self.note(node, "PReLU", "relu(x) - slope relu(-x)")
                self.replace(node, [forms.TwoReLUs(slope)])
            elif not self._double(node, slope):
                return False
        return True

    def _double(self, node: fx.Node, slope: Tensor) -> bool:
        """The convolution before gives x and -x, one ReLU bends both, the next one joins them."""
        source = _first(node)
        conv = self.module_of(source, nn.Conv2d)
        if not isinstance(conv, nn.Conv2d) or not isinstance(source, fx.Node):
            return False
        if conv.groups != 1 or conv.padding_mode != "zeros" or len(source.users) > 1:
            return False
        readers = [self.module_of(user, nn.Conv2d) for user in node.users]
        joins = [r for r in readers if isinstance(r, nn.Conv2d) and r.groups == 1]
        folds = len(joins) == len(readers) and all(r.padding_mode == "zeros" for r in joins)
        module = self.traced.module
        module.set_submodule(str(source.target), forms.widen(conv))
        if folds:
            for user, reader in zip(list(node.users), joins, strict=True):
                module.set_submodule(str(user.target), forms.read_halves(reader, slope))
            self.note(node, "PReLU", "one ReLU of x and -x, joined by the next convolution")
            self.replace(node, [nn.ReLU()])
        else:
            self.note(node, "PReLU", "one ReLU of x and -x, joined by a 1x1 convolution")
            self.replace(node, [nn.ReLU(), forms.join_halves(slope)])
        return True


def _first(node: fx.Node) -> fx.Node | None:
    """The value that a node works on, whether given by position or by name."""
    value = node.args[0] if node.args else node.kwargs.get("input")
    return value if isinstance(value, fx.Node) else None


def _broadcasts(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node adds another value that has the repeated value's whole shape already."""
    others = [value for value in user.all_input_nodes if value is not node]
    return user.target in _ADDS and len(others) == 1 and shape_of(others[0]) == shape_of(node)
