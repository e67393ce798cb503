"""How many replicas Ray Serve runs: by the pictures that the engines have, whatever requests brought them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

#: What replicas report to Serve: their pictures that wait or run.
PICTURES = "stepfuse_pictures"


def by_pictures(context: AutoscalingContext) -> tuple[float, dict[str, object]]:
    """A policy of Serve's: ``target_ongoing_requests`` pictures a replica, waiting and running.

    Requests alone would say little: one asks for ten pictures, another for none, as the page's stream of live events.
    Serve rounds up, and applies bounds, delays and factors of its configuration.

    Args:
        context: What replicas have reported, averaged over ``look_back_period_s``, and requests that no replica has
            taken yet, which count as a picture each.

    Returns:
        The replicas wanted, 0 without pictures, and no state.
    """
    if context.current_num_replicas == 0:
        return context.target_num_replicas, {}
    reported = (context.aggregated_metrics or {}).get(PICTURES, {})
    pictures = sum(reported.values()) + (context.total_queued_requests or 0.0)
    return pictures / context.config.get_target_ongoing_requests(), {}
