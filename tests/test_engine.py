"""The update engine: every backend gives the same numbers, and nothing of SB3's life of a model gets lost in one."""

import contextlib
import copy
import shutil
import warnings
from unittest import mock

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from torch.utils._python_dispatch import TorchDispatchMode
from toy_envs import reach_demos, reach_env

from sb3_ext import REDQ
from sb3_ext.common.engine import UpdateEngine, adam, graphs
from sb3_ext.common.engine import engine as engine_module
from sb3_ext.common.engine.matmul import matmul_precision
from sb3_ext.common.engine.recording import Recording
from sb3_ext.common.engine.trees import flatten, unflatten
from sb3_ext.common.ensemble import EnsembleMLP

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")

SMALL = {"n_critics": 3, "utd_ratio": 2, "batch_size": 16, "learning_starts": 0, "device": "cpu", "seed": 0}


def make(backend="eager", **kwargs):
    """A model whose replay buffer is full of transitions, the same for every backend."""
    arguments = {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [16, 16]}, **SMALL, **kwargs}
    dict_obs = arguments["policy"].endswith("MultiInputPolicy")
    model = REDQ(env=reach_env(dict_obs=dict_obs), buffer_size=200, update_backend=backend, **arguments)
    model.set_logger(configure(None, []))
    fill(model)
    return model


def fill(model):
    rng = np.random.default_rng(0)
    model.observation_space.seed(0)
    for i in range(200):
        obs, next_obs = (model.observation_space.sample() for _ in range(2))
        if isinstance(obs, dict):
            obs, next_obs = ({key: value[None] for key, value in o.items()} for o in (obs, next_obs))
        else:
            obs, next_obs = obs[None], next_obs[None]
        action = rng.uniform(-1, 1, (1, *model.action_space.shape)).astype(np.float32)
        model.replay_buffer.add(obs, next_obs, action, rng.normal(size=1), np.array([i % 7 == 0]), [{}])


def train(model, n=5, seed=1):
    th.manual_seed(seed)
    model.train(gradient_steps=n, batch_size=16)
    return model


def assert_close(first, second, atol=2e-4):
    """Weights, targets and optimizer state; Adam divides small numbers, which makes more of a rounding error."""
    for a, b in zip(all_tensors(first), all_tensors(second), strict=True):
        th.testing.assert_close(a, b, rtol=1e-3, atol=atol)


