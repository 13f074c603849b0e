"""Inference for users: `FlowVI`."""

from .flow_vi import FlowVI

__all__ = ["FlowVI"]
