"""Architectures as data: tables, published models, compound scaling, FLOPs. No torch."""
