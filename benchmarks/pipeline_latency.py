"""A picture of a prompt in five ways from the same weights and latents: its latency, and the peak memory.

Each way is a process of its own, which makes a picture to warm up and then three; ``sd_pipelines.py`` has the ways.
With ``--quick`` all ways share a process, which imports torch once: its peak memory is that of all.
"""

from __future__ import annotations

from picture_processes import Comparison
from sd_pipelines import WAYS, save_with_bundle

UNFAIR = (
    "Weights are random: pictures are noise, times and memory are those of any weights.",
    "The sizes are small for text to image; the larger the network, the less the loop around it matters.",
    "Where ONNX Runtime runs, most of the difference to eager torch is the network library's, not the loop's.",
    "The Python loop is ours, written as optimum's pipelines are; optimum itself is not installed.",
    "compile(pipe, bundle) keeps the torch pipeline in memory beside the bundle's denoiser.",
    "Peak memory is the kernel's largest resident set, shared libraries and the load of the weights included.",
    "Loading is not timed: a process that makes one picture pays for the imports too, see cold_start.py.",
)

COMPARISON = Comparison(
    script=__file__,
    about=__doc__,
    save=save_with_bundle,
    ways=WAYS,
    peer="diffusers eager",
    bounds=dict.fromkeys(WAYS, 1e-3),
    unfair=UNFAIR,
)

if __name__ == "__main__":
    COMPARISON.run()
