"""Networks over a given graph: message passing in plain torch, and an adapter for those of torch_geometric."""

from __future__ import annotations

__all__ = ["MessagePassing", "OnGraph"]

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..registry import register
from .parts import check_settings, over_batch, zeroed


class _Graph(nn.Module):
    """A module over the nodes of one graph, whose edges are part of the module's state."""

    edges: Tensor

    def __init__(self, edges: Tensor, num_nodes: int | None) -> None:
        super().__init__()
        edges, self.num_nodes = _edge_index(torch.as_tensor(edges), num_nodes)
        self.register_buffer("edges", edges)

    def _check(self, x: Tensor) -> None:
        if x.dim() < 2 or x.size(-2) != self.num_nodes:
            raise ValueError(
                f"{type(self).__name__}: the input must end in (nodes, features) with {self.num_nodes} nodes, but has "
                f"shape {tuple(x.shape)}; if the graph has nodes without edges, pass num_nodes"
            )

    def extra_repr(self) -> str:
        return f"num_nodes={self.num_nodes}, num_edges={self.edges.size(1)}"


@register
class MessagePassing(_Graph):
    """Rounds in which each node updates its state from its own and the messages along the edges that end in it.

    Maps ``(*batch, nodes, in_features)`` to ``(*batch, nodes, out_features)``. After r rounds a node knows
    of all nodes from which at most r edges lead to it. Relabelling the nodes, in the graph too, relabels
    the output. The last linear layer starts at zero.

    Args:
        in_features: Features of a node that stay, and context features.
        out_features: Parameters of the elementwise map times the features that move.
        edges: Integers ``(2, num_edges)``, the first row the nodes where edges start and the second where
            they end; or a boolean adjacency ``(nodes, nodes)``, True at ``[i, j]`` for an edge from i to j.
            For an undirected graph both directions are listed.
        hidden_dim: Size of a node's state.
        num_rounds: Number of rounds.
        num_nodes: Number of nodes; the largest one in ``edges`` plus one if not given.
        aggregation: How messages to one node are combined, ``"mean"`` or ``"sum"``.
        activation: Makes an activation module.
        dropout: Fraction of the units within an update that are dropped while training.

    Raises:
        TypeError: If ``edges`` is neither integer nor boolean.
        ValueError: If a size is not a positive integer, ``edges`` is of wrong shape or names a node that
            does not exist, ``aggregation`` is unknown, or ``dropout`` is not in [0, 1).

    Reference:
        Gilmer, Schoenholz, Riley, Vinyals, Dahl. Neural message passing for quantum chemistry. ICML 2017.
        Liu, Kumar, Ba, Kiros, Swersky. Graph normalizing flows. NeurIPS 2019.

    Example:
        >>> import torch
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> MessagePassing(2, 4, path, hidden_dim=8)(torch.ones(7, 3, 2)).shape
        torch.Size([7, 3, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        edges: Tensor,
        hidden_dim: int = 64,
        num_rounds: int = 2,
        num_nodes: int | None = None,
        aggregation: str = "mean",
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(edges, num_nodes)
        check_settings(
            in_features=in_features,
            out_features=out_features,
            hidden_dim=hidden_dim,
            num_rounds=num_rounds,
            dropout=dropout,
        )
        if aggregation not in ("mean", "sum"):
            raise ValueError(f"aggregation must be 'mean' or 'sum', got {aggregation!r}")
        self.aggregation = aggregation
        self.first = nn.Linear(in_features, hidden_dim)
        self.rounds = nn.ModuleList(_Round(hidden_dim, activation, dropout) for _ in range(num_rounds))
        self.last = nn.Sequential(activation(), zeroed(nn.Linear(hidden_dim, out_features)))

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, nodes, in_features)`` -> ``(*batch, nodes, out_features)``."""
        self._check(x)
        start, end = self.edges.unbind()
        share = self._share(end, x.dtype)
        state = self.first(x)
        for step in self.rounds:
            state = state + step(state, start, end, share)
        return self.last(state)

    def _share(self, end: Tensor, dtype: torch.dtype) -> Tensor:
        """What one message counts at the node where it ends, ``(nodes, 1)``."""
        if self.aggregation == "sum":
            return torch.ones(1, dtype=dtype, device=end.device)
        degree = end.new_zeros(self.num_nodes).index_add(0, end, torch.ones_like(end))
        return degree.clamp(min=1).to(dtype).reciprocal().unsqueeze(-1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, aggregation={self.aggregation}"


class _Round(nn.Module):
    """One round: what is added to the nodes' states."""

    def __init__(self, size: int, activation: Callable[[], nn.Module], dropout: float) -> None:
        super().__init__()
        # a linear layer of both ends' states, taken apart so that it runs over nodes and not over edges
        self.ends = nn.Linear(size, 2 * size)
        self.activation = activation()
        self.update = nn.Sequential(nn.Linear(2 * size, size), activation(), nn.Dropout(dropout), nn.Linear(size, size))

    def forward(self, state: Tensor, start: Tensor, end: Tensor, share: Tensor) -> Tensor:
        sent, received = self.ends(state).chunk(2, -1)
        messages = self.activation(sent.index_select(-2, start) + received.index_select(-2, end))
        total = messages.new_zeros(state.shape).index_add(-2, end, messages)
        return self.update(torch.cat([state, share * total], -1))


@register
class OnGraph(_Graph):
    """Runs any ``module(x, edge_index)``, such as torch_geometric's, on events that live on one graph.

    Maps ``(*batch, nodes, features)`` to ``(*batch, nodes, module's features)``: a batch is one large graph
    of unconnected copies, as such modules expect it. A coupling starts as the identity only if what comes
    last starts at zero, for instance a linear layer put after this one.

    Args:
        module: Maps ``(copies * nodes, features)`` and integers ``(2, copies * num_edges)`` to
            ``(copies * nodes, any)``.
        edges: As for `MessagePassing`.
        num_nodes: As for `MessagePassing`.

    Raises:
        TypeError: If ``module`` is no ``torch.nn.Module``, or ``edges`` is neither integer nor boolean.
        ValueError: If ``edges`` is of wrong shape or names a node that does not exist.

    Example:
        >>> import torch
        >>> class Sum(torch.nn.Module):
        ...     def forward(self, x, edge_index):
        ...         start, end = edge_index
        ...         return torch.zeros_like(x).index_add(0, end, x[start])
        >>> OnGraph(Sum(), torch.tensor([[0, 1], [2, 2]]))(torch.tensor([[1.0], [10.0], [100.0]]))
        tensor([[ 0.],
                [ 0.],
                [11.]])
    """

    def __init__(self, module: nn.Module, edges: Tensor, num_nodes: int | None = None) -> None:
        super().__init__(edges, num_nodes)
        if not isinstance(module, nn.Module):
            raise TypeError(f"OnGraph: module must be a torch.nn.Module, found {type(module).__name__}")
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, nodes, features)`` -> ``(*batch, nodes, module's features)``."""
        self._check(x)
        return over_batch(self._of_batch, x, 2)

    def _of_batch(self, x: Tensor) -> Tensor:
        copies, nodes = x.shape[:2]
        offsets = nodes * torch.arange(copies, device=x.device).unsqueeze(-1)
        edges = (self.edges.unsqueeze(1) + offsets).flatten(1)
        return self.module(x.flatten(0, 1), edges).unflatten(0, (copies, nodes))


def _edge_index(edges: Tensor, num_nodes: int | None) -> tuple[Tensor, int]:
    """Edges in either form as integers ``(2, num_edges)``, and the number of nodes."""
    found = tuple(edges.shape)
    if edges.is_floating_point() or edges.is_complex():
        raise TypeError(f"edges must be integers (2, num_edges) or booleans (nodes, nodes), found {edges.dtype}")
    if edges.dtype == torch.bool:
        if edges.dim() != 2 or found[0] != found[1] or num_nodes not in (None, found[0]):
            expected = "nodes" if num_nodes is None else num_nodes
            raise ValueError(f"edges as booleans must have shape ({expected}, {expected}), found {found}")
        edges, num_nodes = edges.nonzero().T.contiguous(), found[0]
    elif edges.dim() != 2 or found[0] != 2:
        raise ValueError(f"edges as integers must have shape (2, num_edges), found {found}")
    low, high = (int(edges.min()), int(edges.max())) if edges.numel() else (0, -1)
    num_nodes = high + 1 if num_nodes is None else num_nodes
    check_settings(num_nodes=num_nodes)
    if low < 0 or high >= num_nodes:
        raise ValueError(f"edges must name nodes from 0 to {num_nodes - 1}, found {low} to {high}")
    return edges.long().clone(), num_nodes
