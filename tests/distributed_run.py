"""Run by test_distributed in one or several processes: trains a small flow and writes what must not depend on their number."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from hf_flowft import (
    EvalConfig,
    FlowMatchingObjective,
    FlowTrainer,
    FrozenVelocity,
    GradualObjective,
    TrainConfig,
    VelocityMLP,
)
from hf_flowft.couplings import OTCoupling
from hf_flowft.data import ToyConfig, load_toy
from hf_flowft.objectives import ReconstructionObjective
from hf_flowft.pairs import PairBuilder, PairsConfig
from hf_flowft.randomness import keyed_generator
from hf_flowft.results import write_json
from hf_flowft.training.batches import BankRows


class Spy(FlowMatchingObjective):
    """Flow matching that keeps the pairs of all processes, draw by draw (a prefetching run draws further than it trains)."""

    def __init__(self, **options):
        super().__init__(**options)
        self.pairs = []

    def draw(self, batch, generator, shard):
        """The draw, gathered over the processes."""
        drawn = super().draw(batch, generator, shard)
        self.pairs.append(shard.gather(torch.cat([drawn.x_0, drawn.x_1, drawn.t[:, None]], dim=1)))
        return drawn


def main(folder: Path, case: str, accumulation: int) -> None:
    """Train 6 steps of a case and write weights, EMA, pairs, history and scores from the main process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_toy(ToyConfig(train_size=128, eval_size=50))
    model = VelocityMLP(event_shape=[2], hidden_dim=16, num_layers=1)
    reference = FrozenVelocity(model)
    rows = None
    if case == "mle":
        builder = PairBuilder(PairsConfig("ot_output", num_steps=2), reference)
        rows = BankRows(lambda k: builder.build(data.rows("train"), {}, keyed_generator(0, "pairs", k)))
    objective = {
        "fm": lambda: Spy(),
        "ot": lambda: Spy(coupling=OTCoupling()),
        "gft": lambda: GradualObjective(reference, num_steps=6),
        "mle": lambda: ReconstructionObjective([1, 2, 4]),
    }[case]()
    config = TrainConfig(
        num_steps=6,
        batch_size=32,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        lr_schedule="cosine",
        log_every=1,
    )
    trainer = FlowTrainer(
        model, data, objective, config, EvalConfig(every=3, num_repeats=2, select_num_steps=[2]), folder, rows=rows
    )
    result = trainer.train()
    if trainer.accelerator.is_main_process:
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {
            f"ema.{k}": v for k, v in trainer.ema.shadow.items()
        }
        tensors |= {"pairs": torch.stack(objective.pairs[:6])} if isinstance(objective, Spy) else {}
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "tensors.safetensors")
        facts = {
            "history": result.history,
            "scores": trainer.selection.state(),
            "processes": trainer.accelerator.num_processes,
        }
        write_json(folder / "facts.json", facts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
