"""Networks whose features the field's metrics compare, in JAX; their weights are the users'."""

from fcjax.metrics.networks.inception import RESIZES, load_inception

__all__ = ["RESIZES", "load_inception"]