def all_tensors(model):
    tensors = [tensor.detach() for tensor in model.policy.state_dict().values()]
    for optimizer in model._optimizers():
        tensors += [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    return tensors


@pytest.fixture
def recorded():
    """Take a recording for a compiled update: the same path through the engine without the time of a compiler."""
    with mock.patch.object(Recording, "compile", lambda self, arguments: self.run):
        yield


# --- Backends --------------------------------------------------------------------------------------------------------

SETTINGS = {
    "squashed": {},
    "truncated normal": {"policy": "TruncatedNormalMlpPolicy"},
    "layer norm": {"policy_kwargs": {"net_arch": [16, 16], "layer_norm": True}},
    "dict observations": {"policy": "MultiInputPolicy"},
    "all critics in the target": {"n_target_critics": 3},
    "one critic": {"n_critics": 1, "n_target_critics": 1},
    "n-step returns": {"n_steps": 3},
    "fixed entropy coefficient": {"ent_coef": 0.1},
    "tanh": {"policy_kwargs": {"net_arch": [16], "activation_fn": th.nn.Tanh}},
    "dropout": {"policy_kwargs": {"net_arch": [16], "dropout": 0.3, "layer_norm": True}},
    "fractions of updates": {"utd_ratio": 0.7, "policy_delay": 2},
    "AdamW": {"policy_kwargs": {"net_arch": [16], "optimizer_class": th.optim.AdamW}},
    "cloning": {"demos": reach_demos(), "demo_ratio": 0.5, "bc_gradient_steps": 2, "bc_coef": "lin_0.3"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_recorded_updates_give_the_numbers_of_eager_ones(name, recorded):
    eager, compiled = train(make("eager", **SETTINGS[name])), train(make("compiled", **SETTINGS[name]))
    assert compiled.engine.backend == "compiled" and compiled.engine._recordings
    assert_close(eager, compiled)
    logged = [model.logger.name_to_value for model in (eager, compiled)]
    assert logged[0].keys() == logged[1].keys()
    for key in logged[0]:
        assert logged[0][key] == pytest.approx(logged[1][key], rel=1e-3, abs=1e-5), key


@needs_compiler
def test_compiled_updates_give_the_numbers_of_eager_ones():
    """By inductor itself, with everything that a recipe uses."""
    kwargs = {
        **SETTINGS["cloning"],
        "policy": "TruncatedNormalMlpPolicy",
        "policy_kwargs": {"net_arch": [16, 16], "layer_norm": True},
        "standardize_observations": True,
        "n_steps": 3,
    }
    eager, compiled = train(make("eager", **kwargs)), train(make("compiled", **kwargs))
    assert compiled.engine.backend == "compiled" and len(compiled.engine._recordings) > 0
    assert_close(eager, compiled)


def test_cuda_graphs_replay_the_numbers_of_eager_updates(monkeypatch):
    """Capture needs a GPU; a recording with fixed inputs stands in for the graph and sees what a graph would see."""

    def capture(function, state):
        results = {}

        def flat():
            with th.enable_grad():
                result = function()
            results["metrics"] = result
            return [result._values]

        recording = Recording(flat, [], state)

        def replay():
            results["metrics"]._values = recording.run([])[0]

        return replay, results["metrics"]

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(UpdateEngine, "_choose", lambda self, *args: (self.requested, False, "for the test"))
    for name in ("squashed", "cloning"):
        eager, graphed = make("eager", **SETTINGS[name]), make("eager", **SETTINGS[name])
        graphed.update_backend = "cudagraph"
        for seed in range(3):
            train(eager, n=2, seed=seed)
            train(graphed, n=2, seed=seed)
        assert graphed.engine.backend == "cudagraph" and graphed.engine._graphs
        assert_close(eager, graphed, atol=1e-3)
        means = [model.logger.name_to_value["train/critic_loss"] for model in (eager, graphed)]
        assert means[0] == pytest.approx(means[1], rel=1e-3)


class Synchronisations(TorchDispatchMode):
    """Counts operations whose result the host has to wait for, or whose output shape depends on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.FORBIDDEN or (name == "_to_copy" and "device" in (kwargs or {})):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "dropout"])
def test_the_loop_of_updates_never_waits_for_the_device(name):
    model = make("eager", **SETTINGS[name])
    # With the optimizer step that a graph captures
    model.engine.backend, model.engine._is_planned = "cudagraph", True
    seen = Synchronisations()

    def watched(function, pattern, *arguments):
        with contextlib.ExitStack() as stack:
            for method in ("item", "cpu", "tolist", "numpy"):
                stack.enter_context(mock.patch.object(th.Tensor, method, forbidden(method)))
            stack.enter_context(seen)
            return function(pattern, *arguments)

    def forbidden(method):
        def call(*args, **kwargs):
            raise AssertionError(f".{method}() inside the loop of updates")

        return call

    model.engine.loop = watched
    train(model)
    assert seen.seen == []
    with seen:  # and the counter does count
        th.ones(()).item()
    assert seen.seen == ["_local_scalar_dense"]


# --- Recording -------------------------------------------------------------------------------------------------------


def test_recording_puts_the_state_back_and_takes_weights_as_inputs():
    network = EnsembleMLP(2, 3, [4])
    optimizer = th.optim.Adam(network.parameters())
    adam.initialise_state(optimizer)
    rate = th.tensor(0.001)

    def step(x):
        with th.enable_grad():
            loss = network(x).square().mean()
        adam.adam_(optimizer, th.autograd.grad(loss, list(network.parameters())), rate)
        return [loss.detach()]

    state = [*network.parameters(), *adam.state_tensors(optimizer)]
    before = [tensor.detach().clone() for tensor in state]
    x = th.randn(5, 3)
    recording = Recording(step, [x], state)
    for old, new in zip(before, state, strict=True):
        th.testing.assert_close(new, old, rtol=0, atol=0)
    # No tensor of its own: the model's memory plus nothing
    assert {id(tensor) for tensor in recording.closure} == {id(tensor) for tensor in (*state, rate)}
    losses = [recording.run([x])[0].item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
    with th.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert recording.run([x])[0].item() == 0.0


def test_discrete_observations_are_recorded():
    one_hot = th.nn.functional.one_hot
    recording = Recording(lambda x: [one_hot(x, num_classes=3)], [th.tensor([2, 0])], [])
    other = th.tensor([0, 1])
    (result,) = recording.run([other])
    th.testing.assert_close(result, one_hot(other, num_classes=3))


def test_trees():
    batch = make().replay_buffer.sample(4)
    tree = (batch, None, {"a": th.ones(2)})
    leaves, description = flatten(tree)
    rebuilt = unflatten(leaves, description)
    assert type(rebuilt[0]) is type(batch) and rebuilt[1] is None and rebuilt[2]["a"] is tree[2]["a"]
    assert rebuilt[0].rewards is batch.rewards and rebuilt[0].discounts is None
    assert hash(description) is not None
    with pytest.raises(TypeError, match="not float"):
        flatten((1.0,))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer_class", [th.optim.Adam, th.optim.AdamW])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_recorded_adam_is_pytorchs(fused, optimizer_class, weight_decay):
    th.manual_seed(0)
    ours, theirs = ([th.nn.Parameter(th.ones(3, 2)), th.nn.Parameter(th.ones(4))] for _ in range(2))
    kwargs = {"betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": weight_decay}
    optimizers = [optimizer_class(parameters, lr=1.0, **kwargs) for parameters in (ours, theirs)]
    adam.initialise_state(optimizers[0])
    for i in range(4):
        grads = [th.randn(3, 2), th.randn(4) if i != 2 else None]  # a loss may leave a parameter out
        rate = 0.1 / (i + 1)
        adam.adam_(optimizers[0], grads, th.tensor(rate), fused=fused)
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = grad
        optimizers[1].param_groups[0]["lr"] = rate
        optimizers[1].step()
    for a, b in zip(ours, theirs, strict=True):
        th.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for key in states[0]:
        for name in ("step", "exp_avg", "exp_avg_sq"):
            th.testing.assert_close(states[0][key][name], states[1][key][name])


# --- The life of a model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backends", [("eager", "compiled"), ("compiled", "eager"), ("compiled", "compiled")])
def test_saving_and_resuming_in_the_middle_of_any_backend(backends, recorded, tmp_path):
    """A run that is cut, saved, loaded with another backend and taken up equals one that is not cut."""
    whole = train(train(make("eager"), seed=1), seed=2)
    first = train(make(backends[0]), seed=1)
    first.save(tmp_path / "model")
    second = REDQ.load(tmp_path / "model", env=reach_env(), update_backend=backends[1])
    assert sorted(first.get_parameters()["policy"]) == sorted(make("eager").get_parameters()["policy"])
    second.set_logger(configure(None, []))
    fill(second)
    train(second, seed=2)
    assert_close(whole, second)


def test_set_parameters_in_the_middle_of_recorded_updates(recorded):
    other = train(make("eager", seed=5), n=3, seed=3)
    models = [train(make(backend)) for backend in ("eager", "compiled")]
    for model in models:
        # PyTorch's optimizers take over the tensors themselves
        model.set_parameters(copy.deepcopy(other.get_parameters()))
        train(model, seed=2)
    assert_close(*models)
    assert len(models[1].engine._recordings) == 2  # nothing was recorded anew


def test_learning_rate_schedule_reaches_recorded_updates(recorded):
    models = [make(backend, learning_rate=LinearSchedule(1e-2, 0.0, 1.0)) for backend in ("eager", "compiled")]
    for model in models:
        train(model)
        model._current_progress_remaining = 0.1
        train(model, seed=2)
        assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert_close(*models, atol=2e-3)
    assert len(models[1].engine._recordings) == 2
    models[1]._current_progress_remaining = 0.0
    before = all_tensors(models[1])[: len(list(models[1].actor.parameters()))]
    before = [tensor.clone() for tensor in before]
    train(models[1], seed=3)
    for old, new in zip(before, all_tensors(models[1]), strict=False):
        th.testing.assert_close(new, old, rtol=0, atol=0)


def test_changed_constants_are_recorded_anew(recorded):
    models = [train(make(backend)) for backend in ("eager", "compiled")]
    for model in models:
        model.gamma, model.tau = 0.5, 0.3
        train(model, seed=2)
    assert_close(*models)


def test_thousands_of_patterns_do_not_pile_up_recordings(recorded):
    model = make("compiled")
    for batch_size in range(4, 20):
        model.train(gradient_steps=1, batch_size=batch_size)
    assert len(model.engine._recordings) <= engine_module.MAX_RECORDINGS
    assert all(th.isfinite(tensor).all() for tensor in all_tensors(model))


# --- The choice ------------------------------------------------------------------------------------------------------


def test_auto_compiles_only_where_it_pays(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = make("auto", verbose=1)
    chosen = {}
    for n_updates in (0, 1_000, 40_000, 10_000_000):
        model.engine.plan(n_updates, 16)
        chosen[n_updates] = model.engine.backend
    assert chosen == {0: "eager", 1_000: "eager", 40_000: "eager", 10_000_000: "compiled"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Updates run")]
    assert len(lines) == 4 and "eagerly (compiling takes about 20 s" in lines[0] and "products in fp32" in lines[0]
    model = make("auto")
    model.engine._batch_size = 16
    model.engine._mark()  # inductor's cache is warm
    model.engine.plan(40_000, 16)
    assert model.engine.backend == "compiled"


def test_learn_says_which_backend_runs(capsys):
    make("auto", verbose=1).learn(3)
    assert capsys.readouterr().out.count("Updates run eagerly") == 1


def test_missing_compiler_falls_back_with_a_message_and_the_numbers_of_eager(monkeypatch):
    def no_compiler(self, arguments):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand more")

    eager = train(train(make("eager")), seed=2)
    monkeypatch.setattr(Recording, "compile", no_compiler)
    model = make("compiled")
    with pytest.warns(UserWarning, match="Compiling the update failed .*No working C.. compiler found.*install g"):
        train(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, seed=2)
    assert model.engine.backend == "eager"
    assert_close(eager, model)


def test_other_optimizers_run_eagerly():
    model = make("compiled", policy_kwargs={"net_arch": [16], "optimizer_class": th.optim.RMSprop})
    with pytest.warns(UserWarning, match="takes Adam and AdamW"):
        train(model)
    assert model.engine.backend == "eager"


def test_bad_arguments_are_refused_before_anything_is_built():
    for kwargs, message in (
        ({"update_backend": "jit"}, "'auto', 'eager', 'compiled', 'cudagraph'"),
        ({"update_backend": "cudagraph"}, "needs device='cuda'.*use 'auto'"),
        ({"matmul_precision": "fp16"}, "matmul_precision='fp16' must be one of 'fp32', 'bf16'"),
    ):
        with pytest.raises(ValueError, match=message):
            REDQ("MlpPolicy", reach_env(), device="cpu", **kwargs)


# --- Precision -------------------------------------------------------------------------------------------------------


def test_bf16_products_are_coarser_and_weights_stay_fp32(recorded):
    fine, coarse, compiled = (
        make("eager"),
        make("eager", matmul_precision="bf16"),
        make("compiled", matmul_precision="bf16"),
    )
    for model in (fine, coarse, compiled):
        train(model, n=1)
        assert all(tensor.dtype == th.float32 for tensor in all_tensors(model))
    losses = [model.logger.name_to_value["train/critic_loss"] for model in (fine, coarse, compiled)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[1] == pytest.approx(losses[2], rel=0.02)


def test_bf16_sees_each_new_weight():
    """Autocast caches converted weights: a cache that outlives an update would go on with the old ones."""
    weight = th.nn.Parameter(th.ones(4, 4))
    with matmul_precision(th.device("cpu"), "bf16"):
        first = th.nn.functional.linear(th.ones(1, 4), weight)
        with th.no_grad():
            weight.mul_(2)
        second = th.nn.functional.linear(th.ones(1, 4), weight)
    assert first.dtype == th.bfloat16 and (second == 2 * first).all()


# --- Ensemble backward -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_written_out_backward_is_autograds(layer_norm, depth):
    th.manual_seed(0)
    mlp = EnsembleMLP(3, 5, [8, 7, 6][:depth], layer_norm=layer_norm)
    for parameter in mlp.parameters():
        parameter.data += 0.1 * th.randn_like(parameter)
    x = th.randn(9, 5, requires_grad=True)
    upstream = th.randn(3, 9, 1)
    inputs = [x, *mlp.parameters()]
    ours = th.autograd.grad((mlp(x) * upstream).sum(), inputs)
    by_autograd = EnsembleMLP(3, 5, [8, 7, 6][:depth], layer_norm=layer_norm, dropout=0.5).eval()
    by_autograd.load_state_dict(mlp.state_dict())
    reference = th.autograd.grad((by_autograd(x) * upstream).sum(), [x, *by_autograd.parameters()])
    for a, b in zip(ours, reference, strict=True):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    (only_x,) = th.autograd.grad((mlp(x, frozen=True) * upstream).sum(), [x])
    th.testing.assert_close(only_x, ours[0], rtol=1e-4, atol=1e-5)


def test_second_derivatives_go_through_the_ensemble():
    """A gradient penalty (EDAC's diversity, WGAN's) differentiates a gradient."""
    th.manual_seed(0)
    mlp = EnsembleMLP(3, 5, [8, 7], layer_norm=True)
    reference = EnsembleMLP(3, 5, [8, 7], layer_norm=True, dropout=0.5).eval()
    reference.load_state_dict(mlp.state_dict())
    x = th.randn(9, 5)
    results = []
    for model in (mlp, reference):
        inputs = x.clone().requires_grad_()
        q_values = model(inputs)
        (slope,) = th.autograd.grad(q_values.sum(), inputs, create_graph=True)
        loss = q_values.mean() + slope.square().sum()
        results.append(th.autograd.grad(loss, [inputs, *model.parameters()], allow_unused=True))
    for a, b in zip(*results, strict=True):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_frozen_parameters_stay_and_the_others_learn(backend, recorded):
    model = make(backend)
    frozen = [model.actor.latent_pi[0].weight, model.critic.q_networks.hidden[0].weight]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [tensor.clone() for tensor in all_tensors(model)]
    train(model)
    for name, old, new in zip(model.policy.state_dict(), before, model.policy.state_dict().values(), strict=False):
        is_frozen = name in ("actor.latent_pi.0.weight", "critic.q_networks.hidden.0.weight")
        assert (old == new).all() == is_frozen or name.startswith("critic_target"), name


def test_copies_and_exchanged_networks_get_an_engine_of_their_own(recorded):
    model = train(make("compiled"))
    before = [tensor.clone() for tensor in all_tensors(model)]
    twin = copy.deepcopy(model)
    train(twin, seed=2)
    for old, new in zip(before, all_tensors(model), strict=True):
        th.testing.assert_close(new, old, rtol=0, atol=0)
    train(model, seed=2)
    assert_close(model, twin)
    engine = model.engine
    model.policy = copy.deepcopy(model.policy)
    model._create_aliases()
    assert model.engine is not engine


def test_interrupted_capture_leaves_the_model_as_it_was(monkeypatch):
    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(th.cuda, "Stream", Stream)
    monkeypatch.setattr(th.cuda, "current_stream", Stream)
    monkeypatch.setattr(th.cuda, "stream", lambda stream: contextlib.nullcontext())
    weight, runs = th.zeros(2), []

    def function():
        runs.append(1)
        weight.add_(1)
        if len(runs) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        graphs.capture(function, [weight])
    assert (weight == 0).all()


def test_model_of_a_gpu_loads_where_there_is_none(tmp_path):
    model = make("eager")
    model.update_backend = "cudagraph"
    model.save(tmp_path / "model")
    loaded = REDQ.load(tmp_path / "model", env=reach_env(), device="cpu")
    loaded.predict(loaded.observation_space.sample())
    with pytest.warns(UserWarning, match="not possible here"):
        loaded.learn(3)


def test_changed_gamma_reaches_n_step_returns():
    model = make("eager", n_steps=3)
    model.gamma = 0.5
    train(model)
    assert model.replay_buffer.gamma == 0.5


def test_long_calls_are_cut_into_pieces_of_bounded_length():
    model = make("eager", utd_ratio=250)
    lengths = [len(pattern) for pattern in model._due_updates(2, clones=False)]
    assert lengths == [100] * 5


def test_update_engine_is_shared_by_no_two_models():
    first, second = make(), make()
    assert isinstance(first.engine, UpdateEngine) and first.engine is not second.engine
