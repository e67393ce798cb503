"""What a deployment on Ray Serve is made of, without a cluster: its options, its scaling, its replicas' hooks."""

import importlib.util
import inspect
from pathlib import Path
from types import SimpleNamespace

import handmade
import pytest
import support
import yaml

import stepfuse as sf

pytest.importorskip("ray", reason="needs the extra ray")

from ray.serve.config import AutoscalingConfig, AutoscalingContext
from ray.serve.schema import ServeDeploySchema

from stepfuse.integrations.ray import counters, deployment
from stepfuse.integrations.ray.replica import Replica
from stepfuse.integrations.ray.scaling import PICTURES, by_pictures
from stepfuse.server import ClassModel
from stepfuse.server.http_metrics import collector_of

EXAMPLE = Path(__file__).parents[4] / "examples" / "ray_serve"


def made(app):
    """The deployment of an application."""
    return app._bound_deployment


def test_a_deployment_takes_what_its_engines_take():
    found = made(deployment(["fashion", "short=fashion-8step"], serving=sf.Serving(max_rows=4, max_queue=10)))
    assert (found.name, found.num_replicas) == ("stepfuse", 1)
    assert found.max_ongoing_requests == 2 * (10 + 16)
    assert found._deployment_config.graceful_shutdown_timeout_s == 120
    found = made(deployment(["fashion"], name="shoes", num_replicas=3, max_ongoing_requests=7))
    assert (found.name, found.num_replicas, found.max_ongoing_requests) == ("shoes", 3, 7)


@pytest.mark.parametrize("options", [{"autoscaling_config": {"max_replicas": 3}}, {"num_replicas": "auto"}])
def test_replicas_are_scaled_by_pictures_unless_a_policy_is_named(options):
    config = made(deployment(["fashion"], **options))._deployment_config.autoscaling_config
    assert config.policy.get_policy().__name__ == "by_pictures"
    assert config.max_replicas == options.get("autoscaling_config", {"max_replicas": 100})["max_replicas"]
    named = {**options.get("autoscaling_config", {}), "policy": {"policy_function": "math:ceil"}}
    config = made(deployment(["fashion"], **{**options, "autoscaling_config": named}))
    assert config._deployment_config.autoscaling_config.policy.policy_function == "math:ceil"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"models": "fashion"}, TypeError, r"models must be a list of names, such as \[\"fashion\"\], got 'fashion'"),
        ({"models": []}, ValueError, "models must hold at least one model, got none"),
        ({"models": ["fashion", "fashion"]}, ValueError, "models must have names of their own, two are 'fashion'"),
        ({"models": ["nothing"]}, sf.BundleError, "nothing"),
        ({"threads": -1}, ValueError, "threads must be at least 0, got -1"),
        ({"precision": "float8"}, ValueError, "precision must be"),
        ({"device": "tpu"}, ValueError, "device must be 'cpu', 'cuda'"),
        ({"device": "cuda"}, ValueError, "ray_actor_options must ask for a GPU for 'cuda', as .*, got none"),
        (
            {"device": "cuda", "ray_actor_options": {"num_gpus": 1}, "threads": 2},
            ValueError,
            "threads must be left out on 'cuda', being of the CPU, got 2",
        ),
        (
            {"loras": {"a": "a.safetensors"}},
            sf.LoraError,
            "a LoRA must be a file, got a.safetensors, which is not there",
        ),
        ({"loras": {"x/a": "a"}}, ValueError, r"loras must be of a model that is served \(fashion\), got 'x/a'"),
        ({"loras": {"a": "a"}, "lora_bytes": -1}, ValueError, "lora_bytes must be at least 0, got -1"),
        (
            {"loras": {"a": "a"}, "backend": "openvino"},
            ValueError,
            "lora_bytes must be left out for backend 'openvino'",
        ),
        (
            {"device": "cuda", "ray_actor_options": {"num_gpus": 1}, "loras": {"a": "a"}},
            ValueError,
            "loras must be left out on 'cuda', being of the CPU, got",
        ),
        ({"api_keys": [" a"]}, ValueError, "an API key must be of printable ASCII"),
        ({"calibrate": {"other": sf.CostCurve(0, 1)}}, ValueError, "calibrate must name engines among fashion, got o"),
        ({"num_replicas": -1}, ValueError, "num_replicas"),
        ({"autoscaling_config": {"min_replicas": 3}}, ValueError, "max_replicas"),
        ({"replicas": 2}, TypeError, "replicas"),
        ({"limits": {"steps": 3}}, TypeError, "limits must be a Limits, got {'steps': 3}"),
        ({"cors_origins": "https://example.com"}, TypeError, "cors_origins must be a list of origins, got 'https:"),
    ],
)
def test_what_is_wrong_is_said_when_the_app_is_made(arguments, error, message):
    with pytest.raises(error, match=message):
        deployment(**{"models": ["fashion"], **arguments})


