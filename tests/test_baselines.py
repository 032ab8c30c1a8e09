"""The baselines of policies: behaviour cloning and noise prediction, through the same objectives, pipelines and rollouts as the flows."""

import json

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from tiny import SMALL_RUN, network, toy
from tiny_policies import pusht_policy

from hf_flowft import FlowODEScheduler, FlowPipeline, FlowPolicyPipeline, Run, Velocity, load_config
from hf_flowft.batch import Batch
from hf_flowft.cli import main
from hf_flowft.couplings import Shard
from hf_flowft.environments.base import initial_seeds
from hf_flowft.environments.rollout import rollout
from hf_flowft.objectives import (
    BehaviourCloningObjective,
    NoisePredictionConfig,
    NoisePredictionObjective,
    ObjectiveContext,
)

CONTEXT = ObjectiveContext(event_shape=(2,), num_steps=10)
SCHEDULE = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample_range=2.0)
SAMPLERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler}
EACH_SAMPLER = pytest.mark.parametrize("name", SAMPLERS)


class GaussianNoise(ModelMixin, ConfigMixin):
    """E[eps | x_k] for data from N(0.3, 0.2^2), in closed form: what a perfect network would predict."""

    @register_to_config
    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, sample, timestep, return_dict=True):
        alpha = SCHEDULE.alphas_cumprod[timestep.long()][:, None]
        variance = alpha * 0.2**2 + 1 - alpha
        x_0 = self.mean + alpha.sqrt() * 0.2**2 / variance * (sample - alpha.sqrt() * self.mean)
        return ((sample - alpha.sqrt() * x_0) / (1 - alpha).sqrt(),)


def pipeline(predicts, scheduler, seed=0):
    """A small unconditional pipeline that says what its network predicts."""
    facts = {"event_shape": [2], "predicts": predicts}
    return quiet(FlowPipeline(network(toy(), seed), scheduler, facts))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Behaviour cloning


def test_bc_is_the_squared_error_of_one_step_from_zeros(generator):
    """By hand: the model says minus the data at x = 0 and timestep 1000."""
    model, x_1 = network(toy()), torch.randn(8, 2, generator=generator)
    loss, _ = BehaviourCloningObjective()(Velocity(model), Batch(x_1), 0, generator)
    said = -model(torch.zeros(8, 2), 1000.0).sample
    torch.testing.assert_close(loss, (x_1 - said).square().mean())


def test_bc_learns_the_mean_of_two_modes():
    """Data at -1 and 1 give 0, which is no data point: what a policy without noise does at a fork."""
    model, objective = network(toy()), BehaviourCloningObjective()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    x_1 = torch.tensor([[-1.0, 1.0], [1.0, 1.0]]).repeat(8, 1)
    for _ in range(200):
        optimiser.zero_grad()
        objective(Velocity(model), Batch(x_1), 0, None)[0].backward()
        optimiser.step()
    samples = pipeline("mean", FlowODEScheduler())
    samples.model.load_state_dict(model.state_dict())
    torch.testing.assert_close(samples(3, output_type="pt").samples, torch.tensor([[0.0, 1.0]] * 3), atol=0.02, rtol=0)


def test_a_mean_is_sampled_in_one_step_whatever_is_asked(tmp_path):
    """Saved and loaded it gives the same for every number of steps and every generator, in one evaluation; noise is refused."""
    pipe = pipeline("mean", FlowODEScheduler())
    expected = -pipe.model(torch.zeros(3, 2), 1000.0).sample
    pipe.save_pretrained(tmp_path)
    loaded = quiet(FlowPipeline.from_pretrained(tmp_path))
    for steps in (1, 16):
        samples, evaluations = loaded(3, num_inference_steps=steps, output_type="pt", return_dict=False)
        assert torch.equal(samples, expected)
        assert evaluations == 1
    for option in ({"latents": torch.zeros(3, 2)}, {"sigmas": [1.0]}, {"solver": "dopri5"}):
        with pytest.raises(ValueError, match="predicts the mean, in one step from zeros"):
            loaded(3, **option)


# Noise prediction


