"""A back end of one's own: any library that computes the network becomes an engine, by one function.

Here it is the ONNX project's reference evaluator, which is written in numpy and slow: an oracle for ONNX Runtime.

pip install onnx
python custom_backend.py
"""

import numpy as np
from onnx.reference import ReferenceEvaluator

import stepfuse as sf


def engine_on_numpy(model: str) -> sf.Engine:
    """An engine for a bundle with one ONNX file, on the reference evaluator."""
    bundle = sf.Bundle.load(model)
    evaluator = ReferenceEvaluator(str(bundle.denoiser))

    def network(x, t, cond):  # (R, *shape), (R,), {name: (R, ...)} -> the prediction, (R, *shape)
        [prediction] = evaluator.run(None, {"sample": x, "timestep": t, **cond})
        return prediction

    info = bundle.info
    return sf.Engine.from_callable(
        network,
        shape=info.shape,
        schedule=info.schedule,
        prediction_type=info.prediction_type,
        cond=info.cond,
        timestep_dtype=info.timestep_dtype,
        data_range=info.data_range,
    )


def main(model: str = "fashion", steps: int = 4) -> float:
    """Draws one image on both back ends, and returns the largest difference in shares of the data range."""
    asked = {"sampler": "ddim", "steps": steps, "cond": 7, "guidance_scale": 3.0, "seed": 0}
    with engine_on_numpy(model) as on_numpy, sf.Engine.load(model) as on_onnxruntime:
        low, high = on_numpy.info.data_range
        difference = on_numpy.sample(1, **asked) - on_onnxruntime.sample(1, **asked)
        return float(np.abs(difference).max() / (high - low))


if __name__ == "__main__":
    print(f"largest difference to ONNX Runtime: {main():.1e} of the data range")
