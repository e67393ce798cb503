"""A sampler of one's own, in fifteen lines: a function from a noise schedule to a table, which any engine runs.

It is DDIM, through timesteps of one's own. On data whose network is known exactly, standard normal, DDIM has a closed
form: a step from the level at angle a = arctan(noise / signal) to the one at b turns the state by cos(a - b).

python custom_sampler.py
"""

import numpy as np

import stepfuse as sf


def my_ddim(schedule: sf.NoiseSchedule, timesteps: list[int]) -> sf.StepTable:
    """Eq. 12 of Song et al. (2021) with sigma = 0, through ``timesteps``, the noisiest first, to the clean sample."""
    alphas_cumprod = np.append(schedule.alphas_cumprod[timesteps], 1.0)
    signal, noise = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    columns = {
        "t": timesteps,
        "p_x": 1 / signal[:-1],  # line 1, the clean estimate: d = p_x x + p_e e
        "p_e": -noise[:-1] / signal[:-1],
        "q_d": signal[1:],  # line 2, noised again to the next level: x' = q_d d + q_e e
        "q_e": noise[1:],
    }
    return sf.StepTable.from_columns(columns, sampler="my_ddim", levels=np.stack([signal, noise], axis=1))


def main() -> float:
    """Samples standard normal data, and returns the largest difference to the closed form."""
    schedule = sf.NoiseSchedule.linear()
    noise_at = np.sqrt(1 - schedule.alphas_cumprod)

    def network(x, t, cond):  # the exact prediction: of x = signal x0 + noise z, the mean of z is noise x
        return noise_at[t.astype(int)][:, None] * x

    table = my_ddim(schedule, [999, 750, 500, 300, 150, 50])
    start = np.random.default_rng(0).standard_normal((1000, 2)).astype(np.float32)
    with sf.Engine.from_callable(network, shape=(2,), schedule=schedule) as engine:
        samples = engine.sample(1000, table=table, noise=start)
    signal, noise = table.levels.T
    expected = np.cos(np.diff(np.arctan2(noise, signal))).prod() * start
    return float(abs(samples - expected).max())


if __name__ == "__main__":
    print(f"largest difference to the closed form: {main():.1e}")