def test_the_loss_is_that_of_diffusers(generator):
    """By diffusers' own `add_noise`, with the timesteps given to the network as they are."""
    objective = NoisePredictionConfig().build(CONTEXT)
    model, batch = network(toy()), Batch(torch.randn(8, 2, generator=generator))
    drawn = objective.draw(batch, generator, Shard())
    timestep = (1000 * (1 - drawn.t)).round().long()
    assert timestep.min() >= 0
    assert timestep.max() < 100
    noisy = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2").add_noise(
        batch.x_1, drawn.x_0, timestep
    )
    torch.testing.assert_close(drawn.x_t, noisy)
    expected = (model(noisy, timestep).sample - drawn.x_0).square().mean()
    torch.testing.assert_close(objective(Velocity(model), drawn, 0, generator)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_batch_on_two_processes_is_the_batch_on_one(generator):
    """Noise and timesteps are drawn for the whole batch."""
    objective, x_1 = NoisePredictionConfig().build(CONTEXT), torch.randn(8, 2, generator=generator)

    def draw(rank, count):
        rows = Shard(rank, count).rows(x_1)
        return objective.draw(Batch(rows), torch.Generator().manual_seed(1), Shard(rank, count))

    whole, parts = draw(0, 1), [draw(rank, 2) for rank in range(2)]
    for name in ("x_0", "x_t", "t"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


@EACH_SAMPLER
@pytest.mark.parametrize("steps", [16, 100])
def test_samples_are_those_of_diffusers_own_loop(name, steps, tmp_path):
    """Bit for bit, after saving and loading, with the noise of the stochastic one from the same generator."""
    pipeline("noise", SCHEDULE).save_pretrained(tmp_path)
    pipe = quiet(FlowPipeline.from_pretrained(tmp_path)).with_scheduler(name)
    assert type(pipe.scheduler) is SAMPLERS[name]
    samples = pipe(4, num_inference_steps=steps, generator=torch.Generator().manual_seed(3), output_type="pt").samples
    generator = torch.Generator().manual_seed(3)
    extra = {"lambda_min_clipped": -3.0} if name == "dpm" else {}
    scheduler = SAMPLERS[name].from_config(SCHEDULE.config, timestep_spacing="trailing", **extra)
    scheduler.set_timesteps(steps)
    x = torch.randn(4, 2, generator=generator)
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            predicted = pipe.model(x, timestep).sample
        x = scheduler.step(predicted, timestep, x, generator=generator).prev_sample
    assert torch.equal(samples, x)


@EACH_SAMPLER
def test_a_perfect_network_gives_the_data(name):
    """Mean and spread of a Gaussian, to the error of the samplers at their usual numbers of steps."""
    pipe = quiet(FlowPipeline(GaussianNoise(), SCHEDULE, {"event_shape": [1], "predicts": "noise"}))
    steps = 100 if name == "ddpm" else 16
    generator = torch.Generator().manual_seed(0)
    x = pipe.with_scheduler(name)(20000, num_inference_steps=steps, generator=generator, output_type="pt").samples
    assert x.mean() == pytest.approx(0.3, abs=0.02)
    assert x.std() == pytest.approx(0.2, rel=0.15)


def test_the_schedule_is_that_of_the_base():
    """A fine-tune keeps the noise levels of its base; a fresh model clips to where the data are."""
    base = DDIMScheduler(num_train_timesteps=50, beta_schedule="linear")
    kept = NoisePredictionConfig().build(ObjectiveContext((2,), 10, base_scheduler=base)).scheduler
    assert (kept.config.num_train_timesteps, kept.config.beta_schedule) == (50, "linear")
    assert (
        NoisePredictionConfig().build(ObjectiveContext((2,), 10, extent=3.5)).scheduler.config.clip_sample_range == 3.5
    )
    assert isinstance(NoisePredictionObjective(base), NoisePredictionObjective)


# What is not for them


@pytest.mark.parametrize("predicts", ["noise", "mean"])
def test_what_is_for_flows_is_refused(predicts):
    """In a sentence that says what the model predicts."""
    pipe = pipeline(predicts, SCHEDULE)
    x = torch.zeros(2, 2)
    for call in (pipe.velocity, lambda: pipe.encode(x), lambda: pipe.log_likelihood(x)):
        with pytest.raises(ValueError, match=f"predicts the {predicts}, not a velocity"):
            call()


def test_schedulers_must_go_with_the_network(tmp_path):
    """By name, when sampling, and when loading."""
    noise, flow = pipeline("noise", SCHEDULE), pipeline("velocity", FlowODEScheduler())
    with pytest.raises(ValueError, match="schedulers of a network that predicts the noise are ddpm, ddim, dpm"):
        noise.with_scheduler("ode")
    with pytest.raises(ValueError, match="predicts the velocity are ode, sde"):
        flow.with_scheduler("ddim")
    with pytest.raises(ValueError, match="'dpm' has no options"):
        noise.with_scheduler("dpm:3")
    with pytest.raises(ValueError, match="needs a number after the colon"):
        flow.with_scheduler("sde:much")
    noise.scheduler = FlowODEScheduler()
    with pytest.raises(ValueError, match=r"FlowODEScheduler .* is no scheduler for a network that predicts the noise"):
        noise(2)
    noise.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no scheduler for a network"):
        FlowPipeline.from_pretrained(tmp_path)


# Policies


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Demonstrations and a flow."""
    pytest.importorskip("gym_pusht", reason="the simulators of hf_flowft[policy] are not installed")
    folder = tmp_path_factory.mktemp("baselines")
    pusht_policy(folder / "demonstrations").save_pretrained(folder / "base")
    return folder


def words(place, name, *more):
    """Settings of a small run on the demonstrations that is judged by rollouts."""
    fixed = [f"--data.path={place / 'demonstrations'}", "--eval.environment=pusht", "--eval.episodes=1"]
    steps = ["--eval.report_num_steps=[2]", "--eval.num_repeats=1", f"--output_dir={place / name}"]
    return [*SMALL_RUN, "--data.name=robot", *fixed, *steps, *more]


def unrolled(settings):
    """The settings without rollouts."""
    return [word for word in settings if "environment" not in word]


FRESH = ("--model.name=mlp", "--model.hidden_dim=16", "--model.num_layers=1")


@pytest.fixture(scope="module")
def runs(place):
    """Both baselines, trained for two steps."""
    for name in ("bc", "noise_prediction"):
        Run(load_config(None, words(place, name, *FRESH, f"--objective.name={name}")), progress=False).execute()
    return {name: place / name for name in ("bc", "noise_prediction")}


@pytest.mark.parametrize(
    ("name", "tag", "steps", "solver"),
    [("bc", "regression", [1], "one step from zeros"), ("noise_prediction", "diffusion", [2], "ddim")],
)
def test_a_run_is_judged_by_what_it_reaches(runs, name, tag, steps, solver):
    """With the sampler it is shipped with; what belongs to flows is neither measured nor told."""
    results = json.loads((runs[name] / "results.json").read_text())
    metrics = results["metrics"]["result"]
    assert [key for key in metrics if key.startswith("target/reward")] == [
        f"target/reward_shortfall@{n}" for n in steps
    ]
    assert not {"held_out_loss", "path_length", "straightness", "nfe_dopri5"} & set(metrics)
    assert {"nearest_train", "diversity"} <= set(metrics)
    assert results["evaluation"]["solver"] == solver
    card = (runs[name] / "README.md").read_text()
    assert f"- {tag}\n" in card
    assert "flow-matching" not in card.partition("\n# ")[0]


@pytest.mark.parametrize("name", ["bc", "noise_prediction"])
def test_evaluate_says_what_the_run_said(runs, name, tmp_path):
    """By the sampler it was judged with, in the same episodes."""
    out, run = tmp_path / "again.json", runs[name]
    assert main(["evaluate", str(run / "pipeline"), "--config", str(run / "config.yaml"), "--out", str(out)]) == 0
    again = json.loads(out.read_text())["metrics"]
    known = json.loads((run / "results.json").read_text())["metrics"]["result"]
    assert [entry["value"] for entry in again.values()] == [known[key]["value"] for key in again]
    assert any("reward_shortfall" in key for key in again)


@pytest.mark.parametrize("name", ["bc", "noise_prediction"])
def test_a_run_leaves_a_policy_that_rolls_out(runs, name):
    """Loaded by name, without anything said about what it is."""
    policy = quiet(FlowPipeline.from_pretrained(runs[name] / "pipeline"))
    assert type(policy) is FlowPolicyPipeline
    assert policy.description["coupling"] == {"bc": "none", "noise_prediction": "independent"}[name]
    result = short(policy, num_inference_steps=2)
    assert result.steps[0] == 16


def short(policy, scheduler=None, **options):
    """A rollout of two decisions."""
    return rollout(policy.as_policy(scheduler=scheduler, **options), "pusht", initial_seeds("test", 1), max_steps=16)


def test_a_diffusion_policy_is_fine_tuned_as_one(place, runs, capsys):
    """On its own schedule; every method of flows refuses it, and so does a flow the loss of diffusion."""
    base = runs["noise_prediction"] / "pipeline"
    start = ("--model.name=pretrained", f"--model.path={base}")
    more = unrolled(words(place, "more", *start, "--objective.name=noise_prediction"))
    run = Run(load_config(None, more), progress=False)
    assert run.objective.scheduler.config.num_train_timesteps == 100
    assert set(run.execute().results["metrics"]) == {"base", "result"}
    sentences = {
        ("plain",): "predicts the noise, but the objective fm teaches the velocity",
        ("gft",): "gft fine-tunes a flow, but the base predicts the noise",
        ("mle", "--pairs.name=self"): "predicts the noise, but the objective mle teaches the velocity",
        ("gav", "--pairs.name=self"): "viscosity is for flows",
    }
    for (method, *more), sentence in sentences.items():
        told = unrolled(words(place, "no", *more, f"--model.path={base}"))
        assert main(["finetune", method, *told]) == 2
        assert sentence in capsys.readouterr().err
    flow = words(place, "no", "--model.name=pretrained", f"--model.path={place / 'base'}")
    assert main(["pretrain", *flow, "--objective.name=noise_prediction"]) == 2
    assert "predicts the velocity, but the objective noise_prediction teaches the noise" in capsys.readouterr().err
    assert not any((place / "no").iterdir())


def test_without_rollouts_they_are_judged_by_the_energy_score(place, capsys):
    """The loss of a flow is no choice."""
    told = unrolled(words(place, "judged", *FRESH, "--objective.name=bc"))
    run = Run(load_config(None, told), progress=False)
    assert run.trainer.evaluator.metric_name == "energy_score"
    assert main(["pretrain", *told, "--eval.metric=held_out_loss"]) == 2
    assert "held_out_loss is that of a flow, but this model predicts the mean" in capsys.readouterr().err


# Flows by their SDE


def test_a_flow_rolls_out_by_its_sde(place):
    """Chosen by name, without touching the policy; without noise it is the ODE, with noise it is not, and the same again the same."""
    policy = quiet(FlowPolicyPipeline.from_pretrained(place / "base"))
    before = policy.scheduler
    ode, still, noisy, again = (short(policy, name, num_inference_steps=4) for name in ("ode", "sde:0", "sde", "sde:1"))
    assert policy.scheduler is before
    assert ode.jerk == pytest.approx(still.jerk, rel=1e-3)
    assert noisy.jerk != pytest.approx(ode.jerk, rel=1e-3)
    assert noisy.jerk == again.jerk


def test_an_sde_of_other_pairs_warns(place):
    """The score is read off the velocity only where noise was independent."""
    policy = FlowPolicyPipeline.from_pretrained(place / "base")
    policy.register_to_config(description={**policy.description, "coupling": "independent, then best_of_k"})
    with pytest.warns(UserWarning, match="only for 'independent'"):
        policy.with_scheduler("sde")


def test_schedulers_from_the_command_line(place, runs, tmp_path, capsys):
    """`hf-flowft rollout --scheduler`, recorded with the numbers; a wrong one is a sentence."""
    told = ["--env", "pusht", "--episodes", "1", "--steps", "2", "--out", str(tmp_path / "numbers.json")]
    base, noise = (str(place / "base"), str(runs["noise_prediction"] / "pipeline"))
    assert main(["rollout", base, "--scheduler", "sde:0.5", *told]) == 0
    assert json.loads((tmp_path / "numbers.json").read_text())["scheduler"] == "sde:0.5"
    assert main(["rollout", noise, "--scheduler", "dpm", *told]) == 0
    capsys.readouterr()
    assert main(["rollout", noise, "--scheduler", "sde", *told]) == 2
    assert "predicts the noise are ddpm, ddim, dpm; got 'sde'" in capsys.readouterr().err