@pytest.mark.parametrize("where", [{}, {"device": "cuda", "ray_actor_options": {"num_gpus": 1}}], ids=["cpu", "gpu"])
def test_a_pipeline_with_prompts_may_be_deployed(tmp_path, where):
    bundle = handmade.write_bundle(tmp_path / "cats")
    assert made(deployment([f"cats={bundle.path}"], **where)).name == "stepfuse"


def context(pictures, queued, replicas, target=4):
    reported = {PICTURES: dict(enumerate(pictures))} if pictures is not None else {}
    parameters = inspect.signature(AutoscalingContext).parameters.values()
    given = {one.name: None for one in parameters if one.default is inspect.Parameter.empty}
    given |= {"current_num_replicas": replicas, "target_num_replicas": 2, "total_queued_requests": queued}
    given |= {"aggregated_metrics": reported, "config": AutoscalingConfig(target_ongoing_requests=target)}
    return AutoscalingContext(**given)


@pytest.mark.parametrize(
    ("pictures", "queued", "replicas", "wanted"),
    [
        ([10.0, 2.0], 0.0, 2, 3),
        ([0.0], 6.0, 1, 1.5),  # Serve rounds up
        ([0.0, 0.0], 0.0, 2, 0),
        (None, 4.0, 1, 1),  # none has reported yet
        (None, 0.0, 0, 2),  # what Serve wants when it starts from none
    ],
)
def test_replicas_follow_the_pictures(pictures, queued, replicas, wanted):
    assert by_pictures(context(pictures, queued, replicas)) == (wanted, {})


class BrokenError(Exception):
    pass


class Network:
    broken = False

    def __call__(self, x, t, cond):
        if self.broken:
            raise BrokenError
        return support.rowwise(x, t, cond)


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def engine(network):
    with support.make_engine(network) as engine:
        yield engine


@pytest.fixture
def replica(engine, monkeypatch):
    monkeypatch.setattr(counters.metrics, "Gauge", lambda *given: Recorded(*given))
    monkeypatch.setattr(counters.metrics, "Counter", lambda *given: Recorded(*given))
    Recorded.made = {}
    found = Replica()
    found.app = SimpleNamespace(state=SimpleNamespace(models=[ClassModel("rows", engine)]))
    return found


class Recorded:
    """A metric of Ray's: its values by their tags."""

    made: dict

    def __init__(self, name, description, labels):
        self.values, self.labels = {}, labels
        self.made[name] = self

    def set(self, value, tags):
        assert tuple(tags) == self.labels
        self.values[tuple(tags.values())] = value

    def inc(self, value, tags):
        assert tuple(tags) == self.labels
        assert value > 0
        self.values[tuple(tags.values())] = self.values.get(tuple(tags.values()), 0) + value


def test_a_replica_reports_its_pictures(replica, engine):
    assert replica.record_autoscaling_stats() == {PICTURES: 0.0}
    engine.sample(2, steps=3)
    replica.check_health()
    engine.sample(1, steps=3)
    replica.check_health()
    assert Recorded.made["stepfuse_requests_running"].values == {("rows",): 0}
    assert Recorded.made["stepfuse_requests"].values == {("rows", "finished"): 3}
    families = {family.name: family for family in collector_of(replica._models).collect()}
    [sample] = families["stepfuse_steps"].samples
    assert Recorded.made["stepfuse_steps"].values == {("rows",): sample.value} == {("rows",): 9}


def test_a_replica_whose_network_does_nothing_but_fail_is_unhealthy(replica, engine, network):
    engine.sample(1, steps=2)
    replica.check_health()
    network.broken = True
    for _ in range(2):
        with pytest.raises(BrokenError):
            engine.sample(1, steps=2)
        with pytest.raises(RuntimeError, match=r"rows: all \d forwards since the last check have failed"):
            replica.check_health()
    replica.check_health()  # nothing was asked of it
    network.broken = False
    engine.sample(1, steps=2)
    replica.check_health()


def test_a_replica_that_ends_closes_its_models(replica, engine):
    replica.__del__()
    with pytest.raises(sf.EngineClosed):
        engine.sample(1, steps=2)
    del replica.app
    replica.__del__()  # of one that could load none


def test_the_example_is_a_configuration_of_its_app():
    config = ServeDeploySchema.model_validate(yaml.safe_load((EXAMPLE / "config.yaml").read_text()))
    [application] = config.applications
    [options] = application.deployments
    file, _, name = application.import_path.partition(":")
    spec = importlib.util.spec_from_file_location("example", EXAMPLE / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert made(getattr(module, name)).name == options.name
    scaled = AutoscalingConfig(**options.autoscaling_config)
    assert scaled.policy.get_policy()(context([40.0], 0.0, 1, target=scaled.target_ongoing_requests)) == (2.5, {})
