"""Coupling-layer normalizing flows for Pyro: guides, learned priors, Boltzmann generators."""
