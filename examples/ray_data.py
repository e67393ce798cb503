"""An offline batch with Ray Data: a table of requests goes in, pictures and what draws them again come out as parquet.

A line of requests.jsonl is such as {"id": "first", "prompt": "sneaker", "seed": 7}; docs/ray.md has the columns.

pip install 'stepfuse[ray]'
python ray_data.py requests.jsonl pictures
"""

from pathlib import Path
from typing import Annotated

import ray
import typer

from stepfuse.integrations.ray import Sampler, without_written


def main(
    requests: Annotated[Path, typer.Argument(help="A table of requests, JSON lines.")],
    folder: Annotated[Path, typer.Argument(help="Where the parquet files go; what is there is not drawn again.")],
    model: Annotated[str, typer.Option(help="An embedded model's name, or a bundle folder.")] = "fashion",
    actors: Annotated[int, typer.Option(min=1, help="Processes that draw, each with the model.")] = 1,
) -> None:
    """Draws the requests that the folder does not hold yet."""
    left = without_written(ray.data.read_json(str(requests.absolute())), str(folder.absolute()))
    pictures = left.map_batches(
        Sampler,
        fn_constructor_args=(model,),
        fn_constructor_kwargs={"deterministic": True, "threads": 1},
        batch_format="pyarrow",
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    pictures.write_parquet(str(folder.absolute()))
    typer.echo(f"{ray.data.read_parquet(str(folder.absolute())).count()} rows in {folder}")


if __name__ == "__main__":
    typer.run(main)
