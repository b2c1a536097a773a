"""Networks as data: tables, published ones, scaling, cost. No torch."""
